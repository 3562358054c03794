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
TRANSFORMERS_CB = "transformers-cb"
CALLABLE = "callable"
OPENAI = "openai"
KINDS = (AUTO, SIM, TORCH, TRANSFORMERS_CB, CALLABLE, OPENAI)


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
    tensor_parallel: int = 1,
    **server: Any,
) -> Engine:
    """Return an engine for `model`, not yet loaded: a folder, "demo", "sim", or "module:Class" for a user's own code.

    `task`: what a folder's model is to do; auto is what its config says. A folder that generates runs by itself with
    transformers' continuous batching on a GPU or over several ranks, else with our own loop. A limit that is None is
    the kind's own default. `server`: the options of `OpenAIEngine`, for `engine="openai"` alone; `model` is then the
    server's name for it. Raises `ConfigError` for what cannot work.
    """
    kind = kind_of(model) if engine == AUTO else engine
    does = _task(model, kind, engine, task)
    if engine == AUTO and does == "generate":
        kind = _best_of(kind, device, tensor_parallel)
    server = {name: value for name, value in server.items() if value not in (None, False)}
    _check_options(kind, does, pooling, tensor_parallel, server)
    if kind == OPENAI:
        return _openai_engine(str(model), server, max_num_seqs)
    limits: dict[str, Any] = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    limits = {name: value for name, value in limits.items() if value is not None}
    if does in ("embed", "classify"):
        return _encoder_engine(model, does, pooling=pooling, device=device, dtype=dtype, **limits)
    if kind == SIM:
        from stoker_workers.engines.sim import INSTANT, SimEngine, load_profile

        whole = profile == INSTANT
        return SimEngine(load_profile(profile), kv_cache_tokens=kv_cache_tokens, whole_answers=whole, **limits)
    if kind == CALLABLE:
        from stoker_workers.engines.callable import CallableEngine

        return CallableEngine(str(model), device=device, **limits)
    if kind == TORCH:
        return _torch_engine(model, device=device, dtype=dtype, kv_cache_tokens=kv_cache_tokens, **limits)
    if kind == TRANSFORMERS_CB:
        limits |= {"kv_cache_tokens": kv_cache_tokens, "tensor_parallel": tensor_parallel}
        return _transformers_cb_engine(model, device=device, dtype=dtype, **limits)
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
        raise _missing(TORCH, error) from error
    if model == DEMO:
        return TorchEngine(demo_model_path(), name=DEMO, **options)
    return TorchEngine(model, **options)


def _transformers_cb_engine(model: str | Path, **options: Any) -> Engine:
    try:
        from stoker_workers.engines.transformers_cb import TransformersCbEngine
    except ModuleNotFoundError as error:
        raise _missing(TRANSFORMERS_CB, error) from error
    if model == DEMO:
        return TransformersCbEngine(demo_model_path(), name=DEMO, **options)
    return TransformersCbEngine(model, **options)


def _missing(kind: str, error: ModuleNotFoundError) -> ConfigError:
    # Its own modules are found, so one of those that a client or a scheduler does without is missing.
    return ConfigError(f'the {kind} engine needs {error.name}: pip install "stoker[worker]"')


def _check_options(kind: str, does: Task, pooling: str, tensor_parallel: int, server: dict[str, Any]) -> None:
    """Raise `ConfigError` for an option of another kind of engine."""
    if tensor_parallel > 1 and kind in KINDS and kind != TRANSFORMERS_CB:
        raise ConfigError(f"tensor_parallel: needs the engine {TRANSFORMERS_CB}, got {kind}")
    if server and kind != OPENAI:
        raise ConfigError(f"{next(iter(server))}: belongs to --engine openai, and this is {kind}")
    if pooling != AUTO and does not in ("embed", "classify"):
        raise ConfigError(f"pooling: is of --task embed, and this model is to {does}")


def _best_of(kind: str, device: str, tensor_parallel: int) -> str:
    """Return the better kind of engine for a folder's language model, where `kind` is the one for folders."""
    return TRANSFORMERS_CB if kind == TORCH and (tensor_parallel > 1 or _on_gpu(device)) else kind


def _on_gpu(device: str) -> bool:
    """Return whether a model would run on a GPU. Torch that is missing says so when its engine is made."""
    if device != AUTO:
        return device.startswith("cuda")
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return torch.cuda.is_available()
