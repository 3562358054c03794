"""How fast a worker takes up offline prompts, so that answers beside them go on. Pure."""

from __future__ import annotations

from collections.abc import Collection

from stoker.config import Config
from stoker.request import RequestPriority
from stoker_workers.intake import Row


class Pacer:
    """Spreads the prompts of BATCH over steps.

    A step that prefills takes as long as its prompts are. Beside other classes, and for `reserve_idle_s` after the last
    of them, prompts of BATCH are begun so that they sum to at most `batch_prefill_tokens` a step on average: one of ten
    times that many tokens is followed by ten steps without any. Times are seconds of a monotonic clock.
    """

    def __init__(self, config: Config) -> None:
        self._a_step = config.batch_prefill_tokens
        self._idle_s = config.reserve_idle_s
        self._last_s = float("-inf")
        self._left = self._a_step

    def ordered(self, waiting: list[Row], resident: Collection[Row], now_s: float) -> list[Row]:
        """Return what waits, BATCH behind the others; call it before `takes`."""
        if not any(map(_offline, waiting)):
            if waiting:
                self._last_s = now_s
            return waiting
        if not all(map(_offline, waiting)) or not all(map(_offline, resident)):
            self._last_s = now_s
        return sorted(waiting, key=_offline)

    def takes(self, row: Row, *, idle: bool, now_s: float) -> bool:
        """Return whether the row may go to the engine now, and note that it does; `idle`: nothing is resident."""
        if not _offline(row) or now_s - self._last_s >= self._idle_s:
            return True
        if self._left <= 0 and not idle:
            return False
        self._left -= len(row.work.prompt) + len(row.work.generated)
        return True

    def stepped(self) -> None:
        """Note that a step ran."""
        self._left = min(self._left + self._a_step, self._a_step)


def _offline(row: Row) -> bool:
    return row.payload.request.priority == RequestPriority.BATCH
