"""The one loop that all services are made of."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable

import structlog

from stoker.errors import RedisUnavailable

log = structlog.get_logger()


class Outage:
    """Says once that Redis is lost, and once that it is back, for all parts of a process that share it. Thread-safe.

    It is lost when the first part cannot reach it, and back when none is left that could not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._without: set[str] = set()
        self._since = 0.0

    def lost(self, part: str, error: RedisUnavailable) -> None:
        """`part` got this error."""
        with self._lock:
            first = not self._without
            self._without.add(part)
            if first:
                self._since = time.monotonic()
                log.warning("redis unavailable", part=part, error=str(error))

    def back(self, part: str) -> None:
        """`part` got an answer."""
        with self._lock:
            if part not in self._without:
                return
            self._without.remove(part)
            if not self._without:
                log.info("redis is back", part=part, after_s=round(time.monotonic() - self._since, 1))


async def every(
    interval_s: float, tick: Callable[[], Awaitable[object]], stop: asyncio.Event, outage: Outage | None = None
) -> None:
    """Await `tick()` each `interval_s` seconds until `stop` is set.

    While Redis is away it goes on trying; `outage` says so for several loops of a process together.
    """
    outage = outage or Outage()
    name = getattr(tick, "__name__", "tick").strip("_")
    loop = asyncio.get_running_loop()
    rest = loop.create_future()

    def wake(*_: object) -> None:
        if not rest.done():
            rest.set_result(None)

    # One for all turns, beside a bare timer for each: a `pause` costs a process that idles more than twice as much.
    stopped = asyncio.create_task(stop.wait())
    stopped.add_done_callback(wake)
    try:
        while not stop.is_set():
            started = time.monotonic()
            try:
                await tick()
            except RedisUnavailable as error:
                outage.lost(name, error)
            else:
                outage.back(name)
            if stop.is_set():
                return
            rest = loop.create_future()
            timer = loop.call_later(max(0.0, started + interval_s - time.monotonic()), wake)
            try:
                await rest
            finally:
                timer.cancel()
    finally:
        stopped.cancel()


async def pause(seconds: float, stop: asyncio.Event) -> None:
    """Sleep for `seconds`, or until `stop` is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # without a task, which `wait_for` makes
            await stop.wait()
