"""Vectors and labels of texts: a transformers model run on padded batches, as the scheduler formed them."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stoker.errors import ConfigError, UnsupportedParameter
from stoker_workers.card import card_of_folder
from stoker_workers.engine import Admitted, Capacity, Event, Failed, Finished, Full, Invalid, ModelCard, Task, Work
from stoker_workers.engine_faults import telling_memory
from stoker_workers.engines.encoder_model import EncoderModel
from stoker_workers.engines.padded import Batches
from stoker_workers.engines.torch_model import AUTO, pick_device, pick_dtype
from stoker_workers.task import longest_text, pooling_of

_MAX_NUM_SEQS = 128
_CPU_BUDGET, _GPU_BUDGET = 2048, 16_384  # a CPU gains nothing by more at once, and answers later
_CPU_WARM_UP_TOKENS = 16  # a CPU has nothing to set up that depends on the shape


class EncoderEngine:
    """Embeds or classifies: one `step` is one forward of one batch, rows x longest tokens.

    `embed` gives an `array("f")` of norm 1; `classify` the fields of `stoker.Classification`. A text that is too long
    is refused, never cut.
    """

    raw = False
    resumes = False
    parameters: frozenset[str] = frozenset()

    def __init__(
        self,
        model: str | Path,
        *,
        task: Task,
        pooling: str = AUTO,
        device: str = AUTO,
        dtype: str = AUTO,
        max_num_seqs: int = _MAX_NUM_SEQS,
        max_num_batched_tokens: int | None = None,
        name: str | None = None,
    ) -> None:
        """Run the model in the folder `model`, called `name` or like its folder.

        `pooling` (of `embed`): mean, last, cls, or as the folder says. A batch holds by default 2,048 tokens on a CPU,
        16,384 on a GPU.
        """
        self._path = Path(model)
        self._task = task
        self._pooling = pooling
        self._device = device
        self._dtype = dtype
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._name = name
        self._card: ModelCard | None = None
        self._model: EncoderModel | None = None
        self._batches: Batches | None = None

    def load(self) -> ModelCard:
        """Load the folder."""
        device = pick_device(self._device)
        dtype = pick_dtype(self._dtype, device)
        pooling = pooling_of(self._path, self._pooling) if self._task == "embed" else ""
        card = card_of_folder(self._path, dtype, "padded", self._name, task=self._task, pooling=pooling)
        model = EncoderModel(self._path, self._task, pooling, device, dtype)
        limits = (card.context - model.reserved_positions, longest_text(self._path))
        context = min((limit for limit in limits if limit > 0), default=0)
        budget = _CPU_BUDGET if device.type == "cpu" else _GPU_BUDGET
        self._batches = Batches(self._max_num_seqs, self._budget or budget, context)
        self._card = dataclasses.replace(card, vocabulary=model.vocabulary, context=context)
        self._model = model
        return self._card

    def warm_up(self) -> None:
        """Run a whole budget on a GPU, so that too little memory shows now; a few tokens on a CPU."""
        card, model, batches = self._loaded
        budget = batches.capacity.budget if model.device.type != "cpu" else _CPU_WARM_UP_TOKENS
        longest = min(card.context or budget, budget)
        model.run([[0] * longest] * max(1, min(self._max_num_seqs, budget // longest)))

    def encode(self, prompt: str) -> list[int]:
        """Return a text's token ids, special tokens added as the model wants them."""
        return self._loaded[1].encode(prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Refuse: a conversation asks for an answer, and there is none here."""
        raise UnsupportedParameter("messages", f"this model can only {self._task}; give a prompt", len(messages))

    def admit(self, work: Work) -> Admitted | Full | Invalid:
        """Take a text in, behind at most one batch."""
        card, _, batches = self._loaded
        size = len(work.prompt)
        if not size:
            field = "prompt" if work.inputs is None else "inputs"
            return Invalid(field, f"this model can only {self._task}: give a prompt or prompt_tokens of some tokens")
        if card.context and size > card.context:
            return Invalid("prompt", f"must have at most {card.context} tokens (nothing is cut)", size)
        if size > batches.capacity.tokens:
            return Invalid("prompt", f"must have at most {batches.capacity.tokens} tokens on this worker", size)
        low, high = min(work.prompt), max(work.prompt)
        if low < 0 or high >= card.vocabulary:
            limit = f"token ids must be from 0 to {card.vocabulary - 1}"
            return Invalid("prompt_tokens", limit, low if low < 0 else high)
        return batches.admit(work, size)

    @telling_memory()
    def step(self) -> list[Event]:
        """Run one batch."""
        _, model, batches = self._loaded
        batch = batches.next()
        if not batch:
            return []
        rows = model.run([work.prompt for work in batch])
        for work in batch:
            batches.drop(work.id)
        finite = rows.isfinite().all(dim=-1).tolist()
        return [
            Finished(work.id, "stop", self._output(row))
            if good
            else Failed(work.id, "the model gave numbers that are not finite", "failure")
            for work, row, good in zip(batch, rows, finite, strict=True)
        ]

    def scheduled(self) -> Sequence[str]:
        """Return the ids of the next batch."""
        return [work.id for work in self._loaded[2].next()]

    def cancel(self, request_id: str) -> None:
        """Drop a text that waits."""
        self._loaded[2].drop(request_id)

    def resident(self) -> Sequence[str]:
        """Return the ids of what waits, in order of arrival."""
        return self._loaded[2].resident()

    def capacity(self) -> Capacity:
        """Return room for two batches."""
        return self._loaded[2].capacity

    def close(self) -> None:
        """Let go of the model and of what waits."""
        self._model = self._batches = None

    @property
    def _loaded(self) -> tuple[ModelCard, EncoderModel, Batches]:
        if self._card is None or self._model is None or self._batches is None:
            raise ConfigError("engine: load() comes first")
        return self._card, self._model, self._batches

    def _output(self, row: torch.Tensor) -> object:
        if self._task == "embed":
            vector = array("f")
            vector.frombytes(row.numpy().tobytes())
            return vector
        _, model, _ = self._loaded
        return classification(row.tolist(), model.labels, model.problem)


def classification(logits: Sequence[float], labels: Sequence[str], problem: str | None = None) -> dict[str, Any]:
    """Return what `logits` say of one text, as the fields of `stoker.Classification`.

    `problem` as in a model's config: `multi_label_classification` (each label is true or not), `regression` (the
    logits are the values), else one label of several. A single label is true or not.
    """
    if problem == "regression":
        scores = list(logits)
    elif problem == "multi_label_classification" or len(logits) == 1:
        scores = [1 / (1 + math.exp(-max(min(logit, 700.0), -700.0))) for logit in logits]
    else:
        weights = [math.exp(logit - max(logits)) for logit in logits]
        scores = [weight / sum(weights) for weight in weights]
    best = max(range(len(scores)), key=scores.__getitem__)
    return {
        "label": labels[best],
        "score": scores[best],
        "scores": dict(zip(labels, scores, strict=True)),
        "logits": list(logits),
    }
