"""Keys and values of all sequences in blocks: a sequence takes one when it needs one, so that no length is wasted."""

from __future__ import annotations

import heapq
from typing import Any

import torch
from transformers import Cache

BLOCK = 64
"""The tokens of a block."""


def blocks_of(tokens: int) -> int:
    """Return how many blocks so many tokens need."""
    return -(-tokens // BLOCK)


class PagedCache(Cache):
    """A pool of blocks that sequences take from and give back to.

    A sequence is known by its table: the numbers of its blocks, in order. The lowest free number is taken first, so
    that the blocks in use stay together. The tensors are [blocks, heads, BLOCK, head_dim] for each layer, made by the
    first forward and grown by demand to at most `blocks`. Whoever runs a forward says before it in `places` where its
    new tokens go.
    """

    def __init__(self, *, tokens: int) -> None:
        """Hold at most `tokens` tokens, in whole blocks."""
        # Without layer objects of transformers: what a layer must be differs between its releases.
        super().__init__(layers=[])
        self.blocks = tokens // BLOCK
        """The limit."""
        self.places: torch.Tensor | None = None
        """[2, new tokens]: the block that each new token of the forward goes to, and its place there."""
        self._used_once = 0
        self._returned: list[int] = []
        self._stores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def free(self) -> int:
        """Blocks that no sequence has."""
        return self.blocks - self._used_once + len(self._returned)

    def extend(self, table: list[int], tokens: int) -> bool:
        """Lengthen a table to hold `tokens` tokens; False, and nothing changed, when too few blocks are free."""
        missing = blocks_of(tokens) - len(table)
        if missing > self.free:
            return False
        for _ in range(missing):
            if self._returned:
                table.append(heapq.heappop(self._returned))
            else:
                table.append(self._used_once)
                self._used_once += 1
        return True

    def release(self, table: list[int], *, clear: bool = False) -> None:
        """Take back all blocks of a table, which is empty then.

        `clear` what may hold a NaN: left there, it would reach the block's next sequence even from behind the mask.
        """
        if clear:
            for store in (tensor for pair in self._stores.values() for tensor in pair):
                store[[number for number in table if number < len(store)]] = 0
        for number in table:
            heapq.heappush(self._returned, number)
        table.clear()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new tokens, [1, heads, tokens, head_dim], and return them as they are."""
        if self.places is None:
            raise RuntimeError("a forward that did not say where its tokens go")
        pair = self._stores.get(layer_idx)
        if pair is None or len(pair[0]) < self._used_once:
            pair = self._stores[layer_idx] = self._grown(pair, key_states, value_states)
        for store, states in zip(pair, (key_states, value_states), strict=True):
            store[self.places[0], :, self.places[1]] = states[0].transpose(0, 1)
        return key_states, value_states

    def read(self, layer_idx: int, numbers: torch.Tensor | None, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values, each [count, heads, BLOCK, head_dim]: a copy of the blocks with these
        `numbers`, or, for None, the first `count` where they lie.
        """
        keys, values = self._stores[layer_idx]
        return (keys[:count], values[:count]) if numbers is None else (keys[numbers], values[numbers])

    def bytes_per_token(self) -> int:
        """Return what one token occupies in all layers; known after the first forward."""
        tensors = [tensor for pair in self._stores.values() for tensor in pair]
        return sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in tensors)

    def _grown(
        self, pair: tuple[torch.Tensor, torch.Tensor] | None, *states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return larger tensors with the same content: twice as many blocks, so that growing costs little on average.

        One layer at a time, so that old and new exist twice for one layer only.
        """
        size = max(self._used_once, min(2 * len(pair[0]) if pair else 0, self.blocks))
        # Zeros, for what the mask hides must at least be finite.
        keys, values = (like.new_zeros(size, like.shape[1], BLOCK, like.shape[3]) for like in states)
        if pair:
            keys[: len(pair[0])], values[: len(pair[1])] = pair
        return keys, values
