"""One tick's dispatching, decided batch by batch: which worker, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from math import ceil
from types import MappingProxyType

from stoker.store.records import Held, Waiting, WorkerRecord
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import Batch, DynamicBatcher, Room
from stoker_scheduler.placement import Allowed, Place, Speed
from stoker_scheduler.queue import charged_cost, largest_capacity
from stoker_scheduler.reserve import BatchRoom, held_back

DEPTH = {"continuous": 512, "padded": 2048}
"""How many entries of each lane a tick reads at most: a padded batch is chosen from a window, a continuous one from
heads, of which it reads no more than the fleet has rows."""

BLOCKED_HEADS = 16
"""How many requests in a row may find no worker before a round ends: it bounds how far smaller ones are looked for."""


NOTHING_KEPT: Mapping[str, BatchRoom] = MappingProxyType({})
NO_SPEEDS: Mapping[str, Speed] = MappingProxyType({})


class Round:
    """What is left of a tick's waiting requests and workers, as batches are handed out.

    1. Continuous: each request in the order gets its worker, and those of one worker go there together.
    2. Padded: the first request in the order gets a worker, and the batch is formed around it. Of what waits that takes
       no more than lets the worker drain with the other open ones.
    3. Workers with a probe to make get one request.
    4. A request that no worker can take lets those behind it try, and after its linger keeps a worker free.
    5. `linger_us` is how soon looking again may change something; 0 for nothing to wait for.
    6. BATCH takes no more of a worker than `rooms` says. What that holds back is left out, and hides nothing.
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
        speeds: Mapping[str, Speed] = NO_SPEEDS,
        rooms: Mapping[str, BatchRoom] = NOTHING_KEPT,
        largest: int | None = None,
    ) -> None:
        """Hand out `waiting`, in its order, to `fleet` but for the incarnations in `shut`.

        `speeds` are those of workers, by incarnation. `largest`: the largest capacity, None: not worked out yet.
        """
        self._waiting: Sequence[Waiting] = waiting
        self._fleet = fleet
        self._balancer = balancer
        self._batcher = batcher
        self._places = balancer.places(fleet, speeds, shut=shut, probing=probing)
        self._given: dict[str, Place] = {}
        self._patience_us = linger_us
        self._now_us = now_us
        self._largest = largest_capacity(fleet) if largest is None else largest
        self._rooms = dict(rooms)
        self._padded = any([worker.mode == "padded" for worker in fleet])
        self._unplaced: list[Waiting] = []
        self._planned = False
        self._plan: dict[str, list[Waiting]] = {}
        self._offline_shut = False
        self.linger_us = 0

    @property
    def fleet(self) -> list[WorkerRecord]:
        """The workers as they are with what was handed out."""
        given = self._given
        return [given[worker.inc].loaded() if worker.inc in given else worker for worker in self._fleet]

    def next(self) -> tuple[WorkerRecord, Batch] | None:
        """Return the next worker and its batch, None when nothing more fits now."""
        return self._next_padded() if self._padded else self._next_planned()

    def done(self, worker: WorkerRecord, batch: Batch, *, more: bool) -> None:
        """Take the batch out of what is left; `more` is whether the worker may get another one in this round."""
        if self._padded:
            place = self._places[worker.inc]
            for cost in batch.costs:
                place.give(cost)
            self._given[worker.inc] = place
            taken = {request.id for request in batch.requests}
            self._waiting = [request for request in self._waiting if request.id not in taken]
        else:
            left = self._plan[worker.inc][len(batch.requests) :]
            if left:
                self._plan[worker.inc] = left
            else:
                del self._plan[worker.inc]
        if not more:
            self._places.close(worker.inc)
            # What it was to get beside that goes elsewhere.
            self._waiting = [*self._plan.pop(worker.inc, ()), *self._waiting]
            self._planned = False

    def unplaced(self) -> list[Waiting]:
        """Return the requests of other classes than BATCH that no worker has room for, in their order."""
        return [request for request in (*self._unplaced, *self._waiting) if not request.offline]

    def vacated(self, inc: str, leaving: Sequence[Held]) -> None:
        """Take in that a worker gives these rows back, so that `next` looks at all again that found no place."""
        self._given[inc] = self._places.vacate(inc, [row.cost for row in leaving])
        self._waiting = [*self._unplaced, *self._waiting]
        self._unplaced = []
        self._planned = False

    def has_free_row(self) -> bool:
        """Return whether a worker that may get another batch has a free row."""
        return self._places.any_free()

    def _next_padded(self) -> tuple[WorkerRecord, Batch] | None:
        blocked = 0
        while self._waiting and blocked < BLOCKED_HEADS:
            head = self._waiting[0]
            place = self._balancer.choose(self._places, head, charged_cost(head, self._largest))
            if place is None:
                self._waiting = self._waiting[1:]
                blocked = blocked + 1 if self._keep_one(head) else BLOCKED_HEADS
                continue
            share = self._places.share(place, sum([request.reserve for request in self._waiting]))
            rows = max(1, min(ceil(len(self._waiting) * share - 1e-6), place.free_rows))
            room = Room.of(place.loaded(), share=rows, largest=self._largest)
            batch = self._batcher.form(self._waiting, room, now_us=self._now_us)
            if batch.requests:
                return place.record, batch
            self.linger_us = batch.linger_us or self.linger_us
            self._places.close(place.record.inc)
        return None

    def _next_planned(self) -> tuple[WorkerRecord, Batch] | None:
        if not self._planned:
            self._planned = True
            self._place_all()
        if not self._plan:
            return None
        inc, requests = next(iter(self._plan.items()))
        record = self._given[inc].record
        room = Room.of(record, share=len(requests), largest=self._largest)
        return record, self._batcher.form(requests, room, now_us=self._now_us)

    def _place_all(self) -> None:
        """Place one request after the other, until no row is free or too many in a row find no worker."""
        blocked = looked_at = 0
        reserved = bool(self._rooms)
        for request in self._waiting:
            looked_at += 1
            held = reserved and held_back(request, self._now_us)
            if held and self._offline_shut:
                continue
            cost = charged_cost(request, self._largest)
            place = self._balancer.choose(self._places, request, cost, self._admits(cost) if held else None)
            if place is not None:
                self._give(place, request, cost)
                blocked = 0
            elif held and self._balancer.choose(self._places, request, cost) is not None:
                # The reserve keeps it from a worker that has room: so it does with all of BATCH behind it.
                self._offline_shut = True
            else:
                blocked = blocked + 1 if self._keep_one(request) else BLOCKED_HEADS
                if blocked >= BLOCKED_HEADS:
                    break
        self._waiting = self._waiting[looked_at:]

    def _give(self, place: Place, request: Waiting, cost: int) -> None:
        inc = place.record.inc
        place.give(cost)
        self._given[inc] = place
        self._plan.setdefault(inc, []).append(request)
        if request.offline and inc in self._rooms:
            self._rooms[inc] = self._rooms[inc].less(cost)

    def _admits(self, cost: int) -> Allowed:
        """Return whether what the reserve leaves of a place has room for a request of BATCH."""

        def allowed(place: Place) -> bool:
            room = self._rooms.get(place.record.inc)
            return room is None or room.admits(cost)

        return allowed

    def _keep_one(self, request: Waiting) -> bool:
        """Keep a worker for a request that none can take, once it has waited long enough; whether others may fit."""
        self._unplaced.append(request)
        cost = charged_cost(request, self._largest)
        kept = self._balancer.reserve(self._places, request, cost, now_us=self._now_us)
        self.linger_us = self._patience_us
        if kept is not None:
            self._places.close(kept.record.inc)
        # Without a free row anywhere no smaller one fits either.
        return self.has_free_row()
