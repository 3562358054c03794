"""The requests of a batch on their way: sent in groups, so many at a time, taken back as they end, in any order."""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from stoker import _flows
from stoker._link import Link
from stoker._outstanding import Pending
from stoker.batch.format import Entry
from stoker.errors import QueueFull, RedisUnavailable, StokerError
from stoker.request import InferenceResponse
from stoker.shards import shard_of

T = TypeVar("T")

AHEAD_S = 2.0
"""How many seconds of work are kept in flight: idle GPUs find some, and the queue is not buried."""

ROWS = 2
"""Requests in flight for each row that the workers have, at least."""

LEAST = 64
MOST_BYTES = 64 << 20
"""About the most bytes of lines in flight: requests may be long, and a run's memory is bounded."""

AWAY_S = 0.5
MOST_LOSSES = 5


def target(most: int, rows: int, per_s: float) -> int:
    """Return how many requests to keep in flight: two seconds of them, or twice the workers' rows."""
    return min(most, max(LEAST, ROWS * rows, math.ceil(AHEAD_S * per_s)))


class Way:
    """The way to one shard: what waits to be sent there, and until when it is not tried (monotonic seconds)."""

    def __init__(self, link: Link) -> None:
        """Send by `link`."""
        self.link = link
        self.unsent: deque[Entry] = deque()
        self._paused_until = 0.0

    @property
    def opens(self) -> bool:
        """Whether there is something to send, and it is to be tried now."""
        return bool(self.unsent) and time.monotonic() >= self._paused_until

    def drive(self, flow: _flows.Flow[T]) -> T:
        """Carry out a flow. Not patiently: while Redis is away the run must still hear that it is to stop."""
        return self.link.drive(flow, patiently=False)

    def send(self) -> list[tuple[Entry, Pending | StokerError]]:
        """Send a group; gives what came of each, and keeps those for which there was no room, or no Redis."""
        group, began = self.link.state.config.group, time.monotonic()
        entries = [self.unsent.popleft() for _ in range(min(len(self.unsent), group))]
        outcomes: list[Pending | StokerError]
        try:
            # A file has its window: a line is tried as long as that lasts.
            requests = [entry.request for entry in entries]
            outcomes = self.drive(_flows.submit(self.link.state, requests, check_deadline=False))
        except RedisUnavailable as error:
            outcomes = [error] * len(entries)
        sent, again = [], []
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, QueueFull | RedisUnavailable):
                now = time.monotonic()
                # A shard that takes long to fail costs the others half of the time at most.
                pause = outcome.retry_after if isinstance(outcome, QueueFull) else max(AWAY_S, now - began)
                self._paused_until = now + pause
                again.append(entry)
            else:
                sent.append((entry, outcome))
        self.unsent.extendleft(reversed(again))
        return sent


class Flight:
    """What was taken and has not ended. Belongs to one thread; wake-ups come in on the links' own."""

    def __init__(self, links: Sequence[Link], most: int) -> None:
        """Send by `links`, those of the queue's shards, at most `most` at a time."""
        self._ways = [Way(link) for link in links]
        self._most = most
        self._limit = min(most, LEAST)
        self._flying: dict[int, tuple[Entry, Pending]] = {}
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._losses: dict[int, int] = {}
        self._cancelled = False
        self._bytes = 0

    def __len__(self) -> int:
        """How many were taken and have not ended."""
        return sum(len(way.unsent) for way in self._ways) + len(self._flying)

    @property
    def room_bytes(self) -> int:
        """How many bytes of lines to take now."""
        return max(0, MOST_BYTES - self._bytes)

    @property
    def room(self) -> int:
        """How many to take now: a group when there is room for one."""
        if not self.room_bytes:
            return 0
        room = self._limit - len(self)
        group = min(self._ways[0].link.state.config.group, max(1, self._limit // 4))
        return group if room >= group else 0

    def resize(self, rows: int, per_s: float) -> None:
        """Fit the window to the workers' rows and to how many end a second."""
        self._limit = target(self._most, rows, per_s)

    def take(self, entries: Iterable[Entry]) -> None:
        """Take lines, to be sent."""
        for entry in entries:
            self._way(entry).unsent.append(entry)
            self._bytes += entry.size

    def _way(self, entry: Entry) -> Way:
        return self._ways[shard_of(entry.request.request_id or "", len(self._ways))]

    def _left(self, entry: Entry) -> Entry:
        self._bytes -= entry.size
        return entry

    def send(self) -> Iterator[tuple[Entry, StokerError]]:
        """Send what waits, while there is room in the queue; gives what can never be sent."""
        for way in self._ways:
            way.link.read_wakeups()
            while way.opens:
                for entry, outcome in way.send():
                    if isinstance(outcome, Pending):
                        self._flying[entry.number] = entry, outcome
                        way.link.state.book.on_done(outcome, functools.partial(self._ended.put, entry.number))
                    else:
                        yield self._left(entry), outcome

    def ended(self, timeout_s: float) -> Iterator[tuple[Entry, InferenceResponse]]:
        """Give what ended; waits for the first at most `timeout_s` seconds."""
        numbers: list[int] = []
        with contextlib.suppress(queue.Empty):
            numbers.append(self._ended.get(timeout=timeout_s) if timeout_s > 0 else self._ended.get_nowait())
            while True:
                numbers.append(self._ended.get_nowait())
        for number in numbers:
            entry, pending = self._flying.get(number, (None, None))
            # Also called when Redis has been away for too long: nothing ended then.
            if entry is None or pending is None or pending.response is None:
                continue
            del self._flying[number]
            if not self._lost(entry, pending.response):
                yield self._left(entry), pending.response

    def _lost(self, entry: Entry, response: InferenceResponse) -> bool:
        """Whether Redis forgot the request, so that it is sent again; a few times, for it may be too much for it."""
        if response.status != "lost" or self._cancelled or self._losses.get(entry.number, 0) >= MOST_LOSSES:
            self._losses.pop(entry.number, None)
            return False
        self._losses[entry.number] = self._losses.get(entry.number, 0) + 1
        self._way(entry).unsent.append(entry)
        return True

    def cancel(self) -> Iterator[Entry]:
        """Cancel what has not ended; gives each that will not be answered. The rest has ended, and is given by `ended`.

        What could not be asked about, because Redis is away, counts as cancelled.
        """
        self._cancelled = True
        for way in self._ways:
            while way.unsent:
                yield self._left(way.unsent.popleft())
        away: set[Way] = set()
        for number, (entry, pending) in list(self._flying.items()):
            if pending.response is not None:
                continue
            way = self._way(entry)
            try:
                gone = way in away or way.drive(_flows.cancel(way.link.state, pending))
            except RedisUnavailable:
                gone = True
                away.add(way)
            if gone:
                del self._flying[number]
                yield self._left(entry)

    def abandon(self) -> Iterator[Entry]:
        """Give what has not ended, and wait for it no longer."""
        while self._flying:
            yield self._left(self._flying.popitem()[1][0])
