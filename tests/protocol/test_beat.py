"""beat: a sign of life; its answer names the rows that moved on, and what was lost on the way is rung again."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ResponseError

from protocol.rig import BELL_TTL, A, Added, B, H, MakeQueue, Queue, T, changes, member, ok, settlement
from stoker.store import scripts as s

PATIENCE = 5_000_000


@pytest.fixture
def q(q: Queue) -> Queue:
    """A queue whose worker has beaten before, so that a beat alone changes its stamp only."""
    q.beat(A)
    return q


def test_a_beat_stamps_and_notes_what_the_supervisor_says(q: Queue) -> None:
    q.now += 5
    before = q.before()
    said = {"capacity": 90, "progress": 3, "rate": 2.5, "faults": 1, "successes": 4, "figures": {"steps": 7, "rows": 2}}
    assert q.beat(A, accepting=False, **said) == s.Beaten("OK", drained=False, named=())
    noted = {"accepting": 0, "capacity": 90, "progress": 3, "rate": "2.500", "faults": 1, "successes": 4}
    assert changes(before, q.dump()) == {
        "beats": {A: q.now},
        "inc": {A: noted | {"figures": "steps=7,rows=2"}},
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_the_same_beat_at_the_same_time_changes_nothing(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.beat(A, rate=1.5, progress=9)
    before = q.before()
    q.beat(A, rate=1.5, progress=9)
    assert changes(before, q.dump()) == {}


@pytest.mark.parametrize(
    ("said", "rings"), [({}, False), ({"progress": 5}, False), ({"accepting": False}, True), ({"capacity": 101}, True)]
)
def test_the_scheduler_is_woken_when_room_may_have_changed(q: Queue, said: dict[str, int], rings: bool) -> None:
    q.beat(A)
    q.before()
    q.beat(A, **said)
    assert ("bell" in q.dump()) is rings


def test_the_answer_says_whether_the_worker_is_drained(q: Queue) -> None:
    q.store.run(s.drain("a", True))
    assert q.beat(A).drained
    q.store.run(s.drain("a", False))
    assert not q.beat(A).drained


# --- void ------------------------------------------------------------------------------------------------------------


def _void(q: Queue, inc: str, reason: str, **said: object) -> None:
    q.now += 1
    before = q.before()
    assert q.beat(inc, **said) == s.Beaten("VOID", detail=reason)
    assert changes(before, q.dump()) == {}


def test_an_incarnation_that_nobody_knows_is_void(q: Queue) -> None:
    _void(q, B, "unknown")


def test_a_beat_of_another_history_is_void(q: Queue) -> None:
    _void(q, A, "generation", generation="earlier")


def test_a_superseded_incarnation_is_void(q: Queue) -> None:
    q.register("a:2-y")
    _void(q, A, "superseded")


def test_a_reported_incarnation_is_void(q: Queue) -> None:
    q.report(A, "killed")
    _void(q, A, "dead")


@pytest.mark.parametrize(("end", "reason"), [("lost", "lost"), ("dead", "dead"), ("superseded", "superseded")])
def test_one_that_was_taken_back_is_void_with_the_reason(q: Queue, end: str, reason: str) -> None:
    if end == "lost":
        q.tick(4 * H)
    if end == "dead":
        q.report(A, "crash")
    if end == "superseded":
        q.register("a:2-y")
    assert q.reclaim(A) == 0
    _void(q, A, reason)


def test_one_that_took_leave_is_void(q: Queue) -> None:
    q.store.run(s.deregister(A))
    _void(q, A, "gone")


def test_one_that_is_being_taken_back_is_void(make_queue: MakeQueue) -> None:
    q = make_queue(group=1)
    q.submit("a", "b")
    q.dispatch(A, "a", "b")
    q.tick(4 * H)
    assert q.reclaim(A) == 1
    _void(q, A, "lost")


def test_a_beat_with_another_heartbeat_is_refused(q: Queue, make_bare: MakeQueue) -> None:
    other = make_bare(heartbeat_ms=500)
    other.now = q.now + 1
    before = q.before()
    assert other.beat(A) == s.Beaten("OTHER_H", detail=str(H))
    assert changes(before, q.dump()) == {}


# --- rows that moved on ----------------------------------------------------------------------------------------------


def test_what_is_held_and_still_wanted_is_not_named(q: Queue) -> None:
    q.submit("a", "b")
    q.start(A, "a")
    q.dispatch(A, "b")
    assert q.beat(A).named == ()


def test_a_cancelled_row_is_named_until_it_is_handed_back(q: Queue) -> None:
    q.submit("a", "b")
    delivery = q.start(A, "a", "b")
    q.cancel("a")
    assert q.beat(A).named == (("a", delivery),)
    assert q.beat(A).named == (("a", delivery),)
    q.hand_back(A, ("a", delivery))
    assert q.beat(A).named == ()


def test_a_row_whose_flight_carries_another_delivery_is_named(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.start(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", nonce="n2")
    second = q.start(B, "a")
    assert q.beat(A).named == (("a", first),)
    assert q.beat(B).named == ()
    q.settle(B, ok("a", second, nonce="n2"))
    assert q.beat(A).named == (("a", first),)


def test_a_row_whose_request_waits_again_is_named(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.redis.set(q.keys.flight("a"), q.redis.get(q.keys.flight("a")).replace(delivery.encode(), b"", 1))
    assert q.beat(A).named == (("a", delivery),)


def test_a_row_that_was_never_begun_is_named_too_and_not_rung(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    q.cancel("a")
    q.now += T + 1
    before = q.before()
    assert q.beat(A).named == (("a", delivery),)
    assert set(changes(before, q.dump())) == {"beats"}


def test_every_row_of_a_large_worker_is_looked_at(q: Queue) -> None:
    ids = [f"r{i}" for i in range(1100)]
    q.register(B, capacity=10_000, rows=2000)
    q.submit(*ids[:512])
    q.submit(*ids[512:1024])
    q.submit(*ids[1024:])
    for lo in (0, 512, 1024):
        q.dispatch(B, *ids[lo : lo + 512])
    for request_id in ids[::10]:
        q.cancel(request_id)
    q.now += T + 1
    costs = {(i, f"1-1-{1 + n // 512}"): 6 for n, i in enumerate(ids)}
    answer = q.beat(B, capacity=10_000, costs=costs)
    assert {request_id for request_id, _ in answer.named} == set(ids[::10])
    dump = q.dump()
    assert dump["credit"][B] == 1100 * 6 == sum(m["cost"] for m in dump[f"work:{B}"].values())
    rung = [bell.split()[1:] for bell in dump[f"stream:{B}"]["bells"][3:]]
    assert sorted(i for bell in rung for i in bell) == sorted(set(ids) - set(ids[::10]))


# --- doorbells -------------------------------------------------------------------------------------------------------


def test_what_was_handed_over_longer_than_a_lease_ago_is_rung_again(q: Queue) -> None:
    q.submit("a", "b", "c")
    first = q.dispatch(A, "a", "b")
    second = q.dispatch(A, "c")
    q.begin(A, second, "c")
    q.redis.xtrim(q.keys.stream(A), maxlen=0)
    q.now += T + 1
    before = q.before()
    assert q.beat(A) == s.Beaten("OK")
    after = changes(before, q.dump())
    assert set(after) == {"beats", f"work:{A}", f"stream:{A}"}
    assert after[f"work:{A}"] == {"a": {"since": q.now}, "b": {"since": q.now}}
    [bell] = after[f"stream:{A}"]["bells"]
    assert sorted(bell.split()) == [first, "a", "b"]
    assert q.beat(A) == s.Beaten("OK")
    assert len(q.dump()[f"stream:{A}"]["bells"]) == 1


def test_each_delivery_is_rung_apart(q: Queue) -> None:
    q.submit("a", "b")
    first, second = q.dispatch(A, "a"), q.dispatch(A, "b")
    q.now += T + 1
    before = q.before()
    q.beat(A)
    after = changes(before, q.dump())
    assert sorted(after[f"stream:{A}"]["bells"]) == [f"{first} a", f"{second} b"]


def test_within_a_lease_nothing_is_rung(q: Queue) -> None:
    q.submit("a")
    q.dispatch(A, "a")
    q.now += T
    before = q.before()
    q.beat(A)
    assert changes(before, q.dump()) == {"beats": {A: q.now}}


def test_what_runs_is_not_rung(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.now += 2 * T
    before = q.before()
    q.beat(A)
    assert changes(before, q.dump()) == {"beats": {A: q.now}}


def test_a_time_of_hand_over_ahead_of_now_counts_as_long_ago(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    q.now -= 1
    before = q.before()
    q.beat(A)
    assert changes(before, q.dump()) == {
        "beats": {A: q.now},
        f"work:{A}": {"a": {"since": q.now}},
        f"stream:{A}": {"bells": Added([f"{delivery} a"])},
    }


# --- costs -----------------------------------------------------------------------------------------------------------


def test_a_corrected_cost_changes_the_row_and_the_credit(q: Queue) -> None:
    q.submit("a", "b")
    delivery = q.start(A, "a", "b")
    before = q.before()
    q.beat(A, costs={("a", delivery): 5})
    assert changes(before, q.dump()) == {
        f"work:{A}": {"a": {"cost": 5}},
        "credit": {A: 12},
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_a_cost_that_rose_wakes_nobody(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    before = q.before()
    q.beat(A, costs={("a", delivery): 30})
    assert changes(before, q.dump()) == {f"work:{A}": {"a": {"cost": 30}}, "credit": {A: 30}}


def test_a_correction_of_another_delivery_or_of_nothing_held_is_passed_over(q: Queue) -> None:
    q.submit("a")
    first = q.start(A, "a")
    q.hand_back(A, ("a", first))
    q.start(A, "a")
    before = q.before()
    q.beat(A, costs={("a", first): 5, ("b", "1-1-1"): 5})
    assert changes(before, q.dump()) == {}


def test_a_corrected_row_frees_what_it_was_corrected_to(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.beat(A, costs={("a", delivery): 12})
    q.settle(A, ok("a", delivery))
    assert q.dump()["credit"] == {A: 0}


def test_a_row_may_be_corrected_and_rung_in_one_beat(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    q.now += T + 1
    q.beat(A, costs={("a", delivery): 3})
    assert q.dump()[f"work:{A}"] == {"a": member(delivery, cost=3, since=q.now)}
    assert q.dump()["credit"] == {A: 3}


# --- quarantine ------------------------------------------------------------------------------------------------------


def _draining(q: Queue) -> str:
    """Let `A` hold the clean row `clean` when it is asked to take a suspect; give the clean delivery."""
    q.register("z:1-x")
    q.submit("s", "clean")
    delivery = q.start(A, "clean")
    q.start("z:1-x", "s")
    q.lose("z:1-x", "crash", "s")
    assert q.offer(A, "s").word == "DRAIN"
    return delivery


def test_the_quarantine_holders_clean_rows_are_named_after_five_seconds(q: Queue) -> None:
    clean = _draining(q)
    q.now += PATIENCE
    assert q.beat(A).named == ()
    q.now += 1
    assert q.beat(A).named == (("clean", clean),)


def test_a_quarantine_stamped_ahead_of_now_has_run_long_enough(q: Queue) -> None:
    clean = _draining(q)
    q.now -= 1
    assert q.beat(A).named == (("clean", clean),)


def test_the_holders_suspects_are_not_named(q: Queue) -> None:
    q.hand_back(A, ("clean", _draining(q)))
    q.start(A, "s")
    q.now += PATIENCE + 1
    assert q.beat(A).named == ()


def test_clean_rows_of_others_are_not_named(q: Queue) -> None:
    _draining(q)
    q.register(B)
    q.submit("other")
    q.start(B, "other")
    q.now += PATIENCE + 1
    assert q.beat(B).named == ()


def test_a_beat_leaves_failures_of_the_engine_to_the_scheduler(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.beat(A, faults=9)
    assert q.settle(A, settlement("a", delivery, "retry")) == ["OK"]
    assert q.dump()["inc"][A]["life"] == "live"


def test_a_corrected_cost_is_written_with_all_its_digits(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.beat(A, costs={("a", delivery): 10**15 - 1})
    assert q.dump()[f"work:{A}"]["a"]["cost"] == 10**15 - 1


WRONG = [{"progress": -1}, {"capacity": "many"}, {"figures": {"a b": 1}}, {"rate": float("inf")}]


@pytest.mark.parametrize("wrong", WRONG, ids=["negative", "words", "a name with a blank", "infinite"])
def test_a_beat_whose_numbers_are_none_changes_nothing(q: Queue, wrong: dict[str, Any]) -> None:
    before = q.before()
    with pytest.raises(ResponseError, match="BADCALL: a number of a:1-x"):
        q.beat(A, **wrong)
    assert changes(before, q.dump()) == {}
