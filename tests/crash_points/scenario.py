"""One life of a small stack in which one process ends, or stands still for 5 T, at one point."""

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
WORKERS = ("one", "two")
OPTIONS = ("--max-num-seqs", "8", "--kv-cache-tokens", "60000")
SETTINGS = {
    "STOKER_UNSCHEDULABLE_S": "0.5",
    "STOKER_DRAIN_TIMEOUT_S": "0.2",
    "STOKER_BACKOFF_MIN_MS": "200",
    "STOKER_BLOCK_MS": "200",
}
EXPECTED = {
    **{f"plain-{i}": ("succeeded", 40) for i in range(6)},
    **{f"stream-{i}": ("succeeded", 120) for i in range(2)},
    "flaky": ("succeeded", 4),
    "beside": ("succeeded", 30),
    "poison": ("failed", 0),
    "cancelled": ("cancelled", 0),
    "late": ("expired", 0),
    "huge": ("failed", 0),
}
OFTEN = {"lead": 6, "beat": 4, "view": 6, "step": 10, "begin-step": 10, "end-step": 10, "publish-counters": 10}
"""What happens all the time: the how manieth time is the one, so that it falls into the middle of the work."""

KEPT = ("result:", "dead", "events", "leader", "epoch", "incs", "tick", "grace", "skew", "mark", "generation", "h")
KEPT += ("card", "counts", "histograms", "rates", "bell", "reply:", "tokens:", "void:", "obituary:")
"""What may be left in Redis at the end: keys with a TTL, and those that are there for good."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where it happens, like `child settle after`, and what: exit or stop."""

    name: str
    end: str

    @property
    def nth(self) -> int:
        """The how manieth time."""
        return OFTEN.get(self.name.split(" ")[1].removeprefix("read-"), 1)


class Scenario:
    """Runs the stack to its end, restarts what ends, and wakes what stands still. `folder` must be empty."""

    def __init__(self, url: str, folder: Path, point: Point | None = None) -> None:
        """Without a point it notes in the folder which points there are."""
        self.folder = folder
        self.point = point
        (folder / "logs").mkdir()
        (folder / "points").mkdir()
        self.fired = folder / "points" / "fired"
        self.outcomes = folder / "outcomes.json"
        self.stack = Stack(url, folder / "logs")
        self.stack.environment |= SETTINGS | {
            "PYTHONPATH": str(HERE / "hook"),
            "CRASH_POINT_FOLDER": str(folder / "points"),
        }
        if point:
            wanted = {"CRASH_POINT": point.name, "CRASH_POINT_END": point.end, "CRASH_POINT_NTH": str(point.nth)}
            self.stack.environment |= wanted
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ending: set[str] = set()
        self.wake_at = 0.0
        self.woken = False

    def run(self) -> None:
        """Run; fails by an AssertionError that says what is wrong."""
        try:
            self._live()
            self._take_leave()
        finally:
            self._end()
        self._check()

    # --- the processes ----------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        if name == "scheduler":
            self.processes[name] = self.stack.scheduler()
        elif name == "client":
            self.processes[name] = self.stack.python("client", str(HERE / "one_client.py"), str(self.outcomes))
        else:
            self.processes[name] = self.stack.worker(name, *OPTIONS, wait=False)

    def tend(self) -> None:
        """Start again what ended without being asked to, as a service manager would, and wake what slept 5 T."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None and name not in self.ending and not (name == "client" and self.answered()):
                self.start(name)
        if self.point and self.point.end == "stop" and self.fired.exists() and not self.woken:
            self.wake_at = self.wake_at or time.monotonic() + 5 * self.stack.config.lease_us / 1e6
            if time.monotonic() >= self.wake_at:
                self._wake()

    def _wake(self) -> None:
        self.woken = True
        pid = int(self.fired.read_text())
        if not process_is_gone(pid):
            os.kill(pid, signal.SIGCONT)

    def until(self, condition: Callable[[], object], what: str) -> None:
        limit = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < limit, f"not within {LIMIT_S:.0f} s: {what}"
            self.tend()
            time.sleep(0.02)

    def answered(self) -> bool:
        return self.outcomes.exists()

    # --- the story --------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        """Serve a client; meanwhile one worker is told to leave, and another process takes its place."""
        for name in ("scheduler", *WORKERS):
            self.start(name)
        self.until(lambda: all(map(self.stack.incarnation, WORKERS)), "both workers registered")
        self.start("client")
        self.until(lambda: self.stack.running("one") or self.answered(), "the first worker runs something")
        self.processes["one"].terminate()
        self.until(self.answered, "the client has all its answers")

    def _take_leave(self) -> None:
        """Let the workers go, then the scheduler; one that dies of it is buried by the scheduler."""
        self.until(lambda: not self.point or self.fired.exists() or self._comes_last(), f"{self.point} is reached")
        for name in WORKERS:
            self.ending.add(name)
            self.processes[name].terminate()
        self.until(lambda: all(self.processes[name].poll() is not None for name in WORKERS), "the workers end")
        self.until(lambda: not self.stack.redis.exists(self.stack.keys.inc), "no incarnation is left")
        self.ending.add("scheduler")
        self.processes["scheduler"].terminate()
        self.until(lambda: self.processes["scheduler"].poll() is not None, "the scheduler ends")

    def _comes_last(self) -> bool:
        return self.point is not None and self.point.name.startswith("scheduler resign")

    def _end(self) -> None:
        if self.fired.exists() and not self.woken and self.point and self.point.end == "stop":
            self._wake()
        self.stack.end()

    # --- what must hold ---------------------------------------------------------------------------------------------

    def _check(self) -> None:
        ends = {name: (end["status"], end["tokens"]) for name, end in json.loads(self.outcomes.read_text()).items()}
        assert ends == EXPECTED, f"outcomes: {sorted(set(ends.items()) ^ set(EXPECTED.items()))}"
        assert self.point is None or self.fired.exists(), "the point was never reached"
        checker = HistoryChecker(self.stack.config.lease_us)
        prefix = self.stack.keys.prefix
        with redis.Redis.from_url(self.stack.url) as client:
            checker.feed_all(fields for _, fields in client.xrange(self.stack.keys.events))
            names = [key.decode().removeprefix(prefix) for key in client.scan_iter(match=f"{prefix}*")]
        assert not checker.violations, f"history: {checker.violations[:3]}"
        totals = checker.totals()
        assert (totals["submitted"], totals["live"]) == (len(EXPECTED), 0), f"not settled once: {totals}"
        left = sorted(name for name in names if not name.startswith(KEPT))
        assert not left, f"left in Redis: {left}"
