"""The one loop that all services are made of."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog

from stoker.errors import RedisUnavailable

log = structlog.get_logger()


async def every(interval_s: float, tick: Callable[[], Awaitable[object]], stop: asyncio.Event) -> None:
    """Await `tick()` each `interval_s` seconds until `stop` is set.

    While Redis is away it goes on trying: one line when it is lost, one when it is back, with the time it took.
    """
    lost_at: float | None = None
    name = getattr(tick, "__name__", "tick").strip("_")
    while not stop.is_set():
        started = time.monotonic()
        try:
            await tick()
        except RedisUnavailable as error:
            if lost_at is None:
                log.warning("redis unavailable", loop=name, error=str(error))
                lost_at = started
        else:
            if lost_at is not None:
                log.info("redis is back", loop=name, after_s=round(time.monotonic() - lost_at, 1))
                lost_at = None
        await pause(max(0.0, started + interval_s - time.monotonic()), stop)


async def pause(seconds: float, stop: asyncio.Event) -> None:
    """Sleep for `seconds`, or until `stop` is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
