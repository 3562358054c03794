"""LoadBalancer: which worker a request goes to."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import Room
from stoker_scheduler.health import HealthMonitor
from stoker_scheduler.placement import Place, Places, Speed
from stoker_scheduler.queue import charged_cost, largest_capacity

MS = 1000
CONFIG = Config(max_queue_delay_ms=50)

EMPTY = WorkerRecord(
    inc="a:1-x", worker="a", rows=4, capacity=1000, budget=500, mode="continuous", cache="paged", rate=100.0
)


def worker(name: str, **changes: object) -> WorkerRecord:
    return replace(EMPTY, inc=f"{name}:1-x", worker=name, **changes)  # type: ignore[arg-type]


def request(tokens: int = 100, name: str = "r", *, exact: bool = True) -> Waiting:
    return Waiting(name, "normal", name, 0.0, tokens, 0, exact)


def open_places(balancer: LoadBalancer, fleet: Sequence[WorkerRecord], shut: Set[str] = frozenset()) -> Places:
    """Return the places of a fleet whose rates, where they are not 0, are known."""
    return balancer.places(fleet, {worker.inc: Speed(worker.rate) for worker in fleet if worker.rate}, shut=shut)


def chosen(*workers: WorkerRecord, tokens: int = 100, excluded: Set[str] = frozenset()) -> str | None:
    balancer = LoadBalancer(CONFIG)
    largest = largest_capacity(workers)
    place = balancer.choose(
        open_places(balancer, workers, excluded), request(tokens), charged_cost(request(tokens), largest)
    )
    return place and place.record.worker


def kept(
    balancer: LoadBalancer, fleet: Sequence[WorkerRecord], head: Waiting, now_us: int, shut: Set[str] = frozenset()
) -> str | None:
    place = balancer.reserve(open_places(balancer, fleet, shut), head, head.cost, now_us=now_us)
    return place and place.record.worker


def test_a_worker_whose_rows_are_in_use_gets_what_it_takes_ahead() -> None:
    assert chosen(worker("a", held_rows=4)) is None
    assert chosen(worker("a", held_rows=4, ahead=1)) == "a"
    assert chosen(worker("a", held_rows=5, ahead=1)) is None


def test_a_free_row_comes_before_a_place_behind_rows_in_use() -> None:
    assert chosen(worker("a", held_rows=4, held_tokens=400, ahead=4), worker("b")) == "b"


def test_the_worker_that_drains_first_gets_the_request() -> None:
    assert chosen(worker("a", held_tokens=200, held_rows=1), worker("b", held_tokens=100, held_rows=1)) == "b"


def test_drain_time_counts_and_not_tokens() -> None:
    slow, fast = worker("a", held_tokens=100, rate=10.0), worker("b", held_tokens=300, rate=100.0)
    assert chosen(slow, fast) == "b"


def test_of_two_idle_workers_the_faster_one_gets_the_request() -> None:
    assert chosen(worker("a", rate=10.0), worker("b", rate=20.0)) == "b"


def test_equal_workers_go_by_name() -> None:
    assert chosen(worker("c"), worker("a"), worker("b")) == "a"


def test_an_unknown_rate_counts_as_the_median_of_the_fleet() -> None:
    new = worker("new", rate=0.0, held_tokens=200)
    slow, usual, fast = worker("slow", rate=10.0), worker("usual", rate=100.0), worker("fast", rate=1000.0)
    holding = [replace(w, held_tokens=900) for w in (slow, usual, fast)]
    assert chosen(new, *holding) == "fast"  # 3 s at the median of 100 tokens/s, against 1 s
    assert chosen(new, *holding[:2]) == "new"


def test_a_fleet_without_known_rates_goes_by_tokens() -> None:
    assert chosen(worker("a", rate=0.0, held_tokens=2), worker("b", rate=0.0, held_tokens=1)) == "b"


@pytest.mark.parametrize("changes", [{"state": "dead"}, {"accepting": False}, {"drained": True}])
def test_a_worker_that_is_not_available_gets_nothing(changes: dict[str, object]) -> None:
    assert chosen(worker("a", **changes)) is None
    assert chosen(worker("a", **changes), worker("b", held_tokens=500)) == "b"


def test_an_excluded_worker_gets_nothing() -> None:
    assert chosen(worker("a"), worker("b"), excluded=frozenset({"a:1-x"})) == "b"


def test_when_the_circuits_of_all_workers_are_open_the_fleet_still_serves() -> None:
    health = HealthMonitor(Config(breaker_faults=1))
    health.observe([worker("a"), worker("b")], 0.0)
    faulty = [worker("a", faults=1), worker("b", faults=1)]
    health.observe(faulty, 1.0)
    assert chosen(*faulty, excluded=health.excluded()) == "a"


def test_a_worker_without_a_free_row_gets_nothing() -> None:
    assert chosen(worker("a", held_rows=3)) == "a"
    assert chosen(worker("a", held_rows=4)) is None


def test_a_paged_cache_holds_the_sum_of_the_costs() -> None:
    assert chosen(worker("a", held_rows=1, held_tokens=900), tokens=100) == "a"
    assert chosen(worker("a", held_rows=1, held_tokens=901), tokens=100) is None


def test_a_rectangular_cache_holds_rows_times_the_longest() -> None:
    rect = worker("a", cache="rect", held_rows=2, held_tokens=310, longest=300)
    assert chosen(rect, tokens=333) == "a"
    assert chosen(rect, tokens=334) is None
    assert chosen(replace(rect, longest=334), tokens=1) is None


def test_a_busy_padded_worker_takes_a_batch_only_when_a_whole_one_fits() -> None:
    padded = worker("a", mode="padded", rows=64, held_rows=4)
    assert chosen(replace(padded, held_tokens=500)) == "a"
    assert chosen(replace(padded, held_tokens=501)) is None
    assert chosen(replace(padded, held_rows=32)) == "a"
    assert chosen(replace(padded, held_rows=33)) is None


def test_an_estimate_is_placed_as_if_it_were_the_largest_capacity() -> None:
    guess = request(10_000, exact=False)
    fleet = [worker("a"), worker("b", capacity=2000)]
    balancer = LoadBalancer(CONFIG)
    place = balancer.choose(open_places(balancer, fleet), guess, charged_cost(guess, largest_capacity(fleet)))
    assert place is not None
    assert place.record.worker == "b"


workers = st.lists(
    st.builds(
        worker,
        st.sampled_from("abcdef"),
        rows=st.integers(0, 3),
        capacity=st.integers(0, 500),
        held_rows=st.integers(0, 3),
        held_tokens=st.integers(0, 500),
        longest=st.integers(0, 300),
        rate=st.sampled_from([0.0, 1.0, 50.0]),
        mode=st.sampled_from(["padded", "continuous"]),
        cache=st.sampled_from(["paged", "rect"]),
        accepting=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda record: record.inc,
)


@given(workers, st.integers(0, 600), st.sets(st.sampled_from(["a:1-x", "b:1-x"])))
def test_a_choice_is_always_one_that_dispatch_accepts(
    fleet: list[WorkerRecord], tokens: int, excluded: set[str]
) -> None:
    balancer = LoadBalancer(CONFIG)
    place = balancer.choose(open_places(balancer, fleet, excluded), request(tokens), tokens)
    if place is None:
        return
    worker = place.record
    assert worker.available
    assert worker.inc not in excluded
    assert worker.held_rows < worker.rows
    if worker.cache == "rect":
        assert (worker.held_rows + 1) * max(worker.longest, tokens) <= worker.capacity
    else:
        assert worker.held_tokens + tokens <= worker.capacity


@given(workers, st.integers(0, 600), st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_the_records(
    fleet: list[WorkerRecord], tokens: int, random: Random
) -> None:
    shuffled = random.sample(fleet, len(fleet))
    assert chosen(*fleet, tokens=tokens) == chosen(*shuffled, tokens=tokens)


def test_a_head_that_no_worker_can_take_reserves_after_its_linger_the_one_that_drains_first() -> None:
    balancer = LoadBalancer(CONFIG)
    fleet = [worker("a", held_rows=1, held_tokens=900), worker("b", held_rows=1, held_tokens=800)]
    head = request(500)
    assert kept(balancer, fleet, head, 0) is None
    assert kept(balancer, fleet, head, 49 * MS) is None
    assert balancer.choose(open_places(balancer, fleet), head, 500) is None
    assert kept(balancer, fleet, head, 50 * MS) == "b"


def test_only_a_worker_that_could_hold_the_head_when_empty_is_reserved() -> None:
    balancer = LoadBalancer(CONFIG)
    fleet = [
        worker("small", capacity=400, held_rows=1, held_tokens=100),
        worker("rowless", rows=0),
        worker("draining", drained=True),
        worker("broken"),
        worker("large", capacity=500, rows=1, held_rows=1, held_tokens=400),
    ]
    assert kept(balancer, fleet, request(500), 0, {"broken:1-x"}) is None
    assert kept(balancer, fleet, request(500), 50 * MS, {"broken:1-x"}) == "large"
    assert kept(balancer, fleet[:1], request(500), 51 * MS) is None


def test_a_reservation_stays_with_its_worker_while_that_can_be_used() -> None:
    balancer = LoadBalancer(CONFIG)
    a, b = worker("a", held_rows=2, held_tokens=700), worker("b", held_rows=2, held_tokens=800)
    assert kept(balancer, [a, b], request(500), 0) is None
    assert kept(balancer, [a, b], request(500), 50 * MS) == "a"
    b = replace(b, held_tokens=600)
    assert kept(balancer, [a, b], request(500), 51 * MS) == "a"
    assert kept(balancer, [replace(a, drained=True), b], request(500), 52 * MS) == "b"


def test_the_linger_of_every_head_is_its_own_and_ends_when_it_is_placed() -> None:
    balancer = LoadBalancer(CONFIG)
    busy, free = worker("a", held_rows=1, held_tokens=900), worker("a")
    assert kept(balancer, [busy], request(500, "first"), 0) is None
    assert kept(balancer, [busy], request(500, "second"), 60 * MS) is None
    assert balancer.choose(open_places(balancer, [free]), request(500, "first"), 500) is not None
    assert kept(balancer, [busy], request(500, "first"), 61 * MS) is None
    assert kept(balancer, [busy], request(500, "second"), 110 * MS) == "a"


def test_a_head_that_is_asked_about_no_more_is_forgotten() -> None:
    balancer = LoadBalancer(CONFIG)
    busy = worker("a", held_rows=1, held_tokens=900)
    assert kept(balancer, [busy], request(500, "cancelled"), 0) is None
    assert kept(balancer, [busy], request(500, "cancelled"), 3600 * 1000 * MS) is None


def test_a_place_looks_as_the_next_record_of_its_worker_will() -> None:
    place = Place(worker("a", cache="rect", held_rows=1, held_tokens=10, longest=10), Speed(1.0))
    assert place.loaded() == place.record
    for cost in (20, 5):
        place.give(cost)
    after = place.loaded()
    assert (after.held_rows, after.held_tokens, after.longest, place.free_rows) == (3, 35, 20, 1)
    paged = Place(worker("a"), Speed(1.0))
    paged.give(20)
    assert (paged.loaded().held_rows, paged.loaded().held_tokens, paged.loaded().longest) == (1, 20, 0)
    assert paged.vacated([20]) == worker("a")


def test_a_worker_that_is_probed_gets_one_request() -> None:
    balancer = LoadBalancer(CONFIG)
    places = balancer.places([worker("a")], {}, probing={"a:1-x"})
    place = balancer.choose(places, request(), 100)
    assert place is not None
    place.give(100)
    assert balancer.choose(places, request(name="second"), 100) is None
    assert not places.any_free()


def test_work_spreads_over_equal_workers_as_it_is_placed() -> None:
    balancer = LoadBalancer(CONFIG)
    places = open_places(balancer, [worker(name) for name in "abc"])
    for i in range(12):
        place = balancer.choose(places, request(50, str(i)), 50)
        assert place is not None
        place.give(50)
    assert [place.held_rows for place in places.usable()] == [4, 4, 4]
    assert not any(Room.of(place.loaded(), share=1).opens_to(50) for place in places.usable())


def test_a_full_worker_that_gives_rows_back_is_a_place_again_in_the_order_of_names() -> None:
    full = dict(held_rows=4, held_tokens=900)
    places = open_places(LoadBalancer(CONFIG), [worker("a"), worker("b", **full), worker("c")])
    assert [place.record.worker for place in places] == ["a", "c"]
    place = places.vacate(worker("b").inc, [100, 200])
    assert (place.free_rows, place.held_rows, place.held_tokens) == (2, 2, 600)
    assert [place.record.worker for place in places] == ["a", "b", "c"]


def test_a_worker_that_gets_nothing_more_stays_shut_when_it_gives_rows_back() -> None:
    places = open_places(LoadBalancer(CONFIG), [worker("a", held_rows=4, held_tokens=900)])
    places.close(worker("a").inc)
    places.vacate(worker("a").inc, [100])
    assert not places.any_free()
