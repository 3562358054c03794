"""A causal language model from a folder, run on many sequences at once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stoker.errors import ConfigError
from stoker_workers.card import read_config, weight_files
from stoker_workers.engines.attention import RAGGED, Chunk, Ragged, make_decode, make_prefill
from stoker_workers.engines.kv_cache import BLOCK, PagedCache
from stoker_workers.engines.pretrained import (
    Tokenizer,
    choose_in_float32,
    eos_ids,
    first_line,
    limit_threads,
    load_causal_model,
)

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_FULL, _SLIDING = "full_attention", "sliding_attention"
_CHECK_TOKENS = 6
_CHECK_TOLERANCE = 0.05  # of the logits' norm: bfloat16 stays under 0.02, a wrong mask or position does not


def pick_device(device: str) -> torch.device:
    """Return the device of that name; "auto" is the first CUDA device, else the CPU."""
    if device == AUTO:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device: must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {device} was asked for, but torch finds no CUDA device")
    return picked


def pick_dtype(dtype: str, device: torch.device) -> str:
    """Return the name of the dtype to run in: "auto" is float32 on a CPU whatever the folder holds, else bfloat16."""
    if dtype == AUTO:
        return "float32" if device.type == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: must be auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype


class CausalModel:
    """A model and its tokenizer, from local safetensors and without code from the folder."""

    def __init__(self, path: Path, device: torch.device, dtype: str) -> None:
        """Load the folder; raises `ConfigError` with what is wrong with it."""
        read_config(path)
        weight_files(path)
        self.device = device
        self._tokenizer = Tokenizer(path)
        self._model = load_causal_model(path, DTYPES[dtype]).to(device)
        if device.type == "cpu":
            choose_in_float32(self._model)
        self._model.requires_grad_(False)
        limit_threads(self._model, device)
        config = self._model.config.get_text_config(decoder=True)
        self._layer_windows = _attention_windows(config, path)
        self._windows = set(self._layer_windows)
        self._kinds = set(getattr(config, "layer_types", None) or ())
        parameters = inspect.signature(self._model.forward).parameters
        # transformers renamed the argument during its fifth major version.
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self.vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        self.eos = eos_ids(self._model, self._tokenizer)
        self.bytes_per_token = self._check(path)

    def encode(self, prompt: str) -> list[int]:
        """Return a text's token ids, with the special tokens that the model wants."""
        return self._tokenizer.encode(prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation's token ids; raises `InvalidRequest` when the model's template does not allow it."""
        return self._tokenizer.encode_chat(messages)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self._tokenizer.decode(token_ids)

    @torch.inference_mode()
    def forward(self, cache: PagedCache, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Run the next tokens of all sequences, those with a single one first; return the logits after each's last."""
        singles = next((place for place, chunk in enumerate(chunks) if len(chunk.tokens) > 1), len(chunks))
        tokens: list[int] = []
        positions: list[int] = []
        blocks: list[int] = []
        prefill = []
        lasts = []
        for place, chunk in enumerate(chunks):
            if place >= singles:
                prefill.append(make_prefill(chunk, len(tokens), self._windows, self.device))
            tokens += chunk.tokens
            positions += range(chunk.start, chunk.end)
            blocks += [chunk.table[position // BLOCK] for position in range(chunk.start, chunk.end)]
            lasts.append(len(tokens) - 1)
        batch = torch.tensor([tokens, positions, blocks], device=self.device)
        cache.places = torch.stack([batch[2], batch[1] % BLOCK])
        decode = make_decode(chunks[:singles], self._windows, self.device)
        arguments = {
            "input_ids": batch[:1],
            "position_ids": batch[1:2],
            # None would be made into masks of all kinds by models with several.
            "attention_mask": dict.fromkeys(self._kinds) if len(self._kinds) > 1 else None,
            self._cache_argument: cache,
            "ragged": Ragged(cache, self._layer_windows, decode, prefill),
        }
        keep = torch.tensor(lasts, device=self.device)
        logits: torch.Tensor = self._model(**arguments, use_cache=True, logits_to_keep=keep).logits
        return logits[0]

    def _check(self, path: Path) -> int:
        """Refuse an architecture that answers otherwise here than alone; return the bytes a token takes in the cache.

        Some models do not keep their state in the cache they are given, or derive positions in their own way; better no
        answer than a wrong one.
        """
        numbers = [number % self.vocabulary for number in range(1, _CHECK_TOKENS + 1)]
        sequences = [numbers, numbers[::-1][1:]]
        cache = PagedCache(tokens=2 * BLOCK)
        tables: list[list[int]] = [[], []]
        try:
            with torch.inference_mode():
                alone = [
                    self._model(input_ids=torch.tensor([ids], device=self.device)).logits[0, -1] for ids in sequences
                ]
            self._model.set_attn_implementation(RAGGED)
            for table in tables:
                cache.extend(table, _CHECK_TOKENS)
            parts = list(zip(sequences, tables, strict=True))
            self.forward(cache, [Chunk(ids[:-1], 0, table) for ids, table in parts])
            together = self.forward(cache, [Chunk(ids[-1:], len(ids) - 1, table) for ids, table in parts])
        except Exception as error:  # whatever a model's own code raises: it cannot be run this way
            raise ConfigError(f"model: {path} cannot be run by the torch engine ({first_line(error)})") from error
        expected = torch.stack(alone).float()
        difference = ((together.float() - expected).norm() / expected.norm()).item()
        if not difference < _CHECK_TOLERANCE:
            reason = f"its logits differ by {difference:.0%} in a shared cache"
            raise ConfigError(f"model: {path} cannot be run by the torch engine ({reason})")
        return cache.bytes_per_token()


def _attention_windows(config: Any, path: Path) -> list[int | None]:
    """Return how many tokens back each layer sees, None for all."""
    window = getattr(config, "sliding_window", None) or None
    kinds = getattr(config, "layer_types", None) or [_SLIDING] * config.num_hidden_layers
    if unknown := sorted(set(kinds) - {_FULL, _SLIDING}):
        raise ConfigError(f"model: {path} has layers of kind {unknown[0]}, which the torch engine cannot run")
    return [window if kind == _SLIDING else None for kind in kinds]
