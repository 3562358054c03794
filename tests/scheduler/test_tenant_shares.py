"""Who of a class goes first when several tenants wait: tables and properties of the pure policy."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import Waiting, class_of
from stoker_scheduler.queue import RequestQueue
from stoker_scheduler.tenants import LEAST_PAGE, TenantShares, page_of

A, B, C, NOBODY = "normal:a", "normal:b", "normal:c", "normal"


def waiting(name: str, lane: str, score: float, tokens: int = 100) -> Waiting:
    return Waiting(name, lane, f"{name}:{tokens}:0:x", score, tokens, 0, True)


def line(lane: str, number: int, tokens: int = 100, since: float = 0) -> list[Waiting]:
    return [waiting(f"{lane}{i}", lane, since + i, tokens) for i in range(number)]


def names(requests: list[Waiting]) -> list[str]:
    return [request.id for request in requests]


def order(shares: TenantShares, *lines: list[Waiting]) -> list[Waiting]:
    heads = {requests[0].lane: requests for requests in lines}
    shares.observe({lane: len(requests) for lane, requests in heads.items()})
    return list(RequestQueue(Config(), shares).order(heads, ()).requests)


def of(requests: list[Waiting]) -> str:
    return "".join(request.lane.partition(":")[2] or "-" for request in requests)


# --- the order -------------------------------------------------------------------------------------------------------


def test_a_lone_tenant_gets_everything_in_its_order() -> None:
    requests = line(A, 5)
    assert order(TenantShares({A: 7.0}), requests) == requests


def test_without_tenants_nothing_is_looked_at() -> None:
    requests = line(NOBODY, 5)
    shares = TenantShares()
    shares.observe(dict.fromkeys([NOBODY], 100))
    assert shares.fair(requests) is requests
    shares.hand_out(requests)
    assert shares.served() == {}


def test_two_tenants_take_turns_however_many_one_of_them_has() -> None:
    assert of(order(TenantShares(), line(A, 6), line(B, 3, since=1000))) == "abababaaa"


def test_turns_are_in_tokens_not_in_requests() -> None:
    assert of(order(TenantShares(), line(A, 3, tokens=300), line(B, 6, since=1000))) == "abbbabbba"


def test_a_weight_of_three_is_three_times_the_tokens() -> None:
    shares = TenantShares()
    shares.weigh({"a": 3.0})
    assert of(order(shares, line(A, 8), line(B, 8, since=1000)))[:8] == "abaaabaa"


def test_the_requests_without_a_tenant_are_one_tenant_more() -> None:
    assert of(order(TenantShares(), line(A, 4), line(NOBODY, 2, since=1000))) == "a-a-aa"


def test_the_least_served_goes_first() -> None:
    assert of(order(TenantShares({A: 250, B: 0}), line(A, 3), line(B, 5, since=1000))) == "bbbababa"


def test_of_equal_service_the_request_that_waits_longest_goes_first() -> None:
    assert of(order(TenantShares(), line(A, 1, since=5), line(B, 1, since=4))) == "ba"


def test_turns_of_a_class_stay_its_own_whoever_takes_them() -> None:
    shares = TenantShares({A: 0, B: 900})
    mixed = [waiting("n1", B, 1), waiting("n2", A, 5)]
    high = [waiting("h", "high", 3)]
    assert names(order(shares, mixed[:1], mixed[1:], high)) == ["n2", "h", "n1"]


def test_tenants_of_different_classes_are_nothing_to_each_other() -> None:
    assert names(order(TenantShares(), line("low:a", 2, since=5), line("normal:b", 2, since=0))) == [
        *("normal:b0", "normal:b1"),
        *("low:a0", "low:a1"),
    ]


def test_a_class_or_one_lane_of_it_can_be_held_back() -> None:
    heads = {A: line(A, 1), B: line(B, 1), "high": line("high", 1)}
    queue = RequestQueue(Config())
    assert names(list(queue.order(heads, (), held_back={"normal"}).requests)) == ["high0"]
    assert names(list(queue.order(heads, (), held_back={A}).requests)) == ["high0", "normal:b0"]


# --- who comes and goes ----------------------------------------------------------------------------------------------


def test_a_newcomer_begins_at_the_lowest_of_those_who_wait() -> None:
    shares = TenantShares({A: 500, B: 700})
    shares.observe(dict.fromkeys([A, B, C], 100))
    assert shares.served() == {A: 500, B: 700, C: 500}


def test_who_leaves_for_a_moment_comes_back_with_what_it_had() -> None:
    shares = TenantShares({A: 500, B: 700})
    shares.observe(dict.fromkeys([A], 100))
    shares.observe(dict.fromkeys([A, B], 100))
    assert shares.served() == {A: 500, B: 700}


def test_who_was_away_saves_up_nothing() -> None:
    shares = TenantShares({A: 500, B: 700})
    shares.observe(dict.fromkeys([B], 100))
    shares.hand_out(line(B, 10))
    shares.observe(dict.fromkeys([A, B], 100))
    assert shares.served() == {A: 1700, B: 1700}


def test_in_a_class_that_emptied_all_are_equal() -> None:
    shares = TenantShares({A: 1000})
    shares.hand_out(line(A, 1))
    shares.observe({})
    shares.observe(dict.fromkeys([B], 100))
    shares.observe(dict.fromkeys([A, B], 100))
    assert shares.served() == {A: 1100, B: 1100}


def test_what_a_tenant_gets_alone_in_one_tick_is_not_held_against_it() -> None:
    shares = TenantShares({A: 0, B: 0})
    shares.hand_out([*line(B, 1), *line(A, 50)])
    shares.observe({})
    shares.observe(dict.fromkeys([A, B], 100))
    assert shares.served() == {A: 5000, B: 5000}


def test_who_would_begin_at_the_lowest_anyway_is_forgotten() -> None:
    shares = TenantShares()
    for number in range(1000):
        shares.observe(dict.fromkeys([f"normal:t{number}", A], 100))
    assert len(shares._served) == 2


def test_of_very_many_tenants_those_served_least_are_read() -> None:
    lanes = [f"normal:t{number}" for number in range(500)]
    shares = TenantShares({lane: 1000 - place for place, lane in enumerate(lanes)})
    assert sorted(shares.first(lanes, 10)) == sorted(lanes[-10:])


def test_a_page_is_a_share_of_the_depth_and_never_too_short() -> None:
    assert [page_of(512, number) for number in (1, 2, 1000)] == [512, 256, LEAST_PAGE]


# --- any interleaving ------------------------------------------------------------------------------------------------

LANES = (A, B, C, NOBODY)
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}
events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(LANES), st.integers(1, 500), st.integers(1, 8)),
        st.integers(1, 12),
    ),
    max_size=60,
)

QUICK = settings(deadline=None, max_examples=60)
"""A busy machine is no bug."""


class World:
    """Lanes that fill and empty, and what was handed out of them in the order that the policy gives."""

    def __init__(self) -> None:
        self.shares = TenantShares()
        self.shares.weigh(WEIGHTS)
        self.lanes: dict[str, deque[Waiting]] = {lane: deque() for lane in LANES}
        self.given: Counter[str] = Counter()
        self.clock = 0

    def submit(self, lane: str, tokens: int, number: int) -> None:
        for _ in range(number):
            self.clock += 1
            self.lanes[lane].append(waiting(f"r{self.clock}", lane, self.clock, tokens))

    def tick(self, number: int) -> list[Waiting]:
        """Hand out that many requests; returns them."""
        self.shares.observe({lane: len(requests) for lane, requests in self.lanes.items() if requests})
        ordered = self.shares.fair(sorted((r for line in self.lanes.values() for r in line), key=lambda r: r.score))
        taken = ordered[:number]
        for request in taken:
            assert self.lanes[request.lane].popleft() is request
            self.given[request.lane] += request.cost
        self.shares.hand_out(taken)
        return taken

    def weight(self, lane: str) -> float:
        return WEIGHTS.get(lane.partition(":")[2], 1.0)


@pytest.mark.untraced
@QUICK
@given(events)
def test_who_waits_all_the_time_is_never_behind_another_by_more_than_a_request_of_each(script: list[object]) -> None:
    world = World()
    for lane in LANES[:2]:
        world.submit(lane, 100, 2000)
    before: Counter[str] = Counter()
    for event in script:
        if isinstance(event, int):
            world.tick(event)
        else:
            lane, tokens, number = event  # type: ignore[misc]
            if lane not in LANES[:2]:
                world.submit(lane, tokens, number)
        one, other = ((world.given[lane] - before[lane]) / world.weight(lane) for lane in LANES[:2])
        assert abs(one - other) <= 100 / world.weight(A) + 100 / world.weight(B)


@QUICK
@given(events)
def test_each_tenants_own_requests_keep_their_order_and_none_is_lost_or_given_twice(script: list[object]) -> None:
    world = World()
    given_out: list[Waiting] = []
    for event in script:
        if isinstance(event, int):
            given_out += world.tick(event)
        else:
            world.submit(*event)  # type: ignore[misc]
    given_out += world.tick(10**6)
    assert len({request.id for request in given_out}) == len(given_out) == world.clock
    for lane in LANES:
        scores = [request.score for request in given_out if request.lane == lane]
        assert scores == sorted(scores)


@pytest.mark.untraced
@QUICK
@given(events)
def test_nobody_starves_beside_floods_for_longer_than_its_own_last_request(script: list[object]) -> None:
    """Whoever comes back is ahead by at most the request that it had last: so much the others get before it."""
    world = World()
    for event in script:
        if isinstance(event, int):
            world.tick(event)
        else:
            world.submit(*event)  # type: ignore[misc]
    for lane in (A, B, NOBODY):
        world.submit(lane, 100, 50)
    while world.lanes[C]:
        world.tick(1)
    before = world.given.copy()
    world.submit(C, 1, 1)
    while world.lanes[C]:
        world.submit(A, 100, 1)
        world.tick(1)
    for lane in (A, B, NOBODY):
        assert (world.given[lane] - before[lane]) / world.weight(lane) <= 500 / WEIGHTS["c"] + 500 / world.weight(lane)


@QUICK
@given(events)
def test_the_same_story_gives_the_same_order(script: list[object]) -> None:
    ends = []
    for _ in range(2):
        world = World()
        told = []
        for event in script:
            if isinstance(event, int):
                told += names(world.tick(event))
            else:
                world.submit(*event)  # type: ignore[misc]
        ends.append((told, world.shares.served()))
    assert ends[0] == ends[1]


@QUICK
@given(st.lists(st.tuples(st.sampled_from([*LANES, "high", "high:a", "low:b"]), st.integers(0, 100)), max_size=60))
def test_each_class_has_the_places_that_it_has_without_tenants(drawn: list[tuple[str, int]]) -> None:
    requests = sorted(
        (waiting(str(i), lane, score) for i, (lane, score) in enumerate(drawn)), key=lambda one: (one.score, one.id)
    )
    shares = TenantShares()
    shares.observe(Counter(request.lane for request in requests))
    shared = shares.fair(requests)
    assert [class_of(one.lane) for one in shared] == [class_of(one.lane) for one in requests]
    assert sorted(names(shared)) == sorted(names(requests))
