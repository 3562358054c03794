"""Which rows of BATCH are asked for: of the right worker, the latest, and no more than needed."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import Held, Waiting, WorkerRecord
from stoker_scheduler.preemption import Preemption

NOW = 1_000_000_000
S = 1_000_000


def worker(name: str = "w", *, rows: int = 4, capacity: int = 100, **more: object) -> WorkerRecord:
    fields = {"budget": 8192, "mode": "continuous", "cache": "paged"} | more
    return WorkerRecord(inc=name, worker=name, rows=rows, capacity=capacity, **fields)  # type: ignore[arg-type]


def held(name: str, *, cost: int = 10, ago_s: float = 5, batch: bool = True) -> Held:
    return Held(name, f"d-{name}", cost, int(NOW - ago_s * S), batch)


def waiting(name: str, cost: int = 10) -> Waiting:
    return Waiting(name, "normal", name, NOW, cost - 1, 1, True)


def choose(blocked: list[Waiting], workers: list[WorkerRecord], holding: dict[str, list[Held]]) -> dict[str, list[str]]:
    loaded = []
    for one in workers:
        costs = [member.cost for member in holding[one.inc] if member.cost]
        loaded.append(replace(one, held_rows=len(costs), held_tokens=sum(costs)))
    chosen = Preemption(Config()).choose(blocked, loaded, holding, NOW)
    assert all(delivery == f"d-{name}" for keys in chosen.values() for name, delivery in keys)
    return {inc: [name for name, _ in keys] for inc, keys in chosen.items()}


def test_a_request_without_a_row_gets_the_one_that_began_last() -> None:
    rows = [held("a", ago_s=9), held("b", ago_s=3), held("c", ago_s=5), held("d", ago_s=7)]
    assert choose([waiting("x")], [worker()], {"w": rows}) == {"w": ["b"]}


def test_rows_that_began_just_now_are_spared_if_others_will_do() -> None:
    rows = [held("a", ago_s=9), held("b", ago_s=0.1), held("c", ago_s=5), held("d", ago_s=0.5)]
    assert choose([waiting(f"x{i}") for i in range(3)], [worker()], {"w": rows}) == {"w": ["c", "a", "b"]}


def test_as_many_go_as_the_tokens_need() -> None:
    rows = [held("a", cost=30, ago_s=9), held("b", cost=30, ago_s=5), held("c", cost=30, ago_s=3)]
    assert choose([waiting("x", 60)], [worker()], {"w": rows}) == {"w": ["c", "b"]}


def test_the_worker_where_the_fewest_go_is_asked() -> None:
    rows = {"w": [held("a", cost=50), held("b", cost=50)], "x": [held("c", cost=100)]}
    assert choose([waiting("x", 100)], [worker("w"), worker("x")], rows) == {"x": ["c"]}


def test_other_classes_are_never_asked() -> None:
    rows = [held(name, batch=False) for name in "abcd"]
    assert choose([waiting("x")], [worker()], {"w": rows}) == {}


def test_what_was_asked_to_leave_counts_as_gone() -> None:
    rows = [held("a", cost=0), *(held(name) for name in "bcd")]
    assert choose([waiting("x")], [worker()], {"w": rows}) == {}
    assert choose([waiting("x"), waiting("y")], [worker()], {"w": rows}) == {"w": ["d"]}


def test_nobody_goes_for_a_request_that_would_not_fit_then() -> None:
    rows = [held("a"), held("b", batch=False, cost=60)]
    assert choose([waiting("x", 90)], [worker()], {"w": rows}) == {}


def test_workers_that_take_nothing_or_run_padded_batches_are_left_alone() -> None:
    rows = [held(name) for name in "abcd"]
    for other in (worker(accepting=False), worker(mode="padded"), worker(cache="rect")):
        assert choose([waiting("x")], [other], {"w": rows}) == {}


ROWS = st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.floats(0, 9)))


@given(ROWS, st.lists(st.integers(1, 60), max_size=6))
def test_nobody_goes_twice_and_what_goes_makes_room(rows: list[tuple[int, bool, float]], asked: list[int]) -> None:
    holding = [held(f"h{i}", cost=cost, batch=batch, ago_s=ago) for i, (cost, batch, ago) in enumerate(rows)]
    size = len(holding)
    place = worker(rows=size, capacity=sum(member.cost for member in holding))
    chosen = choose([waiting(f"x{i}", cost) for i, cost in enumerate(asked)], [place], {"w": holding}).get("w", [])
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= {member.id for member in holding if member.batch}
    fits = [cost for cost in asked if cost <= sum(member.cost for member in holding if member.batch)]
    assert bool(chosen) is bool(fits)
