"""The kinds of engine, and how a worker finds the one for its model. Only the chosen kind is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stoker.errors import ConfigError
from stoker_workers.demo import DEMO, demo_model_path
from stoker_workers.engine import Engine, Task
from stoker_workers.task import task_of

AUTO = "auto"
SIM = "sim"
TORCH = "torch"
CALLABLE = "callable"
OPENAI = "openai"
KINDS = (AUTO, SIM, TORCH, CALLABLE, OPENAI)


def make_engine(
    model: str | Path,
    *,
    engine: str = AUTO,
    device: str = AUTO,
    dtype: str = AUTO,
    task: str = AUTO,
    pooling: str = AUTO,
    profile: str | Path | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    kv_cache_tokens: int | None = None,
    **server: Any,
) -> Engine:
    """Return an engine for `model`, not yet loaded: a folder, "demo", "sim", or "module:Class" for a user's own code.

    `task`: what a folder's model is to do; auto is what its config says. A limit that is None is the kind's own
    default. `server`: the options of `OpenAIEngine`, for `engine="openai"` alone; `model` is then the server's name for
    it. Raises `ConfigError` for what cannot work.
    """
    kind = kind_of(model) if engine == AUTO else engine
    does = _task(model, kind, engine, task)
    server = {name: value for name, value in server.items() if value not in (None, False)}
    if kind == OPENAI:
        return _openai_engine(str(model), server, max_num_seqs)
    if server:
        raise ConfigError(f"{next(iter(server))}: belongs to --engine openai, and this is {kind}")
    limits: dict[str, Any] = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    limits = {name: value for name, value in limits.items() if value is not None}
    if does in ("embed", "classify"):
        return _encoder_engine(model, does, pooling=pooling, device=device, dtype=dtype, **limits)
    if pooling != AUTO:
        raise ConfigError(f"pooling: is of --task embed, and this model is to {does}")
    if kind == SIM:
        from stoker_workers.engines.sim import SimEngine, load_profile

        return SimEngine(load_profile(profile), kv_cache_tokens=kv_cache_tokens, **limits)
    if kind == CALLABLE:
        from stoker_workers.engines.callable import CallableEngine

        return CallableEngine(str(model), device=device, **limits)
    if kind == TORCH:
        return _torch_engine(model, device=device, dtype=dtype, kv_cache_tokens=kv_cache_tokens, **limits)
    raise ConfigError(f"engine: must be one of {', '.join(KINDS)}, got {engine!r}")


def kind_of(model: str | Path) -> str:
    """Return the kind of engine that a model's name asks for."""
    if model == SIM:
        return SIM
    if isinstance(model, str) and re.fullmatch(r"[\w.]+:\w+", model):
        return CALLABLE
    return TORCH


def _task(model: str | Path, kind: str, engine: str, task: str) -> Task:
    """Return what the engine is to do: only a folder's model has a choice, when no other engine is asked for."""
    if engine in (AUTO, TORCH) and kind not in (SIM, CALLABLE):
        return task_of(demo_model_path() if model == DEMO else Path(model), task)
    if task not in (AUTO, "generate"):
        raise ConfigError(f"task: the {kind} engine has none to choose, got {task!r}; --engine torch has")
    return "custom" if kind == CALLABLE else "generate"


def _encoder_engine(model: str | Path, task: Task, **options: Any) -> Engine:
    try:
        from stoker_workers.engines.encoder import EncoderEngine
    except ModuleNotFoundError as error:  # as below
        raise ConfigError(f'task {task} needs {error.name}: pip install "stoker[worker]"') from error
    if model == DEMO:
        return EncoderEngine(demo_model_path(), name=DEMO, task=task, **options)
    return EncoderEngine(model, task=task, **options)


def _openai_engine(model: str, server: dict[str, Any], max_num_seqs: int | None) -> Engine:
    if not model or not server.get("base_url"):
        raise ConfigError("engine openai: needs --base-url URL, and --model with the server's name for its model")
    try:
        from stoker_workers.engines.openai import OpenAIEngine
    except ModuleNotFoundError as error:
        raise ConfigError(f'the openai engine needs {error.name}: pip install "stoker[openai]"') from error
    if max_num_seqs is not None:
        server["max_num_seqs"] = max_num_seqs
    return OpenAIEngine(model, **server)


def _torch_engine(model: str | Path, **options: Any) -> Engine:
    try:
        from stoker_workers.engines.torch import TorchEngine
    except ModuleNotFoundError as error:
        # Its own modules are found, so one of those that a client or a scheduler does without is missing.
        raise ConfigError(f'the torch engine needs {error.name}: pip install "stoker[worker]"') from error
    if model == DEMO:
        return TorchEngine(demo_model_path(), name=DEMO, **options)
    return TorchEngine(model, **options)
