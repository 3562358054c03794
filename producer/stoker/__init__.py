"""Stoker keeps GPUs fed: a Redis-backed distributed job queue for model inference.

Names are imported when they are first used: importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.async_client import AsyncClient, AsyncJob
    from stoker.client import Client, Job
    from stoker.config import Config, load_config
    from stoker.engine import DistributedServingEngine
    from stoker.errors import (
        ConfigError,
        DeadlineInfeasible,
        DurabilityNotReached,
        IdempotencyConflict,
        InvalidRequest,
        ModelMismatch,
        NoWorkers,
        PayloadTooLarge,
        QueueFull,
        RedisUnavailable,
        RequestCancelled,
        RequestDisplaced,
        RequestError,
        RequestExpired,
        RequestFailed,
        RequestLost,
        ResultTimeout,
        StokerError,
        UnsupportedParameter,
    )
    from stoker.request import (
        Chunk,
        Classification,
        InferenceRequest,
        InferenceResponse,
        RequestPriority,
        Restarted,
        Timings,
        Usage,
    )

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Chunk",
    "Classification",
    "Client",
    "Config",
    "ConfigError",
    "DeadlineInfeasible",
    "DistributedServingEngine",
    "DurabilityNotReached",
    "IdempotencyConflict",
    "InferenceRequest",
    "InferenceResponse",
    "InvalidRequest",
    "Job",
    "ModelMismatch",
    "NoWorkers",
    "PayloadTooLarge",
    "QueueFull",
    "RedisUnavailable",
    "RequestCancelled",
    "RequestDisplaced",
    "RequestError",
    "RequestExpired",
    "RequestFailed",
    "RequestLost",
    "RequestPriority",
    "Restarted",
    "ResultTimeout",
    "StokerError",
    "Timings",
    "UnsupportedParameter",
    "Usage",
    "load_config",
]

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncJob": "async_client",
    "Chunk": "request",
    "Classification": "request",
    "Client": "client",
    "Config": "config",
    "DistributedServingEngine": "engine",
    "InferenceRequest": "request",
    "InferenceResponse": "request",
    "Job": "client",
    "RequestPriority": "request",
    "Restarted": "request",
    "Timings": "request",
    "Usage": "request",
    "load_config": "config",
}
"""The module of each name; the rest are errors."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
