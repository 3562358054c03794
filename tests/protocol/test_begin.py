"""begin: an attempt counts from here; what moved on is dropped, unless its row runs; what is late never runs."""

from __future__ import annotations

import pytest

from protocol.rig import (
    GONE,
    REPLY_TTL,
    RESULT_TTL,
    TOKENS_TTL,
    A,
    Added,
    B,
    Queue,
    changes,
    member,
    ok,
    payload_value,
    settlement,
)
from stoker.store import scripts as s

SECOND = 1_000_000


def test_a_begun_request_runs_and_its_doorbell_is_gone(q: Queue) -> None:
    q.submit("a", timeout=50)
    delivery = q.dispatch(A, "a")
    q.now += 5
    assert [bell.ids for bell in q.read(A)] == [("a",)]
    before = q.before()
    [begun] = q.begun(A, delivery, "a")
    assert (begun.id, begun.word, begun.attempt) == ("a", "RUN", 1)
    assert payload_value(begun.payload) == q.payload("a")
    assert changes(before, q.dump()) == {
        "flight:a": {"state": "R", "attempts": 1, "begun": q.now},
        f"work:{A}": {"a": {"state": "R", "since": q.now}},
        f"stream:{A}": {"bells": [], "pending": 0},
        "events": Added([q.event("begin", A, f"a begin {delivery} 1 n-a")]),
    }


def test_beginning_again_counts_no_attempt_and_gives_the_payload_again(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    first = q.begun(A, delivery, "a")
    q.now += 5
    before = q.before()
    assert q.begun(A, delivery, "a") == first
    assert changes(before, q.dump()) == {}


def test_the_next_attempt_is_the_second(q: Queue) -> None:
    q.submit("a")
    q.hand_back(A, ("a", q.start(A, "a")))
    q.now += 5
    delivery = q.dispatch(A, "a")
    before = q.before()
    [begun] = q.begun(A, delivery, "a")
    assert begun.attempt == 2
    assert changes(before, q.dump())["flight:a"] == {"state": "R", "attempts": 2, "begun": q.now}


def test_one_doorbell_begins_all_that_it_names_in_one_entry_of_the_history(q: Queue) -> None:
    q.submit("a", "b", "c")
    delivery = q.dispatch(A, "a", "b", "c")
    q.cancel("b")
    answers = q.begun(A, delivery, "a", "b", "c")
    assert [(x.id, x.word, x.attempt) for x in answers] == [("a", "RUN", 1), ("b", "GONE", 0), ("c", "RUN", 1)]
    assert [payload_value(x.payload)["nonce"] for x in answers if x.payload] == ["n-a", "n-c"]
    assert q.dump()["events"][-1] == q.event("begin", A, f"a begin {delivery} 1 n-a", f"c begin {delivery} 1 n-c")


def test_a_doorbell_without_ids_is_deleted_all_the_same(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    q.read(A)
    before = q.before()
    assert q.begin(A, delivery) == []
    assert changes(before, q.dump()) == {f"stream:{A}": {"bells": [], "pending": 0}}


def test_a_pending_doorbell_that_was_deleted_is_acknowledged(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    [bell] = q.read(A)
    q.redis.xdel(q.keys.stream(A), bell.entry)
    assert q.dump()[f"stream:{A}"] == {"bells": [], "pending": 1}
    q.store.run(s.begin(A, bell.entry, delivery, ["a"]))
    assert q.dump()[f"stream:{A}"] == {"bells": [], "pending": 0}


def test_a_cancelled_request_is_gone_and_its_member_dropped(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    q.cancel("a")
    before = q.before()
    assert q.begin(A, delivery, "a") == ["GONE"]
    assert changes(before, q.dump()) == {
        f"work:{A}": GONE,
        "credit": {A: 0},
        f"stream:{A}": {"bells": []},
    }
    before = q.before()
    assert q.begin(A, delivery, "a") == ["GONE"]
    assert changes(before, q.dump()) == {}


def test_a_running_row_of_a_cancelled_request_stays_a_member(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.cancel("a")
    before = q.before()
    assert q.begin(A, delivery, "a") == ["GONE"]
    assert changes(before, q.dump()) == {}
    assert q.dump()[f"work:{A}"] == {"a": member(delivery, state="R", since=q.now)}


def test_a_request_that_another_attempt_ended_is_gone(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.start(A, "a")
    q.hand_back(A, ("a", first))
    second = q.dispatch(B, "a")
    q.settle(A, ok("a", first))
    assert q.begin(B, second, "a") == ["GONE"]
    assert f"work:{B}" not in q.dump()
    assert q.dump()["credit"][B] == 0


def test_an_earlier_deliverys_doorbell_does_not_touch_the_row_that_came_again(q: Queue) -> None:
    q.submit("a")
    first = q.dispatch(A, "a")
    q.hand_back(A, ("a", first))
    second = q.dispatch(A, "a")
    before = q.before()
    assert q.begin(A, first, "a") == ["GONE"]
    assert changes(before, q.dump()) == {f"stream:{A}": {"bells": [f"{second} a"]}}


def test_a_member_whose_flight_carries_another_delivery_is_dropped(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.dispatch(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", nonce="n2")
    second = q.dispatch(B, "a")
    assert q.begin(A, first, "a") == ["GONE"]
    assert f"work:{A}" not in q.dump()
    assert q.dump()["flight:a"] == q.flight("a", delivery=second, state="D", score=q.now + 60 * SECOND + 2)


def test_an_incarnation_that_holds_nothing_begins_nothing(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    delivery = q.dispatch(A, "a")
    before = q.before()
    assert q.begin(B, delivery, "a") == ["GONE"]
    assert changes(before, q.dump()) == {}


def test_what_was_taken_back_begins_no_more(q: Queue) -> None:
    q.submit("a")
    delivery = q.dispatch(A, "a")
    q.lose(A, "killed")
    before = q.before()
    assert q.begin(A, delivery, "a") == ["GONE"]
    assert changes(before, q.dump()) == {}


def test_dropped_members_free_exactly_their_credit(q: Queue) -> None:
    q.submit("a", "b", "c")
    delivery = q.dispatch(A, "a", "b", cost=5)
    q.dispatch(A, "c")
    q.cancel("a")
    q.cancel("b")
    assert q.begin(A, delivery, "a", "b") == ["GONE", "GONE"]
    assert q.dump()["credit"] == {A: 7}


# --- late ------------------------------------------------------------------------------------------------------------


def test_a_late_request_expires_here_and_never_runs(q: Queue) -> None:
    q.submit("a", timeout=5, tenant="t")
    delivery = q.dispatch(A, "a")
    q.now += 5 * SECOND
    before = q.before()
    assert q.begin(A, delivery, "a") == ["LATE"]
    result = q.result("a", "expired", reason="late")
    assert changes(before, q.dump()) == {
        "payload:a": GONE,
        "flight:a": GONE,
        "deadlines": GONE,
        f"work:{A}": GONE,
        "credit": {A: 0},
        f"stream:{A}": {"bells": []},
        "result:a": result,
        "reply:c": Added([result]),
        "counts": {"expired": 1, "expired:t": 1},
        "events": Added([q.event("begin", A, "a end expired n-a late -")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL},
    }


def test_a_late_begin_again_is_gone_and_changes_nothing(q: Queue) -> None:
    q.submit("a", timeout=5)
    delivery = q.dispatch(A, "a")
    q.now += 5 * SECOND
    q.begin(A, delivery, "a")
    before = q.before()
    assert q.begin(A, delivery, "a") == ["GONE"]
    assert changes(before, q.dump()) == {}


def test_the_last_microsecond_before_the_deadline_is_in_time(q: Queue) -> None:
    q.submit("a", timeout=5)
    delivery = q.dispatch(A, "a")
    q.now += 5 * SECOND - 1
    assert q.begin(A, delivery, "a") == ["RUN"]


def test_a_request_that_runs_already_is_not_late(q: Queue) -> None:
    q.submit("a", timeout=5)
    delivery = q.start(A, "a")
    q.now += 6 * SECOND
    before = q.before()
    assert q.begin(A, delivery, "a") == ["RUN"]
    assert changes(before, q.dump()) == {}


def test_begin_refuses_what_is_late_in_a_grace_too(q: Queue) -> None:
    q.submit("a", timeout=5)
    delivery = q.dispatch(A, "a")
    q.now += 60 * SECOND
    q.lead()
    assert q.dump()["grace"] > q.now
    assert q.begin(A, delivery, "a") == ["LATE"]


def test_a_late_streaming_request_closes_its_stream(q: Queue) -> None:
    q.submit("a", timeout=5, stream=True)
    delivery = q.dispatch(A, "a")
    q.now += 5 * SECOND
    q.begin(A, delivery, "a")
    assert q.dump()["tokens:a:n-a"] == [{"end": "expired"}]
    assert q.dump()["ttl"]["tokens:a:n-a"] == TOKENS_TTL


@pytest.mark.parametrize("lives", [1, 2, 3])
def test_attempts_count_on_over_failures(q: Queue, lives: int) -> None:
    q.submit("a")
    for attempt in range(1, lives + 1):
        delivery = q.dispatch(A, "a")
        [begun] = q.begun(A, delivery, "a")
        assert begun.attempt == attempt
        q.settle(A, settlement("a", delivery, "retry", attempt=attempt))
        q.now += 60 * SECOND
        q.promote()
