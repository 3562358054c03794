"""A small stack on which one process ends, or stands still for 5 T, at one point after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis

from helpers import process_is_gone
from stack_processes import Stack
from stoker_ops.history import HistoryChecker

HERE = Path(__file__).parent
LIMIT_S = 150.0
REACH_S = 8.0
WORKERS = ("one", "two")
OPTIONS = ("--max-num-seqs", "8", "--kv-cache-tokens", "60000")
SETTINGS = {
    "STOKER_UNSCHEDULABLE_S": "0.5",
    "STOKER_DRAIN_TIMEOUT_S": "0.2",
    "STOKER_BACKOFF_MIN_MS": "200",
    "STOKER_BLOCK_MS": "200",
}
EXPECTED = {
    **{f"plain-{i}": ["succeeded", 40] for i in range(6)},
    **{f"stream-{i}": ["succeeded", 120] for i in range(2)},
    "flaky": ["succeeded", 4],
    "cancelled": ["cancelled", 0],
    **{f"offline-{i}": ["cancelled", 0] for i in range(2)},
    "late": ["expired", 0],
    "huge": ["failed", 0],
}
EXPECTED_OF_POISON = {"beside": ["succeeded", 30], "poison": ["failed", 0]}

REASONS = {"huge": "unschedulable", "poison": "poison"}
"""Why those must fail, by the history; nothing else may."""

OFTEN = {"lead": 6, "beat": 4, "read-view": 6, "step": 10, "begin-step": 10, "end-step": 10, "publish-counters": 10}
"""What happens all the time: the how manieth time is the one, so that it falls into the middle of the work."""

OF_DEATHS = {"spawn", "incarnate", "register", "report", "end-child", "tell-Serve", "tell-EngineOptions"}
OF_DEATHS |= {"news-Loaded", "reclaim", "read-groups", "read-running", "read-census"}
"""What happens where a child dies, or a client waits for long: the round has a poison request."""

OF_LEAVES = {"deregister": "one", "tell-Drain": "one", "news-Drained": "one", "read-published": "one"}
OF_LEAVES |= {"resign": "scheduler"}
"""What happens where a process is told to leave: which one is."""

KEPT = {"result", "dead", "events", "leader", "epoch", "incs", "tick", "grace", "skew", "mark", "generation", "h"}
KEPT |= {"card", "counts", "histograms", "rates", "bell", "reply", "tokens", "void", "obituary", "kept"}
"""Keys that may be left in Redis without workers: those with a TTL, and those that are there for good."""

OF_WORKERS = {"inc", "credit", "beats", "stream", "quarantine"}


@dataclass(frozen=True, slots=True)
class Point:
    """Where it happens, like `child settle after`, and what: exit or stop."""

    name: str
    end: str

    @property
    def what(self) -> str:
        """What a process does there."""
        return self.name.split(" ")[1]

    @property
    def leaver(self) -> str:
        """Which process has to leave, so that the point is reached; empty for none."""
        if self.what == "read-info":
            return "scheduler" if self.name.startswith("scheduler") else "one"
        return OF_LEAVES.get(self.what, "")


class Scenario:
    """The stack. It restarts what ends, and wakes what stands still; `folder` must be empty."""

    def __init__(self, url: str, folder: Path) -> None:
        """Start a scheduler and two workers, and note the points that are passed until the first round."""
        (folder / "logs").mkdir()
        (folder / "points").mkdir()
        self.folder = folder
        self.count = 0
        self.failed = False
        self.stack = Stack(url, folder / "logs")
        hook = {"PYTHONPATH": str(HERE / "hook"), "CRASH_POINT_FOLDER": str(folder / "points")}
        self.stack.environment |= SETTINGS | hook
        self.redis = redis.Redis.from_url(url)
        self.checker = HistoryChecker(self.stack.config.lease_us)
        self.place = b"-"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.point: Point | None = None
        self.wake_at = 0.0
        for name in ("scheduler", *WORKERS):
            self.start(name)
        self.until(self._all_serve, "both workers registered")

    # --- the processes ----------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a process by its name; one that it replaces has ended."""
        if name == "scheduler":
            self.processes[name] = self.stack.scheduler()
        elif name == "client":
            poison = str(int(self._poisoned()))
            arguments = (str(HERE / "one_client.py"), str(self.outcomes), str(self.count), poison)
            self.processes[name] = self.stack.python("client", *arguments)
        else:
            self.processes[name] = self.stack.worker(name, *OPTIONS, wait=False)

    def tend(self) -> None:
        """Start again what ended, as a service manager would, and wake what slept for 5 T."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None and not (name == "client" and self.outcomes.exists()):
                self.start(name)
        if self.point and self.point.end == "stop" and self.fired.exists() and self.wake_at != float("inf"):
            self.wake_at = self.wake_at or time.monotonic() + 5 * self.stack.config.lease_us / 1e6
            if time.monotonic() >= self.wake_at:
                self._wake()

    def _wake(self) -> None:
        self.wake_at = float("inf")
        pid = int(self.fired.read_text())
        if not process_is_gone(pid):
            os.kill(pid, signal.SIGCONT)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Tend the stack until the condition holds; fails after `LIMIT_S`."""
        limit = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < limit, f"not within {LIMIT_S:.0f} s: {what}"
            self.tend()
            time.sleep(0.02)

    def _all_serve(self) -> bool:
        return all(map(self.stack.incarnation, WORKERS))

    # --- a round ----------------------------------------------------------------------------------------------------

    @property
    def outcomes(self) -> Path:
        """What the client of this round writes."""
        return self.folder / f"outcomes-{self.count}.json"

    @property
    def fired(self) -> Path:
        """What whoever reaches the point of this round writes."""
        return self.folder / "points" / f"fired-{self.point_count}"

    def _poisoned(self) -> bool:
        return self.point is None or self.point.what in OF_DEATHS

    def run(self, point: Point | None = None) -> None:
        """Serve a client while something happens at the point; without one, note all points.

        Fails by an AssertionError that says what is wrong.
        """
        self.point, self.point_count, self.wake_at = point, self.count + 1, 0.0
        armed = self.folder / "points" / "armed"
        if point:
            armed.symlink_to(f"{self.point_count}|{point.name}|{point.end}|{OFTEN.get(point.what, 1)}")
        for leaver in ("one", "scheduler") if point is None else [point.leaver] * 3:
            self._serve_a_client(leaver)
            if point is None or self.fired.exists():
                continue
            patience = time.monotonic() + REACH_S
            self.until(lambda patience=patience: self.fired.exists() or time.monotonic() > patience, "the point")
            if self.fired.exists():
                break
        assert point is None or self.fired.exists(), "the point was never reached"
        if point and point.end == "stop":
            self.until(lambda: self.wake_at == float("inf"), "it is awake again")
        armed.unlink(missing_ok=True)
        self._look_back()

    def _serve_a_client(self, leaver: str) -> None:
        """Let a client live its life; meanwhile `leaver` is told to leave, and another process takes its place."""
        self.count += 1
        self.start("client")
        if leaver:
            self.until(lambda: self.stack.running("one") or self.outcomes.exists(), "the first worker runs something")
            self.processes[leaver].terminate()
        self.until(self.outcomes.exists, "the client has all its answers")
        expected = EXPECTED | (EXPECTED_OF_POISON if self._poisoned() else {})
        ends = json.loads(self.outcomes.read_text())
        apart = {name: ends.get(name) for name in expected if ends.get(name) != expected[name]}
        assert not apart, f"outcomes: {apart}"
        self.processes.pop("client").wait(10)

    # --- what must hold ---------------------------------------------------------------------------------------------

    def _look_back(self) -> None:
        """Wait until nothing is held any more and all serve again; then the history must be clean, and all settled."""
        self.until(lambda: self._all_serve() and not self._left(KEPT | OF_WORKERS), "the queue is empty")
        entries = self.redis.xrange(self.stack.keys.events, self.place)
        self.checker.feed_all(fields for _, fields in entries)
        self.place = b"(" + entries[-1][0] if entries else self.place
        assert not self.checker.violations, f"history: {self.checker.violations[:3]}"
        assert not self.checker.live, f"not settled: {list(self.checker.live)}"
        failed = {life.id: life.reason for life in self.checker.lives.values() if life.state == "failed"}
        wrong = {name: why for name, why in failed.items() if REASONS.get(name.partition("-")[0]) != why}
        assert not wrong, f"failed for another reason: {wrong}"

    def _left(self, known: set[str]) -> list[str]:
        """Return the keys of any other kind."""
        prefix = self.stack.keys.prefix
        names = [key.decode().removeprefix(prefix) for key in self.redis.scan_iter(match=f"{prefix}*", count=1000)]
        return sorted(name for name in names if name.partition(":")[0] not in known)

    def leave(self) -> None:
        """Let all leave in order; nothing of theirs may be left."""
        for name in WORKERS:
            self.processes.pop(name).terminate()
        self.until(lambda: not self._left(KEPT), "nothing of the workers is left")

    def end(self) -> None:
        """End what still runs, come what may."""
        if self.point and self.point.end == "stop" and self.fired.exists():
            self._wake()
        self.stack.end()
        self.redis.close()
