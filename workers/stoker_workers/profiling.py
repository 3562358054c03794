"""Watches a worker's counters while it runs a load: samples, out of which a profile is fitted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from stoker.client import Client, Job
from stoker.errors import ConfigError, StokerError
from stoker.request import InferenceRequest
from stoker.store.records import WorkerRecord
from stoker_workers.cost_fit import LEAST, Sample, difference

ROWS = (1, 4, 16)
PROMPTS = (16, 128, 512)
ANSWERS = (8, 64)
BURST_S = 600.0
"""How long a burst may take, of at most 16 requests."""
BEATS = 50
"""Heartbeats that a worker may keep its counters for itself."""

_POLLS = 10  # a heartbeat: how soon a new one is seen
_SEED = 1
_TOKENS = 1000  # prompts are of ids below it, where the model has no bound


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests that are submitted together, of one size in tokens."""

    rows: int
    prompt: int
    answer: int


class Profiler:
    """One worker of a queue, looked at through the heartbeats of its present incarnation."""

    def __init__(self, client: Client, worker: str | None) -> None:
        """Find the worker; None for the only one. Raises `ConfigError` where there is none, or several."""
        self._client = client
        found = [record for record in client.workers() if worker in (None, record.worker) and record.available]
        if len(found) != 1:
            names = ", ".join(sorted(record.worker for record in found)) or "none"
            wanted = "the queue's only worker" if worker is None else repr(worker)
            raise ConfigError(f"worker: {wanted} must be there and accepting, found {names}; see `stoker workers`")
        self._first = found[0]
        self._numbers = random.Random(_SEED)  # noqa: S311  # a load, not a secret
        self._until(lambda record: "token_steps" in record.figures)  # they come with its first heartbeat

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._first.worker

    def under_load(self, rounds: int, progress: Callable[[int, int], None]) -> list[Sample]:
        """Submit bursts of several sizes; a sample is what one added to the counters. `progress` hears done and all.

        Raises the error of a request that failed.
        """
        card = self._client.queue_card()
        if card is None or card.padded or card.task != "generate":
            raise ConfigError(f"worker: {self.name!r} generates no tokens; only engines that do can be profiled")
        bursts = self._bursts(card.context)
        vocabulary = min(card.vocabulary or _TOKENS, _TOKENS)
        before, samples = self._run(bursts[-1], vocabulary), []  # the first burst may cost extra
        for number in range(rounds * len(bursts)):
            after = self._run(bursts[number % len(bursts)], vocabulary)
            samples.append(difference(before.figures, after.figures))
            before = after
            progress(number + 1, rounds * len(bursts))
        return samples

    def watching(self, seconds: float, progress: Callable[[int, int], None]) -> list[Sample]:
        """Submit nothing, and take a sample a heartbeat of what the worker does anyway; `progress` hears seconds."""
        samples, began, before = [], time.monotonic(), self._look()
        while (passed := time.monotonic() - began) < seconds:
            progress(int(passed), int(seconds))
            self._pause()
            now = self._look()
            if now.figures != before.figures:
                samples.append(difference(before.figures, now.figures))
                before = now
        if len(samples) < LEAST:
            raise StokerError(f"profile: {self.name!r} did too little in {seconds:g} s; leave out --no-load")
        return samples

    def _bursts(self, context: int) -> list[Burst]:
        """Return the bursts that the worker has room for."""
        most = self._first
        bursts = [Burst(*sizes) for sizes in product(ROWS, PROMPTS, ANSWERS)]
        room = min(context or most.capacity, most.capacity)
        return [burst for burst in bursts if burst.rows <= most.rows and burst.prompt + burst.answer <= room]

    def _run(self, burst: Burst, vocabulary: int) -> WorkerRecord:
        """Run a burst and return the record that has all of it."""
        finished = self._look().figures["finished"]
        for response in self._client.as_completed(self._submit(burst, vocabulary), BURST_S):
            if response.error:
                raise response.error
            finished += response.worker == self.name
        return self._until(lambda record: record.figures["finished"] >= finished)

    def _submit(self, burst: Burst, vocabulary: int) -> list[Job | StokerError]:
        prompts = [[self._numbers.randrange(vocabulary) for _ in range(burst.prompt)] for _ in range(burst.rows)]
        return self._client.submit_many(
            InferenceRequest(prompt_tokens=prompt, max_tokens=burst.answer, ignore_eos=True) for prompt in prompts
        )

    def _until(self, holds: Callable[[WorkerRecord], bool]) -> WorkerRecord:
        """Return the first record for which `holds`, of those that heartbeats bring."""
        deadline = time.monotonic() + BEATS * self._client.config.heartbeat_ms / 1000
        while not holds(record := self._look()):
            if time.monotonic() > deadline:
                raise StokerError(f"worker {self.name!r} told nothing new in {BEATS} heartbeats; see `stoker workers`")
            self._pause()
        return record

    def _look(self) -> WorkerRecord:
        for record in self._client.workers():
            if record.inc == self._first.inc:
                return record
        raise StokerError(f"worker {self.name!r} ended or began anew while it was profiled; run it again")

    def _pause(self) -> None:
        time.sleep(self._client.config.heartbeat_ms / 1000 / _POLLS)
