"""Who of a class goes first when several tenants wait in it: the one that was served least."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from stoker.store.records import Waiting, class_of, tenant_of

MOST_LANES = 64
"""Tenants of a class that a tick looks at, those served least; who was served more has no turn before them."""

LEAST_PAGE = 16
"""Entries that a tick reads of a tenant's lane at least."""

MOST_KEPT = 10_000
"""Tenants without waiting requests whose service is kept in mind."""


class TenantShares:
    """Shares the turns of a class among its tenants, in tokens over weight.

    1. Each lane of a tenant has a number: the tokens handed out of it, each over the tenant's weight. The requests
       without a tenant are one tenant more.
    2. While several tenants of a class wait, the next turn of the class is for the lowest number; of equal numbers for
       the request that waits longest. Each tenant's own requests keep their order.
    3. Whose turn counts for what it is expected to occupy, at once: the next turn in the same tick knows of it.
    4. A newcomer begins at the lowest number of those that wait, or at its own where that is higher. So nobody saves up
       turns by being away, and nobody gets rid of what it had by leaving for a moment.
    5. A class in which nobody waits begins anew: then all of its tenants are equal.
    6. Classes with one tenant, or none, are left as they are: a lone tenant gets everything.

    It follows that of two tenants who both wait, the one can't be ahead of the other, in tokens over weight, by more
    than one request. The numbers live here and not in Redis: a new leader begins with all of them equal, and who was
    ahead then was so by no more than that.
    """

    def __init__(self, served: Mapping[str, float] | None = None) -> None:
        """Begin with what the lanes that wait were `served` (tokens over weight)."""
        self._served = dict(served or {})
        self._waiting: dict[str, set[str]] = defaultdict(set)
        self._left: dict[str, int] = {}  # by lane: how many wait that were not handed out since
        self._floor: dict[str, float] = {}  # by class: where a newcomer begins
        self._weights: Mapping[str, float] = {}
        for lane in self._served:
            self._waiting[class_of(lane)].add(lane)

    def served(self) -> Mapping[str, float]:
        """Return what each waiting lane of a class with tenants was served, in tokens over weight."""
        return {lane: self._served[lane] for lanes in self._waiting.values() for lane in sorted(lanes)}

    def observe(self, lanes: Mapping[str, int]) -> None:
        """Take in how many wait in each lane in which any do: in all those of tenants, and in those without."""
        self._left = dict(lanes)
        if not self._waiting and not any(map(tenant_of, lanes)):
            return
        now: dict[str, set[str]] = defaultdict(set)
        shared = {class_of(lane) for lane in lanes if tenant_of(lane)}
        for lane in lanes:
            if class_of(lane) in shared:
                now[class_of(lane)].add(lane)
        for name in sorted(now.keys() | self._waiting.keys()):
            self._move(name, self._waiting[name], now[name])
        self._waiting = defaultdict(set, {name: found for name, found in now.items() if found})
        self._forget()

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Take in the weights by tenant; 1 for whoever is not named. They count for what is handed out from now on."""
        self._weights = weights

    def first(self, lanes: Iterable[str], most: int = MOST_LANES) -> list[str]:
        """Return those of `lanes`, all of them tenants', that are worth reading: in each class the least served."""
        by_class: dict[str, list[str]] = defaultdict(list)
        for lane in lanes:
            by_class[class_of(lane)].append(lane)
        chosen = (heapq.nsmallest(most, found, key=self._place) for found in by_class.values())
        return sorted(lane for found in chosen for lane in found)

    def fair(self, ordered: list[Waiting]) -> list[Waiting]:
        """Return the requests, given by score, with the turns of each class shared among its tenants.

        A turn stays the class's: what other classes get, and when, does not change.
        """
        if not self._waiting or all(len(lanes) < 2 for lanes in self._waiting.values()):
            return ordered
        lines: dict[str, list[Waiting]] = defaultdict(list)
        for request in ordered:
            lines[request.lane].append(request)
        by_class: dict[str, dict[str, list[Waiting]]] = defaultdict(dict)
        for lane, line in lines.items():
            by_class[class_of(lane)][lane] = line
        # By lane, for names are taken apart once a lane and not once a request.
        turns: dict[str, Iterator[Waiting]] = {}
        for of in by_class.values():
            if len(of) > 1:
                turns |= dict.fromkeys(of, self._turns(of))
        return [next(turns[one.lane]) if one.lane in turns else one for one in ordered] if turns else ordered

    def hand_out(self, requests: Iterable[Waiting]) -> None:
        """Note what was handed out."""
        if not self._served:
            return
        for request in requests:
            if request.lane in self._served:
                self._served[request.lane] += request.reserve / self.weight(request.lane)
                self._left[request.lane] = self._left.get(request.lane, 0) - 1
                if not self._left[request.lane]:
                    # It leaves with its last request, also where another one comes before the next look.
                    self._waiting[class_of(request.lane)].discard(request.lane)

    def weight(self, lane: str) -> float:
        """Return the weight of the lane's tenant."""
        return self._weights.get(tenant_of(lane), 1.0)

    def _turns(self, lines: Mapping[str, Sequence[Waiting]]) -> Iterator[Waiting]:
        """Give the requests of one class in their turns."""
        weights = {lane: self.weight(lane) for lane in lines}
        heap = [(self._served.get(lane, 0.0), line[0].score, lane, 0) for lane, line in lines.items()]
        heapq.heapify(heap)
        while heap:
            served, _, lane, place = heap[0]
            line = lines[lane]
            request = line[place]
            yield request
            served += request.reserve / weights[lane]
            if place + 1 < len(line):
                heapq.heapreplace(heap, (served, line[place + 1].score, lane, place + 1))
            else:
                heapq.heappop(heap)

    def _move(self, name: str, before: set[str], now: set[str]) -> None:
        """Let the lanes of one class come and go."""
        stay = before & now
        # Where nobody stays, nobody waited: the class begins anew, with all of them equal.
        known = [self._served[lane] for lane in stay] or [max(self._of(name), default=0.0)]
        floor = max(self._floor.get(name, 0.0), min(known))
        for lane in now - before:
            self._served[lane] = max(self._served.get(lane, 0.0), floor)
        for lane in before - now:
            if self._served[lane] <= floor:
                del self._served[lane]
        self._floor[name] = floor

    def _of(self, name: str) -> Iterator[float]:
        return (served for lane, served in self._served.items() if class_of(lane) == name)

    def _forget(self) -> None:
        """Drop who is away and would begin at the lowest number in any case, and who is too many."""
        waiting = {lane for lanes in self._waiting.values() for lane in lanes}
        if len(self._served) == len(waiting):
            return
        away = [lane for lane in self._served if lane not in waiting]
        behind = [lane for lane in away if self._served[lane] <= self._floor.get(class_of(lane), 0.0)]
        for lane in behind:
            del self._served[lane]
        ahead = sorted(set(away) - set(behind), key=lambda lane: (self._served[lane], lane))
        for lane in islice(ahead, max(0, len(ahead) - MOST_KEPT)):
            del self._served[lane]

    def _place(self, lane: str) -> tuple[float, str]:
        return self._served.get(lane, 0.0), lane


def page_of(depth: int, lanes: int) -> int:
    """Return how many entries of a tenant's lane to read where `lanes` of them share `depth` entries."""
    return max(LEAST_PAGE, depth // max(1, lanes))
