"""The process that runs a worker's model, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import structlog

from stoker.config import Config
from stoker.errors import ConfigError
from stoker_workers.board import Board
from stoker_workers.engine_faults import EXIT_DEVICE
from stoker_workers.messages import (
    Away,
    Drained,
    EngineOptions,
    Holds,
    Loaded,
    Message,
    Nudge,
    Refused,
    Stop,
    from_line,
    to_line,
)

log = structlog.get_logger()

LAST_LINES = 20
UNHEARD_BYTES = 1 << 20
LAST_BYTES = 1600  # so that they fit a failure's message


class Child:
    """The process that runs the model, and the three ways to it: orders in, news out, counters in shared memory."""

    def __init__(self, config: Config, options: EngineOptions, inc: str, log_level: str) -> None:
        """Prepare a child that will serve as `inc`."""
        self.inc = inc
        self._config = config
        self._options = options
        self._log_level = log_level
        self._file = Board.make_file()
        self.board = Board(self._file)
        self._process: asyncio.subprocess.Process | None = None
        self._news: asyncio.Queue[Message] = asyncio.Queue()
        self._drained = asyncio.Event()
        self.away = ""
        """Why its model cannot take requests now, where that runs elsewhere; empty if it can."""
        self.holds: int | None = None
        """The tokens that it can hold now, None before it said so."""
        self.turned = asyncio.Event()
        """Set when `away` or `holds` changed."""
        self._reader: asyncio.Task[None] | None = None
        self._hung = False
        self._errors: asyncio.Task[None] | None = None
        self._last_words = b""

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Spawn the process: in our process group, with its settings on a pipe, never in its arguments."""
        news_in, news_out = os.pipe()
        board = self._file.fileno()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "stoker_workers.process",
                str(news_out),
                str(board),
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(news_out, board),
            )
        finally:
            os.close(news_out)
        self._reader = asyncio.create_task(self._read(news_in))
        self._errors = asyncio.create_task(self._pass_on(self._process.stderr))
        await self._send(self._config.model_dump_json().encode() + b"\n")
        await self._send(f"{self._log_level} {'pretty' if sys.stderr.isatty() else 'json'}\n".encode())
        self.tell(self._options)

    async def loaded(self, timeout_s: float, stop: asyncio.Event) -> Loaded | None:
        """Wait for the model; None if the child died or we stop. Raises `ConfigError` where it never can load."""
        waits = {
            asyncio.create_task(self._news.get()),
            asyncio.create_task(self.wait()),
            asyncio.create_task(stop.wait()),
        }
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in waits - done:
            task.cancel()
        if not done:
            log.error("model not loaded in time", inc=self.inc, limit_s=timeout_s)
        message = next((task.result() for task in done if isinstance(task.result(), Loaded | Refused)), None)
        if message is None and not self._news.empty():
            message = self._news.get_nowait()
        if isinstance(message, Refused):
            raise ConfigError(message.message)
        return message if isinstance(message, Loaded) else None

    def tell(self, message: Message) -> None:
        """Give an order, and never wait for the child to hear it: who did would hang with one that hangs.

        What is told again at the next beat is left out while much is unheard.
        """
        stdin = self._process.stdin if self._process else None
        if stdin is None or stdin.transport.is_closing():
            return
        if isinstance(message, Nudge | Stop) and stdin.transport.get_write_buffer_size() > UNHEARD_BYTES:
            return
        stdin.write(to_line(message))

    def news(self) -> list[Message]:
        """Take what the child said since the last time."""
        messages = []
        while not self._news.empty():
            messages.append(self._news.get_nowait())
        return messages

    async def wait(self) -> None:
        """Wait for the end of the process."""
        if self._process:
            await self._process.wait()

    async def until_drained(self) -> bool:
        """Wait until everything is settled or handed back."""
        return await self._drained.wait()

    def kill(self) -> None:
        """Kill the process."""
        if self._process and self.alive:
            self._process.kill()

    def kill_hung(self) -> None:
        """Kill the process because it stands still."""
        if self.alive:
            self._hung = True
            self.kill()

    def cause_of_death(self) -> tuple[str, list[str]]:
        """Return hung, killed (a SIGKILL from outside is nobody's fault) or crash, and which requests its step ran."""
        cause = "hung" if self._hung else "killed" if self.code == -signal.SIGKILL else "crash"
        return cause, self.board.crash_set()

    @property
    def fault(self) -> str:
        """The class of fault that ended it, for people: its cause of death, or device where that was lost."""
        return "device" if self.code == EXIT_DEVICE else self.cause_of_death()[0]

    async def obituary(self) -> str:
        """Return how the process ended, and its last words."""
        if self._errors:
            # A process of its own that it left behind may hold the pipe open.
            await asyncio.wait([self._errors], timeout=1)
        lines = self._last_words.decode(errors="replace").splitlines()[-LAST_LINES:]
        how = "stood still and was killed" if self._hung else f"ended by {_ending(self.code)}"
        if self.fault == "device":
            how = f"lost its device ({_ending(self.code)})"
        return "\n".join([f"the engine {how} while this request ran; its last words:", *(lines or ["(none)"])])

    async def end(self) -> None:
        """Kill what still runs, and close all ways to it."""
        if self._process:
            self.kill()
            await self._process.wait()
        if self._reader:
            await self._reader
        if self._errors:
            self._errors.cancel()
            await asyncio.gather(self._errors, return_exceptions=True)
        self.board.close()

    async def _send(self, line: bytes) -> None:
        if self._process and self._process.stdin:
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(line)
                await self._process.stdin.drain()

    async def _pass_on(self, errors: asyncio.StreamReader | None) -> None:
        """Pass the child's stderr on to ours, and keep the end of it."""
        while errors and (chunk := await errors.read(1 << 16)):
            sys.stderr.write(chunk.decode(errors="replace"))
            sys.stderr.flush()
            self._last_words = (self._last_words + chunk)[-LAST_BYTES:]

    async def _read(self, descriptor: int) -> None:
        """Queue the child's news until the pipe ends."""
        reader = asyncio.StreamReader(limit=1 << 22)
        pipe = os.fdopen(descriptor, "rb")
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        async for line in reader:
            message = from_line(line)
            if isinstance(message, Drained):
                self._drained.set()
            if isinstance(message, Away):
                self.away = message.reason
                self.turned.set()
                continue
            if isinstance(message, Holds):
                self.holds = message.tokens
                self.turned.set()
                continue
            self._news.put_nowait(message)
        transport.close()


def _ending(code: int | None) -> str:
    """Return an exit code in words; negative ones are signals."""
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
