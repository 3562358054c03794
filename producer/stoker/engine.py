"""The classic engine: a model in, answers out, and the whole stack behind it on this machine.

engine = DistributedServingEngine("demo", num_gpus=2)
request_id = await engine.submit_request(InferenceRequest(prompt="The with statement", max_tokens=32))
response = await engine.get_response(request_id)
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from stoker._model_folder import is_loaded_model, save_model, tokenizer_for
from stoker._private_stack import PrivateStack
from stoker.async_client import AsyncClient, AsyncJob
from stoker.config import Config, load_config
from stoker.errors import ConfigError, InvalidRequest, RedisUnavailable, StokerError
from stoker.request import InferenceRequest, InferenceResponse

MOST_JOBS = 65_536
"""Requests whose answers come by themselves; those submitted before that many others are asked for by their ids."""

_NAMES = ("demo", "sim")


class DistributedServingEngine:
    """One model, served by `num_gpus` workers on this machine: one on each GPU, or that many on the CPU.

    `model` is a folder in Hugging Face format, "demo" (a tiny model that ships with Stoker), "sim" (no model), the name
    `module:Class` of your own code, or a loaded transformers model. A loaded model is written to a private folder, with
    `tokenizer` or the one in the folder that it came from; without any, requests carry `prompt_tokens`.

    The first await starts a Redis, a scheduler and the workers. They end with `close`, with the `async with` block, or
    with this process, however it ends. `redis_url` uses that Redis instead. The other options are those of
    `stoker worker`; what is not said here is set by the environment, as everywhere.
    """

    def __init__(
        self,
        model: Any,
        num_gpus: int = 1,
        *,
        tokenizer: Any = None,
        redis_url: str | None = None,
        queue: str | None = None,
        engine: Literal["auto", "torch", "callable", "sim"] = "auto",
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        profile: str | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        kv_cache_tokens: int | None = None,
        start_timeout: float = 600.0,
    ) -> None:
        if type(num_gpus) is not int or num_gpus < 1:
            raise ConfigError(f"num_gpus: must be an integer of at least 1, got {num_gpus!r}")
        loaded = is_loaded_model(model)
        name = None if loaded else _name(model)
        options = {
            "engine": engine,
            "device": device,
            "dtype": dtype,
            "profile": profile,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "kv_cache_tokens": kv_cache_tokens,
        }
        settings = {
            "options": {"model": name, **options},
            "workers": num_gpus,
            "redis_url": redis_url,
            "queue": queue,
            "ready_timeout_s": start_timeout,
            "worker_path": _script_folder() if name and ":" in name else [],
        }
        tokenizer = tokenizer_for(model, tokenizer) if loaded else tokenizer
        self._only_tokens = loaded and tokenizer is None
        save = (lambda folder: save_model(model, tokenizer, folder)) if loaded else None
        self._stack = PrivateStack(settings, save)
        # At the interpreter's exit too, and for an engine that nobody closed; it must not know the engine.
        self._stop = weakref.finalize(self, self._stack.stop)
        self._client: AsyncClient | None = None
        self._jobs: OrderedDict[str, AsyncJob] = OrderedDict()
        self._busy = _Busy()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the stack, unless it runs, and return when it is ready.

        Raises `ConfigError` for what cannot work (no such model, fewer GPUs than asked for), `RedisUnavailable`, and
        `StokerError` for anything else that kept the stack from starting.
        """
        await self._connected()

    async def submit_request(self, request: InferenceRequest) -> str:
        """Submit a request; returns its id. Raises `InvalidRequest`, `IdempotencyConflict` and `QueueFull`."""
        if self._only_tokens and request.prompt_tokens is None:
            raise InvalidRequest("prompt_tokens", "must be given, for the model came without a tokenizer=")
        client = await self._connected()
        try:
            job = await client.submit(request)
        except RedisUnavailable as error:
            raise self._stack.failure or error from error
        self._jobs[job.id] = job
        if len(self._jobs) > MOST_JOBS:
            self._jobs.popitem(last=False)
        return job.id

    async def get_response(self, request_id: str, timeout: float | None = None) -> InferenceResponse:  # noqa: ASYNC109  # as job.result
        """Return the answer of a request; may be called again until the result expires.

        Raises `RequestFailed`, `InvalidRequest`, `RequestExpired`, `RequestCancelled` or `RequestLost` where there is
        none, and `ResultTimeout` after `timeout` seconds: the request goes on then.
        """
        client = await self._connected()
        job = self._jobs.get(request_id) or client.job(request_id)
        try:
            response = await job.response(timeout)
        except RedisUnavailable as error:
            raise self._stack.failure or error from error
        self._jobs.pop(request_id, None)
        return response.unwrap()

    async def get_stats(self) -> dict[str, Any]:
        """Return the figures of the queue, as `Client.stats`, and under "metrics" those that sum it up.

        Latencies are in milliseconds, from acceptance to outcome, None before the first one; percentiles are right
        within a factor of 1.41. `utilization` is the share of the time since the last call (or the start) that a worker
        was busy, on average and under "utilization_by_worker" for each, as far as their heartbeats told.
        """
        client = await self._connected()
        try:
            stats = await client.stats()
        except RedisUnavailable as error:
            raise self._stack.failure or error from error
        return {"metrics": _metrics(stats, self._busy.shares(stats["workers"], time.monotonic())), **stats}

    async def close(self) -> None:
        """End the stack, with all that still runs in it. Closing again does nothing."""
        client, self._client = self._client, None
        if client:
            await client.close()
        await asyncio.to_thread(self._stop)

    async def _connected(self) -> AsyncClient:
        if not self._stop.alive:
            raise StokerError("this engine is closed")
        if self._client:
            return self._client
        ready = await asyncio.shield(asyncio.wrap_future(self._stack.start()))
        if self._client is None:  # still: others may have waited too
            self._busy.start(time.monotonic())
            self._client = AsyncClient(config=_config(ready))
        return self._client


class _Busy:
    """What share of the time each worker is busy, between one look and the next."""

    def __init__(self) -> None:
        self._since = 0.0
        self._before: Mapping[str, int] = {}

    def start(self, now_s: float) -> None:
        self._since = now_s

    def shares(self, workers: list[dict[str, Any]], now_s: float) -> dict[str, float]:
        """Return the share of each live worker since the last look."""
        from stoker.stats import WELL

        live = [worker for worker in workers if worker["state"] in WELL]
        busy = {worker["inc"]: int(worker["figures"].get("busy_us", 0)) for worker in live}
        seconds = max(now_s - self._since, 1e-6)
        shares = {
            worker["worker"]: min(1.0, (busy[worker["inc"]] - self._before.get(worker["inc"], 0)) / 1e6 / seconds)
            for worker in live
        }
        self._since, self._before = now_s, busy
        return shares


def _metrics(stats: Mapping[str, Any], shares: Mapping[str, float]) -> dict[str, Any]:
    latency, counts = stats["latency_ms"], stats["counts"]
    return {
        "total_requests": counts["submitted"],
        "succeeded": counts["succeeded"],
        "failed": counts["failed"],
        "avg_latency_ms": latency["e2e"]["avg"],
        "p50_latency_ms": latency["e2e"]["p50"],
        "p95_latency_ms": latency["e2e"]["p95"],
        "p99_latency_ms": latency["e2e"]["p99"],
        "avg_ttft_ms": latency["ttft"]["avg"],
        "avg_queue_ms": latency["queue"]["avg"],
        "requests_per_second": stats["rates"]["requests_per_second"],
        "tokens_per_second": stats["rates"]["tokens_per_second"],
        "utilization": sum(shares.values()) / len(shares) if shares else 0.0,
        "utilization_by_worker": dict(shares),
    }


def _config(ready: Mapping[str, Any]) -> Config:
    return load_config(redis_url=ready["redis_url"], queue=ready["queue"])


def _name(model: object) -> str:
    """Return a model's name as workers understand it; raises `ConfigError` for what is none."""
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(
            "model: must be a folder, demo, sim, module:Class, or a loaded transformers model,"
            f" got a {type(model).__name__}"
        )
    name = os.fspath(model)
    # The caller may have changed its current folder by the time that the stack starts.
    return str(Path(name).absolute()) if name not in _NAMES and Path(name).is_dir() else str(name)


def _script_folder() -> list[str]:
    """Return where the caller's own modules lie, beside the current folder: workers import the class from there."""
    return [sys.path[0]] if sys.path and sys.path[0] else []
