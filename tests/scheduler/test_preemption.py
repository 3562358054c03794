"""Which rows are asked for: of the right classes and worker, the latest, and no more than needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import CLASSES, SUSPECT, Held, Waiting, WorkerRecord
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import DynamicBatcher
from stoker_scheduler.preemption import LOOKED_AT, Preemption, givers
from stoker_scheduler.round import Round

NOW = 1_000_000_000
S = 1_000_000


def worker(name: str = "w", *, rows: int = 4, capacity: int = 100, **more: object) -> WorkerRecord:
    fields = {"budget": 8192, "mode": "continuous", "cache": "paged"} | more
    return WorkerRecord(inc=name, worker=name, rows=rows, capacity=capacity, **fields)  # type: ignore[arg-type]


def held(name: str, lane: str = "batch", *, cost: int = 10, ago_s: float = 5, before: int = 0) -> Held:
    return Held(name, f"d-{name}", cost, int(NOW - ago_s * S), lane, before)


def waiting(name: str, cost: int = 10, lane: str = "normal") -> Waiting:
    return Waiting(name, lane, name, NOW, cost - 1, 1, True)


def urgent(name: str, cost: int = 10) -> Waiting:
    """One of CRITICAL within its share."""
    return waiting(name, cost, "critical")


def choose(blocked: list[Waiting], workers: list[WorkerRecord], holding: dict[str, list[Held]]) -> dict[str, list[str]]:
    loaded = []
    for one in workers:
        costs = [member.cost for member in holding[one.inc] if member.cost]
        loaded.append(replace(one, held_rows=len(costs), held_tokens=sum(costs)))
    passing = {request.id for request in blocked if request.lane == "critical"}
    chosen = Preemption(Config()).choose(blocked, passing, loaded, holding, NOW)
    return {inc: [row.id for row in rows] for inc, rows in chosen.items()}


def test_a_request_without_a_row_gets_the_one_that_began_last() -> None:
    rows = [held("a", ago_s=9), held("b", ago_s=3), held("c", ago_s=5), held("d", ago_s=7)]
    assert choose([waiting("x")], [worker()], {"w": rows}) == {"w": ["b"]}


@pytest.mark.parametrize(("before", "undisturbed_s"), [(0, 0), (1, 1), (2, 2), (3, 4)])
def test_what_was_begun_before_is_spared_for_twice_as_long_each_time(before: int, undisturbed_s: int) -> None:
    rows = [held("a", ago_s=9), held("b", ago_s=undisturbed_s - 0.01, before=before)]
    assert choose([waiting("x")], [worker(rows=2)], {"w": rows}) == {"w": ["a" if before else "b"]}
    rows = [held("a", ago_s=9), held("b", ago_s=undisturbed_s, before=before)]
    assert choose([waiting("x")], [worker(rows=2)], {"w": rows}) == {"w": ["b"]}


def test_a_critical_request_takes_the_latest_row_of_the_lowest_class_wherever_it_is() -> None:
    rows = {
        "w": [held("a", "high", ago_s=1), held("b", "normal", ago_s=2), held("c", "critical", ago_s=0)],
        "x": [held("d", "low", ago_s=9), held("e", "low", ago_s=8), held("f", "normal", ago_s=1)],
    }
    workers = [worker("w", rows=3), worker("x", rows=3)]
    assert choose([urgent(f"x{i}") for i in range(2)], workers, rows) == {"x": ["e", "d"]}
    expected = {"x": ["e", "d", "f"], "w": ["b", "a"]}
    assert choose([urgent(f"x{i}") for i in range(9)], workers, rows) == expected


def test_rows_that_ran_least_go_first_whichever_worker_has_them() -> None:
    rows = {"w": [held("a", "normal", ago_s=3)], "x": [held("b", "normal", ago_s=1)]}
    assert choose([urgent("x")], [worker("w", rows=1), worker("x", rows=1)], rows) == {"x": ["b"]}


def test_only_critical_within_its_share_takes_rows_of_other_classes_than_batch() -> None:
    rows = [held(name, lane) for name, lane in zip("abcd", ("high", "normal", "low", "suspect"), strict=True)]
    assert choose([waiting("x", lane="high")], [worker()], {"w": rows}) == {}
    high = [waiting("x", lane="high"), waiting("y", lane="high")]
    assert choose(high, [worker()], {"w": [held("o"), *rows[1:]]}) == {"w": ["o"]}
    loaded = replace(worker(), held_rows=4, held_tokens=40)
    beyond = [waiting("x", lane="critical")]
    assert Preemption(Config()).choose(beyond, set(), [loaded], {"w": rows}, NOW) == {}
    assert choose([urgent("x")], [worker()], {"w": rows}) == {"w": ["c"]}


def test_as_many_go_as_the_tokens_need() -> None:
    rows = [held("a", cost=30, ago_s=9), held("b", cost=30, ago_s=5), held("c", cost=30, ago_s=3)]
    assert choose([waiting("x", 60)], [worker()], {"w": rows}) == {"w": ["c", "b"]}


def test_the_worker_where_the_fewest_go_is_asked() -> None:
    rows = {"w": [held("a", cost=50), held("b", cost=50)], "x": [held("c", cost=100)]}
    assert choose([waiting("x", 100)], [worker("w"), worker("x")], rows) == {"x": ["c"]}


def test_what_was_asked_to_leave_counts_as_gone() -> None:
    rows = [held("a", cost=0), *(held(name) for name in "bcd")]
    assert choose([waiting("x")], [worker()], {"w": rows}) == {}
    assert choose([waiting("x"), waiting("y")], [worker()], {"w": rows}) == {"w": ["d"]}


def test_nobody_goes_for_a_request_that_would_not_fit_then() -> None:
    rows = [held("a"), held("b", "critical", cost=60)]
    assert choose([waiting("x", 90)], [worker()], {"w": rows}) == {}


def test_workers_that_take_nothing_or_run_padded_batches_are_left_alone() -> None:
    rows = [held(name) for name in "abcd"]
    for other in (worker(accepting=False), worker(mode="padded"), worker(cache="rect")):
        assert choose([waiting("x")], [other], {"w": rows}) == {}


def test_what_is_vacated_goes_to_the_first_that_found_no_place_in_the_same_round() -> None:
    config = Config()
    hand = Round(
        [urgent("c1"), urgent("c2"), waiting("n")],
        [replace(worker(rows=2), held_rows=2, held_tokens=20)],
        balancer=LoadBalancer(config),
        batcher=DynamicBatcher(config),
        shut=set(),
        probing=set(),
        linger_us=0,
        now_us=NOW,
    )
    assert hand.next() is None
    hand.vacated("w", [held("a"), held("b")])
    chosen = hand.next()
    assert chosen
    assert [request.id for request in chosen[1].requests] == ["c1", "c2"]
    hand.done(*chosen, more=True)
    assert hand.next() is None
    assert [request.id for request in hand.unplaced()] == ["n"]


def test_of_a_large_fleet_some_workers_are_looked_at_and_others_the_next_time() -> None:
    fleet = [worker(f"w{i:02}", accepting=i != 3) for i in range(41)]
    seen = [one.inc for start in (0, LOOKED_AT, 2 * LOOKED_AT) for one in givers(fleet, 40 * S + start)]
    assert len(seen) == 3 * LOOKED_AT
    assert set(seen) == {one.inc for one in fleet} - {"w03"}
    assert givers(fleet[:1], NOW + 1) == fleet[:1]
    assert givers([worker(mode="padded")], NOW) == []


ROWS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([*CLASSES, SUSPECT]), st.floats(0, 9), st.integers(0, 3)))
ASKED = st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=6)


@given(ROWS, ASKED)
def test_nobody_goes_twice_none_of_a_better_class_goes_and_what_goes_makes_room(
    rows: list[tuple[int, str, float, int]], asked: list[tuple[int, bool]]
) -> None:
    holding = [
        held(f"h{i}", lane, cost=cost, ago_s=ago, before=before) for i, (cost, lane, ago, before) in enumerate(rows)
    ]
    place = worker(rows=len(holding), capacity=sum(member.cost for member in holding))
    blocked = [urgent(f"x{i}", cost) if first else waiting(f"x{i}", cost) for i, (cost, first) in enumerate(asked)]
    chosen = choose(blocked, [place], {"w": holding}).get("w", [])
    assert len(set(chosen)) == len(chosen)
    may_go = [one for one in holding if not one.before or NOW - one.since_us >= S * 2 ** (one.before - 1)]
    for_all = [one for one in may_go if one.name == "batch"]
    for_urgent = [one for one in may_go if one.name not in ("critical", "suspect")]
    anybody = any(first for _, first in asked)
    assert set(chosen) <= {one.id for one in (for_urgent if anybody else for_all)}
    room = {True: sum(one.cost for one in for_urgent), False: sum(one.cost for one in for_all)}
    assert bool(chosen) is any(cost <= room[first] for cost, first in asked)
