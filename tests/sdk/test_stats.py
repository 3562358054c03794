"""Percentiles out of histograms."""

from __future__ import annotations

import pytest

from stoker.stats import bucket_ms, latencies, percentile, requests_per_second


def test_buckets_double_every_second_one() -> None:
    assert [round(bucket_ms(b), 2) for b in range(5)] == [1, 1.41, 2, 2.83, 4]


def test_a_percentile_lies_within_the_bucket_that_holds_its_rank() -> None:
    buckets = {4: 50, 10: 45, 20: 5}
    assert bucket_ms(3) < (percentile(buckets, 0.5) or 0) <= bucket_ms(4)
    assert percentile(buckets, 0.95) == bucket_ms(10)
    assert bucket_ms(19) < (percentile(buckets, 0.99) or 0) <= bucket_ms(20)


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile({}, 0.5) is None


def test_classes_are_added_up_or_looked_at_alone() -> None:
    histograms = {"e2e:high:0": 1, "e2e:high:sum": 500, "e2e:low:2": 3, "e2e:low:sum": 5500, "other:low:1": 7}
    everything, high = latencies(histograms)["e2e"], latencies(histograms, ["high"])["e2e"]
    assert (everything["count"], everything["avg"]) == (4, 1.5)
    assert (high["count"], high["avg"], high["p99"]) == (1, 0.5, 0.99)
    assert latencies(histograms)["queue"] == {"count": 0, "avg": None, "p50": None, "p95": None, "p99": None}


@pytest.mark.parametrize(
    ("rates", "now_us", "rate"),
    [
        ({}, 0, 0),
        ({"since": 0, "settled": 30}, 2_000_000, 15),
        ({"since": 0, "settled": 30, "drain": 40}, 2_000_000, 40),
        ({"since": 0, "settled": 30, "drain": 40}, 60_000_000, 0.5),
    ],
    ids=["no window yet", "in the first window", "the window before counts", "idle since"],
)
def test_the_rate_is_that_of_the_last_full_window_while_it_is_fresh(
    rates: dict[str, float], now_us: int, rate: float
) -> None:
    assert requests_per_second(rates, now_us) == rate
