"""What would come next, and what holds a request back: tables of the pure part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stoker.config import Config
from stoker.store.records import LANES, SUSPECT, Waiting, WorkerRecord
from stoker.store.views import QueueView
from stoker_scheduler.placement import Speed
from stoker_scheduler.preview import Preview, held_back_by, next_worker, overtaken_by, preview, terms
from stoker_scheduler.queue import RequestQueue
from stoker_scheduler.reserve import BatchRoom
from stoker_scheduler.tenants import TenantShares

NOW = 1_000_000_000_000
WORKER = WorkerRecord(
    inc="w:1-x", worker="w", rows=2, capacity=1000, budget=1000, mode="continuous", cache="paged", rate=100.0
)
FULL = replace(WORKER, held_rows=2, held_tokens=200)


def waiting(name: str, lane: str = "normal", score: float = NOW, tokens: int = 100) -> Waiting:
    return Waiting(name, lane, f"{name}:{tokens}:0:x", score, tokens, 0, True)


def view(*requests: Waiting, workers: tuple[WorkerRecord, ...] = (WORKER,)) -> QueueView:
    lanes: dict[str, list[Waiting]] = {lane: [] for lane in LANES}
    for request in requests:
        lanes.setdefault(request.lane, []).append(request)
    return QueueView(NOW, lanes, dict.fromkeys(lanes, 100), {}, {}, list(workers), None, None, None, {})


def seen(looked: QueueView, served: dict[str, float] | None = None, circuits: dict[str, str] | None = None) -> Preview:
    return preview(Config(), looked, RequestQueue(Config(), TenantShares(served)), circuits or {})


def plan(found: Preview) -> list[tuple[str, bool, str]]:
    return [(one.worker, one.now, " ".join(r.id for r in one.batch.requests)) for one in found.batches]


def test_what_fits_is_handed_out_now_and_the_rest_as_if_workers_had_finished() -> None:
    requests = [waiting(str(number), score=NOW + number) for number in range(5)]
    assert plan(seen(view(*requests))) == [("w", True, "0 1"), ("w", False, "2 3"), ("w", False, "4")]


def test_a_full_fleet_gets_nothing_now() -> None:
    assert plan(seen(view(waiting("a"), workers=(FULL,)))) == [("w", False, "a")]


def test_without_workers_and_for_what_no_worker_holds_there_is_no_batch() -> None:
    assert plan(seen(view(waiting("a"), workers=()))) == []
    assert plan(seen(view(waiting("a", tokens=2000)))) == []


def test_who_gets_a_request_goes_by_the_leaders_speeds() -> None:
    two = (WORKER, replace(WORKER, inc="v:1-x", worker="v"))
    looked = view(waiting("a"), workers=two)
    for quick in ("w", "v"):
        speeds = {one.inc: Speed(2.0 if one.worker == quick else 1.0) for one in two}
        found = preview(Config(), looked, RequestQueue(Config()), {}, speeds)
        assert next_worker(found, "a") == quick
    assert next_worker(found, "b") is None


def test_no_more_batches_are_planned_than_asked_for() -> None:
    requests = [waiting(str(number), score=NOW + number) for number in range(50)]
    assert len(seen(view(*requests)).batches) == 8


def test_a_worker_whose_circuit_is_open_gets_nothing_unless_it_is_the_only_one() -> None:
    other = replace(WORKER, inc="v:1-x", worker="v")
    both = view(waiting("a"), workers=(WORKER, other))
    assert plan(seen(both, circuits={"v": "open, faults"})) == [("w", True, "a")]
    assert plan(seen(both, circuits={"w": "open, slow"})) == [("v", True, "a")]
    assert plan(seen(view(waiting("a")), circuits={"w": "open, faults"})) == [("w", True, "a")]


def test_the_tenants_shares_are_those_of_the_leader() -> None:
    requests = [waiting("a", "normal:a", NOW), waiting("b", "normal:b", NOW + 1)]
    assert [one.id for one in seen(view(*requests), {"normal:a": 500, "normal:b": 0}).order.requests] == ["b", "a"]


CLASSES_AHEAD = [waiting("h1", "high", NOW - 9), waiting("h2", "high", NOW - 8)]
OPEN = {"v": "open, faults"}
BUSY_PAIR = (FULL, replace(WORKER, inc="v:1-x", worker="v"))

HELD: dict[
    str, tuple[Waiting, list[Waiting], tuple[WorkerRecord, ...], dict[str, float], dict[str, str], list[str]]
] = {
    "nothing": (waiting("a"), [], (WORKER,), {}, {}, []),
    "no workers": (waiting("a"), [], (), {}, {}, ["no_workers"]),
    "drained": (waiting("a"), [], (replace(WORKER, drained=True),), {}, {}, ["drained"]),
    "too large": (waiting("a", tokens=2000), [], (WORKER,), {}, {}, ["too_large"]),
    "a suspect": (waiting("a", SUSPECT), [], (WORKER,), {}, {}, ["quarantine"]),
    "credit": (waiting("a"), [], (FULL,), {}, {}, ["credit"]),
    "a circuit": (waiting("a"), [], BUSY_PAIR, {}, OPEN, ["credit", "circuit"]),
    "order": (waiting("a"), CLASSES_AHEAD, (WORKER,), {}, {}, ["order"]),
    "fairness": (
        waiting("a", "normal:a"),
        [waiting("b", "normal:b", NOW + 5)],
        (FULL,),
        {"normal:a": 500, "normal:b": 0},
        {},
        ["credit", "fairness", "order"],
    ),
}


@pytest.mark.parametrize("case", HELD)
def test_what_holds_a_request_back_is_named(case: str) -> None:
    request, others, workers, served, circuits, expected = HELD[case]
    looked = view(request, *others, workers=workers)
    assert held_back_by(looked, seen(looked, served, circuits), request, circuits) == expected


def kept(rows: int) -> dict[str, BatchRoom]:
    """Return a reserve that leaves so many rows of the worker, which has one of BATCH."""
    return {WORKER.inc: BatchRoom(rows, 10_000, 100.0, 1, 0.0, 0.0)}


def test_what_the_reserve_keeps_back_is_in_no_batch_of_now_and_says_so() -> None:
    early, late = waiting("b", "batch", NOW + 1), waiting("n", "normal", NOW + 2)
    looked = view(early, late)
    found = preview(Config(), looked, RequestQueue(Config()), {}, rooms=kept(0))
    assert plan(found) == [("w", True, "n"), ("w", False, "b")]
    assert held_back_by(looked, found, early, {}) == ["reserve"]
    free = preview(Config(), looked, RequestQueue(Config()), {}, rooms=kept(1))
    assert plan(free) == [("w", True, "b n")]
    assert held_back_by(looked, free, early, {}) == []


def test_who_is_overtaken_counts_later_ones_of_its_class_alone() -> None:
    request = waiting("a", "normal:a", NOW)
    order = [
        waiting("b", "normal:b", NOW + 1),
        waiting("c", "normal:b", NOW - 1),
        waiting("h", "high", NOW + 5),
        request,
    ]
    assert overtaken_by(order, request) == 1


@pytest.mark.parametrize(
    ("lane", "added", "expected"),
    [("normal", 60e6, (60e6, 60e6)), ("low:acme", 20e6, (20e6, 600e6)), ("critical", 0, (0, 0))],
)
def test_a_score_is_taken_apart(lane: str, added: float, expected: tuple[float, float]) -> None:
    found = terms(Config(), waiting("a", lane, NOW + added), NOW)
    assert (found.arrival, found.score) == (NOW, NOW + added)
    assert (found.term, found.window) == expected
