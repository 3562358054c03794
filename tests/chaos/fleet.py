"""The processes of a run: a Redis on a folder, two schedulers, some workers and clients, each a machine of its own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import redis

from chaos.proxy import Link, Proxy
from stoker import Config
from stoker.config import environment_of
from stoker_ops.embedded import EmbeddedRedis, start

HERE = Path(__file__).parent
HEARTBEAT_MS = 200
DRAIN_S = 2.0
HUNG_BEATS = 20
ROWS = 8


class Machine:
    """One process, with what it starts, and its way to Redis."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], link: Link, log: Path) -> None:
        self.name, self.link = name, link
        self.wanted = False
        """Whether it is to run: nobody ended it on purpose."""
        self._command, self._log = command, log
        self._environment = environment | {"STOKER_REDIS_URL": link.url}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again after it ended."""
        with self._log.open("ab") as log:
            # In a group of its own: what happens to a machine happens to all its processes at once.
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0
            )
        self.wanted = True
        self.link.answered = 0

    @property
    def pid(self) -> int:
        """The first process of the machine."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether that runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def child(self) -> int | None:
        """The process that runs a worker's model."""
        with contextlib.suppress(OSError, IndexError):
            return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])
        return None

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the machine at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut does."""
        self.wanted = False
        if self.process is not None:
            self.signal_all(signal.SIGKILL)
            self.process.wait(10)

    def terminate(self) -> None:
        """Tell its first process to end."""
        self.wanted = False
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end; gives the exit code."""
        assert self.process is not None
        return self.process.wait(30)

    def say(self, line: str) -> None:
        """Write a line to its standard input; a machine that is gone hears nothing."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.write(f"{line}\n".encode())
                self.process.stdin.flush()


class Fleet:
    """Everything that runs. `end` leaves nothing behind."""

    def __init__(self, directory: Path, rng: random.Random, *, workers: int, shares: list[int]) -> None:
        """Prepare a fleet under `directory`; `shares`: how many requests each client is to submit."""
        self.directory = directory
        self._redis_home = directory / "redis"
        self.server: EmbeddedRedis = start(self._redis_home)
        self.redis = redis.Redis(unix_socket_path=str(self.server.socket_path), socket_timeout=30)
        self.config = Config(
            redis_url=self.server.url,
            heartbeat_ms=HEARTBEAT_MS,
            events=True,
            events_len=10_000_000,
            hung_s=HUNG_BEATS * HEARTBEAT_MS / 1000,
            drain_timeout_s=DRAIN_S,
            metrics=False,
            # As far apart as in production, by the heartbeat: a few deaths in a minute are what these runs consist of.
            breaker_open_s=1,
            breaker_faults=1000,
        )
        self._proxy = Proxy(self.server.socket_path, rng)
        self._proxy.__enter__()
        self.schedulers = [self._stoker(f"s{i}", "scheduler") for i in range(2)]
        options = ("--model", "chaos_model:Model", "--max-num-seqs", str(ROWS))
        self.workers = [self._stoker(f"w{i}", "worker", "--name", f"w{i}", *options) for i in range(workers)]
        self.clients = [self._client(f"c{i}", share) for i, share in enumerate(shares)]

    def start(self) -> None:
        """Start all machines."""
        for machine in self.machines:
            machine.start()

    @property
    def machines(self) -> list[Machine]:
        """All but Redis."""
        return [*self.schedulers, *self.workers, *self.clients]

    def ledger(self, name: str) -> Path:
        """Where a client writes down what became of its requests."""
        return self.directory / f"{name}.ledger"

    def redis_pid(self) -> int:
        """The server's process."""
        return int(self.redis.info("server")["process_id"])

    def kill_redis(self) -> None:
        """End the server by SIGKILL, and wait until it is gone."""
        os.kill(self.redis_pid(), signal.SIGKILL)
        self.server.stop()

    def restart_redis(self) -> None:
        """Start it again on the data it left."""
        self.redis.connection_pool.disconnect()
        self.server = start(self._redis_home)

    def end(self) -> None:
        """Kill what still runs."""
        for machine in self.machines:
            machine.kill()
        self._proxy.__exit__(None, None, None)
        self.redis.close()
        self.server.stop()

    def _stoker(self, name: str, *arguments: str) -> Machine:
        return self._machine(name, [sys.executable, "-m", "stoker_ops.tied", str(os.getpid()), *arguments])

    def _client(self, name: str, share: int) -> Machine:
        return self._machine(name, [sys.executable, "-m", "chaos.clients", name, str(share), str(self.ledger(name))])

    def _machine(self, name: str, command: list[str]) -> Machine:
        environment = environment_of(self.config)
        # What stands there already goes first: that is how a run is given another Stoker than the installed one.
        path = [os.environ.get("PYTHONPATH", ""), str(HERE.parent), str(HERE / "models")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        return Machine(name, command, environment, self._proxy.link(), self.directory / f"{name}.log")
