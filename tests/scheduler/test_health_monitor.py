"""HealthMonitor: which workers may be trusted with requests, and which are gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import WorkerRecord
from stoker_scheduler.health import LONGEST_OPEN_S, CircuitState, HealthMonitor

CONFIG = Config(breaker_faults=5, breaker_window_s=60, breaker_open_s=30, breaker_successes=2, load_timeout_s=600)
CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN

A = WorkerRecord(inc="a:1-x", worker="a", rows=4, capacity=1000, budget=500, mode="continuous", cache="paged")
B = replace(A, inc="b:2-x", worker="b")


def opened_at(now_s: float) -> HealthMonitor:
    """A monitor that saw the circuit of `a` open at `now_s`, beside a healthy `b`."""
    monitor = HealthMonitor(CONFIG)
    monitor.observe([A, B], now_s)
    monitor.observe([replace(A, faults=5), B], now_s)
    assert monitor.state("a") is OPEN
    return monitor


def test_a_new_worker_is_trusted() -> None:
    monitor = HealthMonitor(CONFIG)
    monitor.observe([A, B], 0)
    assert (monitor.excluded(), monitor.probing()) == (frozenset(), frozenset())


def test_five_faults_within_the_window_open_a_circuit() -> None:
    monitor = HealthMonitor(CONFIG)
    for second in range(5):
        monitor.observe([replace(A, faults=second), B], second)
        assert monitor.excluded() == frozenset()
    monitor.observe([replace(A, faults=5), B], 59)
    assert monitor.excluded() == {"a:1-x"}


def test_faults_that_lie_further_apart_than_the_window_open_nothing() -> None:
    monitor = HealthMonitor(CONFIG)
    for faults in range(50):
        monitor.observe([replace(A, faults=faults), B], faults * 15.0)
        assert monitor.excluded() == frozenset()


def test_successes_open_nothing() -> None:
    monitor = HealthMonitor(CONFIG)
    monitor.observe([A, B], 0)
    monitor.observe([replace(A, successes=1000, faults=4), B], 1)
    assert monitor.state("a") is CLOSED


def test_an_open_circuit_is_half_open_after_its_time() -> None:
    monitor = opened_at(0)
    faulty = replace(A, faults=5)
    monitor.observe([faulty, B], 29.9)
    assert (monitor.excluded(), monitor.probing()) == ({"a:1-x"}, frozenset())
    monitor.observe([faulty, B], 30)
    assert (monitor.excluded(), monitor.probing()) == (frozenset(), {"a:1-x"})


def test_a_half_open_circuit_gets_one_probe_at_a_time() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5), B], 30)
    monitor.observe([replace(A, faults=5, held_rows=1), B], 31)
    assert (monitor.excluded(), monitor.probing()) == ({"a:1-x"}, frozenset())
    monitor.observe([replace(A, faults=5, successes=1), B], 32)
    assert (monitor.excluded(), monitor.probing()) == (frozenset(), {"a:1-x"})


def test_two_successes_close_a_half_open_circuit() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5), B], 30)
    monitor.observe([replace(A, faults=5, successes=1), B], 31)
    assert monitor.state("a") is HALF_OPEN
    monitor.observe([replace(A, faults=5, successes=2), B], 32)
    assert (monitor.state("a"), monitor.probing()) == (CLOSED, frozenset())


def test_what_was_sent_before_a_circuit_opened_does_not_close_it() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5, successes=100), B], 10)
    monitor.observe([replace(A, faults=5, successes=101), B], 30)
    monitor.observe([replace(A, faults=5, successes=101), B], 31)
    assert monitor.state("a") is HALF_OPEN


def test_one_fault_reopens_a_half_open_circuit_for_twice_as_long_up_to_ten_minutes() -> None:
    monitor = opened_at(0)
    now_s, faults = 0.0, 5
    for open_s in (30, 60, 120, 240, 480, LONGEST_OPEN_S, LONGEST_OPEN_S):
        monitor.observe([replace(A, faults=faults), B], now_s + open_s - 1)
        assert monitor.state("a") is OPEN
        now_s, faults = now_s + open_s, faults + 1
        monitor.observe([replace(A, faults=faults - 1), B], now_s)
        assert monitor.state("a") is HALF_OPEN
        monitor.observe([replace(A, faults=faults), B], now_s)
        assert monitor.state("a") is OPEN


def test_a_fault_outweighs_the_successes_beside_it() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5), B], 30)
    monitor.observe([replace(A, faults=6, successes=10), B], 31)
    assert monitor.state("a") is OPEN


def test_faults_from_before_a_circuit_closed_count_no_more() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5), B], 30)
    monitor.observe([replace(A, faults=5, successes=2), B], 31)
    monitor.observe([replace(A, faults=9, successes=2), B], 32)
    assert monitor.state("a") is CLOSED


def test_a_circuit_that_closed_opens_for_its_first_time_again() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5), B], 30)
    monitor.observe([replace(A, faults=6), B], 30)
    monitor.observe([replace(A, faults=6), B], 90)
    monitor.observe([replace(A, faults=6, successes=2), B], 91)
    monitor.observe([replace(A, faults=10, successes=2), B], 92)
    assert monitor.state("a") is CLOSED
    monitor.observe([replace(A, faults=11, successes=2), B], 92)
    monitor.observe([replace(A, faults=11, successes=2), B], 122)
    assert monitor.state("a") is HALF_OPEN


def test_a_restart_of_an_open_worker_begins_half_open() -> None:
    monitor = opened_at(0)
    fresh = replace(A, inc="a:3-y")
    monitor.observe([fresh, B], 5)
    assert (monitor.excluded(), monitor.probing()) == (frozenset(), {"a:3-y"})


def test_a_restart_keeps_the_doublings_but_not_the_successes() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5), B], 30)
    monitor.observe([replace(A, faults=5, successes=1), B], 31)
    monitor.observe([replace(A, inc="a:3-y", successes=1), B], 32)
    assert monitor.state("a") is HALF_OPEN
    monitor.observe([replace(A, inc="a:3-y", successes=1, faults=1), B], 33)
    monitor.observe([replace(A, inc="a:3-y", successes=1, faults=1), B], 33 + 59)
    assert monitor.state("a") is OPEN


def test_faults_count_across_restarts() -> None:
    monitor = HealthMonitor(CONFIG)
    monitor.observe([A, B], 0)
    for inc in range(1, 6):
        assert monitor.state("a") is CLOSED
        monitor.observe([replace(A, inc=f"a:{inc}-y", faults=1), B], inc)
    assert monitor.state("a") is OPEN


def test_successes_of_the_new_process_close_the_circuit_after_a_restart() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, inc="a:3-y", successes=2), B], 5)
    assert monitor.state("a") is CLOSED


def test_the_superseded_incarnation_beside_a_new_one_changes_nothing() -> None:
    monitor = HealthMonitor(CONFIG)
    old, new = replace(A, faults=5, state="superseded"), replace(A, inc="a:3-y")
    for second in range(10):
        monitor.observe([old, new, B], second)
    assert monitor.state("a") is CLOSED


def test_a_past_that_another_leader_watched_is_no_fault_of_now() -> None:
    monitor = HealthMonitor(CONFIG)
    monitor.observe([replace(A, faults=500), B], 0)
    assert monitor.state("a") is CLOSED


def test_a_name_that_is_gone_for_longer_than_a_restart_is_forgotten() -> None:
    monitor = opened_at(0)
    monitor.observe([B], 600)
    assert monitor.state("a") is OPEN
    monitor.observe([B], 601)
    assert monitor.state("a") is CLOSED


def test_when_the_circuits_of_all_available_workers_are_open_none_is_excluded() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5), replace(B, drained=True)], 1)
    assert monitor.excluded() == frozenset()
    monitor.observe([replace(A, faults=5), B], 2)
    assert monitor.excluded() == {"a:1-x"}


def test_while_a_probe_is_under_way_the_open_workers_stay_excluded() -> None:
    monitor = opened_at(0)
    monitor.observe([replace(A, faults=5, held_rows=1), replace(B, faults=5)], 30)
    assert (monitor.state("a"), monitor.state("b")) == (HALF_OPEN, OPEN)
    assert monitor.excluded() == {"a:1-x", "b:2-x"}


def test_an_incarnation_that_is_not_live_or_silent_for_a_lease_is_proposed_for_reclaim() -> None:
    workers = [
        replace(A, inc="fresh", beat_age_us=3000),
        replace(A, inc="silent", beat_age_us=3001),
        replace(A, inc="dead", state="dead"),
        replace(A, inc="superseded", state="superseded"),
        replace(A, inc="drained", drained=True, accepting=False),
    ]
    assert HealthMonitor(CONFIG).lapsed(workers, 3000) == ["silent", "dead", "superseded"]


steps = st.lists(
    st.tuples(st.floats(0, 100), st.integers(0, 7), st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=40
)


@given(steps)
def test_at_any_time_a_worker_is_excluded_or_probing_or_trusted_and_somebody_may_serve(
    history: list[tuple[float, int, int, int, bool]],
) -> None:
    monitor = HealthMonitor(CONFIG)
    now_s, workers = 0.0, [A, B]
    for elapsed_s, faults, successes, held, first in history:
        now_s += elapsed_s
        i = 0 if first else 1
        was = workers[i]
        workers[i] = replace(was, faults=was.faults + faults, successes=was.successes + successes, held_rows=held)
        monitor.observe(workers, now_s)
        assert not monitor.excluded() & monitor.probing()
        for worker in workers:
            half_open = monitor.state(worker.worker) is HALF_OPEN
            assert (worker.inc in monitor.probing()) == (half_open and worker.held_rows == 0)
            assert not (monitor.state(worker.worker) is CLOSED and worker.inc in monitor.excluded())
        serving = [w for w in workers if w.inc not in monitor.excluded() or w.held_rows]
        assert serving


@pytest.mark.parametrize("open_s", [1200.0, 30.0])
def test_the_first_opening_lasts_as_long_as_configured(open_s: float) -> None:
    monitor = HealthMonitor(Config(breaker_faults=1, breaker_open_s=open_s))
    monitor.observe([A, B], 0)
    monitor.observe([replace(A, faults=1), B], 0)
    monitor.observe([replace(A, faults=1), B], open_s - 1)
    assert monitor.state("a") is OPEN
    monitor.observe([replace(A, faults=1), B], open_s)
    assert monitor.state("a") is HALF_OPEN
