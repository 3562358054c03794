"""What waits, on a virtual clock: lanes that give their heads, as the sorted sets in Redis do."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from stoker.store.records import Waiting, class_of

COMPACT = 4096
"""Entries before a lane's first one that are kept until it is compacted."""


class Lane:
    """The waiting requests of one class, ascending by score, with its head at `_start`."""

    def __init__(self) -> None:
        self._requests: list[Waiting] = []
        self._start = 0

    def add(self, request: Waiting) -> None:
        """Put a request into its place, behind those of the same score."""
        if not self._requests or self._requests[-1].score <= request.score:
            self._requests.append(request)
        else:
            insort(self._requests, request, lo=self._start, key=_score)

    def head(self, depth: int) -> list[Waiting]:
        """Return the first entries."""
        return self._requests[self._start : self._start + depth]

    def last(self) -> Waiting:
        """Return the last entry."""
        return self._requests[-1]

    def take(self, requests: Sequence[Waiting], depth: int) -> None:
        """Remove entries that are among the first `depth`, given in their order."""
        size = len(requests)
        if self._requests[self._start + size - 1] is not requests[-1]:  # not the front, as nearly always
            ids = {request.id for request in requests}
            head = self.head(depth)
            kept = [request for request in head if request.id not in ids]
            self._requests[self._start + size : self._start + len(head)] = kept
        self._start += size
        if self._start > COMPACT and 2 * self._start > len(self._requests):
            del self._requests[: self._start]
            self._start = 0

    def remove(self, request: Waiting) -> None:
        """Remove an entry from wherever it is."""
        place = bisect_left(self._requests, request.score, lo=self._start, key=_score)
        while self._requests[place].id != request.id:
            place += 1
        del self._requests[place]

    def before(self, score: float) -> int:
        """Return how many have a lower score."""
        return bisect_left(self._requests, score, lo=self._start, key=_score) - self._start

    def __len__(self) -> int:
        return len(self._requests) - self._start


class Backlog:
    """All lanes, and the deadlines of what waits in them."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._of_class: dict[str, list[Lane]] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._waiting: dict[str, Waiting] = {}
        self._tokens = 0
        self._size = 0

    def add(self, request: Waiting, deadline_us: float | None) -> None:
        """Let a request wait."""
        self._tokens += request.cost
        self._size += 1
        lane = self._lanes.get(request.lane)
        if lane is None:
            lane = self._lanes[request.lane] = Lane()
            self._of_class.setdefault(class_of(request.lane), []).append(lane)
        lane.add(request)
        if deadline_us is not None:
            self._waiting[request.id] = request
            heapq.heappush(self._deadlines, (deadline_us, request.id))

    def sizes(self) -> dict[str, int]:
        """Return how many wait in each lane that has any."""
        return {name: size for name, lane in self._lanes.items() if (size := len(lane))}

    def waits(self, name: str) -> bool:
        """Return whether any request of a class waits."""
        return any(map(len, self._of_class.get(name, ())))

    def heads(self, pages: Mapping[str, int]) -> dict[str, list[Waiting]]:
        """Return the first entries of lanes, of each as many as `pages` says."""
        return {name: self._lanes[name].head(page) for name, page in pages.items()}

    def take(self, requests: Sequence[Waiting], depth: int) -> None:
        """Remove what was dispatched, all of it out of the first `depth` of its lane."""
        by_lane: dict[str, list[Waiting]] = {}
        self._size -= len(requests)
        for request in requests:
            self._tokens -= request.cost
            by_lane.setdefault(request.lane, []).append(request)
            if self._waiting:
                self._waiting.pop(request.id, None)
        for name, taken in by_lane.items():
            self._lanes[name].take(taken, depth)

    def expire(self, now_us: float) -> list[str]:
        """Remove what is past its deadline; returns the ids."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now_us:
            _, name = heapq.heappop(self._deadlines)
            if request := self._waiting.pop(name, None):
                self._lanes[request.lane].remove(request)
                self._tokens -= request.cost
                self._size -= 1
                expired.append(name)
        return expired

    def displace(self, score: float) -> str | None:
        """Remove the request with the worst score, if that is worse than this one; returns its id."""
        lanes = [entries for entries in self._lanes.values() if len(entries)]
        worst = max((entries.last() for entries in lanes), key=_score, default=None)
        if worst is None or worst.score <= score:
            return None
        self._lanes[worst.lane].remove(worst)
        self._waiting.pop(worst.id, None)
        self._tokens -= worst.cost
        self._size -= 1
        return worst.id

    def next_deadline_us(self) -> float | None:
        """Return when the next one that waits is due."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def before(self, score: float) -> int:
        """Return how many of all that wait have a lower score."""
        return sum(lane.before(score) for lane in self._lanes.values())

    @property
    def mean_cost(self) -> float:
        """The tokens of a request that waits, on average."""
        return self._tokens / self._size if self._size else 0.0

    def __len__(self) -> int:
        return self._size


def _score(request: Waiting) -> float:
    return request.score
