"""An HTTP server for tests that answers as told, and notes what came: streams, errors, and what no server should do."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request: when it arrived (monotonic seconds), and whether its client left before the answer's end."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    arrived_s: float = field(default_factory=time.monotonic)
    closed: threading.Event = field(default_factory=threading.Event)


Script = Callable[[asyncio.StreamWriter, Request], Awaitable[None]]


def status(code: int, body: str = "{}", **headers: str) -> Script:
    """Answer with a status."""

    async def script(writer: asyncio.StreamWriter, request: Request) -> None:
        lines = [f"HTTP/1.1 {code} Odd", f"content-length: {len(body.encode())}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    return script


def raw(*parts: bytes, hang: bool = False) -> Script:
    """Answer with these bytes of an event stream, which the end of the connection ends; `hang`: keep it open."""

    async def script(writer: asyncio.StreamWriter, request: Request) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        if hang:
            await asyncio.Event().wait()
        writer.close()

    return script


def event(**content: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def token(text: str, finish_reason: str | None = None, **more: Any) -> bytes:
    """An event of a text completion."""
    return event(choices=[{"index": 0, "text": text, "finish_reason": finish_reason, **more}])


def whole(*texts: str, usage: tuple[int, int] | None = (3, 2), reason: str = "stop") -> Script:
    """Answer with these pieces, and all that belongs to a stream."""
    counts = {} if usage is None else {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    tail = [event(choices=[], **counts)] if counts else []
    return raw(*[token(text) for text in texts], token("", reason), *tail, b"data: [DONE]\n\n")


async def hang(writer: asyncio.StreamWriter, request: Request) -> None:
    """Never answer."""
    await asyncio.Event().wait()


class OddServer:
    """Listens on a port of its own. Posts are answered by the next of `scripts`, else by `default`; GETs by `health`
    and `models`, which are statuses.
    """

    def __init__(self, default: Script | None = None) -> None:
        self.default = default or whole("a", "b")
        self.scripts: list[Script] = []
        self.health = self.models = 200
        self.requests: list[Request] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def posts(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    def listen(self) -> None:
        """Take connections, on the same port as before."""
        self._run(self._listen())

    def vanish(self) -> None:
        """Cut all connections, and refuse new ones, as a killed process does."""
        self._run(self._vanish())

    def end(self) -> None:
        self.vanish()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _vanish(self) -> None:
        if self._listening:
            self._listening.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while request := await self._read(reader):
                self.requests.append(request)
                if not await self._answer(reader, writer, request):
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request) -> bool:
        """Run the script until it ends or the client leaves. Whether the connection goes on."""
        script = self._script(request)
        answering = asyncio.ensure_future(script(writer, request))
        leaving = asyncio.ensure_future(reader.read(1))
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        answering.cancel()
        if leaving.done() or writer.is_closing():
            leaving.cancel()
            request.closed.set()
            return False
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)
        return True

    def _script(self, request: Request) -> Script:
        if request.method == "GET":
            return status(self.health if request.path == "/health" else self.models)
        return self.scripts.pop(0) if self.scripts else self.default

    async def _read(self, reader: asyncio.StreamReader) -> Request | None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Request(method, path, headers, json.loads(body) if body else None)
