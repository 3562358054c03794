"""The right to run one batch: five seconds long, renewed each second by a thread of its own."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from stoker.config import Config
from stoker.errors import RedisUnavailable, StokerError
from stoker.store.batches import Leased, end_batch, lease_batch
from stoker.store.connection import Store, new_id

RENEW_S = 1.0
RETRY_S = 0.2


class LeaseLost(StokerError):
    """Another run has the batch, or it is not to be run any more."""


class Lease:
    """One run's lease.

    1. `take` gets it, or not; then a thread renews it each second, and hears what is wanted of the batch.
    2. While Redis does not answer the run goes on: what it writes stands under its epoch, whoever takes the lease.
    3. `end` gives it up and says how the batch stands.
    """

    def __init__(self, config: Config, batch_id: str) -> None:
        """Prepare for one run of a batch."""
        self._batch_id = batch_id
        self._store = Store(config.home)
        self._nonce = new_id()
        self._host = socket.gethostname().split(".")[0]
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress = ""
        self.heard = threading.Event()
        """Set when something else than to go on is wanted, or the lease is lost."""
        self._lost = False
        self._leased = Leased("")
        self._window_ends = 0.0

    def take(self) -> Leased | None:
        """Take the lease and begin to renew it; None where there is nothing to run. Raises `RedisUnavailable`."""
        leased = self._store.run_patiently(lease_batch(self._batch_id, self._nonce, 0, self._host, ""))
        if leased.word != "HELD":
            return None
        self._hear(leased)
        self._thread = threading.Thread(target=self._renew, name="stoker-batch-lease", daemon=True)
        self._thread.start()
        return leased

    @property
    def epoch(self) -> int:
        """Which lease of the batch this is."""
        return self._leased.epoch

    @property
    def want(self) -> str:
        """What is wanted of the batch: run, pause or cancel. Raises `LeaseLost`."""
        self.check()
        return self._leased.want

    @property
    def left_s(self) -> float:
        """Seconds until the batch's window ends."""
        return self._window_ends - time.monotonic()

    def check(self) -> None:
        """Raise `LeaseLost` if another run has the batch."""
        if self._lost:
            raise LeaseLost(f"batch {self._batch_id!r} is run by another, or is no longer known")

    def confirm(self) -> None:
        """Ask Redis whether the lease is still held; raises `LeaseLost`. A Redis that is away is no answer."""
        try:
            self._ask()
        except RedisUnavailable:
            return
        self.check()

    def tell(self, progress: Mapping[str, Any]) -> None:
        """Have the next renewal say how far the run is."""
        self._progress = json.dumps(progress)

    def end(self, state: str, why: str = "") -> None:
        """Give the lease up; the batch is `state` now. Raises `LeaseLost`, and `RedisUnavailable`."""
        self.close()
        word = self._store.run_patiently(end_batch(self._batch_id, self._nonce, state, self._progress, why))
        if word != "OK":
            self._lost = True
            self.check()

    def close(self) -> None:
        """Stop renewing."""
        self._over.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def _renew(self) -> None:
        pause = RENEW_S
        while not self._over.wait(pause):
            try:
                self._ask()
                pause = RENEW_S
            except RedisUnavailable:
                pause = RETRY_S
            if self._lost:
                return

    def _ask(self) -> None:
        self._hear(self._store.run(lease_batch(self._batch_id, self._nonce, self.epoch, self._host, self._progress)))

    def _hear(self, leased: Leased) -> None:
        if leased.word != "HELD":
            self._lost = True
            self.heard.set()
            return
        self._window_ends = time.monotonic() + leased.left_us / 1e6
        self._leased = leased
        if leased.want != "run":
            self.heard.set()
