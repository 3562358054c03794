"""Reports of a worker's child to Redis, on a thread of their own, so that no step waits for a round trip."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

from stoker.config import Config
from stoker.errors import RedisUnavailable
from stoker.every import Outage
from stoker.store import scripts
from stoker.store.connection import Store
from stoker.store.scripts import Call, Published, Settlement

log = structlog.get_logger()

T = TypeVar("T")
Key = tuple[str, str]
RETRY_S = 0.1


class Reporter:
    """Settles, publishes and hands back for one incarnation, in the order given, in groups.

    Every report is repeated with the same arguments until Redis answers, or until the incarnation is closed: the
    scripts do the same once or twice.
    """

    def __init__(
        self, store: Store, inc: str, config: Config, moved_on: Callable[[list[Key]], None], outage: Outage
    ) -> None:
        """Report as `inc`; `moved_on` hears of the streaming attempts that Redis says to stop."""
        self._store = store
        self._inc = inc
        self._group = config.group
        self._moved_on = moved_on
        self._outage = outage
        self._queue: queue.SimpleQueue[list[Settlement] | list[Published] | list[Key] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def settle(self, items: list[Settlement]) -> None:
        """Report how attempts ended."""
        self._queue.put(items)

    def publish(self, items: list[Published]) -> None:
        """Publish new tokens, before anything that is reported later."""
        self._queue.put(items)

    def hand_back(self, keys: list[Key]) -> None:
        """Give attempts back uncharged."""
        self._queue.put(keys)

    def close(self) -> None:
        """Drop what is not reported: the incarnation is void."""
        self._closed.set()
        self._queue.put(None)

    def finish(self, most_s: float | None = None) -> None:
        """Report all that is queued, then end; wait for it `most_s` at most."""
        self._queue.put(None)
        self._thread.join(most_s)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None and not self._closed.is_set():
            items, ended = self._gather(first)
            for run in _runs(items):
                for start in range(0, len(run), self._group):
                    self._report(run[start : start + self._group])
            if ended:
                break
        self._store.close()

    def _gather(
        self, first: list[Settlement] | list[Published] | list[Key]
    ) -> tuple[list[Settlement | Published | Key], bool]:
        """Take all that waits, so that one call reports many."""
        items: list[Settlement | Published | Key] = [*first]
        while True:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                return items, False
            if more is None:
                return items, True
            items += more

    def _report(self, items: list[Settlement | Published | Key]) -> None:
        if isinstance(items[0], Settlement):
            settlements = [item for item in items if isinstance(item, Settlement)]
            words = self._until_answered(scripts.settle(self._inc, random.random(), settlements))  # noqa: S311  # jitter
            for item, word in zip(settlements, words or (), strict=False):
                if word != "OK":
                    log.info("result fenced off", inc=self._inc, id=item.id, delivery=item.delivery, word=word)
        elif isinstance(items[0], Published):
            published = [item for item in items if isinstance(item, Published)]
            words = self._until_answered(scripts.flush(self._inc, published))
            stale = [
                (item.id, item.delivery) for item, word in zip(published, words or (), strict=False) if word == "STOP"
            ]
            if stale:
                self._moved_on(stale)
        else:
            self._until_answered(scripts.hand_back(self._inc, [item for item in items if isinstance(item, tuple)]))

    def _until_answered(self, call: Call[T]) -> T | None:
        while not self._closed.is_set():
            try:
                answer = self._store.run(call)
            except RedisUnavailable as error:
                self._outage.lost("reporter", error)
                self._closed.wait(RETRY_S)
            else:
                self._outage.back("reporter")
                return answer
        return None


def _runs(items: list[Settlement | Published | Key]) -> list[list[Settlement | Published | Key]]:
    """Cut the items where their kind changes; the order stays."""
    runs: list[list[Settlement | Published | Key]] = []
    for item in items:
        if runs and type(runs[-1][0]) is type(item):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs
