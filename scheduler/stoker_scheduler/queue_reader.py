"""A queue's figures for those who ask over HTTP: out of Redis, at most once a second however many ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from stoker.config import Config
from stoker.errors import RedisUnavailable
from stoker.store import backlog, lookups
from stoker.store.backlog import Backlog
from stoker.store.connection import Store
from stoker.store.lookups import Overview
from stoker.store.records import WorkerRecord

FRESH_S = 1.0
"""How long one reading serves all who ask."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A queue at one moment. `oldest_us`: when the oldest waiting request of a class was accepted."""

    overview: Overview
    workers: list[WorkerRecord]
    backlog: Backlog
    oldest_us: Mapping[str, int]


class QueueReader:
    """Reads a queue, for any thread."""

    def __init__(self, config: Config) -> None:
        """Read the queue of `config`, on connections of its own."""
        self._store = Store(config)
        self._lock = threading.Lock()
        self._at_s = float("-inf")
        self._reading: Reading | None = None

    def read(self) -> Reading | None:
        """Return the figures of now, or of less than a second ago; None while Redis cannot be read."""
        with self._lock:
            if time.monotonic() - self._at_s >= FRESH_S:
                self._reading = self._read()
                self._at_s = time.monotonic()
            return self._reading

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def _read(self) -> Reading | None:
        keys = self._store.keys
        try:
            overview = self._store.read(lookups.overview(keys))
            workers, waits = self._store.read(backlog.figures(keys, overview.tenant_lanes))
            oldest = self._store.read(backlog.oldest(keys, waits)) if any(waits.heads.values()) else {}
        except RedisUnavailable:
            # The scheduler's own loops say so in the log; here it is a figure.
            return None
        return Reading(overview, workers, waits, oldest)
