"""retry_dead: a dead letter is submitted again under a new id that links to the old one."""

from __future__ import annotations

import pytest

from protocol.rig import BELL_TTL, GONE, NORMAL, A, Added, Queue, changes, ok, settlement
from stoker.store import scripts as s

SECOND = 1_000_000


def retry_dead(q: Queue, old: str = "a", new: str = "b", nonce: str = "n-b", reply: str = "ops") -> str:
    """Submit a dead letter again."""
    return q.store.run(s.retry_dead(old, new, nonce, reply))


def _bury(q: Queue, **request: object) -> None:
    q.submit("a", **request)
    q.settle(A, settlement("a", q.start(A, "a"), "failure", body=b"why|not"))


def test_the_payload_waits_again_under_a_new_id_linked_to_the_old(q: Queue) -> None:
    _bury(q, timeout=500, tenant="t", stream=True, priority="low", affinity_key="s")
    payload = q.payload("a")
    q.now += SECOND
    before = q.before()
    assert retry_dead(q) == "OK"
    tail, score = payload["tail"], q.now + 500 * SECOND + 1
    size = q.size("a")
    assert changes(before, q.dump()) == {
        "dead": GONE,
        "dead:a": GONE,
        "payload:b": payload | {"accepted": q.now, "nonce": "n-b", "reply": "ops", "link": "a"},
        "lane:low:t": {f"b:{tail}": score},
        "active": {"low": 1, "low:t": 1},
        "deadlines": {"b": q.now + 500 * SECOND},
        "mark": q.now + 1,
        "counts": {
            "waiting": 1,
            "waiting_bytes": size,
            "waiting_tokens": 7,
            "submitted": 2,
            "waiting:t": 1,
            "waiting_bytes:t": size,
            "waiting_tokens:t": 7,
            "submitted:t": 2,
        },
        "events": Added([q.event("retry_dead", "-", f"b submit n-b low {tail} {q.now + 500 * SECOND} {score}")]),
        "bell": Added([1]),
        "ttl": {"dead:a": GONE, "bell": BELL_TTL},
    }


def test_a_letter_without_a_deadline_gets_none(q: Queue) -> None:
    _bury(q)
    retry_dead(q)
    assert "deadlines" not in q.dump()
    assert q.dump()["lane:normal"] == {"b:3:4:x": q.now + NORMAL + 2}


def test_retrying_again_changes_nothing(q: Queue) -> None:
    _bury(q)
    retry_dead(q)
    before = q.before()
    assert retry_dead(q) == "OK"
    assert changes(before, q.dump()) == {}


def test_a_retry_that_was_repeated_after_its_end_is_ok(q: Queue) -> None:
    _bury(q)
    retry_dead(q)
    q.sent["b"], q.accepted["b"] = q.sent["a"], q.now
    q.settle(A, ok("b", q.start(A, "b")))
    before = q.before()
    assert retry_dead(q) == "OK"
    assert changes(before, q.dump()) == {}


def test_the_retry_runs_like_any_request(q: Queue) -> None:
    _bury(q)
    retry_dead(q)
    q.sent["b"], q.accepted["b"] = q.sent["a"], q.now
    delivery = q.start(A, "b")
    assert q.settle(A, ok("b", delivery)) == ["OK"]
    assert [wake["id"] for wake in q.dump()["reply:ops"]] == ["b"]


@pytest.mark.parametrize("ended", [False, True])
def test_a_new_id_that_is_taken_conflicts(q: Queue, ended: bool) -> None:
    _bury(q)
    q.submit("b", nonce="other")
    if ended:
        q.cancel("b")
    before = q.before()
    assert retry_dead(q) == "CONFLICT"
    assert changes(before, q.dump()) == {}


def test_a_letter_that_is_not_there_is_unknown(q: Queue) -> None:
    before = q.before()
    assert retry_dead(q) == "UNKNOWN"
    assert changes(before, q.dump()) == {}


def test_a_letter_is_used_up(q: Queue) -> None:
    _bury(q)
    retry_dead(q)
    assert retry_dead(q, new="c", nonce="n-c") == "UNKNOWN"


def test_its_score_keeps_to_the_order_of_arrival_after_a_clock_set_back(q: Queue) -> None:
    _bury(q)
    first = q.now
    q.now -= 600 * SECOND
    retry_dead(q)
    assert q.dump()["lane:normal"] == {"b:3:4:x": first + NORMAL + 2}
    assert q.dump()["mark"] == first + 2


def test_its_score_takes_the_skew_in(q: Queue) -> None:
    _bury(q)
    q.set("skew", 600 * SECOND)
    retry_dead(q)
    assert q.dump()["lane:normal"] == {"b:3:4:x": q.now + 600 * SECOND + NORMAL + 1}


def test_a_dead_letter_of_a_retry_links_to_what_it_retried(q: Queue) -> None:
    _bury(q)
    retry_dead(q)
    q.sent["b"], q.accepted["b"] = q.sent["a"], q.now
    q.settle(A, settlement("b", q.start(A, "b"), "failure"))
    assert q.dump()["dead:b"]["payload"]["link"] == "a"
    assert retry_dead(q, "b", "c", "n-c") == "OK"
    assert q.dump()["payload:c"]["link"] == "b"


def test_the_longest_names_still_leave_the_header_readable(q: Queue) -> None:
    old, new, tenant = "o" * 128, "w" * 128, "t" * 128
    q.submit(old, tenant=tenant, nonce="f" * 16, reply="e" * 16, timeout=86_400, max_tokens=1 << 24)
    q.settle(A, settlement(old, q.start(A, old, cost=7), "failure", nonce="f" * 16))
    assert retry_dead(q, old, new, "d" * 16, "c" * 16) == "OK"
    assert q.cancel(new) == "OK"
    assert q.dump()["result:" + new]["state"] == "cancelled"
