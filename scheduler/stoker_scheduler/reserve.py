"""How much of each worker offline work may take, so that the other classes do not feel it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.prices import Prices

FADES = 12
"""Time constants of the remembered peak in `reserve_idle_s`: by default it fades with one of 5 s."""

FILLED = 0.75
"""The part of its reserved tokens that a row has in the cache on average: its prompt, and half of its answer."""


@dataclass(frozen=True, slots=True)
class BatchRoom:
    """What BATCH may still take of a worker: rows, tokens, and milliseconds that a step may become longer by.

    `held` is how many rows of BATCH it has. Without any it may have one of any size, so that nothing starves.
    `row_ms` and `token_ms`: how much longer a row of BATCH makes a step, and each token reserved for it.
    """

    rows: int
    tokens: int
    ms: float
    held: int
    row_ms: float
    token_ms: float

    def admits(self, cost: int) -> bool:
        """Return whether a request of `cost` tokens may go there."""
        if not self.held:
            return True
        return self.rows >= 1 and cost <= self.tokens and self._ms(cost) <= self.ms

    def less(self, cost: int) -> BatchRoom:
        """Return what is left beside a request of `cost` tokens."""
        ms = self.ms - self._ms(cost)
        return replace(self, rows=self.rows - 1, tokens=self.tokens - cost, ms=ms, held=self.held + 1)

    def _ms(self, cost: int) -> float:
        return self.row_ms + self.token_ms * cost


@dataclass(slots=True)
class _Peak:
    rows: float = 0.0
    tokens: float = 0.0


class Reserve:
    """What is kept from BATCH for the other classes, called interactive here.

    1. Room: of each worker, BATCH may hold the rows and tokens beside the most that interactive requests used lately.
       What they use and wait for counts at once, and fades with a time constant of `reserve_idle_s / 12`.
    2. Pace: rows of BATCH may make a step longer by `batch_slowdown` of what it takes without them, by the worker's
       measured prices. A row that ends is followed by another, and what its prompt takes is in the price of a row.
    3. After `reserve_idle_s` without an interactive request nothing is kept.
    4. A worker without BATCH may have one such row, and what waited longer than its class's window is held back no
       more: it counts like any other request then.
    5. Workers of padded batches are left out: there a batch ends before the next begins.

    Times are microseconds of Redis TIME.
    """

    def __init__(self, config: Config) -> None:
        self._idle_us = config.reserve_idle_s * 1e6
        self._slowdown = config.batch_slowdown
        self._peaks: dict[str, _Peak] = {}
        self._prompts = 0.0
        self._seen_us = 0
        self._asked_us = 0

    def observe(self, workers: Sequence[WorkerRecord], waiting: Sequence[Waiting], now_us: int) -> None:
        """Take in what workers hold, with its part of BATCH, and all that waits."""
        rows, tokens = len(waiting), sum(map(_reserve, waiting))
        if any(map(_offline, waiting)):
            offline = [request for request in waiting if request.offline]
            prompts, asked = sum(request.prompt_tokens for request in offline), sum(map(_reserve, offline))
            self._prompts = prompts / max(1, asked - prompts)
            rows, tokens = rows - len(offline), tokens - asked
        if rows or any(worker.held_rows > worker.batch_rows for worker in workers):
            self._asked_us = now_us
        passed_us = max(0, now_us - self._seen_us)
        fade = math.exp(-FADES * passed_us / self._idle_us) if self._idle_us else 0.0
        self._seen_us = now_us
        # A clock that was set back must not keep the reserve for as long as it was.
        self._asked_us = min(self._asked_us, now_us)
        share = max(1, len([worker for worker in workers if worker.available]))
        before, peaks = self._peaks, {}
        rows_each, tokens_each = rows / share, tokens / share
        for worker in workers:
            peak = peaks[worker.inc] = before.get(worker.inc) or _Peak()
            used, faded = worker.held_rows - worker.batch_rows + rows_each, peak.rows * fade
            peak.rows = used if used > faded else faded
            used, faded = worker.held_tokens - worker.batch_tokens + tokens_each, peak.tokens * fade
            peak.tokens = used if used > faded else faded
        self._peaks = peaks

    def rooms(
        self, workers: Sequence[WorkerRecord], prices: Callable[[str], Prices], now_us: int
    ) -> Mapping[str, BatchRoom]:
        """Return what BATCH may still take of each worker, by incarnation; nothing is kept from it on the others."""
        if now_us - self._asked_us >= self._idle_us or not self._asked_us:
            return {}
        return {worker.inc: self._room(worker, prices(worker.inc)) for worker in workers if worker.mode == "continuous"}

    def _room(self, worker: WorkerRecord, prices: Prices) -> BatchRoom:
        peak = self._peaks.get(worker.inc, _Peak())
        rows, tokens = worker.held_rows - worker.batch_rows, worker.held_tokens - worker.batch_tokens
        token_ms = prices.resident_ms * FILLED
        alone_ms = prices.base_ms + prices.row_ms * rows + token_ms * tokens
        row_ms = prices.row_ms + prices.prefill_ms * self._prompts
        return BatchRoom(
            rows=worker.rows - math.ceil(peak.rows) - worker.batch_rows,
            tokens=worker.capacity - math.ceil(peak.tokens) - worker.batch_tokens,
            ms=self._slowdown * alone_ms - row_ms * worker.batch_rows - token_ms * worker.batch_tokens,
            held=worker.batch_rows,
            row_ms=row_ms,
            token_ms=token_ms,
        )


def held_back(request: Waiting, now_us: int) -> bool:
    """Return whether the reserve applies to a request: it is of BATCH, and its class's window is not over."""
    return request.offline and request.score > now_us


_offline: Callable[[Waiting], bool] = attrgetter("offline")
_reserve: Callable[[Waiting], int] = attrgetter("reserve")
