"""Keeps a process of a stack running: watched, started again with back-off when it dies, stopped in good order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import BinaryIO

import structlog

from stoker.every import pause

log = structlog.get_logger()

CALM_S = 60.0
BACKOFF_MAX_S = 30.0
_STDERR = 2
_TAIL_BYTES = 8192
_TAIL_LINES = 5
_COMPLAINT = "stoker: "


class Kept:
    """One process of the stack.

    `final` are the exit codes after which it is not started again: it was asked to end, or its settings cannot work.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: BinaryIO | None,
        final: Collection[int],
    ) -> None:
        """Prepare `stoker ARGUMENTS`, called `name`; `output` takes what it prints, else our standard error does."""
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self._output = output
        self._final = final
        self._process: asyncio.subprocess.Process | None = None
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> int:
        """Keep it running; returns its last exit code once it ended for good."""
        code = failures = 0
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                code = await self._run_once()
                if self._stop.is_set() or code in self._final:
                    break
                failures = 1 if time.monotonic() - started >= CALM_S else failures + 1
                delay_s = restart_delay(failures)
                log.warning("process died, starting it again", process=self.name, code=code, after_s=delay_s)
                await pause(delay_s, self._stop)
            return code
        finally:
            self._ended.set()

    async def _run_once(self) -> int:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a file in the current folder must not stand in for a module of ours
            "-m",
            "stoker_ops.tied",
            str(os.getpid()),
            *self._arguments,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output or _STDERR,
            stderr=self._output or _STDERR,
            start_new_session=True,  # the terminal's signals go to the starter alone, which stops things in order
        )
        if self._stop.is_set():  # told to stop while it was being started
            self.signal(signal.SIGTERM)
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, patience_s: float) -> None:
        """Ask it to end, and kill it after `patience_s` seconds. `run` must have been started."""
        self._stop.set()
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), patience_s)
        except TimeoutError:
            log.warning("process does not end, killing it", process=self.name, after_s=patience_s)
            self.signal(signal.SIGKILL)
            await self._ended.wait()

    def last_words(self) -> str:
        """Return the end of what it printed: its complaint, if it made one, else a few lines."""
        if self._output is None:
            return ""
        size = self._output.seek(0, os.SEEK_END)
        tail = os.pread(self._output.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        lines = tail.decode(errors="replace").splitlines()
        complaint = [line.removeprefix(_COMPLAINT) for line in lines if line.startswith(_COMPLAINT)]
        return "\n".join(complaint or lines[-_TAIL_LINES:])


def restart_delay(failures: int) -> float:
    """Return the seconds to wait after so many deaths in a row: none at first, then 1, 2, 4 .. 30 s."""
    return 0.0 if failures <= 1 else min(BACKOFF_MAX_S, 2.0 ** (failures - 2))
