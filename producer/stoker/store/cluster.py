"""Connections to the node of a Redis Cluster that has a queue's keys: it is looked for whenever one is made.

All keys of a queue, or of a shard, lie in one slot, so that one node at a time has them all. When the slot moves, or a
replica takes over, commands are refused, and the next connection finds the new node.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import redis
import redis.asyncio.connection
from redis import exceptions

Address = tuple[str, int]

MOST_HOPS = 5
"""How often nodes that do not agree may send on to another one."""

ELSEWHERE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.MovedError,
)
"""What means that another node must be tried."""


class Nodes:
    """What is known of the nodes: those that the URL names, which know the others, and where the key was last."""

    def __init__(self, seeds: Sequence[Address], key: str) -> None:
        """Look for the node that has `key`."""
        self.key = key
        self._seeds = seeds
        self._last: Address | None = None

    def search(self) -> Generator[Address, Exception | None, None]:
        """Give addresses to try; is sent the error of each, None from the node that has the key.

        Raises the last error when no node is left to ask.
        """
        last: Exception = exceptions.ConnectionError("no node of the cluster is known")
        for address in (*([self._last] if self._last else []), *self._seeds):
            for _ in range(MOST_HOPS):
                error = yield address
                if error is None:
                    self._last = address
                    return
                last = error
                if not isinstance(error, exceptions.MovedError):
                    break
                host, port = error.node_addr
                # A node that knows no name of the other means the host that it was asked on itself.
                address = (host.strip("[]") or address[0], port)
        raise last


class _Blocking:
    """A connection that takes `nodes` instead of a host and a port."""

    def __init__(self, *, nodes: Nodes, **options: Any) -> None:
        super().__init__(**options)
        self._nodes = nodes

    def connect(self: Any) -> None:
        if self._sock:
            return
        search = self._nodes.search()
        address = next(search, None)
        while address is not None:
            self.host, self.port = address
            try:
                address = search.send(self._refusal())
            except StopIteration:
                return

    def _refusal(self: Any) -> Exception | None:
        """Connect to the host; gives why it is not the one."""
        try:
            super().connect()  # type: ignore[misc]  # of redis-py's class behind this one
            self.send_command("GET", self._nodes.key, check_health=False)
            self.read_response()
        except ELSEWHERE as error:
            self.disconnect()
            return error
        except BaseException:
            self.disconnect()
            raise
        return None


class _Awaited:
    """The same, awaited."""

    def __init__(self, *, nodes: Nodes, **options: Any) -> None:
        super().__init__(**options)
        self._nodes = nodes

    async def connect(self: Any) -> None:
        if self.is_connected:
            return
        search = self._nodes.search()
        address = next(search, None)
        while address is not None:
            self.host, self.port = address
            try:
                address = search.send(await self._refusal())
            except StopIteration:
                return

    async def _refusal(self: Any) -> Exception | None:
        try:
            await super().connect()  # type: ignore[misc]  # of redis-py's class behind this one
            await self.send_command("GET", self._nodes.key, check_health=False)
            await self.read_response()
        except ELSEWHERE as error:
            await self.disconnect()
            return error
        except BaseException:
            await self.disconnect()
            raise
        return None


class PlainConnection(_Blocking, redis.Connection):
    """Blocks."""


class TlsConnection(_Blocking, redis.SSLConnection):
    """Blocks, by TLS."""


class AsyncPlainConnection(_Awaited, redis.asyncio.connection.Connection):
    """Is awaited."""


class AsyncTlsConnection(_Awaited, redis.asyncio.connection.SSLConnection):
    """Is awaited, by TLS."""
