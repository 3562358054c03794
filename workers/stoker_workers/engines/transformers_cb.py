"""An engine around transformers' continuous batching: a paged cache, and all rows packed into one forward."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from stoker.errors import ConfigError
from stoker_workers.card import card_of_folder, read_config, weight_files
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
from stoker_workers.engines.continuous import check_limits, check_work
from stoker_workers.engines.paged_batch import PagedBatch, PagedOptions
from stoker_workers.engines.pretrained import Tokenizer, eos_ids
from stoker_workers.engines.sampling import BROKEN, choose
from stoker_workers.engines.torch_model import AUTO, pick_device, pick_dtype
from stoker_workers.text import Detokenizer

_WARM_UP_TOKENS = 16
_CHECK_TOLERANCE = 0.05  # of the logits' norm: bfloat16 stays under 0.02, a wrong mask or position does not


class _Row:
    """A resident request, and how far it is."""

    __slots__ = ("cost", "detokenizer", "tokens", "work")

    def __init__(self, work: Work, detokenizer: Detokenizer, cost: int) -> None:
        self.work = work
        self.detokenizer = detokenizer
        self.cost = cost
        """Tokens of the cache that are kept for it."""
        self.tokens: list[int] = []
        """The answer so far."""

    @property
    def left(self) -> int:
        return self.work.max_tokens - len(self.tokens)


class TransformersCbEngine:
    """Continuous batching by transformers, with what it leaves open closed here.

    Its batch processor is driven step by step on the worker's thread, so an error of it is an exception of `step`, and
    a cancelled row's blocks are free before `cancel` returns. A row is let in only if the cache can hold it to its end.

    All rows of a forward share one attention over the packed keys, so that one row's NaN can reach every other. When
    no row of a forward has finite logits, all of them are computed anew, each alone: the guilty one fails, the others
    go on.
    """

    raw = False
    resumes = False
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
        tensor_parallel: int = 1,
        name: str | None = None,
    ) -> None:
        """Run the model in the folder `model`, called `name` or like its folder, on `tensor_parallel` ranks."""
        check_limits(max_num_seqs, max_num_batched_tokens, kv_cache_tokens)
        if tensor_parallel < 1:
            raise ConfigError(f"tensor_parallel: must be at least 1, got {tensor_parallel}")
        self._path = Path(model)
        self._name = name
        self._device = device
        self._dtype = dtype
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._cache_tokens = kv_cache_tokens
        self._ranks = tensor_parallel
        self._context = 0
        self._eos: frozenset[int] = frozenset()
        self._batch: PagedBatch | None = None
        self._tokenizer: Tokenizer | None = None
        self._rows: dict[str, _Row] = {}
        self._suspects: deque[_Row] = deque()
        self._held: list[_Row] = []

    def load(self) -> ModelCard:
        """Load the folder, on every rank."""
        device = pick_device(self._device)
        dtype = pick_dtype(self._dtype, device)
        read_config(self._path)
        weight_files(self._path)
        card = card_of_folder(self._path, dtype, "continuous", self._name)
        self._context = card.context
        self._tokenizer = Tokenizer(self._path)
        options = PagedOptions(
            path=str(self._path.resolve()),
            device=str(device),
            dtype=dtype,
            context=card.context,
            rows=self._max_num_seqs,
            budget=self._budget,
            cache_tokens=self._cache_tokens,
            ranks=self._ranks,
        )
        self._batch = _open(options)
        self._eos = eos_ids(self._batch.model, self._tokenizer)
        self._check()
        return card if card.vocabulary else dataclasses.replace(card, vocabulary=self._batch.vocabulary)

    def warm_up(self) -> None:
        """Prefill a whole budget on a GPU, so that too little memory shows now; a few tokens on a CPU."""
        batch, _ = self._loaded
        on_cpu = batch.model.device.type == "cpu"
        room = min(self._context or batch.tokens, batch.tokens) - 2
        size = max(1, min(room, _WARM_UP_TOKENS if on_cpu else self._budget))
        self.admit(Work(id="warm-up", batch="warm-up", prompt=[0] * size, max_tokens=2, ignore_eos=True))
        while self._rows:
            self.step()

    def encode(self, prompt: str) -> list[int]:
        """Return a text's token ids, special tokens added as the model wants them."""
        return self._loaded[1].encode(prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation's token ids; raises `InvalidRequest` when the model has no template for it."""
        return self._loaded[1].encode_chat(messages)

    def admit(self, work: Work) -> Admitted | Full | Invalid:
        """Take a request in if there is a row, and blocks for its prompt and its longest answer."""
        batch, tokenizer = self._loaded
        if invalid := check_work(work, context=self._context, vocabulary=batch.vocabulary, cache_tokens=batch.tokens):
            return invalid
        cost = batch.cost(len(work.prompt) + work.max_tokens)
        if cost > batch.tokens:
            limit = f"a prompt of {len(work.prompt)} tokens + max_tokens must fit the worker's cache of {batch.tokens}"
            return Invalid("max_tokens", f"{limit} tokens", work.max_tokens)
        self.cancel(work.id)  # another attempt at the same request takes the place of the first
        taken = sum(row.cost for row in self._rows.values())
        if len(self._rows) >= self._max_num_seqs or taken + cost > batch.tokens:
            return Full()
        row = _Row(work, Detokenizer(tokenizer.decode, work.stop), cost)
        self._rows[work.id] = row
        if self._suspects:
            self._held.append(row)
        else:
            self._start(row)
        return Admitted(cost)

    def step(self) -> list[Event]:
        """Decode every row that is prefilled, and prefill with the rest of the budget."""
        batch, _ = self._loaded
        if not self._rows:
            return []
        # The memory of one rank says nothing of the others', which have stepped: their group ends together.
        with telling_memory() if self._ranks == 1 else contextlib.nullcontext():
            names, new = batch.step(self._choose)
        broken = [name for name, token in new if token == BROKEN]
        if broken and len(broken) == len(new) and len(names) > 1:
            self._suspect_all()
            return []
        events = [event for name, token in new for event in self._take(self._rows[name], token)]
        if new and self._suspects:
            self._clear_first(new[0][0])
        return events

    def scheduled(self) -> Sequence[str]:
        """Return the decoding rows, and those whose prompt the budget reaches."""
        return self._loaded[0].next_ids()

    def cancel(self, request_id: str) -> None:
        """Drop a row; its blocks are free at once."""
        row = self._rows.get(request_id)
        if row is None:
            return
        self._leave(row)
        if self._suspects and self._suspects[0] is row:
            self._clear_first(request_id)
        elif row in self._suspects:
            self._suspects.remove(row)
        elif row in self._held:
            self._held.remove(row)

    def resident(self) -> Sequence[str]:
        """Return the ids of all rows, in order of arrival."""
        return list(self._rows)

    def capacity(self) -> Capacity:
        """Return the limits; the cache's is known after `load` if none was given."""
        tokens = self._batch.tokens if self._batch else self._cache_tokens or 0
        return Capacity(rows=self._max_num_seqs, tokens=tokens, budget=self._budget, cache="paged")

    def close(self) -> None:
        """Let go of model, cache and rows, and end the other ranks."""
        batch, self._batch = self._batch, None
        for rows in (self._rows, self._suspects, self._held):
            rows.clear()
        if batch:
            batch.close()
        del batch
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _loaded(self) -> tuple[PagedBatch, Tokenizer]:
        if self._batch is None or self._tokenizer is None:
            raise RuntimeError("the engine is not loaded")
        return self._batch, self._tokenizer

    def _choose(self, logits: torch.Tensor, names: Sequence[str], positions: Sequence[int]) -> list[int]:
        return choose(logits, [self._rows[name].work.sampling for name in names], positions)

    def _start(self, row: _Row) -> None:
        """Let a row into the batch, with what it said already as part of its prompt."""
        eos = [] if row.work.ignore_eos else sorted(self._eos)
        self._loaded[0].add(row.work.id, [*row.work.prompt, *row.tokens], row.left, eos)

    def _take(self, row: _Row, token: int) -> list[Event]:
        """Return the events of a row's new token."""
        work = row.work
        if token == BROKEN:
            self._leave(row)
            position = len(work.prompt) + len(row.tokens)
            return [Failed(work.id, f"the model gave no finite logits at position {position}", "failure")]
        row.tokens.append(token)
        at_eos = token in self._eos and not work.ignore_eos
        text = "" if at_eos else row.detokenizer.push([token])
        if row.left and not at_eos and not row.detokenizer.stopped:
            return [Tokens(work.id, [token], text)]
        text += row.detokenizer.finish()
        self._leave(row)
        reason = "stop" if at_eos or row.detokenizer.stopped else "length"
        return [Tokens(work.id, [token], text), Finished(work.id, reason)]

    def _leave(self, row: _Row) -> None:
        del self._rows[row.work.id]
        self._loaded[0].drop(row.work.id)

    # --- one row's NaN is in all of a packed forward --------------------------------------------------------------

    def _suspect_all(self) -> None:
        """Empty the batch; each row comes back alone, for its next token."""
        for row in self._rows.values():
            self._loaded[0].drop(row.work.id)
        self._suspects.extend(self._rows.values())
        self._start(self._suspects[0])

    def _clear_first(self, name: str) -> None:
        """End the first suspect's turn; after the last one's, all that are left go on together."""
        row = self._suspects.popleft()
        if name in self._rows:
            self._loaded[0].drop(name)
            self._held.append(row)
        if self._suspects:
            self._start(self._suspects[0])
            return
        held, self._held = self._held, []
        for each in held:
            self._start(each)

    def _check(self) -> None:
        """Refuse a model whose logits differ here from those that it gives alone."""
        batch, _ = self._loaded
        sequences = [ids for ids, _ in batch.reference]
        seen: list[torch.Tensor] = []

        def teach(logits: torch.Tensor, names: Sequence[str], positions: Sequence[int]) -> list[int]:
            seen.append(torch.stack([logits[list(names).index(str(i))] for i in range(len(sequences))]).float())
            return [sequences[int(name)][-1] for name in names]

        for number, ids in enumerate(sequences):
            batch.add(str(number), ids[:-1], 3, [])
        batch.step(teach)
        batch.step(teach)
        for number in range(len(sequences)):
            batch.drop(str(number))
        expected = torch.stack([logits for _, logits in batch.reference])
        difference = ((seen[-1] - expected).norm() / expected.norm()).item()
        if not difference < _CHECK_TOLERANCE:
            reason = f"its logits differ by {difference:.0%} in a shared cache"
            raise ConfigError(f"model: {self._path} cannot be run by transformers-cb ({reason}); try --engine torch")


def _open(options: PagedOptions) -> PagedBatch:
    """Load the model here, and on the other ranks if there are any."""
    if options.ranks == 1:
        return PagedBatch(options)
    from stoker_workers.engines.ranks import lead

    followers = lead(options)
    try:
        with followers.shared_fate():
            return PagedBatch(options, followers)
    except BaseException:
        followers.close()
        raise
