"""A transformers model that reads whole texts: a batch of token ids in, one vector or one row of logits each out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from stoker.errors import ConfigError
from stoker_workers.card import weight_files
from stoker_workers.engine import Task
from stoker_workers.engines.pretrained import first_line, load_tokenizer, load_weights
from stoker_workers.engines.torch_model import DTYPES

_CHECK_TOKENS = 6
_CHECK_TOLERANCE = 0.05  # of the norm, as for generation: what a dtype rounds stays far under it


class EncoderModel:
    """A model and its tokenizer, from local safetensors and without code from the folder.

    Texts are padded on the right. So a decoder's positions are right without being given, and what pads stands behind
    every token of a text, where no causal attention looks.
    """

    def __init__(self, path: Path, task: Task, pooling: str, device: torch.device, dtype: str) -> None:
        """Load the folder to `embed` (with `pooling`: mean, last, cls) or to `classify`; raises `ConfigError`."""
        weight_files(path)
        self.device = device
        self._classifies = task == "classify"
        self._pooling = pooling
        self._tokenizer = load_tokenizer(path)
        self._encoding = threading.Lock()
        kind: Any = transformers.AutoModelForSequenceClassification if self._classifies else transformers.AutoModel
        # The pooler of a bare model is made for another purpose, and its output is not looked at.
        unused = None if self._classifies else "pooler."
        self._model = load_weights(kind, path, DTYPES[dtype], unused=unused).to(device).requires_grad_(False)
        config = self._model.config.get_text_config()
        config.use_cache = False
        self._pad = _pad_id(self._tokenizer, config)
        config.pad_token_id = self._pad  # by it a decoder that classifies finds the end of each text
        self.vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        self.reserved_positions = _reserved_positions(self._model)
        self.labels = [str(self._model.config.id2label[n]) for n in range(self._model.config.num_labels)]
        self.problem = self._model.config.problem_type
        self._check(path)

    def encode(self, prompt: str) -> list[int]:
        """Return a text's token ids, with the special tokens that the model wants."""
        with self._encoding:
            return list(self._tokenizer(prompt, verbose=False)["input_ids"])

    @torch.inference_mode()
    def run(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return for each text its vector (of norm 1) or its logits: float32, on the CPU, [texts, numbers]."""
        lengths = [len(text) for text in texts]
        longest = max(lengths)
        padded = [[*text, *([self._pad] * (longest - len(text)))] for text in texts]
        ids = torch.tensor(padded, device=self.device)
        ends = torch.tensor(lengths, device=self.device)
        mask = torch.arange(longest, device=self.device) < ends[:, None]
        output = self._model(input_ids=ids, attention_mask=mask.long())
        if self._classifies:
            logits: torch.Tensor = output.logits
            return logits.float().cpu()
        vectors = self._pool(output.last_hidden_state.float(), mask, ends)
        return torch.nn.functional.normalize(vectors, dim=-1).cpu()

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            return hidden[:, 0]
        if self._pooling == "last":
            return hidden[torch.arange(len(ends), device=self.device), ends - 1]
        return (hidden * mask[..., None]).sum(1) / ends[:, None]

    def _check(self, path: Path) -> None:
        """Refuse an architecture that says something else of a text that stands beside a longer one."""
        numbers = [(7 * number + 5) % self.vocabulary for number in range(_CHECK_TOKENS)]
        texts = [numbers, numbers[: _CHECK_TOKENS // 2]]
        try:
            alone = torch.cat([self.run([text]) for text in texts])
            together = self.run(texts)
        except Exception as error:  # whatever a model's own code raises: it cannot be run this way
            raise ConfigError(f"model: {path} cannot be run in padded batches ({first_line(error)})") from error
        difference = ((together - alone).norm() / alone.norm()).item()
        if not difference < _CHECK_TOLERANCE:
            raise ConfigError(f"model: {path} cannot be run in padded batches (its answers differ by {difference:.0%})")


def _pad_id(tokenizer: Any, config: Any) -> int:
    """Return the id that pads; any will do where the model names none, for it is masked."""
    ids = (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id)
    return next((number for number in ids if isinstance(number, int)), 0)


def _reserved_positions(model: Any) -> int:
    """Return how many of the model's positions no text can have: RoBERTa's kin number tokens from behind padding's."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    reserved = (getattr(table, "padding_idx", None) for table in tables)
    return max((index + 1 for index in reserved if index is not None), default=0)
