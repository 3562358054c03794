"""Our own loop over a transformers model, for CPUs and small GPUs: rows join and leave the batch at every step."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from stoker_workers.card import card_of_folder
from stoker_workers.engine import (
    GENERATION,
    Admitted,
    Capacity,
    Event,
    Failed,
    Finished,
    Full,
    Invalid,
    ModelCard,
    Tokens,
    Work,
)
from stoker_workers.engines.continuous import check_limits, check_work, prefill_chunks
from stoker_workers.engines.kv_cache import RowCache
from stoker_workers.engines.sampling import BROKEN, choose
from stoker_workers.engines.torch_model import AUTO, CausalModel, Chunk, pick_device, pick_dtype
from stoker_workers.text import Detokenizer

_CPU_CACHE_BYTES = 4 << 30
_GPU_CACHE_SHARE = 0.8  # of the memory that is free beside the weights; the rest is for activations
_UNBOUNDED_CONTEXT = 8192  # what sizes the cache of a model that names no context
_CPU_WARM_UP_TOKENS = 16  # a CPU has nothing to set up that depends on the shape
_SMALL_PADDING = 64


class _Row:
    """A resident request, and how far it is."""

    __slots__ = ("cached", "detokenizer", "left", "token", "work")

    def __init__(self, work: Work, detokenizer: Detokenizer) -> None:
        self.work = work
        self.detokenizer = detokenizer
        self.cached = 0
        """Tokens in the cache."""
        self.left = work.max_tokens
        self.token = -1
        """The newest token: chosen, not yet in the cache."""

    @property
    def reserved(self) -> int:
        return len(self.work.prompt) + self.work.max_tokens

    @property
    def unfilled(self) -> int:
        """Prompt tokens still to prefill."""
        return len(self.work.prompt) - self.cached


class TorchEngine:
    """Continuous batching over one transformers model.

    A step is one forward for all decoding rows, and prefill with what the token budget leaves: whole prompts together,
    a long one in chunks. The decoding rows are the slots from 0 on in the cache, and the prompt that is partly
    prefilled, of which there is at most one, is the slot behind them. A row that leaves is replaced by the last one.
    """

    raw = False
    parameters = GENERATION

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = AUTO,
        dtype: str = AUTO,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        kv_cache_tokens: int | None = None,
        name: str | None = None,
    ) -> None:
        """Run the model in the folder `model`, called `name` or like its folder.

        By default the cache may hold every row at full length, within 80 % of a GPU's free memory or 4 GiB on a CPU.
        It grows by demand.
        """
        check_limits(max_num_seqs, max_num_batched_tokens, kv_cache_tokens)
        self.prefilled_tokens = 0
        """Prompt tokens computed so far; each counts once, for none is computed twice."""
        self._path = Path(model)
        self._name = name
        self._device = device
        self._dtype = dtype
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._cache_tokens = kv_cache_tokens or 0
        self._context = 0
        self._model: CausalModel | None = None
        self._cache: RowCache | None = None
        self._resident: dict[str, _Row] = {}
        self._decoding: list[_Row] = []
        self._partial: _Row | None = None
        self._waiting: deque[_Row] = deque()

    def load(self) -> ModelCard:
        """Load the folder."""
        device = pick_device(self._device)
        dtype = pick_dtype(self._dtype, device)
        card = card_of_folder(self._path, dtype, "continuous", self._name)
        model = CausalModel(self._path, device, dtype)
        self._model = model
        self._context = card.context
        self._cache_tokens = self._cache_tokens or self._default_cache_tokens(model)
        self._cache = RowCache(rows=self._max_num_seqs, tokens=self._cache_tokens)
        return card if card.vocabulary else dataclasses.replace(card, vocabulary=model.vocabulary)

    def warm_up(self) -> None:
        """Prefill a whole budget on a GPU, so that too little memory shows now; a few tokens on a CPU."""
        on_cpu = self._loaded[0].device.type == "cpu"
        room = min(self._context or self._cache_tokens, self._cache_tokens) - 2
        size = max(1, min(room, _CPU_WARM_UP_TOKENS if on_cpu else self._budget))
        work = Work(id="warm-up", batch="warm-up", prompt=[0] * size, max_tokens=2, ignore_eos=True)
        if not isinstance(self.admit(work), Admitted):
            return  # a cache of two tokens, which holds not even that
        while self._resident:
            self.step()
        self.prefilled_tokens = 0

    def encode(self, prompt: str) -> list[int]:
        """Return a text's token ids, special tokens added as the model wants them."""
        return self._loaded[0].encode(prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation's token ids; raises `InvalidRequest` when the model has no template for it."""
        return self._loaded[0].encode_chat(messages)

    def admit(self, work: Work) -> Admitted | Full | Invalid:
        """Take a request in if there is a row, and room for all rows at the longest one's length."""
        model, _ = self._loaded
        if invalid := check_work(
            work, context=self._context, vocabulary=model.vocabulary, cache_tokens=self._cache_tokens
        ):
            return invalid
        self.cancel(work.id)  # another attempt at the same request takes the place of the first
        row = _Row(work, Detokenizer(model.decode, work.stop))
        longest = max((other.reserved for other in self._resident.values()), default=0)
        rows = len(self._resident) + 1
        if rows > self._max_num_seqs or rows * max(longest, row.reserved) > self._cache_tokens:
            return Full()
        self._resident[work.id] = row
        self._waiting.append(row)
        return Admitted(row.reserved)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Decode every row that is prefilled, and prefill with the rest of the budget."""
        chunks = self._chunks()
        outputs = [self._decode()] if self._decoding else []
        outputs += [self._prefill(group) for group in _groups(chunks)]
        rows = list(self._decoding)
        if not rows:
            return []
        # In the order of the rows; only a last prompt that stays partial gets no token yet.
        logits = torch.cat(outputs)[: len(rows)]
        tokens = choose(logits, [row.work.sampling for row in rows], [row.cached for row in rows])
        return [event for row, token in zip(rows, tokens, strict=True) for event in self._take(row, token)]

    def scheduled(self) -> Sequence[str]:
        """Return the decoding rows, and those whose prompt the budget reaches."""
        return [row.work.id for row in [*self._decoding, *(row for row, _ in self._chunks())]]

    def cancel(self, request_id: str) -> None:
        """Drop a row; its slot is free at once."""
        row = self._resident.get(request_id)
        if row is not None:
            self._leave(row)

    def resident(self) -> Sequence[str]:
        """Return the ids of all rows, in order of arrival."""
        return list(self._resident)

    def capacity(self) -> Capacity:
        """Return the limits; the cache's is known after `load` if none was given."""
        return Capacity(rows=self._max_num_seqs, tokens=self._cache_tokens, budget=self._budget, cache="rect")

    def close(self) -> None:
        """Let go of model, cache and rows."""
        self._model = self._cache = self._partial = None
        for rows in (self._resident, self._decoding, self._waiting):
            rows.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _loaded(self) -> tuple[CausalModel, RowCache]:
        if self._model is None or self._cache is None:
            raise RuntimeError("the engine is not loaded")
        return self._model, self._cache

    def _default_cache_tokens(self, model: CausalModel) -> int:
        memory = _CPU_CACHE_BYTES
        if model.device.type == "cuda":
            memory = int(torch.cuda.mem_get_info(model.device)[0] * _GPU_CACHE_SHARE)
        full = self._max_num_seqs * (self._context or _UNBOUNDED_CONTEXT)
        return max(2, min(full, memory // model.bytes_per_token))

    def _chunks(self) -> list[tuple[_Row, int]]:
        """Return the rows that this step prefills, and how many tokens of each: first come, first served."""
        rows = [*self._waiting] if self._partial is None else [self._partial, *self._waiting]
        sizes = prefill_chunks((row.unfilled for row in rows), self._budget - len(self._decoding))
        return list(zip(rows, sizes, strict=False))

    def _decode(self) -> torch.Tensor:
        model, cache = self._loaded
        logits = model.forward(cache, 0, [Chunk((row.token,), row.cached) for row in self._decoding])
        for row in self._decoding:
            row.cached += 1
        return logits

    def _prefill(self, group: list[tuple[_Row, int]]) -> torch.Tensor:
        """Run the group's next chunks; its rows with a whole prompt in the cache then decode."""
        model, cache = self._loaded
        chunks = [Chunk(row.work.prompt[row.cached : row.cached + size], row.cached) for row, size in group]
        logits = model.forward(cache, len(self._decoding), chunks)
        for row, size in group:
            if row is not self._partial:
                self._waiting.popleft()
            row.cached += size
            self.prefilled_tokens += size
            self._partial = row if row.unfilled else None
            if not row.unfilled:
                self._decoding.append(row)
        return logits

    def _take(self, row: _Row, token: int) -> list[Event]:
        """Return the events of a row's new token."""
        work = row.work
        if token == BROKEN:
            _, cache = self._loaded
            cache.clear(self._decoding.index(row))
            self._leave(row)
            return [Failed(work.id, f"the model gave no finite logits at position {row.cached}", "failure")]
        row.token = token
        row.left -= 1
        at_eos = token in self._loaded[0].eos and not work.ignore_eos
        text = "" if at_eos else row.detokenizer.push([token])
        if row.left and not at_eos and not row.detokenizer.stopped:
            return [Tokens(work.id, [token], text)]
        text += row.detokenizer.finish()
        self._leave(row)
        reason = "stop" if at_eos or row.detokenizer.stopped else "length"
        return [Tokens(work.id, [token], text), Finished(work.id, reason)]

    @torch.inference_mode()
    def _leave(self, row: _Row) -> None:
        """Drop a row and close the hole that it leaves in the cache."""
        del self._resident[row.work.id]
        if row is self._partial:
            self._partial = None
        elif not row.cached:
            self._waiting.remove(row)
        else:
            self._close_hole(self._decoding.index(row))

    def _close_hole(self, slot: int) -> None:
        _, cache = self._loaded
        last = len(self._decoding) - 1
        row = self._decoding.pop()
        if slot != last:
            cache.move(last, slot, row.cached)
            self._decoding[slot] = row
        if self._partial is not None:
            cache.move(last + 1, last, self._partial.cached)


def _groups(chunks: list[tuple[_Row, int]]) -> list[list[tuple[_Row, int]]]:
    """Cut the chunks into forwards: neighbours go together while padding stays small beside what it saves."""
    groups: list[list[tuple[_Row, int]]] = []
    useful = longest = 0
    for row, size in chunks:
        wasted = (len(groups[-1]) + 1) * max(longest, size) - useful - size if groups else 0
        if groups and wasted <= max(_SMALL_PADDING, useful // 4):
            groups[-1].append((row, size))
            useful, longest = useful + size, max(longest, size)
        else:
            groups.append([(row, size)])
            useful = longest = size
    return groups
