"""Attention over sequences of different lengths in one forward, whose keys and values lie in a paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # its customary name
from transformers import AttentionInterface

from stoker_workers.engines.kv_cache import BLOCK, PagedCache, blocks_of

RAGGED = "stoker_ragged"
"""The name under which transformers' models find `ragged_attention`."""

_HIDDEN = -1e30  # added to the score of what must not be seen; finite, for a block may be hidden as a whole
_DENSE = 0.5  # share of the blocks in use from which all are read where they lie, instead of copying those needed

Window = int | None
"""How many tokens back a layer sees, None for all."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a sequence, of which `start` tokens are in the cache already; `table` has room for all."""

    tokens: Sequence[int]
    start: int
    table: Sequence[int]

    @property
    def end(self) -> int:
        """Tokens of the sequence up to the last of the chunk."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Decode:
    """How the newest tokens of many sequences attend, one token each.

    Each block is attended to by its sequence's token; the results of a sequence's blocks are then added up. Nothing is
    padded and, as long as most blocks are in use, nothing copied.

    `blocks`: which ones are read, None for the first ones of the cache. `owners` [blocks]: whose each is.
    `hidden` [blocks, 1, 1, BLOCK]: what is added to the scores, for each window. `parts` [sequences, most blocks]: the
    places of a sequence's blocks among those read, and `padding` of the same shape, 0 where they are its own.
    """

    blocks: torch.Tensor | None
    owners: torch.Tensor
    hidden: Mapping[Window, torch.Tensor]
    parts: torch.Tensor
    padding: torch.Tensor

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: Window) -> torch.Tensor:
        """Return what each token of `query` [sequences, kv heads, heads per kv head, head_dim] makes of its blocks."""
        scores = torch.matmul(query[self.owners], keys.transpose(2, 3)).float().add_(self.hidden[window])
        best = scores.amax(-1, keepdim=True)
        weights = scores.sub_(best).exp_()
        sums = weights.sum(-1, keepdim=True)
        outputs = torch.matmul(weights.to(values.dtype), values)
        best = best[self.parts] + self.padding[:, :, None, None, None]
        shares = (best - best.amax(1, keepdim=True)).exp_()
        total = (sums[self.parts] * shares).sum(1)
        return ((outputs[self.parts] * shares).sum(1) / total).to(query.dtype)


@dataclass(frozen=True, slots=True)
class Prefill:
    """How several new tokens of one sequence attend: `first` up to `last` of the forward.

    `table` is None where they are the whole sequence so far. `masks` [tokens, length] of what each sees, for each
    window; None: all up to itself.
    """

    first: int
    last: int
    table: torch.Tensor | None
    masks: Mapping[Window, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Ragged:
    """A forward: the sequences that `decode` come first, those that `prefill` stand behind them in one row."""

    cache: PagedCache
    windows: Sequence[Window]
    """Of each layer."""
    decode: Decode | None
    prefill: Sequence[Prefill]


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    ragged: Ragged,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `ragged` says; the signature is that of transformers' attention functions.

    `query`, `key` and `value` are [1, heads, tokens, head_dim], of the new tokens alone. Returns [1, tokens, heads,
    head_dim]. Raises `ValueError` for what it does not know.
    """
    if unknown := [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]:
        raise ValueError(f"its attention has a {unknown[0]}")
    layer: int = module.layer_idx  # type: ignore[assignment]  # every attention with a cache has it
    window = ragged.windows[layer]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    outputs = []
    if ragged.decode:
        sequences = len(ragged.decode.parts)
        tokens = query[0, :, :sequences].transpose(0, 1).reshape(sequences, key.shape[1], -1, query.shape[3])
        held = ragged.cache.read(layer, ragged.decode.blocks, len(ragged.decode.owners))
        outputs.append(ragged.decode.attend(tokens, *held, window).flatten(1, 2))
    for part in ragged.prefill:
        keys, values = key[:, :, part.first : part.last], value[:, :, part.first : part.last]
        if part.table is not None:
            held = ragged.cache.read(layer, part.table, len(part.table))
            keys, values = (blocks.transpose(0, 1).flatten(1, 2)[None] for blocks in held)
        mask = part.masks[window]
        output = F.scaled_dot_product_attention(
            query[:, :, part.first : part.last],
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=1.0,
            enable_gqa=query.shape[1] > key.shape[1],
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)[None], None


AttentionInterface.register(RAGGED, ragged_attention)


def make_decode(chunks: Sequence[Chunk], windows: set[Window], device: torch.device) -> Decode | None:
    """Return how the single tokens of `chunks` attend; None where there are none."""
    if not chunks:
        return None
    tables = [chunk.table[: blocks_of(chunk.end)] for chunk in chunks]
    used = [number for table in tables for number in table]
    dense = len(used) >= _DENSE * (max(used) + 1)
    count = max(used) + 1 if dense else len(used)
    owners, starts = [0] * count, [0] * count
    parts = []
    longest = max(map(len, tables))
    read = 0
    for owner, table in enumerate(tables):
        places = list(table) if dense else list(range(read, read + len(table)))
        read += len(table)
        for index, place in enumerate(places):
            owners[place], starts[place] = owner, index * BLOCK
        # What pads is the sequence's own: whatever is wrong with its content is wrong with the sequence anyway.
        parts.append(places + places[:1] * (longest - len(table)))
    per_block = torch.tensor([owners, starts], device=device)
    ends = torch.tensor([[chunk.end, len(table)] for chunk, table in zip(chunks, tables, strict=True)], device=device)
    positions = per_block[1][:, None] + torch.arange(BLOCK, device=device)
    last = ends[per_block[0], :1] - 1
    hidden = {window: _outside(positions, last, window)[:, None, None] * _HIDDEN for window in windows}
    return Decode(
        blocks=None if dense else torch.tensor(used, device=device),
        owners=per_block[0],
        hidden=hidden,
        parts=torch.tensor(parts, device=device),
        padding=(torch.arange(longest, device=device) >= ends[:, 1:]) * _HIDDEN,
    )


def make_prefill(chunk: Chunk, first: int, windows: set[Window], device: torch.device) -> Prefill:
    """Return how the tokens of `chunk` attend, which stand from `first` on in the forward."""
    size, last = len(chunk.tokens), first + len(chunk.tokens)
    queries = torch.arange(chunk.start, chunk.end, device=device)[:, None]
    if not chunk.start:
        keys = torch.arange(size, device=device)
        inside = {window: window is None or window >= size for window in windows}
        masks = {window: None if inside[window] else ~_outside(keys, queries, window) for window in windows}
        return Prefill(first, last, None, masks)
    table = torch.tensor(chunk.table[: blocks_of(chunk.end)], device=device)
    keys = torch.arange(len(table) * BLOCK, device=device)
    return Prefill(first, last, table, {window: ~_outside(keys, queries, window) for window in windows})


def _outside(keys: torch.Tensor, queries: torch.Tensor, window: Window) -> torch.Tensor:
    """Return whether the token at a place in `keys` is hidden from that at a place in `queries`."""
    hidden = keys > queries
    return hidden if window is None else hidden | (keys <= queries - window)
