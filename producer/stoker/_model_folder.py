"""Writes a loaded transformers model into a folder that a worker can load. Never pickled: safetensors and JSON."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


def is_loaded_model(model: object) -> bool:
    """Whether `model` can be written: a transformers model, or one that behaves like it."""
    return callable(getattr(model, "save_pretrained", None)) and hasattr(model, "config")


def tokenizer_for(model: Any, tokenizer: Any) -> Any:
    """Return the tokenizer to write, an object or a folder: the one given, else in the folder the model came from."""
    if tokenizer is not None:
        return tokenizer
    origin = Path(str(getattr(model, "name_or_path", "") or ""))
    return origin if origin.name and any((origin / name).is_file() for name in _TOKENIZER_FILES) else None


def save_model(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write `model` and its `tokenizer` (an object, a folder, or None) under `folder`; returns where.

    Without a tokenizer the model gets one of numbers: its text is token ids in decimal, which a worker needs to have
    some text for an answer.
    """
    origin = Path(str(getattr(model, "name_or_path", "") or "")).name or type(model).__name__
    target = folder / (re.sub(r"[^A-Za-z0-9._-]+", "-", origin) or "model")
    with _no_progress_bar():
        model.save_pretrained(target)
    if tokenizer is None:
        tokenizer = _tokenizer_of_numbers(int(model.get_input_embeddings().weight.shape[0]))
    elif not hasattr(tokenizer, "save_pretrained"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    tokenizer.save_pretrained(target)
    return target


def _tokenizer_of_numbers(size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(size)}
    numbers = Tokenizer(models.WordLevel(words, unk_token="0"))  # noqa: S106  # no password
    numbers.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast  # its own annotations leave its arguments out
    return make(tokenizer_object=numbers)


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing on the caller's terminal, and leave its settings as they were."""
    import transformers

    logging: Any = transformers.utils.logging  # has no annotations
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
