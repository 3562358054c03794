"""Runs the processes of a stack for tests: schedulers and workers, on a Redis of the test process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from helpers import MARK, assert_no_stray_processes, wait_until
from stoker import Client, Config
from stoker.store.keys import Keys
from stoker_ops.embedded import ServerBinary, start

HEARTBEAT_MS = 200


def is_measured(request: pytest.FixtureRequest) -> bool:
    """Whether the test that asks for a stack is marked `measured`."""
    return request.node.get_closest_marker("measured") is not None


@contextmanager
def lasting_stack(server_binary: ServerBinary) -> Iterator[Stack]:
    """Give a stack with a Redis of its own, for all tests of a module; nothing runs yet, and nothing is left of it."""
    directory = Path(tempfile.mkdtemp(prefix="stoker-t-", dir="/tmp"))
    with (
        pytest.MonkeyPatch.context() as patch,
        start(directory / "redis", ephemeral=True, server=server_binary, extra_args=("--appendonly", "no")) as server,
    ):
        patch.setenv(MARK, str(directory))
        stack = Stack(server.url, directory)
        try:
            yield stack
        finally:
            stack.end()
    assert_no_stray_processes(str(directory))
    shutil.rmtree(directory)


class Stack:
    """Starts and ends the processes of a stack; `beats(n)` is n heartbeats in seconds.

    The tests look at Redis by `server_url` where the stack's own URL names Sentinels. `measured`: coverage measures its
    processes, some of which end in order.
    """

    def __init__(
        self,
        url: str,
        logs: Path,
        server_url: str | None = None,
        *,
        metrics: bool = False,
        measured: bool = False,
    ) -> None:
        self.url = url
        self.config = Config(redis_url=url, heartbeat_ms=HEARTBEAT_MS, events=True)
        self.keys = Keys(self.config.queue)
        self.redis = redis.Redis.from_url(server_url or url, decode_responses=True)
        self._logs = logs
        self._metrics = metrics
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # What is killed at the end writes no coverage, and would be traced in vain, for half as much CPU time again.
        self.environment: dict[str, str] = {} if measured else {"COVERAGE_PROCESS_CONFIG": ""}
        """More settings for the processes that are started from here on."""

    def beats(self, n: float) -> float:
        return n * HEARTBEAT_MS / 1000

    def client(self) -> Client:
        return Client(config=self.config)

    def scheduler(self, name: str = "scheduler", *options: str) -> subprocess.Popen[bytes]:
        return self._start(name, "scheduler", *options)

    def worker(self, name: str, *options: str, model: str = "sim", wait: bool = True) -> subprocess.Popen[bytes]:
        process = self._start(name, "worker", "--name", name, "--model", model, *options)
        if wait:
            self.wait_for_worker(name, process)
        return process

    def batch_worker(self, name: str = "batch-worker", *options: str) -> subprocess.Popen[bytes]:
        if self.redis.info("cluster")["cluster_enabled"]:
            pytest.skip("RQ, which runs batch files, needs a Redis that is no cluster")
        return self._start(name, "batch-worker", *options)

    def wait_for_worker(self, name: str, process: subprocess.Popen[bytes] | None = None, timeout: float = 120) -> str:
        def registered() -> str | None:
            assert process is None or process.poll() is None, self.log(name)
            return self.incarnation(name)

        return wait_until(registered, timeout, what=f"{name} registered")

    def incarnation(self, name: str) -> str | None:
        """The live incarnation of a worker."""
        records = self.redis.hgetall(self.keys.inc)
        return next((inc for inc, text in records.items() if inc.startswith(f"{name}:") and "|live|" in text), None)

    def child_of(self, process: subprocess.Popen[bytes]) -> int:
        """The process that runs the model."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0])

    def held(self, name: str) -> dict[str, str]:
        """What a worker's live incarnation holds: id -> its member record."""
        inc = self.incarnation(name)
        return self.redis.hgetall(self.keys.work(inc)) if inc else {}

    def running(self, name: str) -> set[str]:
        return {request_id for request_id, member in self.held(name).items() if member.split("|")[2] == "R"}

    def log(self, name: str) -> str:
        return (self._logs / f"{name}.log").read_text()

    def metrics_url(self, name: str) -> str:
        """Where a process exports its metrics."""

        def said() -> str | None:
            found = re.search(r'"url": "(http://[^"]+/metrics)"', self.log(name))
            return found[1] if found else None

        return wait_until(said, 30, what=f"{name} says where its metrics are")

    def end(self) -> None:
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self._processes.values():
            process.wait(10)
        self.redis.close()

    def python(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start another Python program in the stack's environment."""
        return self._spawn(name, [sys.executable, *arguments])

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        return self._spawn(name, [sys.executable, "-c", "from stoker.cli import main; main()", *arguments])

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        environment = (
            os.environ
            | {
                "STOKER_REDIS_URL": self.url,
                "STOKER_HEARTBEAT_MS": str(HEARTBEAT_MS),
                "STOKER_EVENTS": "1",
                # On any free port: tests run beside each other, and beside a stack that somebody uses.
                "STOKER_METRICS": str(int(self._metrics)),
                "STOKER_METRICS_PORT": "0",
                "PYTHONPATH": str(Path(__file__).parent / "stack" / "models"),
            }
            | self.environment
        )
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        return self._processes[name]
