"""What a step costs, out of what an engine counted: least squares over its samples. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stoker.errors import StokerError
from stoker_workers.engines.sim import Profile
from stoker_workers.least_squares import least_squares

COSTS = {"base_ms": "steps", "prefill_ms": "prompt_tokens", "row_ms": "row_steps", "resident_ms": "token_steps"}
"""Each number of a profile, and the counter of which it is the price."""

BUSY = "busy_us"
LEAST = len(COSTS) + 1
_REWEIGHTED = 10


Sample = Mapping[str, int]
"""What the counters grew by over some steps."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A profile, and how far it is from what was measured: shares of each sample's time, the median and the largest."""

    profile: Profile
    median_error: float
    largest_error: float
    samples: int


def difference(before: Mapping[str, int], after: Mapping[str, int]) -> Sample:
    """Return what the counters that a fit needs grew by."""
    return {name: after[name] - before[name] for name in (*COSTS.values(), BUSY)}


def fit(samples: Sequence[Sample]) -> Fit:
    """Return the profile whose prices explain the samples best; no price is below 0.

    A sample is what the counters grew by over any number of whole steps: busy time (us) is the sum of counts times
    prices. Their variance is taken to grow with the time, as when a machine is disturbed now and then: a sample of many
    steps is surer than one of few. Raises `StokerError` for too few samples.
    """
    used = [sample for sample in samples if sample[BUSY] > 0 and sample["steps"] > 0]
    if len(used) < LEAST:
        raise StokerError(f"profile: at least {LEAST} samples with steps are needed, got {len(used)}")
    rows = [[float(sample[name]) for name in COSTS.values()] for sample in used]
    times = [sample[BUSY] / 1000 for sample in used]
    prices, expected = [0.0] * len(COSTS), times
    for _ in range(_REWEIGHTED):
        # By the expected times: with the measured ones, a slow moment would count less than a quick one, and every
        # price of a noisy machine would come out too low.
        weights = [1 / math.sqrt(time) for time in expected]
        weighted = [[value * weight for value in row] for row, weight in zip(rows, weights, strict=True)]
        prices = least_squares(weighted, [time * weight for time, weight in zip(times, weights, strict=True)])
        expected = [_dot(row, prices) or time for row, time in zip(rows, times, strict=True)]
    errors = [abs(_dot(row, prices) / time - 1) for row, time in zip(rows, times, strict=True)]
    profile = Profile(**dict(zip(COSTS, prices, strict=True)))
    return Fit(profile, statistics.median(errors), max(errors), len(used))


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
