"""The cache of keys and values hands out blocks within its limit and keeps what they hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stoker_workers.engines.kv_cache import BLOCK, PagedCache, blocks_of

pytestmark = pytest.mark.torch

HEADS, DIM, LAYERS = 2, 3, 2


def write(cache: PagedCache, table: list[int], position: int, value: float) -> None:
    """Write one token into all layers of a sequence."""
    assert cache.extend(table, position + 1)
    cache.places = torch.tensor([[table[position // BLOCK]], [position % BLOCK]])
    states = torch.full((1, HEADS, 1, DIM), float(value))
    for layer in range(LAYERS):
        assert cache.update(states, -states, layer)[0] is states


def held(cache: PagedCache, table: list[int], layer: int = 0) -> list[float]:
    keys, values = cache.read(layer, torch.tensor(table), len(table))
    assert keys.shape == (len(table), HEADS, BLOCK, DIM)
    torch.testing.assert_close(keys, -values, rtol=0, atol=0, equal_nan=True)
    return keys[:, 0, :, 0].flatten().tolist()


# Each step: which of eight sequences, and how many tokens it shall hold (0: it leaves).
steps = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 12 * BLOCK)), max_size=60)


@given(steps, st.integers(1, 20))
def test_no_block_is_with_two_sequences_and_none_is_lost(steps: list[tuple[int, int]], blocks: int) -> None:
    cache = PagedCache(tokens=blocks * BLOCK + BLOCK - 1)
    tables: list[list[int]] = [[] for _ in range(8)]
    for which, tokens in steps:
        before, free = list(tables[which]), cache.free
        if not tokens:
            cache.release(tables[which])
            assert tables[which] == []
        elif cache.extend(tables[which], tokens):
            assert len(tables[which]) == max(len(before), blocks_of(tokens))
        else:
            assert blocks_of(tokens) - len(before) > free
            assert (tables[which], cache.free) == (before, free)
        used = [number for table in tables for number in table]
        assert len(set(used)) == len(used) == blocks - cache.free
        assert all(0 <= number < blocks for number in used)


def test_the_lowest_free_block_is_taken_first() -> None:
    cache = PagedCache(tokens=8 * BLOCK)
    first: list[int] = []
    second: list[int] = []
    cache.extend(first, 3 * BLOCK)
    cache.extend(second, BLOCK)
    cache.release(first)
    cache.extend(second, 3 * BLOCK)
    assert second == [3, 0, 1]


def test_growing_keeps_what_sequences_hold() -> None:
    cache = PagedCache(tokens=100 * BLOCK)
    long: list[int] = []
    others: list[list[int]] = []
    for position in range(5 * BLOCK):
        write(cache, long, position, position + 1)
        if position % 50 == 0:
            others.append([])
            write(cache, others[-1], 0, 1000 + position)
    for layer in range(LAYERS):
        assert held(cache, long, layer) == list(range(1, 5 * BLOCK + 1))
    assert [held(cache, table)[0] for table in others] == list(range(1000, 1000 + 5 * BLOCK, 50))


def test_the_tensors_never_hold_more_than_the_limit() -> None:
    cache = PagedCache(tokens=5 * BLOCK)
    tables: list[list[int]] = [[] for _ in range(5)]
    for count, table in enumerate(tables, 1):
        write(cache, table, 0, 1)
        assert count <= len(cache.read(0, None, 100)[0]) <= 5
    assert not cache.extend([], 1)


def test_cleared_blocks_hold_no_trace_of_what_is_not_a_number() -> None:
    cache = PagedCache(tokens=2 * BLOCK)
    table: list[int] = []
    write(cache, table, 5, float("nan"))
    cache.extend(table, 2 * BLOCK)  # a block that no tensor has yet
    cache.release(table, clear=True)
    write(cache, table, 7, 2)
    assert held(cache, table) == [0.0] * 7 + [2.0] + [0.0] * (BLOCK - 8)


def test_the_bytes_of_a_token_count_all_layers() -> None:
    cache = PagedCache(tokens=BLOCK)
    write(cache, [], 0, 1)
    assert cache.bytes_per_token() == LAYERS * 2 * HEADS * DIM * 4


def test_a_forward_that_was_not_prepared_is_an_error() -> None:
    cache = PagedCache(tokens=BLOCK)
    states = torch.zeros(1, HEADS, 1, DIM)
    with pytest.raises(RuntimeError, match="where its tokens go"):
        cache.update(states, states, 0)
