"""Requests that a worker holds behind a full engine: how many, and in which order they go in. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from stoker.request import RequestPriority

FADE = 0.7
"""What a heartbeat counts less with every later one that saw steps."""

AGED_S = 10.0
"""What waited so long in a worker goes in before better classes.

It is longer than prompts of BATCH wait for their pace, which else were begun beside other prompts as a rule.
"""

LET_GO_S = 1.0
"""What waited so long in a worker that would not take it ahead any more goes back: it came to wait for some ms."""

COUNTERS = ("steps", "row_steps", "busy_us", "finished")

_RANKS = {priority: rank for rank, priority in enumerate(RequestPriority)}


class Ahead:
    """How many requests to take while every row is in use, so that the next step finds them there.

    From the end of a row to the beginning of the request that takes its place, a result is settled, another request
    handed out and begun: some ms in which the row stands still. So a worker takes what it would begin within `ahead_ms`
    of its own time: by Little's law, rows over the mean time that a row stays, times `ahead_ms`; at most as many as it
    has rows. Where rows stay for seconds that is none, for there a later request of a better class would lose more by
    it than the engine wins.
    """

    def __init__(self, rows: int, ahead_ms: float) -> None:
        """Begin with none, for an engine of so many `rows`."""
        self._rows = rows
        self._ahead_us = ahead_ms * 1000
        self.requests = 0
        """How many it takes, as of the last heartbeat."""
        self._last = dict.fromkeys(COUNTERS, 0)
        self._sums = dict.fromkeys(COUNTERS, 0.0)

    def observe(self, counters: Mapping[str, int]) -> int:
        """Take in a board's running totals; returns how many requests to take ahead now."""
        # Also where no row ended: rows that go on and on make the mean stay longer.
        if counters["steps"] > self._last["steps"]:
            for name in COUNTERS:
                self._sums[name] = FADE * self._sums[name] + counters[name] - self._last[name]
                self._last[name] = counters[name]
        steps, row_steps, busy_us, finished = (self._sums[name] for name in COUNTERS)
        if finished and steps:
            stay_us = max(1.0, row_steps / finished * busy_us / steps)
            self.requests = min(self._rows, int(self._rows * self._ahead_us / stay_us))
        return self.requests


class Begun(Protocol):
    """A request that waits in a worker: its class, and when it came (monotonic seconds)."""

    priority: RequestPriority
    begun_s: float


B = TypeVar("B", bound=Begun)


def in_turn(waiting: Iterable[B], now_s: float) -> list[B]:
    """Return what waits, the better class first; before all others what is aged, so that nothing starves."""
    return sorted(waiting, key=lambda one: -1 if aged(one, now_s) else _RANKS[one.priority])


def overdue(waiting: Iterable[B], most: int, now_s: float) -> list[B]:
    """Return what is more than `most` that wait, those whose turn comes last, and has waited `LET_GO_S`."""
    return [one for one in in_turn(waiting, now_s)[max(0, most) :] if now_s - one.begun_s >= LET_GO_S]


def aged(one: Begun, now_s: float) -> bool:
    """Return whether a request has waited `AGED_S` in this worker."""
    return now_s - one.begun_s >= AGED_S
