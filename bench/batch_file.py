"""How fast a batch file runs, in how much memory, and whether it is whole after so many kills.

    python bench/batch_file.py --lines 1000 100000
    python bench/batch_file.py --lines 50000 --kills 20 --seed 1

Runs `stoker up` with engines that take no time, in a folder of its own, and submits files of requests of 60 tokens in
and 16 out. With kills, processes are killed with SIGKILL at random moments: an RQ worker, its work horse, the
scheduler, a worker with its child, the Redis. Checks that every line is in the output once; prints lines a second, the
most memory of the process that runs the batch, and how long each recovery took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis

from stoker import Client, RedisUnavailable
from stoker.batch.sdk import Batch
from stoker.batch.status import BatchStatus

PROMPT_TOKENS = 60
MAX_TOKENS = 16
MOST_BESIDE_KILLS = 256
KINDS = ("rq worker", "work horse", "scheduler", "worker", "redis")
MAIN = "from stoker.cli import main; main()"


@dataclass
class Process:
    """A process as /proc has it."""

    pid: int
    parent: int
    command: str


def processes() -> dict[int, Process]:
    """Return all processes."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[int(entry.name)] = Process(int(entry.name), parent, command)
    return found


def below(root: int) -> list[Process]:
    """Return the processes that descend from one."""
    found, all_ = [], processes()
    for process in all_.values():
        up = process
        while up.parent in all_ and up.parent != root:
            up = all_[up.parent]
        if up.parent == root:
            found.append(process)
    return found


@dataclass
class Bench:
    """A stack, and what is measured of it."""

    folder: Path
    root: int
    url: str
    most_kb: int = 0
    recoveries: list[tuple[str, float]] = field(default_factory=list)

    def victims(self, kind: str) -> list[int]:
        """Return the processes that a kill of this kind ends together."""
        if kind == "redis":
            with redis.Redis.from_url(self.url) as client:
                return [int(client.info("server")["process_id"])]
        tree = below(self.root)
        runners = [process.pid for process in tree if "stoker.batch.worker" in process.command]
        if kind in ("rq worker", "work horse"):
            horses = [process for process in tree if process.parent in runners]
            busy = [horse.parent if kind == "rq worker" else horse.pid for horse in horses]
            return busy[:1]
        named = [process.pid for process in tree if f" {kind} " in f"{process.command} " and "tied" in process.command]
        chosen = random.choice(named) if named else None
        return [pid for pid in (chosen, *(p.pid for p in tree if p.parent == chosen)) if pid] if chosen else []

    def look(self) -> None:
        """Note the memory of the process that runs the batch."""
        tree = below(self.root)
        runners = {process.pid for process in tree if "stoker.batch.worker" in process.command}
        for process in tree:
            if process.parent in runners:
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    kb = int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
                    self.most_kb = max(self.most_kb, kb)

    def kill(self, kind: str, handle: Batch) -> bool:
        """Kill, and wait until more lines are done than at that moment; gives whether there was anything to kill."""
        with contextlib.suppress(redis.ConnectionError):
            pids = self.victims(kind)
            if not pids:
                return False
            before = done(handle)
            killed = time.monotonic()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while not grown(handle, before):
                if time.monotonic() - killed > 120:
                    raise SystemExit(f"no recovery within 120 s after killing: {kind}")
                time.sleep(0.1)
            self.recoveries.append((kind, time.monotonic() - killed))
            return True
        return False


def done(handle: Batch) -> int:
    """Return the lines done, as the run last said."""
    while True:
        with contextlib.suppress(RedisUnavailable):
            return handle.status().done


def grown(handle: Batch, before: int) -> bool:
    """Whether the batch went on, or is over."""
    with contextlib.suppress(RedisUnavailable):
        status = handle.status()
        return status.over or status.done > before
    return False


@contextlib.contextmanager
def stack(workers: int) -> Iterator[Bench]:
    """Run a stack for the time of a block."""
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as name:
        folder = Path(name)
        environment = os.environ | {"STOKER_STATE": str(folder / "state")}
        options = ["--workers", str(workers), "--model", "sim", "--profile", "zero", "--log-level", "warning"]
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-c", MAIN, "up", *options]
            up = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        url = f"unix://{folder}/state/redis.sock?db=0"
        try:
            while b"ready at" not in (folder / "log").read_bytes():
                if up.poll() is not None:
                    raise SystemExit((folder / "log").read_text())
                time.sleep(0.1)
            yield Bench(folder, up.pid, url)
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(60)


def write(path: Path, lines: int) -> None:
    """Write a file of so many requests."""
    with path.open("w") as file:
        for i in range(lines):
            body = {"prompt": [(i * 31 + j) % 32_000 for j in range(PROMPT_TOKENS)], "max_tokens": MAX_TOKENS}
            line = {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def check(lines: int, output: Path) -> None:
    """Fail unless every line is in the output once."""
    seen = bytearray(lines)
    with output.open() as file:
        for line in file:
            value = json.loads(line)
            number = int(value["custom_id"][1:])
            assert value["response"]["body"]["usage"]["completion_tokens"] == MAX_TOKENS
            assert not seen[number], f"line {number} is there twice"
            seen[number] = 1
    missing = seen.count(0)
    assert not missing, f"{missing} lines are missing"


def one(bench: Bench, client: Client, lines: int, kills: int) -> float:
    """Run one file; gives its lines a second."""
    source = bench.folder / f"{lines}.jsonl"
    write(source, lines)
    began = time.monotonic()
    # Fewer at a time make it last long enough for all kills.
    most = MOST_BESIDE_KILLS if kills else None
    handle = client.batches.create(source, output=bench.folder / f"{lines}.out.jsonl", max_in_flight=most)
    left = [KINDS[i % len(KINDS)] for i in range(kills)]
    random.shuffle(left)
    while not (status := handle_status(handle)).over:
        bench.look()
        if left and status.done and bench.kill(left[-1], handle):
            left.pop()
        time.sleep(random.uniform(0.05, 0.5) if left else 0.1)
    assert status.state == "completed", status
    took = time.monotonic() - began
    assert not left, f"{len(left)} kills were not made; take more lines"
    check(lines, Path(status.output))
    return lines / took


def handle_status(handle: Batch) -> BatchStatus:
    """Return the status, however long Redis is away."""
    while True:
        with contextlib.suppress(RedisUnavailable):
            return handle.status()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    with stack(options.workers) as bench, Client(bench.url) as client:
        for lines in options.lines:
            bench.most_kb = 0
            rate = one(bench, client, lines, options.kills)
            print(f"{lines:>10,} lines {rate:10,.0f} lines/s {bench.most_kb / 1024:8.1f} MiB", flush=True)
        for kind, seconds in bench.recoveries:
            print(f"  killed: {kind:<12} went on after {seconds:5.1f} s")
        if bench.recoveries:
            print(f"{len(bench.recoveries)} kills, the longest recovery {max(s for _, s in bench.recoveries):.1f} s")


if __name__ == "__main__":
    main()
