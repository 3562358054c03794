"""Whether a child still does something: what tells a long step from a hung one."""

from __future__ import annotations

from collections.abc import Mapping

USUAL_HUNG_S = 60.0
USUAL_STEPS = 10
"""So many steps of the usual length are waited for, if that is longer: a slow model is not hung."""


class Progress:
    """Adds up for how long a child's counters stood still.

    The child raises `progress` with every step and every time its loop is nudged, so a child that stands still is stuck
    in a step or in its loop, not idle. Only time in which we looked counts, `interval_s` at most a look: when the whole
    machine was suspended, we slept as long as the child did.
    """

    def __init__(self, *, limit_s: float | None, interval_s: float, own_code: bool) -> None:
        """Allow `limit_s` of silence, by default a minute; a class of the user's own (`own_code`) any, if not set."""
        self._limit_s = limit_s if limit_s is not None or own_code else USUAL_HUNG_S
        self._most_s = 2 * interval_s
        self._progress = -1
        self._seen_s = 0.0
        self._silent_s = 0.0

    def hung(self, counters: Mapping[str, int], now_s: float) -> bool:
        """Take in the counters at `now_s` (monotonic seconds); returns whether the child has stood still too long."""
        if counters["progress"] != self._progress:
            self._progress, self._silent_s = counters["progress"], 0.0
        else:
            self._silent_s += min(now_s - self._seen_s, self._most_s)
        self._seen_s = now_s
        if self._limit_s is None:
            return False
        usual_s = counters["busy_us"] / 1e6 / max(1, counters["steps"])
        return self._silent_s > max(self._limit_s, USUAL_STEPS * usual_s)
