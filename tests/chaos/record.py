"""Follows the history that the scripts write, while it is written: what happened, when, and whether it may."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis

from stoker import Config
from stoker.store.keys import Keys
from stoker_ops.history import HELD, Entry, HistoryChecker, Life

PAGE = 2000


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an entry: what happened to a request (`id`), or to the queue (`-`), by the clock of Redis."""

    time_us: int
    by: str
    id: str
    word: str
    rest: tuple[str, ...]


class Record:
    """All that happened so far. `read` takes in what is new; nothing is lost between two reads."""

    def __init__(self, client: redis.Redis, config: Config) -> None:
        self.checker = HistoryChecker(config.lease_us)
        self.lines: list[Line] = []
        self.live: dict[str, Life] = {}
        self.ended = 0
        self.registered: dict[str, str] = {}
        """The last incarnation of each worker."""
        self._client = client
        self._key = Keys(config.queue).events
        self._after = b"0-0"

    def read(self) -> None:
        """Take in what is new; nothing while Redis is away."""
        with contextlib.suppress(redis.RedisError, OSError):
            while page := self._client.xrange(self._key, b"(" + self._after, "+", count=PAGE):
                for place, fields in page:
                    self._after = place
                    self._take(Entry.of(fields))

    def _take(self, entry: Entry) -> None:
        self.checker.feed(entry)
        for text in entry.lines:
            request_id, word, *rest = text.split(" ")
            if word == "submit":
                self.live[request_id] = self.checker.latest[request_id]
            elif word == "end":
                self.live.pop(request_id, None)
                self.ended += 1
            elif word == "register":
                self.registered[rest[0].partition(":")[0]] = rest[0]
            self.lines.append(Line(entry.time_us, entry.by, request_id, word, tuple(rest)))

    def since(self, time_us: int) -> Iterator[Line]:
        """Give the lines from a time on, in order."""
        start = len(self.lines)
        while start and self.lines[start - 1].time_us >= time_us:
            start -= 1
        yield from self.lines[start:]

    def first(self, time_us: int, wanted: Callable[[Line], bool]) -> Line | None:
        """The first line from a time on that is wanted."""
        return next((line for line in self.since(time_us) if wanted(line)), None)

    def held(self, inc: str, state: str = "") -> list[str]:
        """The requests that an incarnation holds; only the dispatched or the running ones, if `state` says so."""
        states = (state,) if state else HELD
        return [life.id for life in self.live.values() if life.inc == inc and life.state in states]

    def incarnation(self, worker: str) -> str:
        """The registered incarnation of a worker, or nothing."""
        inc = self.registered.get(worker, "")
        return "" if inc in self.checker.closed else inc
