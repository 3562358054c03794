"""lead: one leader at a time by epoch and lease; every call ticks, so that gaps are found."""

from __future__ import annotations

import pytest

from protocol.rig import GONE, START, A, Added, H, L, MakeQueue, Queue, T, changes
from stoker.store import scripts as s

SECOND = 1_000_000


def test_the_first_leader_of_an_empty_redis_makes_all_that_is_for_good(bare: Queue) -> None:
    before = bare.before()
    assert bare.lead() == s.Lead("LEADER", "1:s:1", "g")
    assert changes(before, bare.dump()) == {
        "leader": {"token": "1:s:1", "until": START + L, "n": 0},
        "epoch": 1,
        "generation": "g",
        "h": H,
        "tick": START,
        "grace": START + T,
        "events": Added([bare.event("lead", "s:1", "- grace none", "- leader 1:s:1")]),
    }


def test_leading_again_at_the_same_time_changes_nothing(q: Queue) -> None:
    q.lead()
    before = q.before()
    assert q.lead() == s.Lead("LEADER", q.token, "g")
    assert changes(before, q.dump()) == {}


def test_a_leader_renews_its_lease_in_the_same_epoch(q: Queue) -> None:
    q.dispatch(A)
    before = q.before()
    q.now += H // 4
    assert q.lead() == s.Lead("LEADER", q.token, "g")
    assert changes(before, q.dump()) == {"leader": {"until": q.now + L}, "tick": q.now}


def test_a_lapsed_leader_whose_token_stands_renews_in_the_same_epoch_and_keeps_n(q: Queue) -> None:
    q.dispatch(A)
    before = q.before()
    q.now += 2 * L
    assert q.lead() == s.Lead("LEADER", q.token, "g")
    assert changes(before, q.dump()) == {
        "leader": {"until": q.now + L},
        "tick": q.now,
        "grace": q.now + T,
        "events": Added([q.event("lead", "s:1", f"- grace {2 * L}")]),
    }


def test_a_standby_ticks_and_learns_who_leads(q: Queue) -> None:
    before = q.before()
    q.now += H // 4
    assert q.lead("other:1") == s.Lead("STANDBY", q.token, "g")
    assert changes(before, q.dump()) == {"tick": q.now}


def test_a_lease_holds_to_its_last_microsecond(q: Queue) -> None:
    lapse = q.now + L
    q.lead()
    while q.now < lapse - H:
        q.now += H
        q.lead("other:1")
    q.now = lapse - 1
    assert q.lead("other:1").word == "STANDBY"
    q.now = lapse
    assert q.lead("other:1") == s.Lead("LEADER", "2:other:1", "g")


def test_a_takeover_raises_the_epoch_and_begins_its_dispatches_at_zero(q: Queue) -> None:
    q.dispatch(A)
    old = q.token
    while q.now < START + 4 * H + L:
        q.now += H
        q.lead("other:1")
    assert q.dump()["leader"] == {"token": "2:other:1", "until": q.now + L, "n": 0}
    assert q.dump()["epoch"] == 2
    assert q.dump()["events"][-1] == q.event("lead", "other:1", "- leader 2:other:1")
    assert q.lead().word == "STANDBY"
    assert q.offer(A).word == "FENCED"
    assert old == q.token


def test_what_a_leader_tells_takes_the_place_of_what_stood_there(q: Queue) -> None:
    def leads(me: str, told: s.Told) -> dict[str, object]:
        assert q.store.run(s.lead(me, "", "g", q.config, told)).word == "LEADER"
        return {name: q.dump()["leader"].get(name) for name in ("circuits", "served", "forecast", "speeds", "rooms")}

    first = s.told({"w": "open, slow"}, {"normal:t": 5.0}, "1|1|1|1", {"i": (2.0, 0.5)}, {"i": (3, 4)})
    stands = leads("s:1", first)
    assert stands == {"circuits": "w=open, slow", "served": "normal:t=5", "forecast": "1|1|1|1"} | {
        "speeds": "i=2,0.5",
        "rooms": "i=3,4",
    }
    assert leads("s:1", first) == stands
    assert leads("s:1", s.told({}, {"normal:t": 6.0}, "", {"i": (2.0, 0.5)}, {})) == {
        "circuits": None,
        "served": "normal:t=6",
        "forecast": None,
        "speeds": "i=2,0.5",
        "rooms": None,
    }
    q.now += L
    assert set(leads("other:1", s.NOTHING_TOLD).values()) == {None}


def test_the_same_node_under_a_new_nonce_is_another_leader(q: Queue) -> None:
    assert q.lead("s:2").word == "STANDBY"


def test_a_lease_further_ahead_than_its_writer_could_put_it_is_worth_nothing(q: Queue) -> None:
    q.now -= 600 * SECOND
    assert q.lead("other:1") == s.Lead("LEADER", "2:other:1", "g")


def test_a_lease_just_as_far_ahead_as_its_writer_puts_it_holds(q: Queue) -> None:
    q.lead()
    assert q.lead("other:1").word == "STANDBY"
    q.now -= 1
    assert q.lead("other:1").word == "LEADER"


# --- gaps ------------------------------------------------------------------------------------------------------------


def test_a_tick_each_heartbeat_is_no_gap(q: Queue) -> None:
    before = q.before()
    q.now += H
    q.lead()
    assert changes(before, q.dump()) == {"leader": {"until": q.now + L}, "tick": q.now}


def test_a_silence_longer_than_a_heartbeat_starts_a_grace(q: Queue) -> None:
    before = q.before()
    q.now += H + 1
    q.lead()
    assert changes(before, q.dump()) == {
        "leader": {"until": q.now + L},
        "tick": q.now,
        "grace": q.now + T,
        "events": Added([q.event("lead", "s:1", f"- grace {H + 1}")]),
    }


def test_a_clock_set_back_starts_a_grace_and_adds_to_the_skew(q: Queue) -> None:
    q.set("skew", 5)
    before = q.before()
    q.now -= 7
    q.lead()
    assert changes(before, q.dump()) == {
        "leader": {"until": q.now + L},
        "tick": q.now,
        "grace": q.now + T,
        "skew": 12,
        "events": Added([q.event("lead", "s:1", "- grace -7")]),
    }


def test_a_lost_tick_is_a_gap(q: Queue) -> None:
    q.redis.delete(q.key("tick"))
    q.lead()
    assert q.dump()["grace"] == q.now + T
    assert "skew" not in q.dump()
    assert q.dump()["events"][-1] == q.event("lead", "s:1", "- grace none")


def test_a_jump_of_the_clock_ahead_is_a_gap_but_no_skew(q: Queue) -> None:
    q.now += 600 * SECOND
    q.lead()
    assert q.dump()["grace"] == q.now + T
    assert "skew" not in q.dump()


# --- histories and heartbeats ----------------------------------------------------------------------------------------


def test_a_scheduler_of_another_history_is_void(q: Queue) -> None:
    before = q.before()
    q.now += H
    assert q.lead(generation="earlier") == s.Lead("VOID", generation="g")
    assert q.lead("other:1", generation="earlier") == s.Lead("VOID", generation="g")
    assert changes(before, q.dump()) == {"tick": q.now}


def test_an_emptied_redis_gets_a_generation_and_its_old_scheduler_is_void(bare: Queue) -> None:
    assert bare.lead(generation="earlier", random="new") == s.Lead("VOID", generation="new")
    assert bare.dump()["generation"] == "new"
    assert "leader" not in bare.dump()
    assert bare.lead("s:2", generation="new") == s.Lead("LEADER", "1:s:2", "new")


def test_a_known_generation_leads_on(q: Queue) -> None:
    assert q.lead(generation="g", random="other") == s.Lead("LEADER", q.token, "g")
    assert q.dump()["generation"] == "g"


def test_a_scheduler_with_another_heartbeat_is_refused_before_it_ticks(q: Queue, make_bare: MakeQueue) -> None:
    other = make_bare(heartbeat_ms=500)
    other.now = q.now + H
    before = q.before()
    assert other.lead("other:1") == s.Lead("OTHER_H", detail=str(H))
    assert changes(before, q.dump()) == {}


@pytest.mark.parametrize("name", ["leader", "epoch", "generation", "h", "tick", "grace"])
def test_what_leading_writes_is_for_good(q: Queue, name: str) -> None:
    assert q.redis.ttl(q.key(name)) == -1


def test_epochs_rise_after_the_leaders_key_is_lost(q: Queue) -> None:
    q.redis.delete(q.keys.leader)
    assert q.lead("other:1").token == "2:other:1"


def test_without_a_history_nothing_is_written_to_it(make_bare: MakeQueue) -> None:
    quiet = make_bare(events=False)
    before = quiet.before()
    quiet.lead()
    after = changes(before, quiet.dump())
    assert after.get("events", GONE) is GONE
    assert set(after) == {"leader", "epoch", "generation", "h", "tick", "grace"}
