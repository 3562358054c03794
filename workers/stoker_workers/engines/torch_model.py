"""A causal language model from a folder, run on rows of a shared cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stoker.errors import ConfigError
from stoker_workers.card import read_config, weight_files
from stoker_workers.engines.kv_cache import RowCache, Window
from stoker_workers.engines.pretrained import Tokenizer, eos_ids, first_line, limit_threads, load_causal_model

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_FULL, _SLIDING = "full_attention", "sliding_attention"
_CHECK_TOKENS = 6
_CHECK_TOLERANCE = 0.05  # of the logits' norm: bfloat16 stays under 0.02, a wrong mask or position does not


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a sequence, of which `start` tokens are in the cache already."""

    tokens: Sequence[int]
    start: int


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
        self._model.requires_grad_(False)
        limit_threads(self._model, device)
        self._windows = _attention_windows(self._model.config.get_text_config(decoder=True), path)
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
    def forward(self, cache: RowCache, first: int, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Run the next tokens of the rows in the slots from `first`; return the logits after the last of each row."""
        longest = max(len(chunk.tokens) for chunk in chunks)
        length = max(chunk.start + len(chunk.tokens) for chunk in chunks)
        cache.reserve(first + len(chunks), length)
        tokens, positions, cache.window = self._inputs(first, chunks, longest, length)
        arguments = {
            "input_ids": tokens,
            "position_ids": positions,
            "attention_mask": self._masks(positions, length),
            self._cache_argument: cache,
        }
        logits: torch.Tensor = self._model(**arguments, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1]

    def _inputs(
        self, first: int, chunks: Sequence[Chunk], longest: int, length: int
    ) -> tuple[torch.Tensor, torch.Tensor, Window]:
        """Lay the chunks out as a batch whose rows end together, so that each row's last token is the last column."""
        rows: list[int] = []
        queries: list[int] = []
        slots: list[int] = []
        places: list[int] = []
        padded: list[list[int]] = []
        positions: list[list[int]] = []
        for row, chunk in enumerate(chunks):
            size = len(chunk.tokens)
            own = range(chunk.start, chunk.start + size)
            padded.append([*([0] * (longest - size)), *chunk.tokens])
            # What pads a row sees the row's first token: something finite, and nothing else depends on it.
            positions.append([*([0] * (longest - size)), *own])
            rows += [row] * size
            slots += [first + row] * size
            queries += range(longest - size, longest)
            places += own
        batch = torch.tensor([padded, positions], device=self.device)
        targets = torch.tensor([slots, places, rows, queries], device=self.device)
        return batch[0], batch[1], Window(first, first + len(chunks), length, *targets)

    def _masks(self, positions: torch.Tensor, length: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return which of a slot's tokens each query sees: all up to its own, or the last ones of a window."""
        keys = torch.arange(length, device=self.device)
        places = positions[:, None, :, None]
        causal = keys <= places
        masks = {
            kind: causal if window is None else causal & (keys > places - window)
            for kind, window in self._windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _check(self, path: Path) -> int:
        """Refuse an architecture that answers otherwise here than alone; return the bytes a token takes in the cache.

        Some models do not keep their state in the cache they are given, or derive positions in their own way; better no
        answer than a wrong one.
        """
        numbers = [number % self.vocabulary for number in range(1, _CHECK_TOKENS + 1)]
        sequences = [numbers, numbers[::-1][1:]]
        cache = RowCache(rows=2, tokens=2 * _CHECK_TOKENS)
        try:
            with torch.inference_mode():
                alone = [
                    self._model(input_ids=torch.tensor([ids], device=self.device)).logits[0, -1] for ids in sequences
                ]
            self.forward(cache, 0, [Chunk(ids[:-1], 0) for ids in sequences])
            together = self.forward(cache, 0, [Chunk(ids[-1:], len(ids) - 1) for ids in sequences])
        except Exception as error:  # whatever a model's own code raises: it cannot be run this way
            raise ConfigError(f"model: {path} cannot be run by the torch engine ({first_line(error)})") from error
        expected = torch.stack(alone).float()
        difference = ((together.float() - expected).norm() / expected.norm()).item()
        if not difference < _CHECK_TOLERANCE:
            reason = f"its logits differ by {difference:.0%} in a shared cache"
            raise ConfigError(f"model: {path} cannot be run by the torch engine ({reason})")
        return cache.bytes_per_token()


def _attention_windows(config: Any, path: Path) -> dict[str, int | None]:
    """Return how many tokens back each kind of layer sees, None for all."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if unknown := sorted(kinds - {_FULL, _SLIDING}):
        raise ConfigError(f"model: {path} has layers of kind {unknown[0]}, which the torch engine cannot run")
    if not window or kinds == {_FULL}:
        return {_FULL: None}
    return {_FULL: None, _SLIDING: window} if _FULL in kinds else {_SLIDING: window}
