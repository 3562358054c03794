"""A stack that belongs to this process: another process runs it, and two pipes lead there. No I/O with Redis."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from stoker.errors import ConfigError, RedisUnavailable, StokerError

STOP_S = 30.0
_ERRORS = {kind.__name__: kind for kind in (ConfigError, RedisUnavailable)}
_STOP: Mapping[str, Any] = {}


class PrivateStack:
    """Starts and stops `python -m stoker_ops.local`, which says in `stoker_ops.piped` what it hears and answers.

    It ends when it is told to, and when this process ends in whatever way: its standard input does then. Never by
    multiprocessing, which would import the caller's script once more. Thread-safe.
    """

    def __init__(self, settings: Mapping[str, Any], save: Callable[[Path], Path] | None = None) -> None:
        """Run with `settings`; where they name no model, `save` puts one into a private folder and names it."""
        self.failure: StokerError | None = None
        self._settings = settings
        self._save = save
        self._owner = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: Future[dict[str, Any]] | None = None

    def start(self) -> Future[dict[str, Any]]:
        """Start it, once; gives its `redis_url`, `queue`, `workers` and `devices` when it is ready."""
        with self._lock:
            if self._ready is None:
                self._ready = Future()
                self._owner = os.getpid()
                self._process = _launch()
                # A daemon: the end of the interpreter must not wait for a model to load.
                talk = threading.Thread(target=self._talk, args=(self._process, self._ready), daemon=True)
                talk.start()
            return self._ready

    def stop(self) -> None:
        """End it and wait for that. Stopping again, or in a forked child, does nothing."""
        process = self._process
        if process is None or os.getpid() != self._owner:
            return
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was stopped before
            # Not only the end of the pipe: a forked child may hold it open.
            _send(process, _STOP)
            _input(process).close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _talk(self, process: subprocess.Popen[bytes], ready: Future[dict[str, Any]]) -> None:
        """Hear what it says until it ends."""
        try:
            _send(process, {"parent": self._owner, **self._settings})
            with _output(process) as answers:
                for line in answers:
                    self._heed(process, ready, json.loads(line))
        except Exception as error:  # above all, of saving the user's model: whoever waits must hear of it
            self.failure = self.failure or StokerError(f"the stack cannot be started: {error}")
            self.failure.__cause__ = error
            with contextlib.suppress(OSError, ValueError):
                _input(process).close()
        if not ready.done():
            ready.set_exception(self.failure or StokerError("the stack ended before it was ready"))

    def _heed(self, process: subprocess.Popen[bytes], ready: Future[dict[str, Any]], said: dict[str, Any]) -> None:
        if "folder" in said and self._save:
            _send(process, {"model": str(self._save(Path(said["folder"])))})
            self._save = None  # it holds the caller's model
        elif "ready" in said:
            ready.set_result(said["ready"])
        elif "failed" in said:
            kind = _ERRORS.get(said["failed"]["error"], StokerError)
            self.failure = kind(said["failed"]["message"])


def _launch() -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise ConfigError("this interpreter does not know its own program (sys.executable), so it can start no stack")
    return subprocess.Popen(
        # -P: a file beside the caller's script must not stand in for a module of ours.
        [sys.executable, "-P", "-m", "stoker_ops.local"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for the caller, who then says what happens to the stack
    )


def _send(process: subprocess.Popen[bytes], message: Mapping[str, Any]) -> None:
    _input(process).write(json.dumps(message).encode() + b"\n")


def _input(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None  # noqa: S101  # it was asked for
    return process.stdin


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None  # noqa: S101  # it was asked for
    return process.stdout
