"""What requests cost, learned from what workers count: the forecast that deadlines are held against. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

from stoker.forecast import Forecast
from stoker.store.records import WorkerRecord
from stoker_scheduler.placement import Speed
from stoker_scheduler.prices import BUSY, STEPS, Prices, StepPrices

FADE = 0.98
"""What a heartbeat in which a worker took steps counts less with every later one."""

FEWEST = 8
"""Such heartbeats of a worker, and finished requests of the fleet, before anything is foretold."""

CAUTION = 0.8
"""The share of its measured rate that a fleet is counted with: a queue held at the limit must not miss it by noise."""

DONE = ("finished", "prompt_tokens", "generation_tokens")
ASKED_FADE = 0.99
"""What a dispatched request counts less with every later one, in the means of what is asked for."""


@dataclass(slots=True)
class _Track:
    """What one incarnation counted when last seen, and what it finished before."""

    last: Mapping[str, int]
    seen: int = 0
    done: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DONE, 0.0))

    def grow(self, figures: Mapping[str, int]) -> None:
        """Take in the worker's figures of now."""
        grown = {name: figures.get(name, 0) - self.last.get(name, 0) for name in (STEPS, BUSY, *DONE)}
        self.last = figures
        if grown[BUSY] <= 0 or grown[STEPS] <= 0 or min(grown.values()) < 0:
            return
        self.done = {name: number * FADE + grown[name] for name, number in self.done.items()}
        self.seen += 1


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of a usual request: of its prompt and answer, and what prompt and max_tokens it is asked with."""

    prompt: float
    answer: float
    asked_prompt: float
    asked_answer: float


USUAL = Sizes(512.0, 128.0, 512.0, 128.0)
"""What requests are taken for before any was seen."""


@dataclass(frozen=True, slots=True)
class _Full:
    """A worker that holds all it can: its rows, and how long each stays, a step and a token of a prompt take (us)."""

    rows: float
    stay_us: float
    step_us: float
    prompt_us: float


class ServiceTimes:
    """Foretells when a request would be finished.

    1. A step's time is a sum of prices times itself, tokens to prefill, rows, and tokens resident; see `StepPrices`.
    2. A full worker holds as many rows as it has, or as fit its cache, of the size that requests lately had. What a
       step takes then gives its rate, and the time of one request.
    3. Nothing is foretold while no available worker is known well enough. The others count like the mean.
    4. `speeds` are for comparing workers, and there from the start: before requests end their sizes are what was asked
       for, and a worker whose steps are not known yet has the median prices of the others.
    """

    def __init__(self, prices: StepPrices) -> None:
        """Know nothing yet; `prices` are those of steps."""
        self._prices = prices
        self.speeds: dict[str, Speed] = {}
        """How quick each worker is, by incarnation."""
        self._tracks: dict[str, _Track] = {}
        self._weight = self._asked_prompt = self._asked_answer = 0.0

    def observe(self, workers: Sequence[WorkerRecord]) -> None:
        """Take in the records as read now."""
        self._tracks = {worker.inc: self._tracks.get(worker.inc) or _Track(worker.figures) for worker in workers}
        changed = []
        for worker in workers:
            track = self._tracks[worker.inc]
            if worker.figures != track.last:
                track.grow(worker.figures)
                changed.append(worker)
        self._gauge(workers, changed)

    def dispatched(self, requests: Iterable[tuple[int, int]]) -> None:
        """Note the prompt tokens and max_tokens of requests that were handed out."""
        for prompt, answer in requests:
            self._weight = self._weight * ASKED_FADE + 1
            self._asked_prompt = self._asked_prompt * ASKED_FADE + prompt
            self._asked_answer = self._asked_answer * ASKED_FADE + answer

    def _gauge(self, workers: Sequence[WorkerRecord], changed: Sequence[WorkerRecord]) -> None:
        """Work out the speeds of new workers, and of those whose beats told something."""
        self.speeds = {worker.inc: speed for worker in workers if (speed := self.speeds.get(worker.inc))}
        stale = [*changed, *(worker for worker in workers if worker.inc not in self.speeds)]
        if not stale:
            return
        sizes, usual = self._sizes(workers), self._prices.usual()
        for worker in stale:
            self.speeds[worker.inc] = speed_of(worker, self._prices.known(worker.inc) or usual, sizes)

    def _sizes(self, workers: Sequence[WorkerRecord]) -> Sizes:
        """Return the sizes of requests: as they ended, else as they were asked for, else some."""
        asked = USUAL
        if self._weight:
            prompt, answer = self._asked_prompt / self._weight, self._asked_answer / self._weight
            asked = Sizes(prompt, answer, prompt, answer)
        done = {name: sum(self._tracks[worker.inc].done[name] for worker in workers) for name in DONE}
        if done["finished"] < FEWEST or not self._weight:
            return asked
        return replace(
            asked, prompt=done["prompt_tokens"] / done["finished"], answer=done["generation_tokens"] / done["finished"]
        )

    def forecast(self, workers: Sequence[WorkerRecord]) -> Forecast | None:
        """Return what the available of these workers do when they are full, None while too little is known."""
        available = [worker for worker in workers if worker.available]
        known = [(w, t) for w in available if (t := self._tracks.get(w.inc)) and t.seen >= FEWEST]
        done = {name: sum(track.done[name] for _, track in known) for name in DONE}
        if done["finished"] < FEWEST or not self._weight:
            return None
        prompt, answer = (done[name] / done["finished"] for name in ("prompt_tokens", "generation_tokens"))
        return foretell(
            [(worker, self._prices.of(worker.inc)) for worker, _ in known],
            Sizes(prompt, answer, self._asked_prompt / self._weight, self._asked_answer / self._weight),
            len(available),
        )


def speed_of(worker: WorkerRecord, prices: Prices, sizes: Sizes) -> Speed:
    """Return how quick a worker is with requests of such sizes."""
    answer, asked = (0.0, 0.0) if worker.mode == "padded" else (sizes.answer, sizes.asked_answer)
    full = _full(worker, prices, sizes.prompt, answer)
    tokens_per_s = full.rows / full.stay_us * 1e6 * max(1.0, sizes.asked_prompt + asked)
    return Speed(tokens_per_s, prices.base_ms / 1000 * (min(1.0, answer / asked) if asked else 1.0))


def foretell(known: Sequence[tuple[WorkerRecord, Prices]], sizes: Sizes, fleet: int) -> Forecast:
    """Return what a fleet of so many workers does when it is full; `known` are those whose prices are."""
    full = [_full(worker, prices, sizes.prompt, sizes.answer) for worker, prices in known]
    rate = sum(one.rows / one.stay_us for one in full) / len(full) * fleet
    slowest = max(full, key=lambda one: one.step_us)
    share = min(1.0, sizes.answer / sizes.asked_answer) if sizes.asked_answer else 0.0
    return Forecast(
        tokens_per_s=CAUTION * rate * 1e6 * (sizes.asked_prompt + sizes.asked_answer),
        base_us=2 * slowest.step_us,
        prompt_us=slowest.prompt_us,
        answer_us=slowest.step_us * share,
    )


def _full(worker: WorkerRecord, prices: Prices, prompt: float, answer: float) -> _Full:
    """Return the worker when it is full of requests with so many tokens of prompt and answer."""
    base, prefill, row, resident = (1000 * price for price in astuple(prices))
    if not answer:  # padded: a batch is a step
        rows = max(1.0, min(worker.rows, worker.capacity / max(prompt, 1), worker.budget / max(prompt, 1)))
        step_us = max(base + rows * (row + (prefill + resident) * prompt), 1.0)
        return _Full(rows, step_us, step_us, 0.0)
    rows = max(1.0, min(worker.rows, worker.capacity / (prompt + answer)))
    step_us = max(base + rows * (row + resident * (prompt + answer / 2) + prefill * prompt / answer), 1.0)
    return _Full(rows, step_us * answer, step_us, prefill)
