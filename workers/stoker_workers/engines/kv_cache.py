"""Keys and values of all rows of a batch, written in place: nothing is copied when a row joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

BLOCK = 64
"""The length of a row grows in steps of so many tokens."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward touches: it sees the first `length` tokens of the slots from `first` up to `last`.

    New token i of the forward goes to `slots[i]` and `positions[i]`; it is query `queries[i]` of the batch's row
    `rows[i]`. Queries that only pad a row to the longest are left out.
    """

    first: int
    last: int
    length: int
    slots: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    queries: torch.Tensor


class RowCache(Cache):
    """A slot for each row, of one length for all; each row fills its own from the left.

    The tensors are [slots, heads, length, head_dim] for each layer, made by the first forward and grown by demand to at
    most `tokens` = slots x length. Whoever uses it keeps `rows x longest` within that, and says before each forward
    what it will touch: `reserve`, then `window`.
    """

    def __init__(self, *, rows: int, tokens: int) -> None:
        """Hold at most `rows` rows and at most `tokens` tokens, padding included."""
        # Without layer objects of transformers: what a layer must be differs between its releases.
        super().__init__(layers=[])
        self.window: Window | None = None
        self._max_rows = rows
        self._max_tokens = tokens
        self._rows = 0
        self._length = 0
        self._stores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` slots of `length` tokens; what is there stays."""
        if rows <= self._rows and length <= self._length:
            return
        # Twice as much as before when more is needed, so that growing costs little on average.
        new_rows = self._rows if rows <= self._rows else min(max(rows, 2 * self._rows), self._max_rows)
        new_length = self._length if length <= self._length else max(-(-length // BLOCK) * BLOCK, 2 * self._length)
        # Within the limit: spare length goes first, then spare rows. What is needed always fits.
        new_length = max(length, min(new_length, self._max_tokens // new_rows))
        new_rows = max(rows, min(new_rows, self._max_tokens // new_length))
        if new_rows * new_length > self._max_tokens:
            raise ValueError(f"{rows} rows x {length} tokens exceed the cache of {self._max_tokens} tokens")
        self._rows, self._length = new_rows, new_length
        # One layer at a time, so that old and new exist twice for one layer only.
        for layer, (keys, values) in self._stores.items():
            self._stores[layer] = (self._resized(keys), self._resized(values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of a layer, and return all that its queries may see."""
        window = self.window
        if window is None:
            raise RuntimeError("a forward without a window")
        if layer_idx not in self._stores:
            self._stores[layer_idx] = (self._empty(key_states), self._empty(value_states))
        keys, values = self._stores[layer_idx]
        keys[window.slots, :, window.positions] = key_states[window.rows, :, window.queries]
        values[window.slots, :, window.positions] = value_states[window.rows, :, window.queries]
        seen = slice(window.first, window.last)
        return keys[seen, :, : window.length], values[seen, :, : window.length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot into another one."""
        for keys, values in self._stores.values():
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros: a NaN left in it would reach the next row there even from behind the mask."""
        for keys, values in self._stores.values():
            keys[slot].zero_()
            values[slot].zero_()

    def bytes_per_token(self) -> int:
        """Return what one token occupies in all layers; known after the first forward."""
        tensors = [tensor for pair in self._stores.values() for tensor in pair]
        return sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in tensors)

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, for what the mask hides must at least be finite.
        return like.new_zeros(self._rows, like.shape[1], self._length, like.shape[3])

    def _resized(self, old: torch.Tensor) -> torch.Tensor:
        new = self._empty(old)
        rows, length = min(self._rows, old.shape[0]), min(self._length, old.shape[2])
        new[:rows, :, :length] = old[:rows, :, :length]
        return new
