"""submit: accepted once, in order of arrival, within the limits; the id is the client's."""

from __future__ import annotations

import math
from typing import Any

import pytest
from redis.exceptions import ResponseError

from protocol.rig import BELL_TTL, GONE, NORMAL, START, A, Added, H, L, MakeQueue, Queue, T, changes, ok
from stoker.errors import RequestDisplaced
from stoker.forecast import Forecast
from stoker.store import codec
from stoker.store import scripts as s

SECOND = 1_000_000


def test_an_accepted_request_is_written_whole(q: Queue) -> None:
    before = q.before()
    assert q.submit("a", timeout=5, tenant="t") == ["ACCEPTED"]
    score = q.now + 5 * SECOND + 1  # its deadline lifts it from normal, to the deadline itself
    assert changes(before, q.dump()) == {
        "payload:a": q.payload("a"),
        "lane:normal:t": {"a:3:4:x": score},
        "active": {"normal": 1, "normal:t": 1},
        "deadlines": {"a": q.now + 5 * SECOND},
        "mark": q.now + 1,
        "counts": {
            "waiting": 1,
            "waiting_bytes": q.size("a"),
            "waiting_tokens": 7,
            "submitted": 1,
            "waiting:t": 1,
            "waiting_bytes:t": q.size("a"),
            "waiting_tokens:t": 7,
            "submitted:t": 1,
        },
        "events": Added([q.event("submit", "-", f"a submit n-a normal 3:4:x {q.now + 5 * SECOND} {score}")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_a_request_without_a_deadline_or_a_tenant_writes_neither(q: Queue) -> None:
    before = q.before()
    assert q.submit("a") == ["ACCEPTED"]
    assert changes(before, q.dump()) == {
        "payload:a": q.payload("a"),
        "lane:normal": {"a:3:4:x": q.now + NORMAL + 1},
        "mark": q.now + 1,
        "counts": {"waiting": 1, "waiting_bytes": q.size("a"), "waiting_tokens": 7, "submitted": 1},
        "events": Added([q.event("submit", "-", f"a submit n-a normal 3:4:x 0 {q.now + NORMAL + 1}")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_the_bell_holds_one_ring_at_most(q: Queue) -> None:
    q.submit("a")
    q.submit("b")
    assert q.dump()["bell"] == [1]


@pytest.mark.parametrize(
    ("priority", "term"),
    [("critical", 0), ("high", 0), ("normal", 60), ("low", 600), ("batch", 3600)],
)
def test_each_class_has_its_lane_and_its_window(q: Queue, priority: str, term: int) -> None:
    q.submit("a", priority=priority)
    assert q.dump()[f"lane:{priority}"] == {"a:3:4:x": q.now + term * SECOND + 1}


def test_the_entries_of_one_call_keep_their_order_whatever_their_ids(q: Queue) -> None:
    q.submit("z", "m", "a")
    lane = q.dump()["lane:normal"]
    assert sorted(lane, key=lane.get) == ["z:3:4:x", "m:3:4:x", "a:3:4:x"]
    assert sorted(lane.values()) == [q.now + NORMAL + i for i in (1, 2, 3)]


def test_a_later_call_at_the_same_time_comes_behind(q: Queue) -> None:
    q.submit("a", "b")
    q.submit("c")
    assert q.dump()["lane:normal"]["c:3:4:x"] == q.now + NORMAL + 3


def test_a_clock_set_back_lets_nothing_overtake_before_the_gap_is_seen(q: Queue) -> None:
    q.submit("a")
    first = q.now
    q.now -= 600 * SECOND
    q.submit("b")
    assert q.dump()["lane:normal"] == {"a:3:4:x": first + NORMAL + 1, "b:3:4:x": first + NORMAL + 2}
    assert q.dump()["mark"] == first + 2


def test_after_a_clock_set_back_the_skew_keeps_scores_going_up(q: Queue) -> None:
    q.submit("a")
    first = q.now
    q.now -= 600 * SECOND
    q.lead()
    q.now += 5 * SECOND
    q.submit("b")
    assert q.dump()["lane:normal"]["b:3:4:x"] == first + 5 * SECOND + NORMAL + 1


def test_deadlines_go_by_the_plain_clock(q: Queue) -> None:
    q.set("skew", 600 * SECOND)
    q.submit("a", timeout=5)
    assert q.dump()["deadlines"] == {"a": q.now + 5 * SECOND}
    assert q.dump()["payload:a"]["accepted"] == q.now


def test_microseconds_keep_all_their_digits(q: Queue) -> None:
    q.now = 9_007_199_254_740_000
    q.submit("a", priority="high")
    assert q.dump()["payload:a"]["accepted"] == 9_007_199_254_740_000
    assert q.dump()["lane:high"] == {"a:3:4:x": 9_007_199_254_740_001}
    assert q.dump()["mark"] == 9_007_199_254_740_001


# --- the same request again ------------------------------------------------------------------------------------------


def test_a_retried_submit_is_the_same_request(q: Queue) -> None:
    q.submit("a", "b", timeout=5, tenant="t")
    before = q.before()
    assert q.submit("a", "b", timeout=5, tenant="t") == ["SAME", "SAME"]
    assert changes(before, q.dump()) == {}


def test_a_deliberate_resubmission_while_it_lives_is_the_same_request(q: Queue) -> None:
    q.submit("a")
    before = q.before()
    assert q.submit("a", nonce="other", priority="high", tenant="t", metadata={"k": 1}) == ["SAME"]
    assert changes(before, q.dump()) == {}


def test_a_retry_that_finds_the_result_is_done(q: Queue) -> None:
    q.submit("a")
    q.settle(A, ok("a", q.start(A, "a")))
    before = q.before()
    assert q.submit("a") == ["DONE"]
    assert changes(before, q.dump()) == {}


def test_an_id_with_another_digest_conflicts(q: Queue) -> None:
    q.submit("live", "over")
    q.settle(A, ok("over", q.start(A, "over")))
    before = q.before()
    assert q.submit("live", "over", max_tokens=5) == ["CONFLICT", "CONFLICT"]
    assert changes(before, q.dump()) == {}


def test_one_id_twice_in_a_call_is_one_request(q: Queue) -> None:
    before = q.before()
    words = q.submit_all([q.encode("a"), q.encode("a"), q.encode("b"), q.encode("a", max_tokens=5)])
    assert words == ["ACCEPTED", "SAME", "ACCEPTED", "CONFLICT"]
    after = changes(before, q.dump())
    assert after["lane:normal"] == {"a:3:4:x": q.now + NORMAL + 1, "b:3:4:x": q.now + NORMAL + 2}
    assert after["counts"] == {"waiting": 2, "waiting_bytes": 2 * q.size("a"), "waiting_tokens": 14, "submitted": 2}
    assert after["mark"] == q.now + 2


def test_what_is_new_among_the_known_is_accepted(q: Queue) -> None:
    q.submit("b")
    assert q.submit("a", "b", "c") == ["ACCEPTED", "SAME", "ACCEPTED"]
    assert set(q.dump()["lane:normal"]) == {"a:3:4:x", "b:3:4:x", "c:3:4:x"}


def test_an_id_is_free_again_when_its_result_has_expired(q: Queue) -> None:
    q.submit("a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    assert q.submit("a", nonce="n2", max_tokens=9) == ["ACCEPTED"]
    assert q.dump()["payload:a"] == q.payload("a")


# --- the generation --------------------------------------------------------------------------------------------------


def test_an_empty_redis_gets_its_generation_from_the_caller(bare: Queue) -> None:
    before = bare.before()
    generation, _ = bare.store.run(s.submit("mine", 10**9, [bare.encode("a")]))
    assert generation == "mine"
    assert changes(before, bare.dump())["generation"] == "mine"


def test_a_known_generation_is_answered_and_kept(q: Queue) -> None:
    generation, _ = q.store.run(s.submit("mine", 10**9, [q.encode("a")]))
    assert generation == "g"
    assert q.dump()["generation"] == "g"


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_full_queue_takes_no_more(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=2)
    assert q.submit("a", "b", "c", "d") == ["ACCEPTED", "ACCEPTED", "FULL", "FULL"]
    before = q.before()
    assert q.submit("c") == ["FULL"]
    assert changes(before, q.dump()) == {}


def test_the_last_place_is_taken_by_one_call_of_just_that_size(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=2)
    assert q.submit("a", "b") == ["ACCEPTED", "ACCEPTED"]


def test_the_check_for_the_same_request_comes_before_any_limit(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=3)
    q.submit("over")
    q.settle(A, ok("over", q.start(A, "over")))
    q.submit("x", "y", "z")
    assert q.submit("x", "over", "new") == ["SAME", "DONE", "FULL"]
    assert q.submit("x", "over", max_tokens=9) == ["CONFLICT", "CONFLICT"]


def test_bytes_that_wait_are_limited_too(q: Queue) -> None:
    size = int(q.encode("a").header.split(b"|")[8])
    assert q.submit("a", "b", "c", max_bytes=2 * size) == ["ACCEPTED", "ACCEPTED", "FULL"]
    assert q.submit("d", max_bytes=3 * size - 1) == ["FULL"]
    assert q.submit("d", max_bytes=3 * size) == ["ACCEPTED"]


def test_only_what_waits_counts_against_the_limit(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=1)
    q.submit("a")
    q.start(A, "a")
    assert q.submit("b") == ["ACCEPTED"]
    assert q.submit("c") == ["FULL"]


def test_what_is_delayed_counts_as_waiting(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=1)
    q.submit("a")
    delivery = q.start(A, "a")
    q.settle(A, s.Settlement("a", delivery, "n-a", "retry", "error", b"", 1))
    assert q.submit("b") == ["FULL"]


@pytest.mark.parametrize(
    ("rates", "seconds"),
    [
        ({}, 1.0),
        ({"age": 1.0, "settled": 0, "drain": "4.000"}, 0.25),
        ({"age": 1.0, "settled": 9, "drain": "4.000"}, 0.25),
        ({"age": 1.0, "settled": 0, "drain": "1000.000"}, 0.05),
        ({"age": 1.0, "settled": 0, "drain": "0.001"}, 60.0),
        ({"age": 6.0, "settled": 12, "drain": "4.000"}, 0.5),
        ({"age": 0.5, "settled": 2}, 0.5),
        ({"age": 4.0, "settled": 2}, 2.0),
        ({"age": 6.0, "settled": 0, "drain": "4.000"}, 1.0),
    ],
    ids=[
        "nothing-settled-yet",
        "the-last-window's-rate",
        "not-the-running-window",
        "never-under-50-ms",
        "never-over-a-minute",
        "a-window-too-old-is-replaced-by-the-running-one",
        "the-first-window-while-it-is-young",
        "the-first-window",
        "nothing-drains-any-more",
    ],
)
def test_a_full_queue_says_when_there_may_be_room(
    make_queue: MakeQueue, rates: dict[str, float], seconds: float
) -> None:
    q = make_queue(max_waiting=1)
    q.submit("a")
    fields = {name: value for name, value in rates.items() if name != "age"}
    if rates:
        q.redis.hset(q.keys.rates, mapping={"since": q.now - int(rates["age"] * SECOND), **fields})
    _, answers = q.store.run(s.submit("g", 10**9, [q.encode("b")]))
    assert answers == [s.Accepted("FULL", seconds, "max_waiting", 1, 2, True)]


def test_more_waiting_than_allowed_makes_the_wait_longer(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=2)
    q.submit("a", "b")
    delivery = q.start(A, "a", "b")
    q.submit("c", "d")
    q.hand_back(A, ("a", delivery), ("b", delivery))
    q.redis.hset(q.keys.rates, mapping={"since": q.now, "settled": 0, "drain": "4.000"})
    _, answers = q.store.run(s.submit("g", 10**9, [q.encode("e")]))
    assert answers == [s.Accepted("FULL", 0.75, "max_waiting", 2, 5, True)]


@pytest.mark.parametrize(
    ("limits", "full"),
    [
        ({"max_waiting_tokens": 20}, ("max_waiting_tokens", 20, 21)),
        ({"max_stored_bytes": 100}, ("max_stored_bytes", 100, 0)),
        ({"tenant_max_waiting": 2}, ("tenant_max_waiting", 2, 3)),
        ({"tenant_max_tokens": 14}, ("tenant_max_tokens", 14, 21)),
        ({"tenant_max_bytes": 100}, ("tenant_max_bytes", 100, 0)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("together", [True, False], ids=["in-one-call", "one-by-one"])
def test_the_limit_that_has_no_room_is_named(
    make_queue: MakeQueue, limits: dict[str, int], full: tuple[str, int, int], together: bool
) -> None:
    q = make_queue(**limits)
    items = [q.encode(name, tenant="t") for name in "abc"]
    size = len(items[0].body)
    if "bytes" in full[0]:
        q = make_queue(**{full[0]: 3 * size - 1})
        full = (full[0], 3 * size - 1, 3 * size)
    calls = [items] if together else [[item] for item in items]
    answers = [answer for call in calls for answer in q.store.run(s.submit("g", 10**9, call))[1]]
    assert [answer.word for answer in answers] == ["ACCEPTED", "ACCEPTED", "FULL"]
    assert (answers[2].field, answers[2].limit, answers[2].value) == full


def test_a_tenants_own_limits_go_before_those_of_all(make_queue: MakeQueue) -> None:
    q = make_queue(tenant_max_waiting=1)
    q.redis.hset(q.keys.tenants, mapping={"large:max_waiting": 2, "small:max_tokens": 6})
    assert q.submit("a", "b", "c", tenant="large") == ["ACCEPTED", "ACCEPTED", "FULL"]
    assert q.submit("d", tenant="small") == ["FULL"]
    assert q.submit("e", "f", tenant="other") == ["ACCEPTED", "FULL"]
    assert q.submit("g", "h") == ["ACCEPTED", "ACCEPTED"]


def test_results_count_against_the_bytes_until_they_lapsed(make_queue: MakeQueue) -> None:
    size = len(make_queue().encode("a").body)
    q = make_queue(max_stored_bytes=size + 50, result_ttl_s=16)
    q.submit("a", tenant="t")
    q.settle(A, ok("a", q.start(A, "a"), body=bytes(51)))
    assert q.dump()["counts"]["kept_bytes:t"] == 51
    _, answers = q.store.run(s.submit("g", 10**9, [q.encode("b")]))
    assert answers == [s.Accepted("FULL", 16.0, "max_stored_bytes", size + 50, size + 51, True)]
    q.tick(16 * SECOND)
    q.expire()
    assert q.submit("b") == ["FULL"]
    q.tick(1 * SECOND)
    q.expire()
    assert q.submit("b") == ["ACCEPTED"]
    assert not {"kept", "kept_bytes"} & {*q.dump(), *q.dump()["counts"]}


def test_results_of_a_tenant_count_against_its_bytes(make_queue: MakeQueue) -> None:
    q = make_queue(tenant_max_bytes=100)
    q.submit("a", tenant="t")
    q.settle(A, ok("a", q.start(A, "a"), body=bytes(99)))
    assert q.submit("b", tenant="t") == ["FULL"]
    assert q.submit("b", tenant="other") == ["ACCEPTED"]


def test_a_tenants_room_comes_by_its_share_of_what_drains(make_queue: MakeQueue) -> None:
    q = make_queue(tenant_max_waiting=2)
    q.submit("a", "b", tenant="t")
    q.submit("c", "d", "e", "f", "g", "h")
    q.redis.hset(q.keys.rates, mapping={"since": q.now, "settled": 0, "drain": "4.000"})
    _, answers = q.store.run(s.submit("g", 10**9, [q.encode("i", tenant="t")]))
    assert answers == [s.Accepted("FULL", 1.0, "tenant_max_waiting", 2, 3, True)]


def test_room_for_tokens_comes_as_requests_of_their_usual_size_drain(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting_tokens=14)
    q.submit("a", "b")
    q.redis.hset(q.keys.rates, mapping={"since": q.now, "settled": 0, "drain": "4.000"})
    _, answers = q.store.run(s.submit("g", 10**9, [q.encode("c", max_tokens=11)]))
    assert answers == [s.Accepted("FULL", 0.5, "max_waiting_tokens", 14, 28, True)]


def test_a_full_queue_whose_workers_are_silent_says_so(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=1)
    q.submit("a")
    q.now += T + 1
    _, answers = q.store.run(s.submit("g", 10**9, [q.encode("b")]))
    assert not answers[0].workers


# --- displacing ------------------------------------------------------------------------------------------------------


def displacing(q: Queue, request_id: str, **request: Any) -> s.Accepted:
    _, [answer] = q.store.run(s.submit("g", 10**9, [q.encode(request_id, displace=True, **request)]))
    return answer


def test_a_better_newcomer_takes_the_place_of_the_worst_sheddable(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=3)
    q.submit("kept", priority="batch")
    q.submit("better", priority="low", sheddable=True)
    q.submit("worst", priority="batch", sheddable=True, tenant="t")
    q.redis.hset(q.keys.rates, mapping={"since": q.now, "settled": 0, "drain": "2.000"})
    assert displacing(q, "new", priority="high").word == "ACCEPTED"
    after = q.dump()
    assert (after["lane:low"], after["lane:batch"]) == (
        {"better:3:4:xs": q.now + 600 * SECOND + 2},
        {"kept:3:4:x": q.now + 3600 * SECOND + 1},
    )
    assert after["sheddable"] == {"better": q.now + 600 * SECOND + 2}
    assert (after["counts"]["waiting"], after["counts"]["failed:t"]) == (3, 1)
    body = b"\x81\xaeretry_after_ms\xcd" + (500).to_bytes(2, "big")
    assert after["result:worst"] == q.result("worst", "failed", body, reason="displaced")
    assert after["reply:c"] == [after["result:worst"]]
    assert not {"dead", "payload:worst"} & set(after)
    error = codec.response_of(codec.decode_outcome(q.redis.get(q.keys.result("worst")))).error
    assert isinstance(error, RequestDisplaced)
    assert (error.retry_after, error.reason) == (0.5, "displaced")


def test_a_displacing_submit_repeated_displaces_nobody_else(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=2)
    q.submit("a", "b", priority="batch", sheddable=True)
    assert displacing(q, "new").word == "ACCEPTED"
    before = q.dump()
    assert displacing(q, "new").word == "SAME"
    assert changes(before, q.dump()) == {}
    assert "payload:a" in before


@pytest.mark.parametrize(
    ("waiting", "newcomer"),
    [
        ({"priority": "batch"}, {"priority": "high", "displace": True}),
        ({"priority": "batch", "sheddable": True}, {"priority": "high"}),
        ({"priority": "normal", "sheddable": True}, {"priority": "normal", "displace": True}),
        ({"priority": "normal", "sheddable": True}, {"priority": "batch", "displace": True}),
        ({"priority": "batch", "sheddable": True}, {"priority": "high", "displace": True, "tenant": "capped"}),
    ],
    ids=["not-sheddable", "not-asked", "an-earlier-of-the-class", "a-worse-newcomer", "a-tenant-at-its-own-limit"],
)
def test_nobody_is_displaced(make_queue: MakeQueue, waiting: dict[str, Any], newcomer: dict[str, Any]) -> None:
    q = make_queue(max_waiting=2)
    q.redis.hset(q.keys.tenants, "capped:max_waiting", 1)
    q.submit("a", **waiting)
    q.submit("b", tenant="capped")
    before = q.dump()
    _, [answer] = q.store.run(s.submit("g", 10**9, [q.encode("new", **newcomer)]))
    assert answer.word == "FULL"
    assert changes(before, q.dump()) == {}


def test_a_worse_newcomer_displaces_nobody(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=1)
    q.submit("a", sheddable=True)
    assert displacing(q, "new", priority="batch").word == "FULL"
    assert displacing(q, "new").word == "FULL"


def test_none_of_a_call_displaces_another_of_it(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=1)
    both = [q.encode("a", priority="batch", sheddable=True), q.encode("b", priority="high", displace=True)]
    _, answers = q.store.run(s.submit("g", 10**9, both))
    assert [answer.word for answer in answers] == ["ACCEPTED", "FULL"]


def test_what_a_call_displaces_is_the_same_request_until_the_call_is_over(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=1)
    q.submit("a", priority="batch", sheddable=True)
    call = [q.encode("b", priority="high", displace=True), q.encode("a", priority="batch", sheddable=True)]
    _, answers = q.store.run(s.submit("g", 10**9, call))
    assert [answer.word for answer in answers] == ["ACCEPTED", "SAME"]
    assert {"payload:b", "result:a"} <= set(q.dump())


def test_as_many_are_displaced_as_it_takes_and_none_where_that_is_not_enough(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting_tokens=21)
    q.submit("a", "b", "c", priority="batch", sheddable=True)
    assert displacing(q, "huge", max_tokens=30).word == "FULL"
    assert set(q.dump()["sheddable"]) == {"a", "b", "c"}
    assert displacing(q, "new", max_tokens=11).word == "ACCEPTED"
    assert set(q.dump()["sheddable"]) == {"a"}


def test_what_is_sheddable_can_be_displaced_only_while_it_waits(make_queue: MakeQueue) -> None:
    q = make_queue(max_waiting=1)
    q.submit("a", priority="batch", sheddable=True)
    delivery = q.start(A, "a")
    assert "sheddable" not in q.dump()
    q.submit("b")
    assert displacing(q, "new", priority="high").word == "FULL"
    q.hand_back(A, ("a", delivery))
    assert set(q.dump()["sheddable"]) == {"a"}
    q.cancel("a")
    assert "sheddable" not in q.dump()


# --- deadlines -------------------------------------------------------------------------------------------------------

FORECAST = Forecast(tokens_per_s=10, base_us=100_000, prompt_us=1000, answer_us=50_000)
OWN_S = 0.1 + 3 * 0.001 + 4 * 0.05
"""What a request of 3 prompt tokens and 4 more takes of its own."""


def dated(q: Queue, timeout: float, **request: Any) -> s.Accepted:
    _, [answer] = q.store.run(s.submit("g", 10**9, [q.encode("new", timeout=timeout, **request)]))
    return answer


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("margin", [-0.01, 0.01])
def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate(q: Queue, ahead: int, margin: float) -> None:
    q.lead(forecast=FORECAST.text())
    if ahead:
        q.submit(*(f"a{i}" for i in range(ahead)), priority="high")
    estimate = FORECAST.finish_us(7 * ahead, 3, 4) / 1e6
    assert estimate == pytest.approx(OWN_S + 0.7 * ahead)
    before = q.before()
    answer = dated(q, estimate + margin)
    if margin > 0:
        assert answer.word == "ACCEPTED"
        return
    assert (answer.word, answer.field, answer.limit) == ("LATE", "timeout", math.floor(1000 * (estimate + margin)))
    assert answer.value == math.ceil(1000 * estimate)
    assert changes(before, q.dump()) == {}


def test_only_what_goes_first_is_before_it(q: Queue) -> None:
    q.lead(forecast=FORECAST.text())
    q.submit("a", "b", "c", priority="batch")
    assert dated(q, OWN_S + 0.01, priority="high").word == "ACCEPTED"


def test_of_one_call_the_earlier_are_before_the_later(q: Queue) -> None:
    q.lead(forecast=FORECAST.text())
    q.submit("a", priority="high")
    items = [q.encode(name, timeout=OWN_S + 0.71, priority="high") for name in ("b", "c")]
    _, answers = q.store.run(s.submit("g", 10**9, items))
    assert [answer.word for answer in answers] == ["ACCEPTED", "LATE"]


def test_a_deadline_is_not_held_against_what_nobody_knows_or_wants(q: Queue) -> None:
    assert dated(q, 0.01).word == "ACCEPTED"
    q.cancel("new")
    q.redis.delete(q.keys.result("new"))
    q.lead(forecast=FORECAST.text())
    assert dated(q, 0.01, check_deadline=False).word == "ACCEPTED"
    assert dated(q, 0.01).word == "SAME"
    q.cancel("new")
    q.redis.delete(q.keys.result("new"))
    q.now += L
    assert dated(q, 0.01).word == "ACCEPTED"


def test_a_leader_that_knows_nothing_takes_its_forecast_back(q: Queue) -> None:
    q.lead(forecast=FORECAST.text())
    q.lead()
    assert dated(q, 0.01).word == "ACCEPTED"


# --- headers ---------------------------------------------------------------------------------------------------------


def _with_header(q: Queue, header: bytes) -> codec.Submission:
    good = q.encode("bad")
    return codec.Submission("bad", good.nonce, header, good.body)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.replace(b"1|", b"2|", 1),
        lambda header: header.replace(b"normal", b"urgent"),
        lambda header: header.replace(b"normal", b"suspect"),
        lambda header: header.replace(b"n-bad", b""),
        lambda header: header.replace(b"3:4:x", b"3:4:y"),
        lambda header: header.replace(b"3:4:x", b"3:-4:x"),
        lambda header: header.replace(b"|60000000|", b"|-1|"),
        lambda header: header.replace(b"|c|", b"|" + b"c" * 496 + b"|"),
        lambda header: header[:-1],
    ],
    ids=["version", "class", "suspect", "nonce", "estimate", "max_tokens", "term", "too-long", "cut-off"],
)
def test_a_bad_header_is_an_error_and_nothing_of_its_call_is_taken(q: Queue, change: object) -> None:
    assert callable(change)
    bad = _with_header(q, change(q.encode("bad").header))
    before = q.before()
    with pytest.raises(ResponseError, match="BADHEADER of bad"):
        q.submit_all([q.encode("good"), bad])
    assert changes(before, q.dump()) == {}


def test_a_header_of_496_bytes_is_taken_and_read_back_whole(q: Queue) -> None:
    room = 496 - len(q.encode("a").header) + 1
    assert q.submit("a", reply="r" * room) == ["ACCEPTED"]
    assert len(q.sent["a"].header) == 496
    before = q.dump()
    assert q.cancel("a") == "OK"
    after = changes(before, q.dump())
    assert after["lane:normal"] is GONE
    assert list(after["reply:" + "r" * room]) == [q.result("a", "cancelled")]


def test_512_requests_go_in_one_call(q: Queue) -> None:
    ids = [f"r{i}" for i in range(512)]
    assert q.submit(*ids, timeout=9) == ["ACCEPTED"] * 512
    assert q.dump()["counts"]["waiting"] == 512
    assert q.submit(*ids, timeout=9) == ["SAME"] * 512


def test_the_time_of_the_tests_is_the_clock_of_the_scripts(q: Queue) -> None:
    assert q.now == START + 4 * H
    q.submit("a")
    assert q.dump()["events"][-1] == q.event("submit", "-", f"a submit n-a normal 3:4:x 0 {q.now + NORMAL + 1}")


def test_each_tenant_has_its_lane_and_those_without_one_the_lane_of_the_class(q: Queue) -> None:
    q.submit("a", "b", tenant="t")
    q.submit("c", tenant="u")
    q.submit("d")
    found = q.dump()
    assert {name: len(members) for name, members in found.items() if name.startswith("lane:")} == {
        "lane:normal:t": 2,
        "lane:normal:u": 1,
        "lane:normal": 1,
    }
    assert found["active"] == {"normal": 3, "normal:t": 2, "normal:u": 1}


def test_requests_that_are_nearly_alike_keep_apart_in_one_call(q: Queue) -> None:
    tenants = ["a.b", "axb", "a-b", "ab", "a.b"]
    items = [q.encode(f"r{i}", tenant=tenant, prompt_tokens=[1] * (i + 1)) for i, tenant in enumerate(tenants)]
    plain = [q.encode("p", priority="low"), q.encode("q", timeout=5), q.encode("s", sheddable=True)]
    assert q.submit_all([*items, *plain]) == ["ACCEPTED"] * 8
    lanes = [q.redis.zrange(q.key(f"lane:normal:{tenant}"), 0, -1) for tenant in tenants[:4]]
    assert lanes == [[b"r0:1:4:x", b"r4:5:4:x"], [b"r1:2:4:x"], [b"r2:3:4:x"], [b"r3:4:4:x"]]
    assert q.redis.hget(q.key("active"), "normal:a.b") == b"2"
    assert q.redis.zrange(q.key("lane:low"), 0, -1) == [b"p:3:4:x"]
    assert q.redis.zrange(q.key("lane:normal"), 0, -1) == [b"q:3:4:x", b"s:3:4:xs"]
    assert q.redis.zrange(q.key("deadlines"), 0, -1) == [b"q"]
    assert q.redis.zrange(q.key("sheddable"), 0, -1) == [b"s"]
