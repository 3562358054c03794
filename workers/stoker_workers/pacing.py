"""How fast a worker takes up offline prompts, so that answers beside them go on. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Protocol

from stoker.config import Config


class Paced(Protocol):
    """A row: whether it is of BATCH, and how many tokens it prefills."""

    @property
    def offline(self) -> bool:
        """Whether it is of class BATCH."""

    @property
    def to_prefill(self) -> int:
        """The tokens of its prompt, and those that earlier attempts gave."""


_offline = attrgetter("offline")


class Pacer:
    """Spreads the prompts of BATCH over steps.

    A step that prefills takes as long as its prompts are. Beside other classes, and for `reserve_idle_s` after the last
    of them, prompts of BATCH are begun so that they sum to at most `batch_prefill_tokens` a step on average: one of ten
    times that many tokens is followed by ten steps without any. A step that begins another prompt begins none of BATCH,
    for somebody waits for its first token, unless one has waited for long. Times are seconds of a monotonic clock.
    """

    def __init__(self, config: Config) -> None:
        self._a_step = config.batch_prefill_tokens
        self._idle_s = config.reserve_idle_s
        self._last_s = float("-inf")
        self._left = self._a_step
        self._busy = False

    def observe(self, waiting: Iterable[Paced], resident: Iterable[Paced], now_s: float) -> None:
        """Take in what waits and what runs; call it before `takes`."""
        self._busy = not all(map(_offline, waiting))
        if self._busy or not all(map(_offline, resident)):
            self._last_s = now_s

    def takes(self, row: Paced, *, idle: bool, now_s: float, aged: bool = False) -> bool:
        """Return whether the row may go to the engine now, and note that it does.

        `idle`: nothing is resident. `aged`: it has waited so long that other prompts beside it are no reason any more.
        """
        if not row.offline or now_s - self._last_s >= self._idle_s:
            return True
        if (self._left <= 0 or (self._busy and not aged)) and not idle:
            return False
        self._left -= row.to_prefill
        return True

    def stepped(self, steps: int = 1) -> None:
        """Note that steps ran."""
        self._left = min(self._left + steps * self._a_step, self._a_step)
