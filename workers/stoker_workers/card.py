"""What a queue must know of a model folder, read without torch: JSON files, and headers of the weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stoker.errors import ConfigError
from stoker_workers.engine import Mode, ModelCard, Task

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
GENERATION = "generation_config.json"

# All that changes answers, apart from the weights. What a folder lacks is left out.
_HASHED = (
    CONFIG,
    INDEX,
    GENERATION,
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_MAX_HEADER = 100 * 1024 * 1024  # the limit of the safetensors format
_SAMPLES = 16
_SAMPLE_BYTES = 4096


def card_of_folder(
    path: Path,
    dtype: str,
    mode: Mode = "continuous",
    name: str | None = None,
    *,
    task: Task = "generate",
    pooling: str = "",
) -> ModelCard:
    """Return the card of the model in the folder `path`, run in `dtype`; it is called `name`, else like its folder.

    `task` is what it does, `pooling` how a vector is made of its last layer: they change answers, so they are part of
    the identity. Raises `ConfigError` when the folder holds no model in Hugging Face format with safetensors.
    """
    config = read_config(path)
    text = _text_config(config)
    return ModelCard(
        name=name or path.resolve().name,
        identity=_identity(path, dtype, "" if task == "generate" else f"{task} {pooling}"),
        dtype=dtype,
        vocabulary=_positive(text, "vocab_size"),
        context=_context(text),
        mode=mode,
        task=task,
        sampling=_sampling(path),
    )


def read_config(path: Path) -> dict[str, Any]:
    """Return the folder's config.json; raises `ConfigError` with what is missing."""
    if not path.is_dir():
        raise ConfigError(f"model: no folder at {path} (a model is a local folder; nothing is downloaded)")
    return _read_object(path / CONFIG)


def weight_files(path: Path) -> list[Path]:
    """Return the folder's safetensors files, sorted; raises `ConfigError` when there are none or one is missing."""
    if (path / INDEX).is_file():
        weight_map = _read_object(path / INDEX).get("weight_map")
        names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    else:
        names = [WEIGHTS]
    # The names come from a file: they must stay in the folder.
    missing = [name for name in names if Path(name).name != name or not (path / name).is_file()]
    if missing or not names:
        raise ConfigError(f"model: {path} lacks {missing[0] if missing else WEIGHTS} (only safetensors are read)")
    return [path / name for name in names]


def _identity(path: Path, dtype: str, use: str) -> str:
    """Hash what changes answers: the JSON files whole, of the weights each header and samples, the dtype and the use.

    Samples, because a fine-tuned model has the same header as its base; gigabytes are not read for it.
    """
    digest = hashlib.sha256()
    for label, content in _identity_parts(path, dtype, use):
        # Lengths keep two different lists of parts from running together to the same bytes.
        digest.update(f"{label}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


def _identity_parts(path: Path, dtype: str, use: str) -> Iterator[tuple[str, bytes]]:
    yield "dtype", dtype.encode()
    yield "use", use.encode()
    for name in _HASHED:
        if (path / name).is_file():
            yield name, (path / name).read_bytes()
    for file in weight_files(path):
        yield from _weight_parts(file)


def _weight_parts(file: Path) -> Iterator[tuple[str, bytes]]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ConfigError(f"model: {file} is no safetensors file, or is cut short")
        yield file.name, stream.read(length)
        data = size - 8 - length
        for number in range(_SAMPLES):
            stream.seek(8 + length + data * number // _SAMPLES)
            yield f"{file.name}@{number}", stream.read(_SAMPLE_BYTES)


def _sampling(path: Path) -> dict[str, float]:
    """Return what the folder's generation_config.json suggests; what a request may not have is left out."""
    if not (path / GENERATION).is_file():
        return {}
    config = _read_object(path / GENERATION)
    limits = {"temperature": 100.0, "top_p": 1.0, "top_k": math.inf}
    found = {name: config.get(name) for name in limits}
    return {
        name: value
        for name, value in found.items()
        if type(value) is int or (type(value) is float and name != "top_k")
        if 0 < value <= limits[name]
    }


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"model: {file.parent} lacks {file.name}, so it is no model folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"model: {file} holds no JSON object")
    return content


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part about the language model, which multi-modal models keep one level down."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _context(config: Mapping[str, Any]) -> int:
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, dict) and "longrope" in (rope.get("rope_type"), rope.get("type")):
        # Beyond it the longest row changes the position factors of all: an answer would depend on its company.
        original = _positive(rope, "original_max_position_embeddings")
        return original or _positive(config, "original_max_position_embeddings", "max_position_embeddings")
    return _positive(config, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


def _positive(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of `names` that is a positive int, else 0."""
    values = [config.get(name) for name in names]
    return next((value for value in values if type(value) is int and value > 0), 0)
