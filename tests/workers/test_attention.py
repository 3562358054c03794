"""Attention over blocks equals attention over each sequence alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker_workers.engines.attention import Chunk, Ragged, make_decode, make_prefill, ragged_attention
from stoker_workers.engines.kv_cache import BLOCK, PagedCache

pytestmark = pytest.mark.torch

HEADS, KV_HEADS, DIM = 4, 2, 8
CPU = torch.device("cpu")


def plain(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attend with [tokens, heads, dim] queries, the last ones of the sequence, by the definition."""
    length, new = len(keys), len(query)
    keys, values = (states.repeat_interleave(HEADS // KV_HEADS, 1) for states in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query, keys) * DIM**-0.5
    at, key = torch.arange(length - new, length)[:, None], torch.arange(length)
    hidden = (key > at) | (key <= at - (window or length))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


def places(tokens: list[tuple[Sequence[int], int]]) -> torch.Tensor:
    """Return where the cache holds tokens, each given by the table and the place of its sequence."""
    pairs = [[table[at // BLOCK], at % BLOCK] for table, at in tokens]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2).T


# Of each sequence: tokens in the cache, and new ones.
lengths = st.lists(
    st.tuples(st.integers(0, 5 * BLOCK), st.one_of(st.just(1), st.integers(1, 2 * BLOCK))), min_size=1, max_size=6
)


@settings(max_examples=30, deadline=None)
@given(lengths, st.sampled_from([None, 5, BLOCK + 3]), st.integers(0, 5), st.randoms(use_true_random=False))
def test_each_sequence_attends_as_if_it_were_alone(
    lengths: list[tuple[int, int]], window: int | None, gaps: int, numbers: random.Random
) -> None:
    torch.manual_seed(numbers.randrange(1000))
    lengths.sort(key=lambda pair: pair[1] > 1)
    cache = PagedCache(tokens=200 * BLOCK)
    tables: list[list[int]] = []
    whole = []
    for start, new in lengths:
        table: list[int] = []
        cache.extend([], gaps * BLOCK)  # blocks that belong to nobody here: the others lie apart
        cache.extend(table, start + new)
        tables.append(table)
        states = torch.randn(2, start + new, KV_HEADS, DIM)
        whole.append(states)
        cache.places = places([(table, at) for at in range(start)])
        cache.update(*(part[None, :start].transpose(1, 2) for part in states), 0)
    chunks = [Chunk([0] * new, start, table) for (start, new), table in zip(lengths, tables, strict=True)]
    queries = [torch.randn(new, HEADS, DIM) for _, new in lengths]
    singles = [chunk for chunk in chunks if len(chunk.tokens) == 1]
    cache.places = places([(chunk.table, at) for chunk in chunks for at in range(chunk.start, chunk.end)])
    new_states = [torch.cat([w[i, start:] for w, (start, _) in zip(whole, lengths, strict=True)]) for i in (0, 1)]
    key, value = cache.update(*(part.transpose(0, 1)[None] for part in new_states), 0)
    first, prefill = len(singles), []
    for chunk in chunks[len(singles) :]:
        prefill.append(make_prefill(chunk, first, {window}, CPU))
        first += len(chunk.tokens)
    ragged = Ragged(cache, [window], make_decode(singles, {window}, CPU), prefill)
    query = torch.cat(queries).transpose(0, 1)[None]
    got, _ = ragged_attention(SimpleNamespace(layer_idx=0), query, key, value, None, ragged=ragged)  # type: ignore[arg-type]
    wanted = [plain(q, w[0], w[1], window) for q, w in zip(queries, whole, strict=True)]
    torch.testing.assert_close(got[0], torch.cat(wanted), rtol=1e-4, atol=1e-5)


def test_attention_of_a_kind_that_it_does_not_know_is_an_error() -> None:
    states = torch.zeros(1, HEADS, 1, DIM)
    ragged = Ragged(PagedCache(tokens=BLOCK), [None], None, [])
    with pytest.raises(ValueError, match="softcap"):
        ragged_attention(SimpleNamespace(layer_idx=0), states, states, states, None, ragged=ragged, softcap=3.0)  # type: ignore[arg-type]
