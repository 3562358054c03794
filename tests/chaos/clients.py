"""A client's process: `python -m chaos.clients NAME TOTAL LEDGER`; the driver says on stdin how many it may submit.

Its requests are `NAME-0` to `NAME-<TOTAL - 1>`. What became of each goes into the ledger, a line each, at once: a
client that is killed and started again submits under the same ids what the ledger does not have.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaos.models.chaos_model import answer
from stoker import Client, InferenceRequest, InferenceResponse, Job, QueueFull, RedisUnavailable, ResultTimeout
from stoker.config import load_config
from stoker_ops.tied import tie

CHUNK = 8
THREADS = 24
CLASSES = ("normal", "normal", "high", "low", "batch", "critical")
TENANTS = (None, "t1", "t2")
CANCELLED_EVERY = 97
PAUSE_S = 0.1


def text_of(name: str, i: int) -> str:
    """What request `i` of a client asks, of various lengths."""
    return f"{name} asks {i} " + "x" * (i * 7 % 50)


class Submitter:
    """Submits chunks of one client's requests and writes down what became of them."""

    def __init__(self, client: Client, name: str, ledger: Path) -> None:
        self._client, self._name = client, name
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        # A cancel is no outcome: the client may have been killed between the two.
        self._known = {line.split(" ")[0] for line in lines if " cancel-ok " not in line}
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def run(self, numbers: range) -> None:
        """Submit these, cancel some, and wait for all of them, whatever Redis does meanwhile."""
        left = [i for i in numbers if f"{self._name}-{i}" not in self._known]
        jobs = self._submit(left)
        for i in left:
            if i % CANCELLED_EVERY == 0 and self._cancel(jobs[i]):
                self._note(f"{jobs[i].id} cancel-ok -")
        for i in left:
            response = self._wait(jobs[i])
            right = response.status != "succeeded" or response.output == answer(text_of(self._name, i))
            self._note(f"{jobs[i].id} {response.status} {'right' if right else 'wrong'}")

    def _submit(self, numbers: list[int]) -> dict[int, Job]:
        jobs: dict[int, Job] = {}
        while missing := [i for i in numbers if i not in jobs]:
            try:
                outcomes = self._client.submit_many([self._request(i) for i in missing])
            except RedisUnavailable:
                time.sleep(PAUSE_S)
                continue
            for i, outcome in zip(missing, outcomes, strict=True):
                if isinstance(outcome, Job):
                    jobs[i] = outcome
                elif not isinstance(outcome, RedisUnavailable | QueueFull):
                    raise outcome
            if len(jobs) < len(numbers):
                time.sleep(PAUSE_S)
        return jobs

    def _request(self, i: int) -> InferenceRequest:
        name = f"{self._name}-{i}"
        tenant = TENANTS[i // len(CLASSES) % len(TENANTS)]
        priority = CLASSES[i % len(CLASSES)]
        return InferenceRequest(request_id=name, inputs=text_of(self._name, i), priority=priority, tenant=tenant)

    def _cancel(self, job: Job) -> bool:
        while True:
            try:
                return job.cancel()
            except RedisUnavailable:
                time.sleep(PAUSE_S)

    def _wait(self, job: Job) -> InferenceResponse:
        while True:
            try:
                return job.response(timeout=5)
            except (ResultTimeout, RedisUnavailable):
                time.sleep(PAUSE_S)

    def _note(self, line: str) -> None:
        os.write(self._ledger, f"{line}\n".encode())


def main() -> None:
    """Submit as much as stdin allows; end when all of it has its outcome."""
    tie(os.getppid())
    name, total, ledger = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    submitted, running = 0, []
    with Client(config=load_config()) as client, ThreadPoolExecutor(THREADS) as pool:
        submitter = Submitter(client, name, ledger)
        while submitted < total:
            line = sys.stdin.readline()
            if not line:  # the driver is gone
                os._exit(1)
            allowed = min(int(line), total)
            for start in range(submitted, allowed, CHUNK):
                running.append(pool.submit(submitter.run, range(start, min(start + CHUNK, allowed))))
            submitted = max(submitted, allowed)
        for future in running:
            future.result()


if __name__ == "__main__":
    main()
