"""The cache of keys and values grows within its limit and keeps what it holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stoker_workers.engines.kv_cache import RowCache, Window

pytestmark = pytest.mark.torch

HEADS, DIM, LAYERS = 2, 3, 2


def write(cache: RowCache, slot: int, position: int, value: float) -> torch.Tensor:
    """Write one token into all layers of a slot; return the slot's keys up to it."""
    index = [torch.tensor([number]) for number in (slot, position, 0, 0)]
    cache.reserve(slot + 1, position + 1)
    cache.window = Window(slot, slot + 1, position + 1, *index)
    states = torch.full((1, HEADS, 1, DIM), float(value))
    for layer in range(LAYERS):
        keys, values = cache.update(states, -states, layer)
        torch.testing.assert_close(keys, -values, rtol=0, atol=0, equal_nan=True)
    return keys


def held(keys: torch.Tensor) -> list[float]:
    assert keys.shape[:2] == (1, HEADS)
    return [float(keys[0, 0, position, 0]) for position in range(keys.shape[2])]


needs = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 5000)), min_size=1, max_size=12)


@given(needs)
def test_it_never_holds_more_than_its_limit_and_always_what_is_needed(needed: list[tuple[int, int]]) -> None:
    limit = 10_000
    cache = RowCache(rows=64, tokens=limit)
    for rows, length in needed:
        if rows * length > limit:
            continue
        cache.reserve(rows, length)
        assert cache._rows >= rows
        assert cache._length >= length
        assert cache._rows * cache._length <= limit
        assert cache._rows <= 64


def test_what_can_never_fit_is_an_error() -> None:
    cache = RowCache(rows=4, tokens=100)
    with pytest.raises(ValueError, match="2 rows x 51 tokens"):
        cache.reserve(2, 51)


def test_growing_keeps_what_rows_hold() -> None:
    cache = RowCache(rows=64, tokens=100_000)
    for position in range(300):
        keys = write(cache, 0, position, position + 1)
        if position % 10 == 0:
            other = write(cache, 1 + position // 10, 0, 1000 + position)
            assert held(other) == [1000 + position]
    assert held(keys) == list(range(1, 301))


def test_a_row_moves_with_all_its_layers() -> None:
    cache = RowCache(rows=4, tokens=1000)
    for position in range(3):
        write(cache, 0, position, 1)
        write(cache, 2, position, 5 + position)
    cache.move(2, 0, 3)
    assert held(write(cache, 0, 3, 9)) == [5, 6, 7, 9]


def test_a_cleared_slot_holds_no_trace_of_what_is_not_a_number() -> None:
    cache = RowCache(rows=4, tokens=1000)
    write(cache, 1, 5, float("nan"))
    cache.clear(1)
    assert held(write(cache, 1, 7, 2)) == [0] * 7 + [2]


def test_the_bytes_of_a_token_count_all_layers() -> None:
    cache = RowCache(rows=1, tokens=100)
    write(cache, 0, 0, 1)
    assert cache.bytes_per_token() == LAYERS * 2 * HEADS * DIM * 4


def test_a_forward_that_was_not_prepared_is_an_error() -> None:
    cache = RowCache(rows=1, tokens=100)
    states = torch.zeros(1, HEADS, 1, DIM)
    with pytest.raises(RuntimeError, match="window"):
        cache.update(states, states, 0)
