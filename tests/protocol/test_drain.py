"""drain: an operator's word that a worker takes no new work, or does again."""

from __future__ import annotations

from protocol.rig import BELL_TTL, A, Added, B, Queue, changes
from stoker.store import scripts as s


def drain(q: Queue, worker: str, drained: bool = True) -> str:
    """Drain a worker, or let it work again."""
    return q.store.run(s.drain(worker, drained))


def test_a_drained_worker_is_marked_and_the_scheduler_told(q: Queue) -> None:
    q.register(B)
    before = q.before()
    assert drain(q, "a") == "OK"
    assert changes(before, q.dump()) == {
        "inc": {A: {"drained": 1}},
        "events": Added([q.event("drain", "a", f"- drain {A} 1")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_draining_again_changes_nothing(q: Queue) -> None:
    drain(q, "a")
    before = q.before()
    assert drain(q, "a") == "OK"
    assert changes(before, q.dump()) == {}


def test_a_drained_worker_may_work_again(q: Queue) -> None:
    drain(q, "a")
    before = q.before()
    assert drain(q, "a", drained=False) == "OK"
    assert changes(before, q.dump())["inc"] == {A: {"drained": 0}}
    q.submit("x")
    assert q.offer(A, "x").words == ("TOOK",)


def test_a_name_that_nobody_has_is_unknown(q: Queue) -> None:
    before = q.before()
    assert drain(q, "b") == "UNKNOWN"
    assert drain(q, A) == "UNKNOWN"
    assert changes(before, q.dump()) == {}


def test_a_worker_without_a_living_incarnation_is_unknown(q: Queue) -> None:
    q.report(A, "killed")
    before = q.before()
    assert drain(q, "a") == "UNKNOWN"
    assert changes(before, q.dump()) == {}


def test_only_the_living_incarnation_is_drained(q: Queue) -> None:
    q.register("a:2-y")
    drain(q, "a")
    assert {inc: record["drained"] for inc, record in q.dump()["inc"].items()} == {A: 0, "a:2-y": 1}


def test_a_beat_does_not_undo_it(q: Queue) -> None:
    drain(q, "a")
    q.beat(A)
    assert q.dump()["inc"][A]["drained"] == 1
