"""The kinds of engine, and how a worker finds the one for its model. Only the chosen kind is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stoker.errors import ConfigError
from stoker_workers.demo import DEMO, demo_model_path
from stoker_workers.engine import Engine

AUTO = "auto"
SIM = "sim"
TORCH = "torch"
TRANSFORMERS_CB = "transformers-cb"
CALLABLE = "callable"
KINDS = (AUTO, SIM, TORCH, TRANSFORMERS_CB, CALLABLE)


def make_engine(
    model: str | Path,
    *,
    engine: str = AUTO,
    device: str = AUTO,
    dtype: str = AUTO,
    profile: str | Path | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    kv_cache_tokens: int | None = None,
    tensor_parallel: int = 1,
) -> Engine:
    """Return an engine for `model`, not yet loaded: a folder, "demo", "sim", or "module:Class" for a user's own code.

    A limit that is None is the kind's own default. By itself a folder runs with transformers' continuous batching on a
    GPU or over several ranks, else with our own loop. Raises `ConfigError` for what cannot work.
    """
    kind = kind_of(model) if engine == AUTO else engine
    if engine == AUTO and kind == TORCH and (tensor_parallel > 1 or _on_gpu(device)):
        kind = TRANSFORMERS_CB
    if tensor_parallel > 1 and kind in KINDS and kind != TRANSFORMERS_CB:
        raise ConfigError(f"tensor_parallel: needs the engine {TRANSFORMERS_CB}, got {kind}")
    limits: dict[str, Any] = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    limits = {name: value for name, value in limits.items() if value is not None}
    if kind == SIM:
        from stoker_workers.engines.sim import SimEngine, load_profile

        return SimEngine(load_profile(profile), kv_cache_tokens=kv_cache_tokens, **limits)
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


def _on_gpu(device: str) -> bool:
    """Return whether a model would run on a GPU. Torch that is missing says so when its engine is made."""
    if device != AUTO:
        return device.startswith("cuda")
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return torch.cuda.is_available()
