"""Pace: who is slow for what it was given, and what HealthMonitor makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import WorkerRecord
from stoker_scheduler.health import CircuitState, HealthMonitor
from stoker_scheduler.pace import slowness

CONFIG = Config(heartbeat_ms=1000, breaker_open_s=30, breaker_successes=2)
CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
PRICES = {"steps": 5000, "prompt_tokens": 40, "row_steps": 150, "token_steps": 1}
RECORD = WorkerRecord(inc="a:1-x", worker="a", rows=64, capacity=9999, budget=500, mode="continuous", cache="paged")


def did(*, steps: int, rows: int = 8, prompt: int = 50, context: int = 100, slow: float = 1.0) -> dict[str, int]:
    """What a worker of `PRICES` counts over some steps of some shape, `slow` times as long as it should."""
    figures = {"steps": steps, "prompt_tokens": prompt * steps, "row_steps": rows * steps}
    figures |= {"token_steps": rows * context * steps, "generation_tokens": rows * steps, "finished": steps}
    busy_us = slow * sum(price * figures[name] for name, price in PRICES.items())
    return {**figures, "busy_us": int(busy_us)}


class Fleet:
    """Some workers and the monitor that watches them."""

    def __init__(self, *names: str) -> None:
        self.monitor = HealthMonitor(CONFIG)
        self.now_s = 0.0
        self.workers = {name: replace(RECORD, worker=name, inc=f"{name}:1-x") for name in names}
        self.monitor.observe(list(self.workers.values()), 0.0)

    def window(self, **done: Mapping[str, int]) -> None:
        """Ten heartbeats pass, in which the workers did this."""
        self.now_s += 10
        for name, figures in done.items():
            before = self.workers[name]
            grown = {key: before.figures.get(key, 0) + number for key, number in figures.items()}
            self.workers[name] = replace(before, figures=grown)
        self.monitor.observe(list(self.workers.values()), self.now_s)

    def probe(self, name: str, figures: Mapping[str, int]) -> None:
        """Two requests of a worker in probation succeed within a moment."""
        worker = self.workers[name]
        grown = {key: worker.figures.get(key, 0) + number for key, number in figures.items()}
        self.workers[name] = replace(worker, figures=grown, successes=worker.successes + 2)
        self.now_s += 1
        self.monitor.observe(list(self.workers.values()), self.now_s)

    def state(self, name: str) -> CircuitState:
        return self.monitor.state(name)


def ejected() -> Fleet:
    fleet = Fleet("a", "b", "c")
    for _ in range(3):
        fleet.window(a=did(steps=40, slow=5), b=did(steps=200), c=did(steps=200))
    return fleet


def test_a_worker_five_times_slower_than_its_peers_is_left_out_after_three_windows_and_not_before() -> None:
    fleet = Fleet("a", "b", "c")
    for _ in range(2):
        fleet.window(a=did(steps=40, slow=5), b=did(steps=200), c=did(steps=200))
        assert fleet.state("a") is CLOSED
    fleet.window(a=did(steps=40, slow=5), b=did(steps=200), c=did(steps=200))
    assert (fleet.state("a"), fleet.monitor.excluded()) == (OPEN, {"a:1-x"})
    assert fleet.monitor.not_closed() == {"a": "open, slow"}


def test_one_good_window_between_slow_ones_begins_the_count_anew() -> None:
    fleet = Fleet("a", "b")
    for slow in (5, 5, 1, 5, 5):
        fleet.window(a=did(steps=40, slow=slow), b=did(steps=200))
    assert fleet.state("a") is CLOSED


shapes = st.builds(
    did,
    steps=st.integers(8, 500),
    rows=st.integers(1, 64),
    prompt=st.integers(1, 2000),
    context=st.integers(1, 4000),
    slow=st.floats(0.8, 1.2),
)


@given(st.lists(st.tuples(shapes, shapes, shapes), min_size=3, max_size=6))
def test_no_batch_prompt_or_occupancy_makes_an_equal_worker_slow(
    windows: list[tuple[dict[str, int], dict[str, int], dict[str, int]]],
) -> None:
    fleet = Fleet("a", "b", "c")
    for a, b, c in windows:
        fleet.window(a=a, b=b, c=c)
    assert [fleet.state(name) for name in "abc"] == [CLOSED] * 3


def test_long_prompts_in_chunks_are_not_slow_beside_short_ones() -> None:
    chunked = did(steps=80, rows=1, prompt=2000) | {"generation_tokens": 10}
    assert slowness(chunked, did(steps=80, rows=1, prompt=2000)) <= 1.01


def test_steps_that_wait_for_a_model_elsewhere_are_not_slow_when_there_is_little_to_wait_for() -> None:
    waiting = {"steps": 200, "row_steps": 200, "busy_us": 10_000_000, "generation_tokens": 200}
    crowded = {"steps": 10_000, "row_steps": 1_000_000, "busy_us": 10_000_000, "generation_tokens": 10_000}
    assert slowness(waiting, crowded) < 1
    assert slowness(waiting, {**waiting, "busy_us": 2_000_000}) == pytest.approx(5)


def test_a_worker_alone_is_never_slow_and_of_two_slow_and_one_fast_none_is() -> None:
    alone, three = Fleet("a"), Fleet("a", "b", "c")
    for _ in range(4):
        alone.window(a=did(steps=40, slow=5))
        three.window(a=did(steps=40, slow=5), b=did(steps=40, slow=5), c=did(steps=200))
    assert alone.state("a") is CLOSED
    assert [three.state(name) for name in "abc"] == [CLOSED] * 3


def test_a_padded_worker_is_no_peer_of_a_continuous_one() -> None:
    fleet = Fleet("a", "b")
    fleet.workers["b"] = replace(fleet.workers["b"], mode="padded", inc="b:2-x")
    fleet.monitor.observe(list(fleet.workers.values()), 0.0)
    for _ in range(4):
        fleet.window(a=did(steps=40, slow=5), b=did(steps=200))
    assert fleet.state("a") is CLOSED


def test_few_steps_make_a_window_longer_instead_of_a_verdict() -> None:
    fleet = Fleet("a", "b")
    for _ in range(7):
        fleet.window(a=did(steps=2, slow=5), b=did(steps=200))
    assert fleet.state("a") is CLOSED
    for _ in range(5):
        fleet.window(a=did(steps=2, slow=5), b=did(steps=200))
    assert fleet.state("a") is OPEN


def test_a_slow_worker_that_is_well_again_returns_by_its_probes() -> None:
    fleet = ejected()
    for _ in range(3):
        fleet.window(b=did(steps=200), c=did(steps=200))
    assert (fleet.state("a"), fleet.monitor.probing()) == (HALF_OPEN, {"a:1-x"})
    fleet.probe("a", did(steps=20, rows=1))
    assert fleet.state("a") is CLOSED


def test_probes_that_succeed_slowly_open_the_circuit_again_for_twice_as_long() -> None:
    fleet = ejected()
    for _ in range(3):
        fleet.window(b=did(steps=200), c=did(steps=200))
    fleet.probe("a", did(steps=20, rows=8, slow=5))
    assert fleet.state("a") is OPEN
    for _ in range(5):
        fleet.window(b=did(steps=200), c=did(steps=200))
    assert fleet.state("a") is OPEN
    fleet.window(b=did(steps=200), c=did(steps=200))
    assert fleet.state("a") is HALF_OPEN


def test_a_slow_worker_is_taken_back_at_once_where_nobody_else_is_left() -> None:
    fleet = ejected()
    del fleet.workers["b"], fleet.workers["c"]
    fleet.window()
    assert (fleet.state("a"), fleet.monitor.excluded(), fleet.monitor.probing()) == (CLOSED, frozenset(), frozenset())


def test_a_restarted_worker_answers_for_nothing_that_its_predecessor_took() -> None:
    fleet = Fleet("a", "b")
    for _ in range(2):
        fleet.window(a=did(steps=40, slow=5), b=did(steps=200))
    fleet.workers["a"] = replace(fleet.workers["a"], inc="a:2-x", figures={})
    fleet.window(b=did(steps=200))
    for _ in range(2):
        fleet.window(a=did(steps=40, slow=5), b=did(steps=200))
    assert fleet.state("a") is CLOSED
