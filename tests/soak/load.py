"""The client of a soak: `python -m soak.load SEED` sends requests of every kind until it is told to end (SIGTERM).

Then it waits for all that is under way, and says on standard output how many there were of each kind.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable

from stoker import Client, InferenceRequest, StokerError
from stoker.config import load_config
from stoker_ops.tied import tie

THREADS = 6
PAUSE_S = 0.02
KINDS = ("one", "one", "many", "stream", "cancel", "late", "refused", "unholdable")
UNHOLDABLE = 5000
"""Tokens of a prompt that no worker of the soak can hold: it ends in the dead letters."""


class Caller:
    """One thread's requests, one after the other, of a kind at random."""

    def __init__(self, client: Client, seed: str) -> None:
        self.seen: Counter[str] = Counter()
        self._client, self._rng = client, random.Random(seed)

    def run(self, over: threading.Event) -> None:
        """Call until it is over; what a fault does to a call is counted, and no more."""
        while not over.wait(PAUSE_S):
            kind = self._rng.choice(KINDS)
            act: Callable[[], int] = getattr(self, kind)
            try:
                self.seen[kind] += act()
            except StokerError as error:
                self.seen[f"{kind}: {type(error).__name__}"] += 1

    def one(self) -> int:
        """A request whose answer is waited for."""
        self._client.submit(prompt_tokens=self._prompt(), max_tokens=self._length()).response(timeout=60)
        return 1

    def many(self) -> int:
        """Requests of all classes in one call."""
        classes = ("critical", "high", "normal", "low", "batch")
        requests = [
            InferenceRequest(prompt_tokens=self._prompt(), max_tokens=self._length(), priority=name) for name in classes
        ]
        for job in self._client.submit_many(requests):
            job.response(timeout=60)
        return len(requests)

    def stream(self) -> int:
        """A request whose tokens are read as they come."""
        for _ in self._client.submit(prompt_tokens=self._prompt(), max_tokens=self._length(), stream=True).stream():
            pass
        return 1

    def cancel(self) -> int:
        """A request that is taken back."""
        self._client.submit(prompt_tokens=self._prompt(), max_tokens=self._length()).cancel()
        return 1

    def late(self) -> int:
        """A request whose deadline is sometimes too close."""
        self._client.submit(prompt_tokens=self._prompt(), max_tokens=self._length(), timeout=0.2).response(timeout=60)
        return 1

    def refused(self) -> int:
        """A request that the worker refuses: its model has no such token."""
        self._client.submit(prompt_tokens=[1 << 20], max_tokens=4).response(timeout=60)
        return 1

    def unholdable(self) -> int:
        """A request that becomes a dead letter."""
        self._client.submit(prompt_tokens=[1] * UNHOLDABLE, max_tokens=4).response(timeout=60)
        return 1

    def _prompt(self) -> list[int]:
        return [self._rng.randrange(1, 1000) for _ in range(self._rng.randint(1, 60))]

    def _length(self) -> int:
        return self._rng.randint(1, 40)


def main() -> None:
    """Call from several threads until SIGTERM."""
    tie(os.getppid())
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    with Client(config=load_config()) as client:
        callers = [Caller(client, f"{sys.argv[1]}-{i}") for i in range(THREADS)]
        threads = [threading.Thread(target=caller.run, args=(over,)) for caller in callers]
        for thread in threads:
            thread.start()
        over.wait()
        for thread in threads:
            thread.join()
    sys.stdout.write(f"{json.dumps(sum((caller.seen for caller in callers), Counter()))}\n")


if __name__ == "__main__":
    main()
