"""What a step of each worker costs, learned from its beats. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from statistics import median

from stoker.store.records import WorkerRecord

FADE = 0.995
"""What a beat counts less with every later one: half is forgotten after 140."""

NOISE = 0.1
"""How far the mean step of one beat is from what prices say, as a share: the usual deviation."""

DOUBT = 3.0
"""How far a price is from what is believed of it, in times of that: the usual deviation."""

BUSY, STEPS = "busy_us", "steps"
SHAPE = ("prompt_tokens", "row_steps", "token_steps")


@dataclass(frozen=True, slots=True)
class Prices:
    """The milliseconds of a step: for itself, and for each prefilled token, row, and token in the cache."""

    base_ms: float
    prefill_ms: float
    row_ms: float
    resident_ms: float


PRIOR = Prices(7.0, 0.032, 0.02, 0.00005)
"""What is believed before anything is measured: the ratios of 8 billion parameters on a data centre's card."""


@dataclass(slots=True)
class _Sums:
    """The faded sums of one incarnation's beats, each a mean step: its shape and its milliseconds."""

    figures: Mapping[str, int]
    weight: float = 0.0
    shapes: list[float] = field(default_factory=lambda: [0.0] * 4)
    products: list[list[float]] = field(default_factory=lambda: [[0.0] * 4 for _ in range(4)])
    ms: float = 0.0
    times: list[float] = field(default_factory=lambda: [0.0] * 4)

    def add(self, shape: Sequence[float], ms: float) -> None:
        self.weight = self.weight * FADE + 1
        self.ms = self.ms * FADE + ms
        for i, one in enumerate(shape):
            self.shapes[i] = self.shapes[i] * FADE + one
            self.times[i] = self.times[i] * FADE + one * ms
            for j, other in enumerate(shape):
                self.products[i][j] = self.products[i][j] * FADE + one * other


class StepPrices:
    """Fits each worker's prices to the mean steps of its beats.

    Least squares with a prior: a worker whose steps were all alike says nothing about what makes them longer, and is
    believed to have the ratios of `PRIOR`, scaled to its steps. What beats do say outweighs that within some of them.
    """

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}
        self._prices: dict[str, Prices] = {}

    def observe(self, workers: Sequence[WorkerRecord]) -> None:
        """Take in the figures of all workers as read now; those that did not change say nothing."""
        incs = {worker.inc for worker in workers}
        for gone in self._sums.keys() - incs:
            del self._sums[gone]
            self._prices.pop(gone, None)
        for worker in workers:
            sums = self._sums.setdefault(worker.inc, _Sums(worker.figures))
            grown = {name: number - sums.figures.get(name, 0) for name, number in worker.figures.items()}
            steps, busy_us = grown.get(STEPS, 0), grown.get(BUSY, 0)
            if steps > 0 and busy_us > 0:
                sums.figures = worker.figures
                sums.add([1.0, *(max(0, grown.get(name, 0)) / steps for name in SHAPE)], busy_us / 1000 / steps)
                self._prices[worker.inc] = _fit(sums)

    def of(self, inc: str) -> Prices:
        """Return the prices of a worker."""
        return self._prices.get(inc, PRIOR)

    def known(self, inc: str) -> Prices | None:
        """Return the prices of a worker, None while it took no step."""
        return self._prices.get(inc)

    def usual(self) -> Prices:
        """Return the median of the prices that are known."""
        return Prices(*map(median, zip(*map(astuple, self._prices.values()), strict=True))) if self._prices else PRIOR


def _fit(sums: _Sums) -> Prices:
    prior = astuple(PRIOR)
    scale = sums.ms / sum(price * shape for price, shape in zip(prior, sums.shapes, strict=True))
    believed = [scale * price for price in prior]
    variance = (NOISE * sums.ms / sums.weight) ** 2
    system = []
    for i, row in enumerate(sums.products):
        certainty = variance / (DOUBT * believed[i]) ** 2
        explained = sum(one * price for one, price in zip(row, believed, strict=True))
        equation = [*row, sums.times[i] - explained]
        equation[i] += certainty
        system.append(equation)
    return Prices(*(max(0.0, price + more) for price, more in zip(believed, _solve(system), strict=True)))


def _solve(system: list[list[float]]) -> list[float]:
    """Return the x of symmetric, positive equations, each with its right side behind its coefficients."""
    for i, pivot in enumerate(system):
        for other in system[i + 1 :]:
            share = other[i] / pivot[i]
            other[i:] = [a - share * b for a, b in zip(other[i:], pivot[i:], strict=True)]
    found = [0.0] * len(system)
    for i in reversed(range(len(system))):
        known = sum(a * b for a, b in zip(system[i][i + 1 : -1], found[i + 1 :], strict=True))
        found[i] = (system[i][-1] - known) / system[i][i]
    return found
