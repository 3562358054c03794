"""Watches a worker's counters while it runs a load: samples, out of which a profile is fitted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from stoker.client import Client
from stoker.errors import ConfigError, StokerError
from stoker.request import InferenceRequest
from stoker.store.records import WorkerRecord
from stoker_workers.cost_fit import LEAST, Sample, difference

ROWS = (1, 4, 16)
PROMPTS = (16, 128, 512)
ANSWERS = (8, 64)
TURNS = 2
"""How many requests a load has for each row."""
TIMEOUT_S = 600.0
"""How long a request of a load may take."""
BEATS = 50
"""Heartbeats that a worker may keep its counters for itself."""

_POLLS = 10  # a heartbeat: how soon a new one is seen
_SEED = 1
_TOKENS = 1000  # prompts are of ids below it, where the model has no bound


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests at a time, each of half to all of a size in tokens.

    Their sizes differ, so that one is prefilled beside others that decode, as it is in traffic: prompts that are
    prefilled together cost a model less each.
    """

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
        """Run loads of several sizes; a sample is what one added to the counters. `progress` hears done and all.

        Raises the error of a request that failed.
        """
        card = self._client.queue_card()
        if card is None or card.padded or card.task != "generate":
            raise ConfigError(f"worker: {self.name!r} generates no tokens; only engines that do can be profiled")
        loads = self._loads(card.context)
        vocabulary = min(card.vocabulary or _TOKENS, _TOKENS)
        before, samples = self._run(loads[-1], vocabulary), []  # the first load may cost extra
        for number in range(rounds * len(loads)):
            after = self._run(loads[number % len(loads)], vocabulary)
            samples.append(difference(before.figures, after.figures))
            before = after
            progress(number + 1, rounds * len(loads))
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

    def _loads(self, context: int) -> list[Load]:
        """Return the loads that the worker has room for."""
        most = self._first
        loads = [Load(*sizes) for sizes in product(ROWS, PROMPTS, ANSWERS)]
        room = min(context or most.capacity, most.capacity)
        return [load for load in loads if load.rows <= most.rows and load.prompt + load.answer <= room]

    def _run(self, load: Load, vocabulary: int) -> WorkerRecord:
        """Run a load and return the record that has all of it."""
        finished = self._look().figures["finished"]
        with Client(config=self._client.config.model_copy(update={"in_flight": load.rows})) as client:
            for response in client.map(self._requests(load, vocabulary)):
                if response.error:
                    raise response.error
                finished += response.worker == self.name
        return self._until(lambda record: record.figures["finished"] >= finished)

    def _requests(self, load: Load, vocabulary: int) -> Iterator[InferenceRequest]:
        for _ in range(TURNS * load.rows):
            prompt, answer = (self._numbers.randint(size // 2, size) for size in (load.prompt, load.answer))
            yield InferenceRequest(
                prompt_tokens=[self._numbers.randrange(vocabulary) for _ in range(prompt)],
                max_tokens=answer,
                ignore_eos=True,
                timeout=TIMEOUT_S,
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
