"""Least squares whose solution has nothing below 0."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from stoker_workers.least_squares import least_squares


@given(
    st.lists(st.integers(0, 100), min_size=4, max_size=4),
    st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=8, max_size=20),
)
def test_what_is_left_over_cannot_be_made_smaller(prices: list[int], rows: list[tuple[int, ...]]) -> None:
    random = Random(3)
    targets = [sum(p * x for p, x in zip(prices, row, strict=True)) + random.uniform(-5, 5) for row in rows]
    found = least_squares(rows, targets)

    def left(x: list[float]) -> float:
        return sum(
            (sum(a * b for a, b in zip(x, row, strict=True)) - t) ** 2 for row, t in zip(rows, targets, strict=True)
        )

    assert min(found) >= 0
    most = sum(target**2 for target in targets)
    assert left(found) <= left([float(price) for price in prices]) + 1e-6 * most + 1e-6
    for place in range(4):
        for change in (0.99, 1.01):
            near = [x * change if at == place else x for at, x in enumerate(found)]
            assert left(found) <= left(near) + 1e-6 * most + 1e-6
