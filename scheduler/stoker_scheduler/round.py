"""One tick's dispatching, decided batch by batch: which worker, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from math import ceil
from types import MappingProxyType

from stoker.store.records import Held, Waiting, WorkerRecord
from stoker_scheduler.balancer import LoadBalancer, loaded, unloaded
from stoker_scheduler.batcher import Batch, DynamicBatcher, Room
from stoker_scheduler.queue import charged_cost, largest_capacity
from stoker_scheduler.reserve import BatchRoom, held_back

DEPTH = {"continuous": 512, "padded": 2048}
"""How many entries of each lane a tick reads at most: a padded batch is chosen from a window, a continuous one from
heads, of which it reads no more than the fleet has rows."""

BLOCKED_HEADS = 16
"""How many requests may find no worker before a round ends: it bounds how far smaller ones are looked for."""


NOTHING_KEPT: Mapping[str, BatchRoom] = MappingProxyType({})


class Round:
    """What is left of a tick's waiting requests and workers, as batches are handed out.

    1. The first request in the order gets a worker; the batch is formed around it.
    2. Workers with a probe to make get one request.
    3. A first request that no worker can take lets those behind it try, and after its linger keeps a worker free.
    4. `linger_us` is how soon looking again may change something; 0 for nothing to wait for.
    5. BATCH takes no more of a worker than `rooms` says. What that holds back is left out, and hides nothing.
    """

    def __init__(
        self,
        waiting: Sequence[Waiting],
        fleet: Sequence[WorkerRecord],
        *,
        balancer: LoadBalancer,
        batcher: DynamicBatcher,
        shut: Set[str],
        probing: Set[str],
        linger_us: int,
        now_us: int,
        rooms: Mapping[str, BatchRoom] = NOTHING_KEPT,
    ) -> None:
        """Hand out `waiting`, in its order, to `fleet` but for the incarnations in `shut`."""
        self._waiting = list(waiting)
        self.fleet = list(fleet)
        """The workers as they are with what was handed out."""
        self._balancer = balancer
        self._batcher = batcher
        self._shut = set(shut)
        self._probing = probing
        self._patience_us = linger_us
        self._now_us = now_us
        self._largest = largest_capacity(fleet)
        self.linger_us = 0
        self._rooms = dict(rooms)
        self._unplaced: list[Waiting] = []

    def next(self) -> tuple[WorkerRecord, Batch] | None:
        """Return the next worker and its batch, None when nothing more fits now."""
        blocked = 0
        while self._waiting and blocked < BLOCKED_HEADS:
            head = self._waiting[0]
            worker = self._balancer.choose(self.fleet, head, self._shut | self._kept_from(head))
            if worker is None:
                if self._hold_back(head):
                    continue
                self._keep_one()
                # Without a free row anywhere no smaller one fits either.
                blocked = blocked + 1 if self.has_free_row() else BLOCKED_HEADS
                continue
            batch = self._batcher.form(self._allowed(worker), self._room(worker), now_us=self._now_us)
            if batch.requests:
                return worker, batch
            self.linger_us = batch.linger_us or self.linger_us
            self._shut.add(worker.inc)
        return None

    def done(self, worker: WorkerRecord, batch: Batch, *, more: bool) -> None:
        """Take the batch out of what is left; `more` is whether the worker may get another one in this round."""
        taken = {request.id for request in batch.requests}
        self._waiting = [request for request in self._waiting if request.id not in taken]
        self.fleet = [loaded(w, batch.costs) if w.inc == worker.inc else w for w in self.fleet]
        if worker.inc in self._rooms:
            for request, cost in zip(batch.requests, batch.costs, strict=True):
                if request.offline:
                    self._rooms[worker.inc] = self._rooms[worker.inc].less(cost)
        if not more or worker.inc in self._probing:
            self._shut.add(worker.inc)

    def unplaced(self) -> list[Waiting]:
        """Return the requests of other classes than BATCH that no worker has room for, in their order."""
        return [request for request in (*self._unplaced, *self._waiting) if not request.offline]

    def vacated(self, inc: str, leaving: Sequence[Held]) -> None:
        """Take in that a worker gives these rows back, so that `next` looks at all again that found no place."""
        costs = [row.cost for row in leaving]
        self.fleet = [unloaded(w, costs) if w.inc == inc else w for w in self.fleet]
        self._waiting = [*self._unplaced, *self._waiting]
        self._unplaced = []

    def _keep_one(self) -> None:
        head = self._waiting.pop(0)
        self._unplaced.append(head)
        kept = self._balancer.reserve(self.fleet, head, self._shut, now_us=self._now_us)
        self.linger_us = self._patience_us
        if kept:
            self._shut.add(kept.inc)

    def _kept_from(self, request: Waiting) -> set[str]:
        """Return the workers that are kept from the request, if it is one of BATCH."""
        if not self._rooms or not held_back(request, self._now_us):
            return set()
        cost = charged_cost(request, self._largest)
        return {inc for inc, room in self._rooms.items() if not room.admits(cost)}

    def _hold_back(self, head: Waiting) -> bool:
        """Leave BATCH out where the reserve keeps `head` from a worker that has room for it; whether it does."""
        if not self._kept_from(head) or self._balancer.choose(self.fleet, head, self._shut) is None:
            return False
        self._waiting = [request for request in self._waiting if not held_back(request, self._now_us)]
        return True

    def _allowed(self, worker: WorkerRecord) -> list[Waiting]:
        """Return what waits and may go to the worker: in its order, and of BATCH as much as there is room for."""
        room = self._rooms.get(worker.inc)
        if room is None:
            return self._waiting
        allowed, closed = [], False
        for request in self._waiting:
            if held_back(request, self._now_us):
                cost = charged_cost(request, self._largest)
                closed = closed or not room.admits(cost)
                if closed:
                    continue
                room = room.less(cost)
            allowed.append(request)
        return allowed

    def has_free_row(self) -> bool:
        """Return whether a worker that may get another batch has a free row."""
        return any(w.held_rows < w.rows for w in self.fleet if w.available and w.inc not in self._shut)

    def _room(self, worker: WorkerRecord) -> Room:
        """Its room, with a share of what waits that leaves something for the other open workers."""
        open_workers = max(1, sum(other.available and other.inc not in self._shut for other in self.fleet))
        share = 1 if worker.inc in self._probing else ceil(len(self._waiting) / open_workers)
        return Room.of(worker, share=share, largest=self._largest)
