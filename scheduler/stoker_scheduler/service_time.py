"""What requests cost, learned from what workers count: the forecast that deadlines are held against. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stoker.forecast import Forecast
from stoker.least_squares import Moments
from stoker.store.records import WorkerRecord

FADE = 0.98
"""What a heartbeat in which a worker took steps counts less with every later one."""

FEWEST = 8
"""Such heartbeats of a worker, and finished requests of the fleet, before anything is foretold."""

CAUTION = 0.8
"""The share of its measured rate that a fleet is counted with: a queue held at the limit must not miss it by noise."""

REFIT = 8
"""Heartbeats between fits of a worker's prices: one takes some 0.3 ms, and a fleet has hundreds of workers."""

SHAPE = ("steps", "prompt_tokens", "row_steps", "token_steps")
Prices = tuple[float, ...]
"""What each of `SHAPE` costs, in microseconds."""

DONE = ("finished", "prompt_tokens", "generation_tokens")
ASKED_FADE = 0.99
"""What a dispatched request counts less with every later one, in the means of what is asked for."""


@dataclass(slots=True)
class _Track:
    """What one incarnation counted when last seen, and what is known of how that grew before."""

    last: Mapping[str, int]
    seen: int = 0
    moments: Moments = field(default_factory=lambda: Moments(len(SHAPE)))
    done: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DONE, 0.0))
    prices: Prices = ()

    def grow(self, figures: Mapping[str, int]) -> None:
        """Take in the worker's figures of now."""
        grown = {name: figures.get(name, 0) - self.last.get(name, 0) for name in {*SHAPE, *DONE, "busy_us"}}
        self.last = figures
        busy_us = grown["busy_us"]
        if busy_us <= 0 or grown["steps"] <= 0 or min(grown.values()) < 0:
            return
        # By the time of each: the variance of a sum of steps grows with it, as in `stoker profile`.
        weight = busy_us**-0.5
        self.moments.fade(FADE)
        self.moments.add([grown[name] * weight for name in SHAPE], busy_us * weight)
        self.done = {name: number * FADE + grown[name] for name, number in self.done.items()}
        self.seen += 1
        if self.seen % REFIT == 0:
            self.prices = ()

    def fitted(self) -> Prices:
        """Return the worker's prices."""
        self.prices = self.prices or tuple(self.moments.solve())
        return self.prices


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of a usual request: of its prompt and answer, and what prompt and max_tokens it is asked with."""

    prompt: float
    answer: float
    asked_prompt: float
    asked_answer: float


@dataclass(frozen=True, slots=True)
class _Full:
    """A worker that holds all it can: its rows, and how long each stays, a step and a token of a prompt take (us)."""

    rows: float
    stay_us: float
    step_us: float
    prompt_us: float


class ServiceTimes:
    """Learns what a step costs each worker, and foretells when a request would be finished.

    1. A step's time is a sum of prices times what `SHAPE` counts: itself, tokens to prefill, rows, tokens resident. The
       prices come by least squares from the worker's last heartbeats, older ones counting less.
    2. A full worker holds as many rows as it has, or as fit its cache, of the size that requests lately had. What a
       step takes then gives its rate, and the time of one request.
    3. Nothing is foretold while no available worker is known well enough. The others count like the mean.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._tracks: dict[str, _Track] = {}
        self._weight = self._asked_prompt = self._asked_answer = 0.0

    def observe(self, workers: Sequence[WorkerRecord]) -> None:
        """Take in the records as read now."""
        self._tracks = {worker.inc: self._tracks.get(worker.inc) or _Track(worker.figures) for worker in workers}
        for worker in workers:
            track = self._tracks[worker.inc]
            if worker.figures != track.last:
                track.grow(worker.figures)

    def dispatched(self, requests: Iterable[tuple[int, int]]) -> None:
        """Note the prompt tokens and max_tokens of requests that were handed out."""
        for prompt, answer in requests:
            self._weight = self._weight * ASKED_FADE + 1
            self._asked_prompt = self._asked_prompt * ASKED_FADE + prompt
            self._asked_answer = self._asked_answer * ASKED_FADE + answer

    def forecast(self, workers: Sequence[WorkerRecord]) -> Forecast | None:
        """Return what the available of these workers do when they are full, None while too little is known."""
        available = [worker for worker in workers if worker.available]
        known = [(w, t) for w in available if (t := self._tracks.get(w.inc)) and t.seen >= FEWEST]
        done = {name: sum(track.done[name] for _, track in known) for name in DONE}
        if done["finished"] < FEWEST or not self._weight:
            return None
        prompt, answer = (done[name] / done["finished"] for name in ("prompt_tokens", "generation_tokens"))
        return foretell(
            [(worker, track.fitted()) for worker, track in known],
            Sizes(prompt, answer, self._asked_prompt / self._weight, self._asked_answer / self._weight),
            len(available),
        )


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
    base, prefill, row, resident = prices
    if not answer:  # padded: a batch is a step
        rows = max(1.0, min(worker.rows, worker.capacity / max(prompt, 1), worker.budget / max(prompt, 1)))
        step_us = max(base + rows * (row + (prefill + resident) * prompt), 1.0)
        return _Full(rows, step_us, step_us, 0.0)
    rows = max(1.0, min(worker.rows, worker.capacity / (prompt + answer)))
    step_us = max(base + rows * (row + resident * (prompt + answer / 2) + prefill * prompt / answer), 1.0)
    return _Full(rows, step_us * answer, step_us, prefill)
