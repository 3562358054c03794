"""Which worker a request goes to."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from statistics import median

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.batcher import Room
from stoker_scheduler.queue import charged_cost, largest_capacity

FORGET_US = 60_000_000
"""A head that nobody asked about for so long is gone: what was noted about it is dropped."""


@dataclass(slots=True)
class _Blocked:
    """Since when a head could not be placed, when it was last asked about, and the worker kept for it."""

    since_us: int
    asked_us: int
    inc: str | None = None


class LoadBalancer:
    """Places requests on workers.

    1. Only workers that are available, not excluded (by an open circuit, a reservation, a quarantine) and have credit:
       rows, and tokens as dispatch counts them (paged: the sum; rect: rows x longest; a busy padded worker: a whole
       batch).
    2. Of these the one that is done first: tokens held and asked for, over its measured rate. A worker whose rate is
       unknown counts with the median of the known ones, or with 1. Equal workers go by name, so that the same state
       always gives the same answer.
    3. A head that no worker can take keeps one: after `max_queue_delay_ms`, the worker that drains first of those that
       could hold it when empty is reserved, so that smaller requests can't starve it. The reservation stays with that
       worker while it can be used, for draining two workers halfway serves nobody.

    It remembers only since when each such head has waited. Times are microseconds of Redis TIME.
    """

    def __init__(self, config: Config) -> None:
        self._linger_us = config.max_queue_delay_ms * 1000
        # In the order in which they were last asked about.
        self._blocked: dict[str, _Blocked] = {}

    def choose(
        self, workers: Sequence[WorkerRecord], request: Waiting, excluded: Set[str] = frozenset()
    ) -> WorkerRecord | None:
        """Return the worker for `request`, None where none can take it now; `excluded` are incarnations."""
        cost = charged_cost(request, largest_capacity(workers))
        # Rows first: of a large fleet that is busy this leaves few whose room is worth working out.
        free = [worker for worker in _usable(workers, excluded) if worker.held_rows < worker.rows]
        able = [worker for worker in free if Room.of(worker, share=worker.rows).opens_to(cost)]
        chosen = _first_done(able, workers, cost)
        if chosen is not None:
            self._blocked.pop(request.id, None)
        return chosen

    def reserve(
        self, workers: Sequence[WorkerRecord], request: Waiting, excluded: Set[str] = frozenset(), *, now_us: int
    ) -> WorkerRecord | None:
        """Return the worker to keep free for `request`, a head that `choose` found no worker for.

        None while it has not waited long enough, and where no usable worker could ever hold it. The caller gives
        nothing else to the worker returned, in this tick; it is asked again in the next.
        """
        self._forget(now_us)
        blocked = self._blocked.pop(request.id, None) or _Blocked(now_us, now_us)
        self._blocked[request.id] = blocked
        blocked.asked_us = now_us
        if now_us - blocked.since_us < self._linger_us:
            return None
        cost = charged_cost(request, largest_capacity(workers))
        able = [w for w in _usable(workers, excluded) if w.rows > 0 and cost <= w.capacity]
        kept = next((worker for worker in able if worker.inc == blocked.inc), None) or _first_done(able, workers, 0)
        blocked.inc = kept.inc if kept is not None else None
        return kept

    def _forget(self, now_us: int) -> None:
        while self._blocked:
            longest = next(iter(self._blocked))
            if abs(now_us - self._blocked[longest].asked_us) < FORGET_US:
                return
            del self._blocked[longest]


def loaded(worker: WorkerRecord, costs: Sequence[int]) -> WorkerRecord:
    """Return `worker` as it will be read after a dispatch of requests with these `costs`."""
    return replace(
        worker,
        held_rows=worker.held_rows + len(costs),
        held_tokens=worker.held_tokens + sum(costs),
        longest=max(worker.longest, *costs) if worker.cache == "rect" and costs else worker.longest,
    )


def unloaded(worker: WorkerRecord, costs: Sequence[int]) -> WorkerRecord:
    """Return `worker` as it will be read after it was asked for rows with these `costs`."""
    return replace(worker, held_rows=worker.held_rows - len(costs), held_tokens=worker.held_tokens - sum(costs))


def _usable(workers: Sequence[WorkerRecord], excluded: Set[str]) -> list[WorkerRecord]:
    return [worker for worker in workers if worker.available and worker.inc not in excluded]


def _first_done(able: Sequence[WorkerRecord], fleet: Sequence[WorkerRecord], cost: int) -> WorkerRecord | None:
    if len(able) < 2:
        return able[0] if able else None
    known = [worker.rate for worker in fleet if worker.available and worker.rate > 0]
    usual = median(known) if known else 1.0

    def done_s(worker: WorkerRecord) -> tuple[float, str, str]:
        rate = worker.rate if worker.rate > 0 else usual
        return ((worker.held_tokens + cost) / rate, worker.worker, worker.inc)

    return min(able, key=done_s, default=None)
