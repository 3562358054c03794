"""Least squares with no solution below 0, for few columns. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

_SINGULAR = 1e-10  # of columns of norm 1: below it they say the same, and their prices cannot be told apart


def least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Return the x >= 0 for which rows . x is nearest to the targets.

    With so few columns every choice of those that are not 0 can be tried: the best is the one.
    """
    columns = list(zip(*rows, strict=True))
    scales = [math.sqrt(_dot(column, column)) or 1.0 for column in columns]
    scaled = [[value / scale for value in column] for column, scale in zip(columns, scales, strict=True)]
    products = [[_dot(one, other) for other in scaled] for one in scaled]
    along = [_dot(column, targets) for column in scaled]
    best, most = [0.0] * len(columns), 0.0
    for chosen in (choice for size in range(1, len(columns) + 1) for choice in combinations(range(len(columns)), size)):
        found = _solve([[*(products[i][j] for j in chosen), along[i]] for i in chosen])
        if found is None or min(found) < 0:
            continue
        # At the best x of a choice the squares of what is left are those of the targets less this.
        explained = sum(x * along[i] for i, x in zip(chosen, found, strict=True))
        if explained > most:
            most, best = explained, [0.0] * len(columns)
            for i, x in zip(chosen, found, strict=True):
                best[i] = x / scales[i]
    return best


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


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
