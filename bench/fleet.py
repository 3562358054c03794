"""A stack whose engines are simulated, for the time of a benchmark, and what its processes cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil
import redis

from stoker import Client
from stoker_ops.embedded import start

PROMPT_TOKENS = 128
MAX_TOKENS = 16

_STOKER = (sys.executable, "-c", "from stoker.cli import main; main()")
_READY_S = 60
_STOP_S = 30


@dataclass(frozen=True)
class Fleet:
    """A running stack: the address of its Redis, and the pids of what it consists of, children included."""

    url: str
    redis: int
    started: tuple[int, ...]

    def processes(self) -> dict[str, psutil.Process]:
        """Return all processes, Redis first, by a name each."""
        found = {"redis": psutil.Process(self.redis)}
        for number, pid in enumerate(self.started):
            process = psutil.Process(pid)
            name = f"worker {number}" if number else "scheduler"
            found |= {name: process}
            found |= {f"{name}, child {i}": child for i, child in enumerate(process.children(recursive=True))}
        return found

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds that each process has used so far."""
        return {name: sum(process.cpu_times()[:2]) for name, process in self.processes().items()}

    def script_us(self) -> int:
        """Return the microseconds that Redis has spent in scripts so far."""
        with redis.Redis.from_url(self.url) as client:
            found = client.info("commandstats")
        return sum(entry["usec"] for name, entry in found.items() if name in ("cmdstat_evalsha", "cmdstat_eval"))


@contextmanager
def fleet(workers: int, *options: str, profile: str = "zero", **settings: object) -> Iterator[Fleet]:
    """Run a Redis (AOF everysec), a scheduler and workers; `settings` are those of `Config`, for all of them."""
    with ExitStack() as stay:
        folder = stay.enter_context(tempfile.TemporaryDirectory(prefix="sb", dir="/tmp"))
        server = stay.enter_context(start(folder))
        environment = os.environ | {"STOKER_REDIS_URL": server.url}
        environment |= {f"STOKER_{name.upper()}": str(value) for name, value in settings.items()}
        commands = [["scheduler"]]
        for index in range(workers):
            commands.append(["worker", "--name", f"w{index}", "--model", "sim", "--profile", profile, *options])
        processes = [
            subprocess.Popen([*_STOKER, *command, "--log-level", "error"], env=environment) for command in commands
        ]
        stay.callback(_stop, processes)
        with redis.Redis.from_url(server.url) as client:
            pid = client.info("server")["process_id"]
        _wait_for(server.url, workers)
        yield Fleet(server.url, pid, tuple(process.pid for process in processes))


def _wait_for(url: str, workers: int) -> None:
    deadline = time.monotonic() + _READY_S
    with Client(url) as client:
        while len([worker for worker in client.workers() if worker.available]) < workers:
            assert time.monotonic() < deadline, f"fewer than {workers} workers within {_READY_S} s"
            time.sleep(0.05)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(_STOP_S)
