"""Our own loop over a transformers model, for CPUs and small GPUs: rows join and leave the batch at every step."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from stoker.errors import ConfigError
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
from stoker_workers.engine_faults import telling_memory
from stoker_workers.engines.attention import Chunk
from stoker_workers.engines.continuous import check_limits, check_work, prefill_chunks, take_up
from stoker_workers.engines.kv_cache import BLOCK, PagedCache, blocks_of
from stoker_workers.engines.sampling import BROKEN, choose
from stoker_workers.engines.torch_model import AUTO, CausalModel, pick_device, pick_dtype
from stoker_workers.text import Detokenizer

_CPU_CACHE_BYTES = 4 << 30
_GPU_CACHE_SHARE = 0.8  # of the memory that is free beside the weights; the rest is for activations
_UNBOUNDED_CONTEXT = 8192  # what sizes the cache of a model that names no context
_CPU_WARM_UP_TOKENS = 16  # a CPU has nothing to set up that depends on the shape


class _Row:
    """A resident request, and how far it is."""

    __slots__ = ("cached", "detokenizer", "table", "tokens", "work")

    def __init__(self, work: Work, detokenizer: Detokenizer) -> None:
        self.work = work
        self.detokenizer = detokenizer
        self.tokens = [*work.prompt, *work.generated]
        """Prompt and answer so far."""
        self.cached = 0
        """How many of them are in the cache."""
        self.table: list[int] = []
        """The blocks of the cache that it has."""

    @property
    def unfilled(self) -> int:
        """Tokens to run before the next one can be chosen: one while it decodes."""
        return len(self.tokens) - self.cached

    @property
    def left(self) -> int:
        """Tokens that the answer may still get."""
        return len(self.work.prompt) + self.work.max_tokens - len(self.tokens)

    @property
    def reserved(self) -> int:
        """Blocks that it is expected to need in all."""
        expected = self.work.max_tokens if self.work.expected is None else self.work.expected
        return blocks_of(max(len(self.work.prompt) + min(expected, self.work.max_tokens), len(self.tokens) + 1))


class TorchEngine:
    """Continuous batching over one transformers model.

    A step is one forward: a token for every decoding row, and prefill with what the token budget leaves, whole prompts
    and the next chunk of a long one.

    Rows take blocks of the cache as they grow. They are admitted by what they are expected to need; where that was too
    little and no block is free, the latest arrival gives its blocks back, keeps its tokens, and is prefilled again when
    there is room. Of that nothing is seen outside.
    """

    raw = False
    parameters = GENERATION
    resumes = True

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
        if kv_cache_tokens is not None and kv_cache_tokens < BLOCK:
            raise ConfigError(f"kv_cache_tokens: must be at least one block ({BLOCK}), got {kv_cache_tokens}")
        self.prefilled_tokens = 0
        """Tokens prefilled so far: those of prompts once, and those of a row again that was preempted."""
        self.preemptions = 0
        """How often a row gave its blocks back."""
        self._path = Path(model)
        self._name = name
        self._device = device
        self._dtype = dtype
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._wanted_tokens = kv_cache_tokens
        self._context = 0
        self._model: CausalModel | None = None
        self._cache: PagedCache | None = None
        # All in order of arrival: those that decode came before those that wait, for nothing is prefilled out of turn.
        self._resident: dict[str, _Row] = {}
        self._decoding: list[_Row] = []
        self._waiting: deque[_Row] = deque()
        self._complete: list[tuple[_Row, str]] = []

    def load(self) -> ModelCard:
        """Load the folder."""
        device = pick_device(self._device)
        dtype = pick_dtype(self._dtype, device)
        card = card_of_folder(self._path, dtype, "continuous", self._name)
        model = CausalModel(self._path, device, dtype)
        self._model = model
        self._context = card.context
        self._cache = PagedCache(tokens=self._wanted_tokens or self._default_cache_tokens(model))
        return card if card.vocabulary else dataclasses.replace(card, vocabulary=model.vocabulary)

    def warm_up(self) -> None:
        """Prefill a whole budget on a GPU, so that too little memory shows now; a few tokens on a CPU."""
        on_cpu = self._loaded[0].device.type == "cpu"
        tokens = self.capacity().tokens
        room = min(self._context or tokens, tokens) - 2
        size = max(1, min(room, _CPU_WARM_UP_TOKENS if on_cpu else self._budget))
        work = Work(id="warm-up", batch="warm-up", prompt=[0] * size, max_tokens=2, ignore_eos=True)
        self.admit(work)
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
        """Take a request in if there is a row, and room for what all rows are expected to need."""
        model, cache = self._loaded
        if invalid := check_work(
            work, context=self._context, vocabulary=model.vocabulary, cache_tokens=self.capacity().tokens
        ):
            return invalid
        self.cancel(work.id)  # another attempt at the same request takes the place of the first
        row = _Row(work, Detokenizer(model.decode, work.stop))
        reserved = sum(other.reserved for other in self._resident.values())
        if len(self._resident) >= self._max_num_seqs or reserved + row.reserved > cache.blocks:
            return Full()
        self._resident[work.id] = row
        if end := take_up(work, row.detokenizer, model.eos):
            self._complete.append((row, end))
        else:
            self._waiting.append(row)
        return Admitted(row.reserved * BLOCK)

    @telling_memory()
    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Decode every row that is prefilled, and prefill with the rest of the budget."""
        events = self._end_complete()
        self._make_room()
        chunks = self._chunks()
        if not chunks:
            return events
        model, cache = self._loaded
        for row, size in chunks[len(self._decoding) :]:
            cache.extend(row.table, len(row.tokens))  # `_startable` saw that there is room
            self.prefilled_tokens += size
        logits = model.forward(
            cache, [Chunk(row.tokens[row.cached : row.cached + size], row.cached, row.table) for row, size in chunks]
        )
        for row, size in chunks:
            row.cached += size
        while self._waiting and not self._waiting[0].unfilled:
            self._decoding.append(self._waiting.popleft())
        # Only a last prompt that is in the cache in part gets no token yet.
        rows = list(self._decoding)
        tokens = choose(logits[: len(rows)], [row.work.sampling for row in rows], [row.cached for row in rows])
        return events + [event for row, token in zip(rows, tokens, strict=True) for event in self._take(row, token)]

    def scheduled(self) -> Sequence[str]:
        """Return the decoding rows, and those whose prompt the budget reaches."""
        return [row.work.id for row, _ in self._chunks()]

    def cancel(self, request_id: str) -> None:
        """Drop a row; its blocks are free at once."""
        row = self._resident.get(request_id)
        if row is not None:
            self._leave(row)

    def resident(self) -> Sequence[str]:
        """Return the ids of all rows, in order of arrival."""
        return list(self._resident)

    def capacity(self) -> Capacity:
        """Return the limits of the loaded engine."""
        _, cache = self._loaded
        return Capacity(rows=self._max_num_seqs, tokens=cache.blocks * BLOCK, budget=self._budget, cache="paged")

    def close(self) -> None:
        """Let go of model, cache and rows."""
        self._model = self._cache = None
        for rows in (self._resident, self._decoding, self._waiting, self._complete):
            rows.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _loaded(self) -> tuple[CausalModel, PagedCache]:
        if self._model is None or self._cache is None:
            raise RuntimeError("the engine is not loaded")
        return self._model, self._cache

    def _default_cache_tokens(self, model: CausalModel) -> int:
        memory = _CPU_CACHE_BYTES
        if model.device.type == "cuda":
            memory = int(torch.cuda.mem_get_info(model.device)[0] * _GPU_CACHE_SHARE)
        full = self._max_num_seqs * blocks_of(self._context or _UNBOUNDED_CONTEXT) * BLOCK
        return max(BLOCK, min(full, memory // model.bytes_per_token))

    def _chunks(self) -> list[tuple[_Row, int]]:
        """Return the rows of the next step, and how many tokens of each: first come, first served."""
        sizes = prefill_chunks((row.unfilled for row in self._startable()), self._budget - len(self._decoding))
        return [*((row, 1) for row in self._decoding), *zip(self._waiting, sizes, strict=False)]

    def _startable(self) -> Iterator[_Row]:
        """Give the rows to prefill, as long as those before keep the blocks that they are expected to need."""
        if not self._waiting:
            return
        free = self._loaded[1].free - sum(row.reserved - len(row.table) for row in self._decoding)
        for row in self._waiting:
            free -= row.reserved - len(row.table)
            # When nobody else is there, even what was expected too small may run.
            if free < 0 and (self._decoding or row is not self._waiting[0]):
                return
            yield row

    def _make_room(self) -> None:
        """Give every decoding row a block for its token; the latest arrivals make room where none is free."""
        _, cache = self._loaded
        place = 0
        while place < len(self._decoding):
            row = self._decoding[place]
            if cache.extend(row.table, len(row.tokens)):
                place += 1
            else:
                self._preempt()

    def _preempt(self) -> None:
        """Take the blocks of the latest arrival that has any; it waits in front, for all that wait came later."""
        partial = bool(self._waiting and self._waiting[0].table)
        if not partial:
            self._waiting.appendleft(self._decoding.pop())
        row = self._waiting[0]
        row.cached = 0
        # What no logits came of yet may hold anything.
        self._loaded[1].release(row.table, clear=partial)
        self.preemptions += 1

    def _end_complete(self) -> list[Event]:
        ended: list[Event] = [Finished(row.work.id, reason) for row, reason in self._complete]
        for row, _ in list(self._complete):
            self._leave(row)
        return ended

    def _take(self, row: _Row, token: int) -> list[Event]:
        """Return the events of a row's new token."""
        work = row.work
        if token == BROKEN:
            self._leave(row, broken=True)
            return [Failed(work.id, f"the model gave no finite logits at position {row.cached}", "failure")]
        row.tokens.append(token)
        at_eos = token in self._loaded[0].eos and not work.ignore_eos
        text = "" if at_eos else row.detokenizer.push([token])
        if row.left and not at_eos and not row.detokenizer.stopped:
            return [Tokens(work.id, [token], text)]
        text += row.detokenizer.finish()
        self._leave(row)
        reason = "stop" if at_eos or row.detokenizer.stopped else "length"
        return [Tokens(work.id, [token], text), Finished(work.id, reason)]

    @torch.inference_mode()
    def _leave(self, row: _Row, *, broken: bool = False) -> None:
        """Drop a row and free its blocks."""
        del self._resident[row.work.id]
        self._loaded[1].release(row.table, clear=broken or row not in self._decoding)
        for rows in (self._decoding, self._waiting):
            if row in rows:
                rows.remove(row)
        self._complete = [each for each in self._complete if each[0] is not row]
