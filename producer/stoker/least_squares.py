"""Least squares with no solution below 0, for few columns. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

_SINGULAR = 1e-10  # of columns of norm 1: below it they say the same, and their prices cannot be told apart


class Moments:
    """What must be known of rows and their targets to find the x >= 0 for which rows . x is nearest to the targets."""

    def __init__(self, width: int) -> None:
        """Know of no row yet; each will have `width` values."""
        self._products = [[0.0] * width for _ in range(width)]
        self._targets = [0.0] * width

    def add(self, row: Sequence[float], target: float) -> None:
        """Take one row in."""
        for i, value in enumerate(row):
            self._targets[i] += value * target
            for j, other in enumerate(row):
                self._products[i][j] += value * other

    def fade(self, share: float) -> None:
        """Let all rows so far count for only this share of what they did."""
        self._targets = [value * share for value in self._targets]
        self._products = [[value * share for value in row] for row in self._products]

    def solve(self) -> list[float]:
        """Return the x. With so few columns every choice of those that are not 0 can be tried: the best is the one."""
        width = len(self._targets)
        scales = [math.sqrt(self._products[i][i]) or 1.0 for i in range(width)]
        products = [[self._products[i][j] / scales[i] / scales[j] for j in range(width)] for i in range(width)]
        targets = [target / scale for target, scale in zip(self._targets, scales, strict=True)]
        best, most = [0.0] * width, 0.0
        for chosen in (choice for size in range(1, width + 1) for choice in combinations(range(width), size)):
            found = _solve([[*(products[i][j] for j in chosen), targets[i]] for i in chosen])
            if found is None or min(found) < 0:
                continue
            # At the best x of a choice the squares of what is left are those of the targets less this.
            explained = sum(x * targets[i] for i, x in zip(chosen, found, strict=True))
            if explained > most:
                most, best = explained, [0.0] * width
                for i, x in zip(chosen, found, strict=True):
                    best[i] = x / scales[i]
        return best


def least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Return x >= 0 for which rows . x is nearest to the targets."""
    moments = Moments(len(rows[0]))
    for row, target in zip(rows, targets, strict=True):
        moments.add(row, target)
    return moments.solve()


def _solve(system: list[list[float]]) -> list[float] | None:
    """Return the solution of the equations, each its factors and its right side; None where there are many."""
    width = len(system)
    for i in range(width):
        size, pivot = max((abs(system[k][i]), k) for k in range(i, width))
        if size < _SINGULAR:
            return None
        system[i], system[pivot] = system[pivot], system[i]
        for k in set(range(width)) - {i}:
            share = system[k][i] / system[i][i]
            system[k] = [a - share * b for a, b in zip(system[k], system[i], strict=True)]
    return [equation[-1] / equation[i] for i, equation in enumerate(system)]
