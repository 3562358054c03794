"""RequestQueue: the order in which waiting requests are considered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import CLASSES, FULL_CAPACITY, LANES, Waiting, WorkerRecord
from stoker_scheduler.queue import RequestQueue, charged_cost, class_rank, largest_capacity

S = 1_000_000
CONFIG = Config(critical_share=0.2)
W_US = {"critical": 0, "high": 0, "normal": 60 * S, "low": 600 * S, "batch": 3600 * S}


def waiting(name: str, lane: str, score: float, tokens: int = 100, *, exact: bool = True) -> Waiting:
    return Waiting(name, lane, f"{name}:{tokens}:0:x", score, tokens, 0, exact)


def worker(capacity: int = 1000, state: str = "live") -> WorkerRecord:
    return WorkerRecord(
        inc="w:1-a", worker="w", rows=8, capacity=capacity, budget=500, mode="continuous", cache="paged", state=state
    )


def names(requests: Sequence[Waiting]) -> list[str]:
    return [request.id for request in requests]


def test_the_lower_score_comes_first_whatever_the_lane() -> None:
    heads = {
        "high": [waiting("h1", "high", 20), waiting("h2", "high", 50)],
        "normal": [waiting("n1", "normal", 10), waiting("n2", "normal", 40)],
        "batch": [waiting("b1", "batch", 30)],
    }
    assert names(RequestQueue(CONFIG).order(heads, [worker()]).requests) == ["n1", "h1", "b1", "n2", "h2"]


def test_of_equal_scores_the_better_class_comes_first() -> None:
    heads = {lane: [waiting(lane, lane, 7)] for lane in reversed(CLASSES)}
    assert names(RequestQueue(CONFIG).order(heads, [worker()]).requests) == list(CLASSES)


arrivals = st.lists(
    st.tuples(st.sampled_from(CLASSES[1:]), st.integers(0, 5000 * S)), min_size=2, max_size=60, unique_by=lambda a: a[1]
)


@given(arrivals)
def test_a_later_arrival_passes_only_within_the_difference_of_the_class_windows(came: list[tuple[str, int]]) -> None:
    arrived = {str(i): came_us for i, (_, came_us) in enumerate(came)}
    heads: dict[str, list[Waiting]] = {lane: [] for lane in CLASSES}
    for i, (lane, came_us) in enumerate(came):
        heads[lane].append(waiting(str(i), lane, came_us + W_US[lane]))
    for lane in heads:
        heads[lane].sort(key=lambda request: request.score)

    order = RequestQueue(CONFIG).order(heads, [worker()]).requests

    assert len(order) == len(came)
    for i, first in enumerate(order):
        for second in order[i + 1 :]:
            assert arrived[first.id] - arrived[second.id] <= W_US[second.lane] - W_US[first.lane]


def test_critical_goes_before_older_requests_while_it_is_within_its_share() -> None:
    queue = RequestQueue(CONFIG)
    queue.dispatched([waiting("before", "normal", 0, tokens=10_000)], now_us=0)
    heads = {
        "normal": [waiting("n1", "normal", 1), waiting("n2", "normal", 2)],
        "critical": [waiting("c1", "critical", 1000), waiting("c2", "critical", 1001)],
    }
    assert names(queue.order(heads, [worker()]).requests) == ["c1", "c2", "n1", "n2"]


def test_critical_beyond_its_share_goes_by_its_score() -> None:
    queue = RequestQueue(CONFIG)
    queue.dispatched([waiting("before", "critical", 0, tokens=10_000)], now_us=0)
    heads = {
        "normal": [waiting("n1", "normal", 1), waiting("n2", "normal", 2000)],
        "critical": [waiting("c1", "critical", 1000)],
    }
    assert names(queue.order(heads, [worker()]).requests) == ["n1", "c1", "n2"]


def test_at_equal_scores_critical_goes_first_beyond_its_share_too() -> None:
    queue = RequestQueue(CONFIG)
    queue.dispatched([waiting("before", "critical", 0, tokens=10_000)], now_us=0)
    heads = {"normal": [waiting("n", "normal", 1)], "critical": [waiting("c", "critical", 1)]}
    assert names(queue.order(heads, [worker()]).requests) == ["c", "n"]


def test_a_second_ago_still_counts() -> None:
    heads = {"normal": [waiting("n", "normal", 1)], "critical": [waiting("c", "critical", 1000)]}
    much_critical = RequestQueue(CONFIG)
    much_critical.dispatched([waiting("a", "critical", 0, tokens=10_000)], now_us=0)
    much_critical.dispatched([waiting("b", "normal", 0, tokens=1000)], now_us=1 * S)
    assert names(much_critical.order(heads, [worker()]).requests) == ["n", "c"]
    little_critical = RequestQueue(CONFIG)
    little_critical.dispatched([waiting("a", "normal", 0, tokens=10_000)], now_us=0)
    little_critical.dispatched([waiting("b", "critical", 0, tokens=1000)], now_us=1 * S)
    assert names(little_critical.order(heads, [worker()]).requests) == ["c", "n"]


def test_the_share_is_of_what_was_dispatched_lately() -> None:
    queue = RequestQueue(CONFIG)
    queue.dispatched([waiting("long ago", "critical", 0, tokens=1_000_000)], now_us=0)
    queue.dispatched([waiting("lately", "normal", 0, tokens=1000)], now_us=300 * S)
    heads = {"normal": [waiting("n", "normal", 1)], "critical": [waiting("c", "critical", 1000)]}
    assert names(queue.order(heads, [worker()]).requests) == ["c", "n"]


def test_what_critical_had_while_nobody_else_waited_is_not_held_against_it() -> None:
    alone = {"critical": [waiting("before", "critical", 0, tokens=10_000)]}
    heads = {"normal": [waiting("n", "normal", 1)], "critical": [waiting("c", "critical", 1000)]}
    for beside, expected in (({}, ["c", "n"]), ({"low": [waiting("l", "low", 600 * S)]}, ["n", "c"])):
        queue = RequestQueue(CONFIG)
        queue.order(alone | beside, [worker()])
        queue.dispatched(alone["critical"], now_us=0)
        order = queue.order(heads, [worker()])
        assert names(order.requests) == expected
        assert order.urgent == ({"c"} if expected[0] == "c" else set())


def test_only_so_many_of_a_burst_are_urgent_as_the_share_lets_pass() -> None:
    queue = RequestQueue(CONFIG)
    queue.dispatched([waiting("lately", "normal", 0, tokens=1000)], now_us=0)
    burst = [waiting(f"c{i}", "critical", i, tokens=100) for i in range(9)]
    order = queue.order({"critical": burst, "normal": [waiting("n", "normal", 60 * S)]}, [worker()])
    assert order.urgent == {"c0", "c1", "c2"}  # beyond the third they have more than a fifth
    assert not RequestQueue(Config(critical_share=0)).order({"critical": burst}, [worker()]).urgent


def test_the_account_survives_a_clock_that_was_set_back() -> None:
    queue = RequestQueue(CONFIG)
    queue.dispatched([waiting("before", "critical", 0, tokens=1000)], now_us=3600 * S)
    queue.dispatched([waiting("after", "normal", 0, tokens=1000)], now_us=0)
    queue.dispatched([waiting("later", "normal", 0, tokens=10_000)], now_us=60 * S)
    heads = {"normal": [waiting("n", "normal", 1)], "critical": [waiting("c", "critical", 1000)]}
    assert names(queue.order(heads, [worker()]).requests) == ["c", "n"]


def test_a_share_of_zero_leaves_critical_to_its_score() -> None:
    heads = {"normal": [waiting("n", "normal", 1)], "critical": [waiting("c", "critical", 1000)]}
    order = RequestQueue(Config(critical_share=0)).order(heads, [worker()])
    assert names(order.requests) == ["n", "c"]


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=40),
    st.lists(st.integers(1, 500), min_size=1, max_size=40),
    st.floats(0.01, 1),
)
def test_every_prefix_of_an_order_keeps_the_share_to_within_one_request(
    critical: list[int], normal: list[int], share: float
) -> None:
    heads = {
        "critical": [waiting(f"c{i}", "critical", 1000 + i, tokens) for i, tokens in enumerate(critical)],
        "normal": [waiting(f"n{i}", "normal", i, tokens) for i, tokens in enumerate(normal)],
    }
    order = RequestQueue(Config(critical_share=share)).order(heads, [worker()]).requests
    urgent = total = 0
    for i, request in enumerate(order):
        passes = any(later.lane == "normal" for later in order[i:])
        if request.lane == "critical" and passes:
            assert urgent <= share * total
        elif passes and any(later.lane == "critical" for later in order[i:]):
            assert urgent > share * total
        urgent += request.cost if request.lane == "critical" else 0
        total += request.cost


def test_a_lane_that_is_held_back_hides_nothing() -> None:
    heads = {"batch": [waiting("b", "batch", 1)], "normal": [waiting("n", "normal", 2)]}
    order = RequestQueue(CONFIG).order(heads, [worker()], held_back={"batch"})
    assert names(order.requests) == ["n"]


def test_a_lane_of_a_tenant_belongs_to_the_class_before_the_colon() -> None:
    heads = {
        "normal:acme": [waiting("n", "normal:acme", 1)],
        "critical:acme": [waiting("c2", "critical:acme", 1001)],
        "critical:zeta": [waiting("c1", "critical:zeta", 1000)],
    }
    queue = RequestQueue(CONFIG)
    queue.dispatched([waiting("before", "normal", 0, tokens=10_000)], now_us=0)
    assert names(queue.order(heads, [worker()]).requests) == ["c1", "c2", "n"]
    assert class_rank("low:acme") == class_rank("low") == 3


def test_suspects_are_never_ordered_with_clean_requests() -> None:
    queue = RequestQueue(CONFIG)
    heads = {lane: [waiting(lane, lane, 1)] for lane in LANES}
    assert "suspect" not in names(queue.order(heads, [worker()]).requests)
    assert names(queue.suspects(heads, [worker()]).requests) == ["suspect"]


def test_what_no_worker_could_hold_is_passed_over_and_reported() -> None:
    queue = RequestQueue(CONFIG)
    heads = {
        "normal": [waiting("fits", "normal", 2, 1000), waiting("huge", "normal", 1, 1001)],
        "critical": [waiting("urgent and huge", "critical", 3, 1001)],
        "suspect": [waiting("suspect and huge", "suspect", 1, 1001), waiting("suspect", "suspect", 2)],
    }
    order = queue.order(heads, [worker(1000), worker(10)])
    assert names(order.requests) == ["fits"]
    assert set(names(order.unholdable)) == {"huge", "urgent and huge"}
    suspects = queue.suspects(heads, [worker(1000)])
    assert names(suspects.requests) == ["suspect"]
    assert names(suspects.unholdable) == ["suspect and huge"]


def test_a_dead_worker_holds_nothing() -> None:
    heads = {"normal": [waiting("n", "normal", 1, 500)]}
    order = RequestQueue(CONFIG).order(heads, [worker(1000, state="dead"), worker(100)])
    assert names(order.unholdable) == ["n"]


def test_a_worker_that_lacks_memory_for_a_while_makes_nothing_unholdable() -> None:
    lacking = dataclasses.replace(worker(300), figures={FULL_CAPACITY: 1000})
    assert largest_capacity([lacking, worker(800)]) == 1000


def test_an_estimate_is_never_unholdable_but_clamped_to_the_largest_worker() -> None:
    guess = waiting("guess", "normal", 1, 5000, exact=False)
    order = RequestQueue(CONFIG).order({"normal": [guess]}, [worker(1000)])
    assert names(order.requests) == ["guess"]
    assert charged_cost(guess, largest_capacity([worker(1000), worker(800)])) == 1000


def test_an_exact_cost_is_never_clamped() -> None:
    assert charged_cost(waiting("n", "normal", 1, 5000), 1000) == 5000


def test_without_any_worker_nothing_is_unholdable() -> None:
    huge = waiting("huge", "normal", 1, 10**9)
    assert names(RequestQueue(CONFIG).order({"normal": [huge]}, []).requests) == ["huge"]


def test_ten_thousand_unholdable_requests_delay_an_eligible_one_by_no_tick() -> None:
    queue = RequestQueue(CONFIG)
    lane = [waiting(str(i), "normal", i, tokens=2000) for i in range(10_000)] + [waiting("fits", "normal", 10_000)]
    page = 512
    read: list[Waiting] = []
    while True:
        entries = lane[len(read) : len(read) + page]
        read += entries
        if not queue.deeper(entries, page, [worker(1000)]):
            break
    assert names(queue.order({"normal": read}, [worker(1000)]).requests) == ["fits"]


@pytest.mark.parametrize(("unholdable", "deeper"), [(0, False), (4, False), (5, True), (10, True)])
def test_a_full_page_is_read_past_when_at_least_half_of_it_is_unholdable(unholdable: int, deeper: bool) -> None:
    page = [waiting(str(i), "normal", i, tokens=2000 if i < unholdable else 100) for i in range(10)]
    assert RequestQueue(CONFIG).deeper(page, 10, [worker(1000)]) is deeper


def test_nothing_is_read_past_the_end_of_a_lane() -> None:
    page = [waiting("huge", "normal", 1, tokens=2000)]
    assert not RequestQueue(CONFIG).deeper(page, 10, [worker(1000)])
    assert not RequestQueue(CONFIG).deeper([], 10, [worker(1000)])
