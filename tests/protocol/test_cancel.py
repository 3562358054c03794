"""cancel: terminal at once, from every live state; a row that a worker holds stays its member."""

from __future__ import annotations

import pytest

from protocol.rig import BELL_TTL, GONE, REPLY_TTL, RESULT_TTL, TOKENS_TTL, A, Added, Queue, changes, ok, settlement
from stoker.store import scripts as s


def test_a_waiting_request_leaves_nothing_but_its_result(q: Queue) -> None:
    q.submit("a", timeout=5, tenant="t")
    before = q.before()
    assert q.cancel("a") == "OK"
    assert changes(before, q.dump()) == {
        "payload:a": GONE,
        "lane:normal:t": GONE,
        "active": GONE,
        "deadlines": GONE,
        "result:a": q.result("a", "cancelled"),
        "reply:c": Added([q.result("a", "cancelled")]),
        "counts": {
            "waiting": GONE,
            "waiting_bytes": GONE,
            "waiting_tokens": GONE,
            "waiting:t": GONE,
            "waiting_bytes:t": GONE,
            "waiting_tokens:t": GONE,
            "cancelled": 1,
            "cancelled:t": 1,
        },
        "events": Added([q.event("cancel", "-", "a end cancelled n-a - -")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL},
    }


@pytest.mark.parametrize("state", ["dispatched", "running"])
def test_a_held_row_stays_a_member_for_it_occupies_memory(q: Queue, state: str) -> None:
    q.submit("a")
    delivery = q.start(A, "a") if state == "running" else q.dispatch(A, "a")
    begun = {"begun": q.now, "attempts": 1} if state == "running" else {}
    before = q.before()
    assert q.cancel("a") == "OK"
    assert changes(before, q.dump()) == {
        "payload:a": GONE,
        "flight:a": GONE,
        "result:a": q.result("a", "cancelled", **begun),
        "reply:c": Added([q.result("a", "cancelled", **begun)]),
        "counts": {"cancelled": 1},
        "events": Added([q.event("cancel", "-", "a end cancelled n-a - -")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL},
    }
    assert q.dump()[f"work:{A}"]["a"]["delivery"] == delivery
    assert q.dump()["credit"] == {A: 7}


def test_a_delayed_request_leaves_the_delays(q: Queue) -> None:
    q.submit("a")
    q.settle(A, settlement("a", q.start(A, "a"), "retry"))
    ended = {"begun": q.now, "attempts": 1, "history": f"{A},error"}
    before = q.before()
    assert q.cancel("a") == "OK"
    assert changes(before, q.dump()) == {
        "payload:a": GONE,
        "flight:a": GONE,
        "delayed": GONE,
        "result:a": q.result("a", "cancelled", **ended),
        "reply:c": Added([q.result("a", "cancelled", **ended)]),
        "counts": {"waiting": GONE, "waiting_bytes": GONE, "waiting_tokens": GONE, "cancelled": 1},
        "events": Added([q.event("cancel", "-", "a end cancelled n-a - -")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL},
    }


def test_a_requeued_request_leaves_its_lane(q: Queue) -> None:
    q.submit("a", "b")
    q.hand_back(A, ("a", q.dispatch(A, "a")))
    assert q.cancel("a") == "OK"
    assert list(q.dump()["lane:normal"]) == ["b:3:4:x"]
    assert "flight:a" not in q.dump()


def test_a_suspect_leaves_the_suspects(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.lose(A, "crash", "a")
    assert "lane:suspect" in q.dump()
    assert q.cancel("a") == "OK"
    assert "lane:suspect" not in q.dump()


def test_cancelling_again_changes_nothing_and_is_ok(q: Queue) -> None:
    q.submit("a", timeout=5)
    q.cancel("a")
    before = q.before()
    assert q.cancel("a") == "OK"
    assert changes(before, q.dump()) == {}


def test_what_ended_otherwise_is_done(q: Queue) -> None:
    q.submit("a")
    q.settle(A, ok("a", q.start(A, "a")))
    before = q.before()
    assert q.cancel("a") == "DONE"
    assert changes(before, q.dump()) == {}


def test_an_id_that_nobody_submitted_is_unknown(q: Queue) -> None:
    before = q.before()
    assert q.cancel("a") == "UNKNOWN"
    assert changes(before, q.dump()) == {}


@pytest.mark.parametrize("state", ["queued", "running", "cancelled", "succeeded"])
def test_another_life_of_the_id_is_left_alone(q: Queue, state: str) -> None:
    q.submit("a")
    if state in ("running", "succeeded"):
        delivery = q.start(A, "a")
        if state == "succeeded":
            q.settle(A, ok("a", delivery))
    if state == "cancelled":
        q.cancel("a")
    before = q.before()
    assert q.cancel("a", "n-earlier") == "UNKNOWN"
    assert changes(before, q.dump()) == {}


@pytest.mark.parametrize(("state", "word"), [("queued", "OK"), ("cancelled", "OK"), ("succeeded", "DONE")])
def test_the_named_life_is_cancelled(q: Queue, state: str, word: str) -> None:
    q.submit("a")
    if state == "cancelled":
        q.cancel("a")
    if state == "succeeded":
        q.settle(A, ok("a", q.start(A, "a")))
    assert q.cancel("a", "n-a") == word


def test_a_client_without_a_reply_channel_is_not_woken(q: Queue) -> None:
    q.submit("a", reply="")
    q.cancel("a")
    assert [name for name in q.dump() if name.startswith("reply:")] == []


def test_the_token_stream_is_closed(q: Queue) -> None:
    q.submit("a", stream=True)
    before = q.before()
    q.cancel("a")
    after = changes(before, q.dump())
    assert after["tokens:a:n-a"] == Added([{"end": "cancelled"}])
    assert after["ttl"] == {"tokens:a:n-a": TOKENS_TTL, "result:a": RESULT_TTL, "reply:c": REPLY_TTL}


def test_no_success_comes_after_a_cancel(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.cancel("a")
    result = q.dump()["result:a"]
    assert q.settle(A, ok("a", delivery)) == ["DUPLICATE"]
    assert q.dump()["result:a"] == result


def test_a_result_that_is_there_already_stays(q: Queue) -> None:
    q.submit("a")
    q.redis.set(q.keys.result("a"), "succeeded|n-a|d|a|1||2|0||||0|")
    before = q.before()
    assert q.cancel("a") == "OK"
    assert changes(before, q.dump()) == {"events": Added([q.event("cancel", "-", "a twice cancelled")])}


def test_cancelling_frees_the_place_in_a_class_of_its_own(q: Queue) -> None:
    q.submit("a", priority="batch")
    q.submit("b", priority="high")
    q.cancel("a")
    assert "lane:batch" not in q.dump()
    assert "lane:high" in q.dump()
    assert q.store.run(s.cancel("b", "")) == "OK"
    assert "lane:high" not in q.dump()


def test_the_bell_of_the_scheduler_is_left_alone(q: Queue) -> None:
    q.submit("a")
    q.before()
    q.cancel("a")
    assert "bell" not in q.dump()
    q.submit("b")
    assert q.dump()["ttl"]["bell"] == BELL_TTL
