"""refuse: what no registered worker could hold fails as unschedulable, out of its lane only."""

from __future__ import annotations

from protocol.rig import DEAD_TTL, GONE, REPLY_TTL, RESULT_TTL, A, Added, Queue, changes
from stoker.store import scripts as s


def refuse(q: Queue, request_id: str, token: str | None = None, lane: str | None = None) -> str:
    """Refuse a request."""
    return q.store.run(s.refuse(token or q.token, q.waiting(request_id, lane)))


def test_a_refused_request_is_a_dead_letter(q: Queue) -> None:
    q.submit("a", timeout=50, tenant="t")
    before = q.before()
    assert refuse(q, "a") == "OK"
    result = q.result("a", "failed", reason="unschedulable")
    dead = {"time": q.now, "reason": "unschedulable", "attempts": 0, "failures": 0, "losses": 0, "history": ""}
    assert changes(before, q.dump()) == {
        "payload:a": GONE,
        "lane:normal:t": GONE,
        "active": GONE,
        "deadlines": GONE,
        "result:a": result,
        "reply:c": Added([result]),
        "dead": {"a": q.now},
        "dead:a": dead | {"size": 0, "body": b"", "payload": q.payload("a")},
        "counts": {
            "waiting": GONE,
            "waiting_bytes": GONE,
            "waiting_tokens": GONE,
            "waiting:t": GONE,
            "waiting_bytes:t": GONE,
            "waiting_tokens:t": GONE,
            "failed": 1,
            "failed:t": 1,
        },
        "events": Added([q.event("refuse", q.token, "a end failed n-a unschedulable dead")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL, "dead:a": DEAD_TTL},
    }


def test_refusing_again_changes_nothing(q: Queue) -> None:
    q.submit("a")
    refuse(q, "a")
    before = q.before()
    assert refuse(q, "a") == "GONE"
    assert changes(before, q.dump()) == {}


def test_what_was_handed_over_meanwhile_is_left_alone(q: Queue) -> None:
    q.submit("a")
    q.dispatch(A, "a")
    before = q.before()
    assert refuse(q, "a") == "GONE"
    assert changes(before, q.dump()) == {}


def test_another_lane_than_named_is_left_alone(q: Queue) -> None:
    q.submit("a")
    before = q.before()
    assert refuse(q, "a", lane="high") == "GONE"
    assert changes(before, q.dump()) == {}


def test_a_deposed_leader_refuses_nothing(q: Queue) -> None:
    q.submit("a")
    before = q.before()
    assert refuse(q, "a", token="2:s:1") == "FENCED"
    assert changes(before, q.dump()) == {}


def test_a_suspect_and_a_requeued_request_keep_what_is_known_of_them(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.lose(A, "crash", "a")
    assert refuse(q, "a") == "OK"
    dead = q.dump()["dead:a"]
    assert (dead["attempts"], dead["losses"], dead["history"]) == (1, 1, f"{A},crash")
    assert "lane:suspect" not in q.dump()
    assert "flight:a" not in q.dump()
