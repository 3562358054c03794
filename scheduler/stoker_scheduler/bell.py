"""What wakes a scheduler: the queue's bell, or the time."""

from __future__ import annotations

import asyncio
import contextlib

from stoker.config import Config
from stoker.errors import RedisUnavailable
from stoker.store import reads
from stoker.store.connection import AsyncStore

IDLE_BLOCKS = 2
"""For how many of the longest blocks the bell is waited for while nothing is asked of the queue: whatever there is to
do then rings, or is the end of a worker's lease."""


class Bell:
    """Listens to the bell of a queue.

    Redis looks for the ends of blocking reads ten times a second, so that one of 50 ms may take 150. Therefore short
    waits are timed here, while a longer read goes on: what it hears meanwhile ends the next wait.
    """

    def __init__(self, config: Config) -> None:
        self._least_s = config.block_ms / 1000
        self._store = AsyncStore(config, block_s=IDLE_BLOCKS * self._least_s)
        self._ring: asyncio.Task[bool] | None = None

    async def wait(self, seconds: float) -> None:
        """Wait until the bell rings, at most about `seconds`; raises `RedisUnavailable`."""
        if self._ring is None and seconds >= self._least_s:
            await self._listen(seconds)  # nobody need hear it later: no task
            return
        ring = self._ring = self._ring or asyncio.create_task(self._listen(self._least_s))
        await asyncio.wait({ring}, timeout=seconds)
        if ring.done():
            self._ring = None
            ring.result()

    async def _listen(self, seconds: float) -> bool:
        return await self._store.read(reads.bell(self._store.keys, seconds))

    async def leave(self) -> None:
        """Stop listening: the bell is for who leads."""
        ring, self._ring = self._ring, None
        if ring:
            ring.cancel()
            with contextlib.suppress(asyncio.CancelledError, RedisUnavailable):
                await ring

    async def close(self) -> None:
        """Stop listening, and close the connection."""
        await self.leave()
        await self._store.close()
