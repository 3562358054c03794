"""Where a request is done first: drain times, two choices in a large fleet, the homes of affinity keys. Pure."""

from __future__ import annotations

import struct
from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from heapq import nlargest
from itertools import accumulate
from operator import attrgetter
from statistics import median

from stoker.store.records import WorkerRecord
from stoker_scheduler.batcher import Room

DRAWS = 8
"""Workers that are drawn by chance until two of them have room; where fewer do, all are looked at."""

HOMES = 3
"""Workers that an affinity key prefers, one after the other."""

MOST_KEYS = 65_536
"""Affinity keys whose homes are remembered; more are worked out again."""

_PRIME = (1 << 61) - 1
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Speed:
    """How quick a worker is: `tokens_per_s`, as credit counts tokens, when it is full.

    `answer_s`: the seconds of a token of max_tokens when it is empty; of a whole batch where nothing is generated.
    """

    tokens_per_s: float
    answer_s: float = 0.0


UNKNOWN = Speed(1.0)
"""What all are taken for where nothing is known of any: who holds less is done first."""


def usual(speeds: Collection[Speed]) -> Speed:
    """Return the median of what is known of other workers."""
    if not speeds:
        return UNKNOWN
    return Speed(median(one.tokens_per_s for one in speeds), median(one.answer_s for one in speeds))


class Place:
    """A worker that may get requests: what it holds, with what it is to get.

    `free_rows` are the rows that it may still get now.
    """

    __slots__ = (
        "_padded",
        "_rect",
        "answer_s",
        "capacity",
        "free_rows",
        "held_rows",
        "held_tokens",
        "longest",
        "rate",
        "record",
    )

    def __init__(self, record: WorkerRecord, speed: Speed, *, most: int | None = None) -> None:
        """Begin with what the worker holds now; it may get `most` requests, None: as many as it has rows for."""
        self.record = record
        self.rate = speed.tokens_per_s
        self.answer_s = speed.answer_s
        self.held_rows = record.held_rows
        self.held_tokens = record.held_tokens
        self.longest = record.longest
        self.capacity = record.capacity
        self.free_rows = record.free_rows if most is None else min(most, record.free_rows)
        self._padded = record.mode == "padded"
        self._rect = record.cache == "rect"

    def takes(self, cost: int) -> bool:
        """Return whether there is room for one more request: the arithmetic of dispatch, and of padded batches."""
        if self.free_rows <= 0:
            return False
        if self._padded:
            return Room.of(self.loaded(), share=self.record.rows).opens_to(cost)
        if self._rect:
            return (self.held_rows + 1) * max(self.longest, cost) <= self.capacity
        return self.held_tokens + cost <= self.capacity

    def drain_s(self) -> float:
        """Return after how many seconds the worker would be done with what it holds."""
        return self.held_tokens / self.rate

    def done_s(self, cost: int, answer: int) -> float:
        """Return after how many seconds one more request would be done, of `cost` tokens with `answer` max_tokens.

        Its own steps, as if it were alone, and what all that is then held takes at the rate of a full worker.
        """
        return (answer or 1) * self.answer_s + (self.held_tokens + cost) / self.rate

    def give(self, cost: int) -> None:
        """Count one more request."""
        self.held_rows += 1
        self.free_rows -= 1
        self.held_tokens += cost
        if self._rect and cost > self.longest:
            self.longest = cost

    def vacated(self, costs: Sequence[int]) -> WorkerRecord:
        """Return the worker as it will be read after it was asked for rows of these costs."""
        record = self.loaded().copy()
        record.held_rows -= len(costs)
        record.held_tokens -= sum(costs)
        return record

    def loaded(self) -> WorkerRecord:
        """Return the worker as it will be read when it has got all that was given to it."""
        if self.held_rows == self.record.held_rows:
            return self.record
        record = self.record.copy()
        record.held_rows, record.held_tokens, record.longest = self.held_rows, self.held_tokens, self.longest
        return record


Allowed = Callable[[Place], bool]

_name: Callable[[WorkerRecord], tuple[str, str]] = attrgetter("worker", "inc")


class Places:
    """The workers of a round that may get requests. Those with a free row come in the order of their names."""

    def __init__(
        self,
        usable: Sequence[WorkerRecord],
        *,
        speed: Callable[[WorkerRecord], Speed],
        homes: Callable[[int], Sequence[str]],
        probing: Set[str] = frozenset(),
        scanned: int = 64,
    ) -> None:
        """Look at all of at most `scanned` workers with a free row, and at two of more.

        `homes` gives the names of the workers that an affinity key prefers; who is in `probing` gets one request.
        """
        self._usable = usable
        self._speed = speed
        self._probing = probing
        self._homes = homes
        self._scanned = scanned
        self._closed: set[str] = set()
        # Of a large fleet that is busy few have a row: the others are no places until somebody asks for them.
        free = [worker for worker in usable if worker.held_rows < worker.rows + worker.ahead]
        if len(free) > 1:
            free.sort(key=_name)
        self._places = {worker.inc: self._place(worker) for worker in free}
        self._named: dict[str, Place] | None = None
        self._open: list[Place] = []
        self._sums: list[float] = []
        self._tidy()

    def __iter__(self) -> Iterator[Place]:
        """Give the workers that have a free row."""
        return (place for place in self._places.values() if place.free_rows > 0)

    def __getitem__(self, inc: str) -> Place:
        """Return the place of an incarnation that has, or had, a free row."""
        return self._places[inc]

    def usable(self) -> list[Place]:
        """Return all that may get requests, those too that have no free row now."""
        open_ = [worker for worker in self._usable if worker.inc not in self._closed]
        return [self._places.get(worker.inc) or self._place(worker) for worker in open_]

    def close(self, inc: str) -> None:
        """Give a worker nothing more."""
        self._closed.add(inc)
        if inc in self._places:
            self._places[inc].free_rows = 0

    def vacate(self, inc: str, costs: Sequence[int]) -> Place:
        """Count that a worker gives back rows of these costs; returns its place."""
        place = self._places.get(inc) or next(self._place(worker) for worker in self._usable if worker.inc == inc)
        place = self._places[inc] = self._place(place.vacated(costs))
        if inc in self._closed:
            place.free_rows = 0
        self._places = dict(sorted(self._places.items(), key=lambda one: _name(one[1].record)))
        self._named = None
        self._tidy()
        return place

    def homes(self, key: int) -> Iterator[Place]:
        """Give the places that an affinity key prefers, the best first."""
        if self._named is None:
            self._named = {place.record.worker: place for place in self._places.values()}
        return (place for name in self._homes(key) if (place := self._named.get(name)))

    def least(self, name: str, cost: int, answer: int, allowed: Allowed | None = None) -> Place | None:
        """Return where a request of `cost` tokens, with `answer` max_tokens, is done first; None where none has room.

        Of more than `scanned` workers the better one of two. They are drawn by the request's `name`, so that the same
        state always gives the same answer, and by their rates: of uniform draws a slow worker would get as many as a
        fast one.
        """
        if len(self._open) > self._scanned:
            drawn = self._drawn(name, cost, allowed)
            if drawn:
                return min(drawn, key=lambda place: place.done_s(cost, answer))
        best, best_s = None, _NEVER
        for place in self._open:
            done_s = place.done_s(cost, answer)
            if done_s < best_s and place.takes(cost) and (allowed is None or allowed(place)):
                best, best_s = place, done_s
        return best

    def any_free(self) -> bool:
        """Return whether any worker has a free row."""
        if self._open and self._open[-1].free_rows > 0:
            return True
        self._tidy()
        return bool(self._open)

    def share(self, place: Place, tokens: int) -> float:
        """Return the part of `tokens` that leaves `place` to drain with all others that have a free row."""
        rate, held, level_s = 0.0, 0, float("inf")
        for other in sorted(self, key=Place.drain_s):
            if other.drain_s() >= level_s:
                break
            rate, held = rate + other.rate, held + other.held_tokens
            level_s = (tokens + held) / rate
        return max(0.0, level_s * place.rate - place.held_tokens) / tokens if tokens else 1.0

    def _drawn(self, name: str, cost: int, allowed: Allowed | None) -> list[Place]:
        numbers = struct.unpack(f"<{DRAWS}I", blake2b(name.encode(), digest_size=4 * DRAWS).digest())
        found: list[Place] = []
        for number in numbers:
            place = self._open[min(bisect(self._sums, number / 2**32 * self._sums[-1]), len(self._open) - 1)]
            if place.takes(cost) and place not in found and (allowed is None or allowed(place)):
                found.append(place)
                if len(found) == 2:
                    return found
        # Few of them have room: draw the next ones of those that have a row.
        self._tidy()
        return found

    def _place(self, worker: WorkerRecord) -> Place:
        return Place(worker, self._speed(worker), most=1 if worker.inc in self._probing else None)

    def _tidy(self) -> None:
        self._open = [place for place in self._places.values() if place.free_rows > 0]
        self._sums = list(accumulate(place.rate for place in self._open)) if len(self._open) > self._scanned else []


class Homes:
    """Which workers an affinity key prefers: rendezvous hashing, so that a worker that leaves moves only its own keys.

    It remembers what it found while the fleet has the same names.
    """

    def __init__(self) -> None:
        """Know no worker yet."""
        self._names: list[str] = []
        self._hashes: list[tuple[int, int, str]] = []
        self._found: dict[int, tuple[str, ...]] = {}
        self._fleet: Sequence[WorkerRecord] = ()

    def of(self, key: int, fleet: Sequence[WorkerRecord]) -> Sequence[str]:
        """Return the names that a key prefers of all live workers, also of those that may get nothing now."""
        if fleet is not self._fleet:
            self._fleet = fleet
            self._observe(sorted({worker.worker for worker in fleet if worker.state == "live"}))
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= MOST_KEYS:
                self._found.clear()
            best = nlargest(HOMES, self._hashes, key=lambda one: (one[0] * key + one[1]) % _PRIME)
            found = self._found[key] = tuple(name for *_, name in best)
        return found

    def _observe(self, names: list[str]) -> None:
        if names != self._names:
            self._names, self._found = names, {}
            self._hashes = [(*_hash_of(name), name) for name in names]


def _hash_of(name: str) -> tuple[int, int]:
    """Return the two factors of a worker's own hash function, which is `(a * key + b) mod p`."""
    a, b = struct.unpack("<QQ", blake2b(name.encode(), digest_size=16).digest())
    return 1 + a % (_PRIME - 1), b % _PRIME
