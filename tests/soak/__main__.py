"""Runs a stack for minutes under requests of every kind and small faults: `python -m soak --minutes 20 --seed 1`.

Ends with 0 if no process holds more at the end than after its warm-up, and Redis, after a purge, exactly the keys that
the protocol lists as there for good.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TextIO

from helpers import wait_until
from protocol.test_protocol_document import KEY_ROWS
from soak.measure import Sample, courses, look, table, wrong
from stack_processes import Stack
from stoker_ops.embedded import EmbeddedRedis, start

SCHEDULERS, WORKERS = ("s0", "s1"), ("w0", "w1", "w2")
WORKER = ("--max-num-seqs", "8", "--kv-cache-tokens", "1024")
SAMPLES = 240
FAULT_EVERY_S = 15.0
KILL_EVERY_S = 90.0
"""A child that lived for a minute is started again at once."""
LAPSE_S = 60.0
FOR_GOOD = {row.key for row in KEY_ROWS if row.life.startswith("for good")}
UNTOUCHED = {"skew", "tenants", "shards", "tickets"}
"""What is there once a clock went back, a tenant got settings of its own or a queue has shards: not here."""
LAPSING = ("bell", "void:", "obituary:")
"""What goes by itself within an hour, whatever the settings."""
SETTINGS = {
    # Short, so that what lapses does so many times in a run.
    "STOKER_RESULT_TTL_S": "10",
    "STOKER_REPLY_TTL_S": "10",
    "STOKER_TOKENS_TTL_S": "5",
    "STOKER_DEAD_TTL_S": "10",
    "STOKER_UNSCHEDULABLE_S": "0.2",
    "STOKER_EVENTS_LEN": "5000",
}


class Soak:
    """One run, from the first process to the verdict."""

    def __init__(self, options: argparse.Namespace, directory: Path, server: EmbeddedRedis, out: TextIO) -> None:
        self.seconds = options.minutes * 60
        self.warm_up_s = min(60.0, self.seconds / 4)
        self.samples: dict[str, list[Sample]] = defaultdict(list)
        self.stack = Stack(server.url, directory)
        self.stack.environment |= SETTINGS | {"PYTHONPATH": str(Path(__file__).parents[1])}
        self._seed, self._out = options.seed, out
        self._rng = random.Random(options.seed)
        self._began = time.monotonic()
        self._killed_at = self._began
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._redis_pid = int(self.stack.redis.info("server")["process_id"])

    def go(self) -> None:
        """Start everything, send and break, and look at all processes again and again."""
        for name in SCHEDULERS:
            self._start(name, "scheduler")
        for name in WORKERS:
            self._start(name, "worker", "--name", name, "--model", "sim", *WORKER)
            self.stack.wait_for_worker(name, self._processes[name])
        self._processes["client"] = self.stack.python("client", "-m", "soak.load", str(self._seed))
        self._began = self._killed_at = time.monotonic()
        fault_at = FAULT_EVERY_S
        pause_s = max(0.5, self.seconds / SAMPLES)
        while (now_s := time.monotonic() - self._began) < self.seconds:
            if now_s >= fault_at:
                self._break()
                fault_at += FAULT_EVERY_S
            self._look(now_s)
            time.sleep(pause_s)

    def end(self) -> dict[str, int]:
        """Let the client finish, purge the dead letters, end all processes; returns what the client sent."""
        client = self._processes.pop("client")
        client.terminate()
        assert client.wait(120) == 0, self.stack.log("client")
        with self.stack.client() as operator:
            # Those that lapsed by themselves meanwhile are for the leader to forget.
            while self.stack.redis.exists(f"{self.stack.keys.prefix}dead"):
                operator.purge_dead(letter.id for letter in operator.dead_letters())
        # What the results took counts until they lapse, and the leader takes it off.
        wait_until(lambda: not self.stack.redis.exists(f"{self.stack.keys.prefix}kept"), LAPSE_S)
        for name, process in self._processes.items():
            process.terminate()
            assert process.wait(60) == 0, self.stack.log(name)
        sent: dict[str, int] = json.loads(self.stack.log("client").splitlines()[-1])
        return sent

    def left(self) -> list[str]:
        """What Redis holds beside what it should, once all has lapsed that has a life of its own."""
        deadline = time.monotonic() + LAPSE_S
        while (rest := self._beside()) and time.monotonic() < deadline:
            time.sleep(0.2)
        missing = FOR_GOOD - UNTOUCHED - self._names()
        return rest + [f"{name} is missing" for name in sorted(missing)]

    def _start(self, name: str, *arguments: str) -> None:
        command = ("-m", "stoker_ops.tied", str(os.getpid()), *arguments)
        self._processes[name] = self.stack.python(name, *command)

    def _names(self) -> set[str]:
        return {name.removeprefix(self.stack.keys.prefix) for name in self.stack.redis.scan_iter("*", count=1000)}

    def _beside(self) -> list[str]:
        return sorted(name for name in self._names() - FOR_GOOD if not name.startswith(LAPSING))

    def _look(self, at_s: float) -> None:
        pids = {"redis": self._redis_pid} | {name: process.pid for name, process in self._processes.items()}
        pids |= {f"{name}'s child": self._child(name) for name in WORKERS}
        for name, pid in pids.items():
            if pid and (sample := look(pid, at_s)):
                self.samples[name].append(sample)

    def _child(self, name: str) -> int:
        try:
            return self.stack.child_of(self._processes[name])
        except (OSError, IndexError):
            return 0

    def _break(self) -> None:
        """Do something that everybody must take in their stride."""
        kinds = ["reset", "stall"]
        if time.monotonic() - self._killed_at >= KILL_EVERY_S:
            kinds = ["kill"]
        kind = self._rng.choice(kinds)
        if kind == "reset":
            self.stack.redis.client_kill_filter(_type="normal", skipme=True)
        elif kind == "stall":
            self.stack.redis.client_pause(500)
        elif child := self._child(WORKERS[0]):
            os.kill(child, signal.SIGKILL)
            self._killed_at = time.monotonic()
        self._out.write(f"{time.monotonic() - self._began:7.1f} s  {kind}\n")
        self._out.flush()


def main(arguments: list[str], out: TextIO = sys.stdout) -> int:
    """Run, print the table and the verdict, return the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    directory = Path(tempfile.mkdtemp(prefix="stoker-s-", dir="/tmp"))
    try:
        with start(directory / "redis", ephemeral=True) as server:
            soak = Soak(options, directory, server, out)
            try:
                soak.go()
                sent = soak.end()
                problems = soak.left()
            finally:
                soak.stack.end()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    went = courses(soak.samples, soak.warm_up_s, soak.seconds)
    problems += wrong(went)
    out.write(f"\n{table(went)}\n\n")
    out.writelines(f"{kind:32} {count:8,}\n" for kind, count in sorted(sent.items()))
    out.writelines(f"WRONG {problem}\n" for problem in problems)
    verdict = "failed" if problems else "ok"
    requests = sum(sent.values())
    out.write(f"soak: seed={options.seed} minutes={options.minutes:g} requests={requests} {verdict}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
