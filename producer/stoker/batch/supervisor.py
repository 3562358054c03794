"""`stoker batch-worker`: keeps RQ workers running, and sees that every live batch has a run.

Here, not in the scheduler: what enqueues runs needs RQ, and must not stand in the way of requests. Several supervisors
may look at once; the script numbers a run for one of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import structlog

from stoker.batch.jobs import SLOT_S
from stoker.batch.rq_queue import RunQueue
from stoker.config import Config, environment_of
from stoker.errors import RedisUnavailable
from stoker.every import Outage
from stoker.store import batches
from stoker.store.connection import Store, new_id

log = structlog.get_logger()

LOOK_S = 2.0
CLEAN_S = 15.0
TURN_S = 0.2
CALM_S = 60.0
BACKOFF_MAX_S = 10.0
STOP_S = 15.0


class Kept:
    """One RQ worker: started, and started again when it dies."""

    def __init__(self, config: Config, log_level: str) -> None:
        """Prepare a worker; `turn` starts it."""
        self._environment = environment_of(config)
        self._command = [sys.executable, "-P", "-m", "stoker.batch.worker", str(os.getpid()), log_level]
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._failures = 0

    def turn(self) -> None:
        """Start the worker if it does not run, with back-off where it keeps dying."""
        process, now = self._process, time.monotonic()
        if process is None:
            self._start()
        elif process.poll() is not None and now >= self._started + self._pause_s:
            if now - self._started >= CALM_S:
                self._failures = 0
            self._failures += 1
            log.warning("batch worker died, starting it again", code=process.returncode)
            self._start()

    @property
    def _pause_s(self) -> float:
        return 0.0 if self._failures == 0 else min(BACKOFF_MAX_S, 0.5 * 2.0**self._failures)

    def _start(self) -> None:
        # A group of its own: the terminal's Ctrl-C goes to the supervisor, which stops workers in order.
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._started = time.monotonic()

    def signal(self, number: signal.Signals) -> None:
        """Send the worker a signal, if it runs."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, patience_s: float) -> None:
        """Wait for its end, and kill it after `patience_s` seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()


class Supervisor:
    """Runs in the main thread of its process, until SIGTERM or SIGINT.

    1. Keeps `runs` RQ workers running; each runs one batch at a time.
    2. Every 2 s enqueues a run for each batch that nobody holds and that no job waits for.
    3. Every 15 s lets RQ clean its registries; every 10 min enqueues a sweep.
    """

    def __init__(self, config: Config, *, runs: int, log_level: str) -> None:
        """Prepare for `runs` batches at a time."""
        self._config = config
        self._store = Store(config.home)
        self._workers = [Kept(config, log_level) for _ in range(runs)]
        self._rq: RunQueue | None = None
        self._stop = threading.Event()
        self._outage = Outage()
        self._due: dict[Callable[[], None], float] = {self.look: 0.0, self._clean: 0.0, self._sweep: 0.0}
        self._every = {self.look: LOOK_S, self._clean: CLEAN_S, self._sweep: float(SLOT_S)}

    def run(self) -> None:
        """Work until told to end. Raises `ConfigError` on a Redis that is a cluster."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        try:
            while not self._stop.is_set():
                self.turn()
                self._stop.wait(TURN_S)
        finally:
            self._end()

    def _told(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            for worker in self._workers:
                worker.signal(signal.SIGKILL)
        self._stop.set()

    def turn(self) -> None:
        """Do what is due; while Redis is away, say so once and go on trying."""
        try:
            # The workers only once Redis is there: they would die of its absence over and over.
            self._connect()
            for worker in self._workers:
                worker.turn()
            for task, due in self._due.items():
                if time.monotonic() >= due:
                    task()
                    self._due[task] = time.monotonic() + self._every[task]
        except RedisUnavailable as error:
            self._outage.lost("turn", error)
        else:
            self._outage.back("turn")

    def _connect(self) -> RunQueue:
        if self._rq is None:
            self._rq = RunQueue(self._config)
        return self._rq

    def look(self) -> None:
        """Enqueue a run for each batch that has none."""
        keys = self._store.keys
        ids = self._store.read(batches.due_ids(keys))
        records = self._store.read(batches.records(keys, ids))
        for batch_id, record in zip(ids, records, strict=True):
            runs = record.runs if record else 0
            if runs and self._connect().waits(batch_id, runs):
                continue
            number = self._store.run(batches.enqueue_batch(batch_id, runs, new_id()))
            if number is not None and self._connect().enqueue_run(batch_id, number):
                log.info("batch run enqueued", batch=batch_id, run=number)

    def _clean(self) -> None:
        self._connect().clean()

    def _sweep(self) -> None:
        self._connect().enqueue_sweep(int(time.time() // SLOT_S))

    def _end(self) -> None:
        for worker in self._workers:
            worker.signal(signal.SIGTERM)
        give_up = time.monotonic() + STOP_S
        for worker in self._workers:
            worker.wait(max(0.1, give_up - time.monotonic()))
        with contextlib.suppress(RedisUnavailable):
            if self._rq:
                self._rq.close()
        self._store.close()
