"""Pools of connections to await that hand out one at rest at once.

What redis-py does around that (a condition and a deadline to wait for room, an event for credentials that change, which
no URL can give, figures that nobody reads) takes as long as the rest of a call.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio
import redis.asyncio.sentinel


class _AtOnce:
    """Goes redis-py's way only to connect, or while others wait for room, or connections are being moved."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting = 0

    async def get_connection(self: Any, command_name: str | None = None, *keys: Any, **options: Any) -> Any:
        if self._in_turn() or not self._available_connections:
            self._waiting += 1
            try:
                return await super().get_connection()  # type: ignore[misc]  # of redis-py's class behind this one
            finally:
                self._waiting -= 1
        connection = self.get_available_connection()
        try:
            # One that was closed, or has something to read that nobody asked for, is made anew.
            if not connection.is_connected or await connection.can_read():
                await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self: Any, connection: Any) -> None:
        if self._in_turn() or connection.should_reconnect():
            await super().release(connection)  # type: ignore[misc]  # of redis-py's class behind this one
        else:
            self._in_use_connections.remove(connection)
            self._available_connections.append(connection)

    def _in_turn(self: Any) -> bool:
        return bool(self._waiting or getattr(self, "_in_maintenance", False))


class Pool(_AtOnce, redis.asyncio.BlockingConnectionPool):
    """Of one server; at its limit it waits."""


class SentinelPool(_AtOnce, redis.asyncio.sentinel.SentinelConnectionPool):
    """Of the master that Sentinels name."""
