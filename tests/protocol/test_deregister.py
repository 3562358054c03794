"""deregister: leave for good, with nothing held; a late register does not revive it."""

from __future__ import annotations

from protocol.rig import BELL_TTL, GONE, VOID_TTL, A, Added, B, Queue, changes, ok
from stoker.store import scripts as s


def deregister(q: Queue, inc: str = A) -> str:
    """Take leave."""
    return q.store.run(s.deregister(inc))


def test_who_leaves_leaves_nothing_but_its_void(q: Queue) -> None:
    before = q.before()
    assert deregister(q) == "OK"
    assert changes(before, q.dump()) == {
        "inc": GONE,
        "credit": GONE,
        "beats": GONE,
        f"stream:{A}": GONE,
        f"void:{A}": "gone",
        "events": Added([q.event("deregister", A, f"- deregister {A}")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL, f"void:{A}": VOID_TTL},
    }


def test_leaving_again_changes_nothing(q: Queue) -> None:
    deregister(q)
    before = q.before()
    assert deregister(q) == "OK"
    assert changes(before, q.dump()) == {}


def test_others_stay(q: Queue) -> None:
    q.register(B)
    deregister(q)
    dump = q.dump()
    assert set(dump["inc"]) == set(dump["credit"]) == set(dump["beats"]) == {B}
    assert f"stream:{B}" in dump


def test_who_still_holds_something_stays(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    before = q.before()
    assert deregister(q) == "HELD"
    assert changes(before, q.dump()) == {}
    q.hand_back(A, ("a", delivery))
    assert deregister(q) == "OK"


def test_a_row_of_a_cancelled_request_is_held(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.cancel("a")
    assert deregister(q) == "HELD"


def test_a_late_register_does_not_revive_it(q: Queue) -> None:
    deregister(q)
    assert q.register(A) == s.Registered("VOID", b"gone")
    q.register("a:2-y")
    assert q.register(A) == s.Registered("VOID", b"gone")
    q.submit("x")
    assert q.offer("a:2-y", "x").words == ("TOOK",)


def test_one_that_never_registered_may_leave(q: Queue) -> None:
    before = q.before()
    assert deregister(q, B) == "OK"
    assert changes(before, q.dump()) == {}


def test_the_quarantine_goes_with_its_holder_alone(q: Queue) -> None:
    q.register(B)
    q.submit("s")
    q.start(B, "s")
    q.lose(B, "crash", "s")
    q.settle(A, ok("s", q.start(A, "s"), attempt=2))
    q.register("c:1-x")
    assert q.dump()["quarantine"].startswith(f"{A}|")
    deregister(q, "c:1-x")
    assert "quarantine" in q.dump()
    deregister(q, A)
    assert "quarantine" not in q.dump()
