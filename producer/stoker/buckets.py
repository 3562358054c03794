"""One law for the buckets of all exported histograms: each edge is twice the one before.

Times have 0.001 s among their edges, so that histograms of the queue (from 1 ms on) and of one process (finer) line up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.utils import floatToGoString

EDGES = 28
"""Edges of a histogram; one more bucket takes what lies above the last."""


def edges(first: float) -> list[float]:
    """Return the edges from `first` on."""
    return [first * 2**k for k in range(EDGES)]


def bucket_of(value: int, first: int) -> int:
    """Return the bucket, from 0 to `EDGES`, of a whole number where the first edge is the whole number `first`."""
    bucket = ((value - 1) // first).bit_length() if value > 0 else 0
    return bucket if bucket < EDGES else EDGES


def cumulated(first: float, counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the buckets of a family: edges as Prometheus writes them, and how many lie up to each."""
    names = [*(floatToGoString(edge) for edge in edges(first)), "+Inf"]
    return list(zip(names, map(float, accumulate(counts)), strict=True))
