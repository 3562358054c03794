"""Ways to Redis that can be cut: one for each machine, all in one thread, over TCP on the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

LATENCY_S = 0.2
_CHUNK = 1 << 16


class Link:
    """One machine's way: passes on, until it is told to hold, to delay, to drop replies or to reset."""

    def __init__(self, loop: asyncio.AbstractEventLoop, redis_socket: Path, rng: random.Random) -> None:
        self.port = 0
        self.answered = 0
        """How many replies went through, about."""
        self._loop = loop
        self._redis_socket = redis_socket
        self._rng = rng
        self._open = asyncio.Event()
        self._open.set()
        self._delay_s = 0.0
        self._loss, self._word = 0.0, b""
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where the machine's processes find Redis."""
        return f"redis://127.0.0.1:{self.port}/0"

    def hold(self) -> None:
        """Let nothing through, and lose nothing: what TCP makes of a network that is away for a while."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def delay(self) -> None:
        """Let every reply come `LATENCY_S` later."""
        self._delay_s = LATENCY_S

    def lose_replies(self, share: float, word: bytes = b"") -> None:
        """Break connections instead of passing on this share of the replies, or of those with this word in them.

        What was asked is done all the same.
        """
        self._loss, self._word = share, word

    def heal(self) -> None:
        """Pass everything on again."""
        self._delay_s = self._loss = 0.0
        self._loop.call_soon_threadsafe(self._open.set)

    def reset(self) -> None:
        """Break all connections, with an RST."""
        self._loop.call_soon_threadsafe(self._reset)

    async def listen(self) -> asyncio.Server:
        """Begin to accept connections."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, asking: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._writers.add(client)
        try:
            await self._open.wait()
            answering, redis = await asyncio.open_unix_connection(str(self._redis_socket))
        except OSError:
            _break(client)
            self._writers.discard(client)
            return
        self._writers.add(redis)
        pumps = [
            asyncio.create_task(self._pump(asking, redis, replies=False)),
            asyncio.create_task(self._pump(answering, client, replies=True)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for writer in (client, redis):
            _break(writer)
            self._writers.discard(writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if replies and self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._open.wait()
                if replies and self._word in data and self._rng.random() < self._loss:
                    return
                self.answered += replies
                sink.write(data)
                await sink.drain()

    def end(self) -> None:
        """Break all connections, those that are held too; in the thread of the proxy."""
        self._open.set()
        self._reset()

    def _reset(self) -> None:
        for writer in list(self._writers):
            _break(writer)


def _break(writer: asyncio.StreamWriter) -> None:
    """Close at once; over TCP with an RST, so that the other end hears of it and not of a proper goodbye."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    """All links to one Redis. A context manager."""

    def __init__(self, redis_socket: Path, rng: random.Random) -> None:
        self._redis_socket, self._rng = redis_socket, rng
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: list[Link] = []
        self._servers: list[asyncio.Server] = []

    def link(self) -> Link:
        """Make one more way to Redis."""
        link = Link(self._loop, self._redis_socket, self._rng)
        self._links.append(link)
        self._servers.append(asyncio.run_coroutine_threadsafe(link.listen(), self._loop).result(10))
        return link

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for link in self._links:
            link.end()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
