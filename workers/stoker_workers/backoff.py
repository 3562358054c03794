"""How long a worker waits before it starts its child again. Pure."""

from __future__ import annotations

CALM_S = 60.0
"""A child that served for so long owes nothing to those before it."""
BACKOFF_MAX_S = 60.0


class Backoff:
    """None after a calm life and after the first death of a child that served; else 1, 2, 4 .. 60 s.

    Only the time in which it served counts: a model may load for minutes before it fails, each time anew. The wait is
    cut by up to half at random, lest all workers of a broken model come back at the same moment.
    """

    def __init__(self) -> None:
        self._failures = 0

    def next_s(self, served_s: float, *, blameless: bool, jitter: float) -> float:
        """Return the wait after a child that served for `served_s`, 0 where its model was never loaded.

        `blameless`: crash suspects killed it, which it was given to find out. `jitter` is from 0 to 1.
        """
        if served_s >= CALM_S:
            self._failures = 0
        if served_s >= CALM_S or blameless:
            return 0.0
        self._failures += 1
        doublings = self._failures - (2 if served_s else 1)
        return float(min(BACKOFF_MAX_S, 2.0 ** min(doublings, 10)) * (1 - jitter / 2)) if doublings >= 0 else 0.0
