"""What a model folder is for, read without torch: its task, and how a vector is made of its last layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stoker.errors import ConfigError
from stoker_workers.card import read_config
from stoker_workers.engine import Task

AUTO = "auto"
TASKS: tuple[Task, ...] = ("generate", "embed", "classify")
POOLINGS = ("mean", "last", "cls")

_MODULES = "modules.json"  # a sentence-transformers model names here the steps from a text to its vector
_READ_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {"mean": "mean", "lasttoken": "last", "cls": "cls"}
_OLD_POOLINGS = {  # what sentence-transformers wrote before its version 5
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


def task_of(path: Path, asked: str = AUTO) -> Task:
    """Return the task of the model in a folder: what is `asked`, else what its files say it was made for.

    Raises `ConfigError` for an unknown task, and where there is no model.
    """
    if asked != AUTO:
        if asked not in TASKS:
            raise ConfigError(f"task: must be auto, {', '.join(TASKS)}, got {asked!r}")
        return asked
    architectures = read_config(path).get("architectures") or []
    if (path / _MODULES).is_file():
        return "embed"
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "classify"
    # A bare model, and one that fills gaps, has nothing to give but its last layer.
    bare = [name for name in architectures if name.endswith(("Model", "ForMaskedLM")) and "LMHead" not in name]
    return "embed" if bare else "generate"


def pooling_of(path: Path, asked: str = AUTO) -> str:
    """Return how the vectors of a text's tokens become one: `asked`, else as its sentence-transformers files say.

    `mean` of all, the `last`, or the first (`cls`); `mean` where nothing is said. Raises `ConfigError` for steps that
    are not done here, for the vectors would be wrong.
    """
    if asked != AUTO:
        if asked not in POOLINGS:
            raise ConfigError(f"pooling: must be auto, {', '.join(POOLINGS)}, got {asked!r}")
        return asked
    pooling = "mean"
    for module in _modules(path):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind not in _READ_MODULES:
            raise ConfigError(f"model: {path} has a step of kind {kind} ({_MODULES}), which no engine here does")
        if kind == "Pooling":
            pooling = _pooling_in(path / Path(str(module.get("path"))).name / "config.json")
    return pooling


def longest_text(path: Path) -> int:
    """Return the most tokens that a sentence-transformers model was made for; 0 where it does not say."""
    value = _read(path / "sentence_bert_config.json", {}).get("max_seq_length")
    return value if type(value) is int and value > 0 else 0


def _modules(path: Path) -> list[dict[str, Any]]:
    modules = _read(path / _MODULES, [])
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ConfigError(f"model: {path / _MODULES} holds no list of steps")
    return modules


def _pooling_in(file: Path) -> str:
    config = _read(file, {})
    modes = config.get("pooling_mode") or [mode for name, mode in _OLD_POOLINGS.items() if config.get(name)]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        named = " and ".join(map(str, modes)) or "none"
        raise ConfigError(
            f"model: {file} asks for the pooling {named}; {', '.join(POOLINGS)} are done here (--pooling)"
        )
    return _POOLINGS[modes[0]]


def _read(file: Path, absent: Any) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return absent
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {file} cannot be read: {error}") from error
