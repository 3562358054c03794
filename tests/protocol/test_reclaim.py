"""reclaim: what a dead incarnation held waits again with its original scores, and who pays for its death."""

from __future__ import annotations

import pytest

from protocol.rig import (
    BELL_TTL,
    DEAD_TTL,
    GONE,
    NORMAL,
    REPLY_TTL,
    RESULT_TTL,
    VOID_TTL,
    A,
    Added,
    B,
    C,
    H,
    MakeQueue,
    Queue,
    T,
    changes,
    ok,
    settlement,
)
from stoker.store import scripts as s

FORGOTTEN = {"inc": GONE, "credit": GONE, "beats": GONE, f"stream:{A}": GONE}


def _standing(q: Queue, request_id: str) -> tuple[int, int, int, int, str]:
    """Give attempts, failures, losses, solo crashes and suspect group."""
    flight = q.dump()["flight:" + request_id]
    return tuple(flight[name] for name in ("attempts", "failures", "losses", "solo", "group"))


# --- when ------------------------------------------------------------------------------------------------------------


def test_a_lost_workers_requests_wait_again_with_their_original_scores(q: Queue) -> None:
    q.submit("handed", "running", tenant="t")
    score = q.now + NORMAL + 1
    first = q.dispatch(A, "handed")
    second = q.start(A, "running")
    q.tick(T + 1)
    before = q.before()
    assert q.reclaim(A) == 0
    events = [
        f"- void {A} lost",
        f"handed requeue {first} normal {score} 0 lost",
        f"running requeue {second} normal {score + 1} 1 lost",
    ]
    after = changes(before, q.dump())
    [entry] = after.pop("events")
    assert (entry[:4], sorted(entry[4:])) == (q.event("reclaim", q.token, events[0]), sorted(events[1:]))
    assert after == FORGOTTEN | {
        f"void:{A}": "lost",
        f"work:{A}": GONE,
        "flight:handed": {"delivery": "", "state": "Q"},
        "flight:running": {"delivery": "", "state": "Q", "losses": 1, "history": f"{A},lost"},
        "lane:normal:t": {"handed:3:4:x": score, "running:3:4:x": score + 1},
        "active": {"normal": 2, "normal:t": 2},
        "counts": {
            "waiting": 2,
            "waiting_bytes": 2 * q.size("running"),
            "waiting_tokens": 14,
            "waiting:t": 2,
            "waiting_bytes:t": 2 * q.size("running"),
            "waiting_tokens:t": 14,
        },
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL, f"void:{A}": VOID_TTL},
    }


def test_taking_back_again_changes_nothing(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.lose(A, "killed")
    before = q.before()
    assert q.reclaim(A) == 0
    assert changes(before, q.dump()) == {}


def test_one_that_nobody_registered_has_nothing_left(q: Queue) -> None:
    before = q.before()
    assert q.reclaim(B) == 0
    assert changes(before, q.dump()) == {}


def test_a_deposed_leader_takes_nothing_back(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.report(A, "killed")
    q.now += 2 * H
    before = q.before()
    assert q.reclaim(A, token="0:s:1") == s.FENCED
    assert changes(before, q.dump()) == {}


def test_a_lease_lasts_to_its_last_microsecond(q: Queue) -> None:
    q.tick(T)
    before = q.before()
    assert q.reclaim(A) == -1
    assert changes(before, q.dump()) == {}
    q.now += 1
    assert q.reclaim(A) == 0


def test_one_that_beats_is_not_taken_back(q: Queue) -> None:
    q.tick(4 * T, A)
    assert q.reclaim(A) == -1


def test_a_worker_that_does_not_hold_anything_is_forgotten(q: Queue) -> None:
    q.tick(T + 1)
    before = q.before()
    assert q.reclaim(A) == 0
    assert changes(before, q.dump()) == FORGOTTEN | {
        f"void:{A}": "lost",
        "events": Added([q.event("reclaim", q.token, f"- void {A} lost")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL, f"void:{A}": VOID_TTL},
    }


def test_after_a_stall_the_gap_is_found_before_anything_is_taken_back(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.now += 2 * T
    before = q.before()
    assert q.reclaim(A) == -1
    assert changes(before, q.dump()) == {
        "tick": q.now,
        "grace": q.now + T,
        "events": Added([q.event("reclaim", q.token, f"- grace {2 * T}")]),
    }


def test_a_lost_tick_is_a_gap(q: Queue) -> None:
    q.tick(2 * T)
    q.redis.delete(q.key("tick"))
    assert q.reclaim(A) == -1
    assert q.dump()["grace"] == q.now + T


def test_a_clock_set_back_is_a_gap(q: Queue) -> None:
    q.tick(2 * T)
    q.now -= 1
    assert q.reclaim(A) == -1
    assert (q.dump()["grace"], q.dump()["skew"]) == (q.now + T, 1)


def test_a_grace_lasts_a_lease_and_then_silence_counts(q: Queue) -> None:
    q.now += 2 * T
    q.lead()
    grace = q.dump()["grace"]
    while q.now < grace - H:
        q.now += H
        assert q.reclaim(A) == -1
    q.now = grace - 1
    assert q.reclaim(A) == -1
    q.now = grace
    assert q.reclaim(A) == 0


def test_a_grace_further_ahead_than_its_writer_could_put_it_is_worth_nothing(q: Queue) -> None:
    q.tick(T + 1)
    q.set("grace", q.now + T + 1)
    assert q.reclaim(A) == 0


def test_a_grace_as_far_ahead_as_its_writer_puts_it_counts(q: Queue) -> None:
    q.tick(T + 1)
    q.set("grace", q.now + T)
    assert q.reclaim(A) == -1


def test_a_beat_ahead_of_now_is_written_back_to_now(q: Queue) -> None:
    q.redis.zadd(q.keys.beats, {A: q.now + 600 * 1_000_000})
    before = q.before()
    assert q.reclaim(A) == -1
    assert changes(before, q.dump()) == {"beats": {A: q.now}}
    q.tick(T + 1)
    assert q.reclaim(A) == 0


def test_a_missing_beat_has_lapsed(q: Queue) -> None:
    q.redis.zrem(q.keys.beats, A)
    assert q.reclaim(A) == 0


@pytest.mark.parametrize("life", ["superseded", "dead"])
def test_one_that_was_superseded_or_reported_is_taken_back_at_once_in_a_grace_too(q: Queue, life: str) -> None:
    q.submit("a")
    q.dispatch(A, "a")
    if life == "dead":
        q.report(A, "killed")
    else:
        q.register("a:2-y")
    q.now += 2 * T
    assert q.reclaim(A) == 0
    assert q.dump()["grace"] == q.now + T
    assert q.dump()[f"void:{A}"] == life
    assert "a:3:4:x" in q.dump()["lane:normal"]


# --- in groups -------------------------------------------------------------------------------------------------------


def test_many_members_are_taken_back_in_groups_and_the_last_one_forgets_it(make_queue: MakeQueue) -> None:
    q = make_queue(group=2)
    q.submit("a", "b", "c", "d", "e")
    q.dispatch(A, "a", "b", "c", "d", "e")
    q.report(A, "killed")
    assert [q.reclaim(A) for _ in range(4)] == [3, 1, 0, 0]
    assert len(q.dump()["lane:normal"]) == 5
    assert f"work:{A}" not in q.dump()


def test_between_groups_it_is_void_and_its_credit_is_the_sum_of_what_is_left(make_queue: MakeQueue) -> None:
    q = make_queue(group=2)
    q.submit("a", "b", "c")
    q.dispatch(A, "a", "b", "c")
    q.tick(T + 1)
    assert q.reclaim(A) == 1
    dump = q.dump()
    assert dump[f"void:{A}"] == "lost"
    assert dump["inc"][A]["life"] == "lost"
    assert dump["credit"] == {A: 7}
    assert len(dump[f"work:{A}"]) == 1
    assert f"stream:{A}" in dump


def test_the_groups_go_on_in_a_grace(make_queue: MakeQueue) -> None:
    q = make_queue(group=1)
    q.submit("a", "b")
    q.dispatch(A, "a", "b")
    q.tick(T + 1)
    assert q.reclaim(A) == 1
    q.now += 2 * T
    assert q.reclaim(A) == 0
    assert q.dump()["grace"] == q.now + T


# --- what moved on ---------------------------------------------------------------------------------------------------


def test_what_was_cancelled_is_not_requeued(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.cancel("a")
    q.report(A, "crash", "a")
    before = q.before()
    assert q.reclaim(A) == 0
    after = changes(before, q.dump())
    assert set(after) == set(FORGOTTEN) | {f"work:{A}", f"void:{A}", "events", "bell", "ttl"}


def test_what_runs_elsewhere_in_a_later_life_is_left_alone(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    q.start(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", nonce="n2")
    q.start(B, "a")
    q.report(A, "crash", "a")
    before = q.before()
    assert q.reclaim(A) == 0
    assert not {"flight:a", "lane:normal", "lane:suspect", "counts", f"work:{B}"} & set(changes(before, q.dump()))


def test_what_waits_in_a_later_life_is_left_alone(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", nonce="n2")
    q.report(A, "crash", "a")
    before = q.before()
    assert q.reclaim(A) == 0
    assert not {"flight:a", "lane:normal", "lane:suspect", "counts"} & set(changes(before, q.dump()))


def test_what_was_settled_is_not_requeued(q: Queue) -> None:
    q.submit("a", "b")
    delivery = q.start(A, "a", "b")
    q.settle(A, ok("a", delivery))
    q.lose(A, "killed")
    assert list(q.dump()["lane:normal"]) == ["b:3:4:x"]


# --- who pays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cause", "noted"), [("killed", "killed"), ("superseded", "superseded"), ("lost", "lost")])
def test_what_ran_when_its_worker_was_lost_is_charged_a_loss(q: Queue, cause: str, noted: str) -> None:
    q.submit("a")
    q.start(A, "a")
    if cause == "superseded":
        q.register("a:2-y")
    elif cause == "lost":
        q.tick(T + 1)
    else:
        q.report(A, cause)
    assert q.reclaim(A) == 0
    assert _standing(q, "a") == (1, 0, 1, 0, "")
    assert q.dump()["flight:a"]["history"] == f"{A},{noted}"


def test_what_never_began_is_charged_nothing(q: Queue) -> None:
    q.submit("a")
    q.dispatch(A, "a")
    q.lose(A, "crash", "a")
    assert _standing(q, "a") == (0, 0, 0, 0, "")
    assert q.dump()["flight:a"]["history"] == ""


@pytest.mark.parametrize("cause", ["crash", "hung"])
def test_a_crash_makes_its_set_suspects_and_leaves_the_others_clean(q: Queue, cause: str) -> None:
    q.submit("a", "b", "c")
    score = q.now + NORMAL + 1
    q.start(A, "a", "b", "c")
    q.lose(A, cause, "a", "b")
    assert [_standing(q, i) for i in "abc"] == [(1, 0, 1, 0, A), (1, 0, 1, 0, A), (1, 0, 1, 0, "")]
    assert q.dump()["lane:suspect"] == {"a:3:4:x": score, "b:3:4:x": score + 1}
    assert q.dump()["lane:normal"] == {"c:3:4:x": score + 2}


def test_a_kill_makes_no_suspects_whatever_ran(q: Queue) -> None:
    q.submit("a", "b")
    q.start(A, "a", "b")
    q.lose(A, "killed", "a", "b")
    assert "lane:suspect" not in q.dump()


def test_the_event_of_a_requeue_carries_the_delivery_that_was_taken_back(q: Queue) -> None:
    q.submit("a")
    score = q.now + NORMAL + 1
    delivery = q.start(A, "a")
    q.lose(A, "crash", "a")
    assert q.dump()["events"][-1] == q.event(
        "reclaim", q.token, f"- void {A} dead", f"a requeue {delivery} suspect {score} 1 dead"
    )


def test_a_first_crash_with_a_set_of_one_counts_as_solo(q: Queue) -> None:
    q.submit("a", "b")
    q.start(A, "a", "b")
    q.lose(A, "crash", "a")
    assert _standing(q, "a") == (1, 0, 1, 1, A)


def test_two_solo_crashes_convict(q: Queue) -> None:
    q.register(B)
    q.submit("a", timeout=500, tenant="t")
    q.start(A, "a")
    q.lose(A, "crash", "a")
    begun = q.now
    q.start(B, "a")
    q.report(B, "crash", "a", obituary=b"its|words")
    before = q.before()
    assert q.reclaim(B) == 0
    history = f"{A},crash;{B},crash"
    ended = {"begun": begun, "attempts": 2, "reason": "poison", "inc": B, "history": history}
    result = q.result("a", "failed", b"its|words", **ended)
    dead = {"time": q.now, "reason": "poison", "attempts": 2, "failures": 0, "losses": 2, "history": history}
    assert changes(before, q.dump()) == {
        "inc": GONE,
        "credit": GONE,
        "beats": GONE,
        "quarantine": GONE,
        f"stream:{B}": GONE,
        f"work:{B}": GONE,
        f"void:{B}": "dead",
        "payload:a": GONE,
        "flight:a": GONE,
        "deadlines": GONE,
        "result:a": result,
        "reply:c": Added([result]),
        "dead": {"a": q.now},
        "dead:a": dead | {"size": 9, "body": b"its|words", "payload": q.payload("a")},
        "counts": {"failed": 1, "failed:t": 1},
        "events": Added(
            [q.event("reclaim", q.token, f"- void {B} dead", "a end failed n-a poison dead")],
        ),
        "bell": Added([1]),
        "ttl": {
            "bell": BELL_TTL,
            f"void:{B}": VOID_TTL,
            "result:a": RESULT_TTL,
            "reply:c": REPLY_TTL,
            "dead:a": DEAD_TTL,
        },
    }


def test_bystanders_of_two_crashes_are_not_convicted(q: Queue) -> None:
    q.register(B)
    q.submit("a", "b")
    q.start(A, "a", "b")
    q.lose(A, "crash", "a", "b")
    q.start(B, "a", "b")
    q.lose(B, "crash", "a", "b")
    assert [_standing(q, i) for i in "ab"] == [(2, 0, 1, 0, B), (2, 0, 1, 0, B)]


@pytest.mark.parametrize("cause", ["killed", "crash", "superseded"])
def test_a_suspect_lost_in_company_is_set_apart_again_and_charged_nothing(q: Queue, cause: str) -> None:
    q.register(B)
    q.submit("a", "b")
    q.start(A, "a", "b")
    q.lose(A, "crash", "a", "b")
    q.start(B, "a", "b")
    if cause == "superseded":
        q.register("b:2-y")
    else:
        q.report(B, cause, "a")
    assert q.reclaim(B) == 0
    assert [_standing(q, i) for i in "ab"] == [(2, 0, 1, 0, B), (2, 0, 1, 0, B)]
    assert set(q.dump()["lane:suspect"]) == {"a:3:4:x", "b:3:4:x"}


def test_company_is_what_runs_beside_it(q: Queue) -> None:
    q.register(B)
    q.submit("a", "b")
    q.start(A, "a", "b")
    q.lose(A, "crash", "a", "b")
    delivery = q.dispatch(B, "a", "b")
    q.begin(B, delivery, "a")
    q.lose(B, "crash", "a")
    assert _standing(q, "a") == (2, 0, 2, 1, B)
    assert _standing(q, "b") == (1, 0, 1, 0, A)


def test_a_suspect_lost_alone_to_a_kill_is_charged_a_loss_and_stays_one(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    q.start(A, "a")
    q.lose(A, "crash", "a")
    q.start(B, "a")
    q.lose(B, "killed")
    assert _standing(q, "a") == (2, 0, 2, 1, A)
    assert "a:3:4:x" in q.dump()["lane:suspect"]


def _lose_times(q: Queue, times: int) -> None:
    for _ in range(times):
        inc = f"k:{q.store.run(s.incarnate())}-x"
        q.register(inc)
        q.start(inc, "a")
        q.lose(inc, "killed")


def test_three_losses_are_bad_luck_and_the_fourth_makes_a_suspect(q: Queue) -> None:
    q.submit("a")
    _lose_times(q, 3)
    assert _standing(q, "a") == (3, 0, 3, 0, "")
    _lose_times(q, 1)
    assert _standing(q, "a") == (4, 0, 4, 0, "k:4-x")
    assert "lane:normal" not in q.dump()
    assert "a:3:4:x" in q.dump()["lane:suspect"]


def test_losses_end_with_the_tenth(q: Queue) -> None:
    q.submit("a")
    _lose_times(q, 9)
    assert _standing(q, "a")[2] == 9
    _lose_times(q, 1)
    dump = q.dump()
    assert (dump["result:a"]["state"], dump["result:a"]["reason"]) == ("failed", "worker_lost")
    assert (dump["dead:a"]["losses"], dump["dead:a"]["reason"]) == (10, "worker_lost")
    assert "lane:suspect" not in dump
    assert "flight:a" not in dump


def test_the_quarantine_goes_with_its_holder(q: Queue) -> None:
    q.register(B)
    q.register(C)
    q.submit("a", "b")
    q.start(A, "a", "b")
    q.lose(A, "crash", "a", "b")
    q.start(B, "a")
    assert q.offer(C, "b").word == "BUSY"
    q.report(C, "killed")
    q.reclaim(C)
    assert q.dump()["quarantine"].startswith(f"{B}|")
    q.lose(B, "killed")
    assert "quarantine" not in q.dump()


def test_a_failure_reported_before_the_death_is_not_charged_twice(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.settle(A, settlement("a", delivery, "retry"))
    q.lose(A, "crash", "a")
    assert _standing(q, "a") == (1, 1, 0, 0, "")
    assert q.dump()["delayed"]


def test_a_tenants_suspect_waits_among_the_suspects_and_not_in_the_tenants_lane(q: Queue) -> None:
    q.submit("a", tenant="t")
    q.start(A, "a")
    q.lose(A, "crash", "a")
    found = q.dump()
    assert list(found["lane:suspect"]) == ["a:3:4:x"]
    assert "active" not in found
    assert q.cancel("a") == "OK"
    assert "active" not in q.dump()
