"""MetricsCollector: how well the queue is doing, in numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.batcher import Batch
from stoker_scheduler.metrics import RECENT_BATCHES, WINDOW_S, MetricsCollector

A = WorkerRecord(inc="a:1-x", worker="a", rows=4, capacity=1000, budget=500, mode="padded", cache="paged")
B = replace(A, inc="b:2-x", worker="b")


def collector() -> MetricsCollector:
    return MetricsCollector(Config(heartbeat_ms=1000))


def batch(*costs: int, fill: float = 1.0, efficiency: float = 1.0) -> Batch:
    requests = tuple(Waiting(str(i), "normal", "", 0.0, cost, 0, True) for i, cost in enumerate(costs))
    return Batch(requests, costs, fill, efficiency)


def busy(worker: WorkerRecord, seconds: float) -> WorkerRecord:
    return replace(worker, figures={"busy_us": int(seconds * 1e6)})


def test_before_anything_happened_every_figure_is_zero() -> None:
    now = collector().snapshot()
    assert (now.requests_per_s, now.tokens_per_s, now.batches, now.batch_size, now.fill) == (0, 0, 0, 0, 0)
    assert (now.rates, now.shares, now.utilisation) == ({}, {}, {})


def test_rates_are_the_change_of_counters_over_time() -> None:
    metrics = collector()
    metrics.observe_counts({"submitted": 1, "succeeded": 10, "failed": 2, "prompt_tokens": 1000}, 100.0)
    metrics.observe_counts(
        {"submitted": 9, "succeeded": 30, "failed": 6, "prompt_tokens": 4600, "generation_tokens": 400, "expired": 1},
        104.0,
    )
    now = metrics.snapshot()
    assert now.requests_per_s == 6
    assert now.tokens_per_s == 1000
    assert (now.rates["submitted"], now.rates["expired"]) == (2, 0.25)


def test_rates_forget_what_lies_before_the_window() -> None:
    metrics = collector()
    metrics.observe_counts({"succeeded": 0}, 0.0)
    metrics.observe_counts({"succeeded": 1_000_000}, 10.0)
    for second in range(10, 100):
        metrics.observe_counts({"succeeded": 1_000_000 + 5 * second}, second)
    assert metrics.snapshot().requests_per_s == pytest.approx(5)


def test_rates_are_smooth_over_the_window() -> None:
    metrics = collector()
    for second in range(100):
        metrics.observe_counts({"succeeded": 300 * (second // 10)}, second)
    assert metrics.snapshot().requests_per_s == pytest.approx(30, rel=0.1)


def test_feeding_often_does_not_shorten_the_window() -> None:
    metrics = collector()
    for tick in range(100_000):
        metrics.observe_counts({"succeeded": 0 if tick < 99_000 else 3000}, tick / 1000)
    assert metrics.snapshot().requests_per_s == pytest.approx(3000 / WINDOW_S, rel=0.1)


def test_counters_that_fall_belong_to_a_new_history() -> None:
    metrics = collector()
    metrics.observe_counts({"succeeded": 1000}, 0.0)
    metrics.observe_counts({"succeeded": 5}, 1.0)
    assert metrics.snapshot().requests_per_s == 0
    metrics.observe_counts({"succeeded": 9}, 3.0)
    assert metrics.snapshot().requests_per_s == 2


def test_what_rises_and_falls_has_no_rate_and_ends_no_history() -> None:
    metrics = collector()
    metrics.observe_counts({"succeeded": 0, "waiting": 10}, 0.0)
    metrics.observe_counts({"succeeded": 8, "waiting": 2}, 2.0)
    assert metrics.snapshot().requests_per_s == 4
    assert "waiting" not in metrics.snapshot().rates


def test_snapshots_less_than_half_a_heartbeat_apart_are_one() -> None:
    metrics = collector()
    metrics.observe_counts({"succeeded": 5}, 1.0)
    metrics.observe_counts({"succeeded": 6}, 1.0)
    metrics.observe_counts({"succeeded": 7}, 1.49)
    assert metrics.snapshot().requests_per_s == 0
    metrics.observe_counts({"succeeded": 8}, 1.5)
    assert metrics.snapshot().requests_per_s == 6


def test_batches_are_counted_and_their_means_kept() -> None:
    metrics = collector()
    metrics.observe_batch(batch(10, 20, 30, fill=0.5, efficiency=0.9), A)
    assert metrics.snapshot().batch_size == 3
    metrics.observe_batch(batch(40, fill=1.0, efficiency=1.0), A)
    now = metrics.snapshot()
    assert (now.batches, now.batch_size) == (2, 2)
    assert (now.fill, now.efficiency) == (0.75, 0.95)


def test_shares_are_of_tokens() -> None:
    metrics = collector()
    metrics.observe_batch(batch(10, 20), A)
    metrics.observe_batch(batch(70), B)
    assert metrics.snapshot().shares == {"a": 0.3, "b": 0.7}


def test_means_are_of_the_last_batches_and_the_count_of_all() -> None:
    metrics = collector()
    metrics.observe_batch(batch(1, 1, 1, fill=0.0), A)
    for _ in range(RECENT_BATCHES):
        metrics.observe_batch(batch(1), B)
    now = metrics.snapshot()
    assert (now.batches, now.batch_size, now.fill) == (RECENT_BATCHES + 1, 1, 1)
    assert now.shares == {"b": 1.0}


def test_utilisation_is_busy_time_over_time() -> None:
    metrics = collector()
    metrics.observe_workers([busy(A, 100), busy(B, 7)], 0.0)
    metrics.observe_workers([busy(A, 103), busy(B, 7)], 4.0)
    assert metrics.snapshot().utilisation == {"a": 0.75, "b": 0.0}


def test_utilisation_is_never_above_one() -> None:
    metrics = collector()
    metrics.observe_workers([busy(A, 0)], 0.0)
    metrics.observe_workers([busy(A, 4.1)], 4.0)
    assert metrics.snapshot().utilisation == {"a": 1.0}


def test_a_restarted_worker_begins_anew() -> None:
    metrics = collector()
    metrics.observe_workers([busy(A, 1000)], 0.0)
    metrics.observe_workers([busy(replace(A, state="superseded"), 1000), busy(replace(A, inc="a:3-y"), 0)], 10.0)
    metrics.observe_workers([busy(replace(A, inc="a:3-y"), 1)], 12.0)
    assert metrics.snapshot().utilisation == {"a": 0.5}


def test_a_worker_that_is_gone_has_no_utilisation() -> None:
    metrics = collector()
    metrics.observe_workers([busy(A, 0), busy(B, 0)], 0.0)
    metrics.observe_workers([busy(B, 1)], 2.0)
    assert metrics.snapshot().utilisation == {"b": 0.5}


def test_a_worker_that_reports_no_busy_time_counts_as_idle() -> None:
    metrics = collector()
    metrics.observe_workers([A], 0.0)
    metrics.observe_workers([A], 1.0)
    assert metrics.snapshot().utilisation == {"a": 0.0}
