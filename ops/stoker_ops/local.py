"""A whole stack on one machine: a Redis, one scheduler, some workers. Nothing of it outlives its starter.

    async with LocalStack(config, StackSettings(options=EngineOptions("demo"), workers=2)) as stack:
        ...  # a leader schedules and the workers are registered; clients use stack.config

`python -P -m stoker_ops.local` does the same for a program that has only pipes to it; see `stoker_ops.piped`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast

import structlog

from stoker.command import EXIT_OK, EXIT_USAGE
from stoker.config import Config, environment_of
from stoker.errors import ConfigError, RedisUnavailable, StokerError
from stoker.every import every
from stoker.shard_number import set_number
from stoker.store import inspections, lookups, reads, scripts
from stoker.store.agreement import agree_async
from stoker.store.connection import AsyncStore
from stoker.store.lookups import Overview
from stoker.store.records import WorkerRecord
from stoker.store.requirements import refuse_unfit
from stoker_ops import embedded
from stoker_ops.gpus import pick_devices
from stoker_ops.interrupt import end_all
from stoker_ops.kept import Kept
from stoker_ops.settings import (
    StackSettings,
    arguments_of,
    check_model,
    short_temp,
    worker_names,
)

T = TypeVar("T")

log = structlog.get_logger()

POLL_S = 0.05
REDIS_CHECK_S = 0.5
READY_EXTRA_S = 30.0
SCHEDULER_STOP_S = 5.0
# A run says how far it is, and leaves its batch to the next one.
BATCH_STOP_S = 20.0
# Beyond its drain: a worker reads its stream in calls of a second, takes leave, and frees its device.
WORKER_STOP_S = 10.0


class StackError(StokerError):
    """The stack cannot start or go on; the message says why."""


class NotReady(StackError):
    """The stack was not ready in time."""


class LocalStack:
    """A Redis (or the one that `config` names), a scheduler and workers, from `start` to `stop`.

    1. Starts them in this order; they are ready when a leader schedules and the workers are registered.
    2. Starts anew what dies: processes with back-off, the Redis on the data it left.
    3. Stops workers first, so that what they run is finished or given back, then the scheduler, then the Redis; before
       them what runs batch files, which only submits.

    Belongs to one event loop, in a thread that lives as long as the stack: the kernel ties processes to threads.
    """

    def __init__(self, config: Config, settings: StackSettings) -> None:
        """Prepare a stack; `config.redis_url` names a Redis to use instead of starting one."""
        if config.redis_url is None and settings.home is None and "drain_timeout_s" not in config.model_fields_set:
            # What could be finished meanwhile, nobody could read: the results go with the Redis.
            config = config.model_copy(update={"drain_timeout_s": 0.0})
        if settings.home is None and "metrics" not in config.model_fields_set:
            # Nobody scrapes what lives for a moment, and it need not take the ports of one that stays.
            config = config.model_copy(update={"metrics": False})
        self.config = config
        self.devices: list[str] = []
        self._settings = settings
        self.owns_redis = config.redis_url is None
        self._redis: embedded.EmbeddedRedis | None = None
        self._redis_watch: asyncio.Task[None] | None = None
        self._stores: list[AsyncStore] = []
        self._scheduler: Kept | None = None
        self._workers: list[Kept] = []
        self._running: dict[asyncio.Task[int], Kept] = {}
        self._batches: Kept | None = None
        self._stopping = asyncio.Event()
        self._files = contextlib.ExitStack()

    @property
    def workers(self) -> list[str]:
        """The names of the workers."""
        return [worker.name for worker in self._workers]

    @property
    def _alone(self) -> bool:
        """Whether the Redis is ours, and nobody else's processes use it."""
        return self._redis is not None and not self._redis.joined

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def private_folder(self, name: str) -> Path:
        """Make a folder that is removed with the stack: beside the own Redis, whose guard sees to it, if it has one."""
        if self._redis is None:
            return Path(self._files.enter_context(tempfile.TemporaryDirectory(prefix="stoker-")))
        folder = self._redis.directory / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def use_model(self, model: str) -> None:
        """Name the model, if it was not known before; before the workers start."""
        options = dataclasses.replace(self._settings.options, model=model)
        self._settings = dataclasses.replace(self._settings, options=options)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- starting -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all and return when it is ready.

        Raises `ConfigError` for settings that cannot work, `RedisUnavailable`, and `StackError`; `stop` is due anyway.
        """
        settings = self._settings
        check_model(settings.options)
        self.devices = await self._pick_devices()
        self.start_redis()
        self._stores = [AsyncStore(part) for part in self.config.each()]
        refuse_unfit(await self._stores[0].read_patiently(inspections.info()))
        await self._agree()
        before = await _Before.read(self._stores)
        if self._alone:
            await _forget_model(self._stores)
        self._scheduler = self._keep("scheduler", ["scheduler", "--log-level", settings.log_level], final=(EXIT_USAGE,))
        names = worker_names(len(self.devices), alone=self._alone)
        for number, (name, device) in enumerate(zip(names, self.devices, strict=True)):
            options = dataclasses.replace(settings.options, device=device)
            arguments = ["worker", "--name", name, "--log-level", settings.log_level, *arguments_of(options)]
            # Elsewhere others may serve some shards already.
            if self.config.spread and self._alone:
                arguments += ["--shard", str(number % self.config.shards)]
            # Code 0: somebody told this worker to end, or another one took its name.
            self._workers.append(self._keep(name, arguments, final=(EXIT_OK, EXIT_USAGE)))
        if settings.batch:
            # Nothing waits for it, and the stack goes on without it.
            self._batches = self._keep(
                "batch-worker", ["batch-worker", "--log-level", settings.log_level], (EXIT_USAGE,)
            )
        await self._ready(before)

    async def _agree(self) -> None:
        """Mean the number of shards that the queue has; on a Redis of our own an empty queue gets ours."""
        try:
            await agree_async(self._stores[0], patiently=True, claim=True)
        except ConfigError:
            if not self._alone:
                raise
            await asyncio.to_thread(set_number, self.config, self.config.shards)

    async def _pick_devices(self) -> list[str]:
        """Return a device for each worker: on a Redis of our own at least one for each shard."""
        settings, least = self._settings, self.config.shards if self.owns_redis else 1
        devices = await pick_devices(settings.options, settings.workers, share=settings.share_gpus)
        if len(devices) < least and settings.workers is None:
            devices = await pick_devices(settings.options, least, share=settings.share_gpus)
        if len(devices) < least:
            raise ConfigError(f"workers: must be at least one for each of the {least} shards, got {len(devices)}")
        return devices

    def start_redis(self) -> None:
        """Start the own Redis, if there is to be one and it does not run yet. Raises `RedisUnavailable`.

        Blocks for the 20 ms that this takes, or as long as a server loads its data: nothing else can go on anyway.
        """
        if not self.owns_redis or self._redis:
            return
        home = self._settings.home or Path(tempfile.mkdtemp(prefix="stoker-", dir=short_temp()))
        try:
            self._redis = self._run_redis(home)
        except RedisUnavailable:
            if self._settings.home is None:
                shutil.rmtree(home, ignore_errors=True)
            raise
        self.config = self.config.model_copy(update={"redis_url": self._redis.url})
        watch = every(REDIS_CHECK_S, self._check_redis, self._stopping)
        self._redis_watch = asyncio.create_task(watch)

    def _run_redis(self, home: Path) -> embedded.EmbeddedRedis:
        try:
            return embedded.start(home, ephemeral=self._settings.home is None)
        except embedded.EmbeddedRedisError as error:
            raise RedisUnavailable(str(error)) from error

    async def _check_redis(self) -> None:
        """Start the Redis again when it is gone; also when it was another starter's, which ended."""
        server = self._redis
        if server is None or await asyncio.to_thread(lambda: server.running) or self._stopping.is_set():
            return
        # Not by `every`, which would only say that Redis is away.
        try:
            started = await asyncio.to_thread(self._run_redis, server.directory)
        except RedisUnavailable as error:
            log.error("redis is gone and cannot be started again", error=str(error))
            return
        # It may have been slow, not gone, or another starter was quicker: then the old handle stays, for the guard
        # behind it ends when it is dropped.
        if not started.joined:
            log.warning("redis was gone and is started again", folder=str(server.directory))
            self._redis = started

    def _keep(self, name: str, arguments: Sequence[str], final: tuple[int, ...]) -> Kept:
        environment = environment_of(self.config)
        if self._redis and self._settings.home is None:
            # torch leaves a folder of its own there, for one.
            environment["TMPDIR"] = str(self.private_folder("tmp"))
        if self._settings.worker_path:
            path = [*self._settings.worker_path, *filter(None, [environment.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(path)
        process = Kept(name, arguments, environment, self._log_file(name), final)
        self._running[asyncio.create_task(process.run())] = process
        return process

    def _log_file(self, name: str) -> BinaryIO | None:
        """Return where a process prints to: beside the own Redis, else a file without a name, which leaves no trace."""
        if not self._settings.quiet:
            return None
        if self._redis is None:
            return self._files.enter_context(tempfile.TemporaryFile("a+b"))
        return self._files.enter_context((self._redis.directory / f"{name}.log").open("a+b"))

    async def _ready(self, before: _Before) -> None:
        """Wait for a leader and the workers; some of the workers are enough once the time is over."""
        limit_s = self._settings.ready_timeout_s or self.config.load_timeout_s + READY_EXTRA_S
        deadline = time.monotonic() + limit_s
        while True:
            self._raise_if_ended()
            views, records = await _survey(self._stores)
            # On a Redis of our own, the lease of a scheduler that was killed may not have run out yet.
            old = before.leaders if self._alone else frozenset()
            leads = all(_leads(view) and view.leader not in old for view in views)
            missing = set(self.workers) - {record.worker for record in records if record.inc not in before.workers}
            if leads and not missing:
                return
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_S)
        waited = f"not ready within {limit_s:g} s"
        if not leads:
            raise NotReady(f"no scheduler leads queue {self.config.queue!r}: {waited}{self._words(self._scheduler)}")
        late = next(worker for worker in self._workers if worker.name in missing)
        if len(missing) == len(self._workers):
            raise NotReady(f"no worker has loaded its model: {waited}{self._words(late)}")
        log.warning("going on without some workers", missing=sorted(missing), reason=waited, says=late.last_words())

    # --- running --------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until the stack cannot go on, and raise why: the scheduler or the last worker ended for good."""
        left = {task: process for task, process in self._running.items() if process is not self._batches}
        while True:
            done, _ = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                process = left.pop(task)
                log.error("process ended for good", process=process.name, code=task.result())
                if process is self._scheduler or len(left) == 1:
                    raise self._why(process, task.result())

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` and return its value; raises what `wait` raises, should the stack end meanwhile."""
        tasks = asyncio.create_task(work), asyncio.create_task(self.wait())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[0].result() if tasks[0] in done else await cast("asyncio.Task[T]", tasks[1])
        finally:
            await end_all(tasks)

    def _raise_if_ended(self) -> None:
        for task, process in self._running.items():
            if task.done() and process is not self._batches:
                raise self._why(process, task.result())

    def _why(self, process: Kept, code: int) -> StokerError:
        """Return the error that the end of a process means."""
        if code == EXIT_USAGE:
            return ConfigError(process.last_words() or f"{process.name} cannot run; it said why above")
        return StackError(f"{process.name} ended with code {code}{self._words(process)}")

    def _words(self, process: Kept | None) -> str:
        words = process.last_words() if process else ""
        return f"; {process.name} said:\n{words}" if process and words else ""

    # --- stopping -------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Let workers that finish what they run give it back instead; only while they stop."""
        if self._stopping.is_set():
            for worker in self._workers:
                worker.signal(SIGTERM)

    async def stop(self) -> None:
        """Stop all, in order. Stopping again does nothing."""
        self._stopping.set()
        if self._redis_watch:
            await self._redis_watch
        patience_s = self.config.drain_timeout_s + WORKER_STOP_S
        if self._batches:
            await self._batches.stop(BATCH_STOP_S)
        await asyncio.gather(*(worker.stop(patience_s) for worker in self._workers))
        if self._scheduler:
            await self._scheduler.stop(SCHEDULER_STOP_S)
        await asyncio.gather(*self._running, return_exceptions=True)
        self._workers, self._scheduler, self._batches, self._running = [], None, None, {}
        for store in self._stores:
            await store.close()
        self._files.close()
        if self._redis:
            await asyncio.to_thread(self._redis.stop)
            self._redis = None


@dataclass(frozen=True, slots=True)
class _Before:
    """What the queue knew before this stack: what was killed with an earlier one still looks alive for some seconds."""

    workers: frozenset[str]
    leaders: frozenset[str | None]

    @classmethod
    async def read(cls, stores: Sequence[AsyncStore]) -> _Before:
        views, records = await _survey(stores)
        return cls(frozenset(record.inc for record in records), frozenset(view.leader for view in views))


async def _survey(stores: Sequence[AsyncStore]) -> tuple[list[Overview], list[WorkerRecord]]:
    """Return an overview of each shard, and the workers of all."""
    views = [await store.read_patiently(lookups.overview(store.keys)) for store in stores]
    workers = [await store.read_patiently(lookups.workers(store.keys)) for store in stores]
    return views, [record for records in workers for record in records]


def _leads(view: Overview) -> bool:
    return view.leader is not None and view.leader_until_us > view.now_us


async def _forget_model(stores: Sequence[AsyncStore]) -> None:
    """Let the next worker say what model the queue serves, if nothing waits for the one before it.

    On a Redis of our own nobody else depends on it. With workers registered (a stack that was killed a moment ago) the
    model stays.
    """
    counts = [await store.read_patiently(reads.counts(store.keys)) for store in stores]
    if not any(some.get("waiting") for some in counts):
        for store in stores:
            await store.run_patiently(scripts.set_model("", b""))


if __name__ == "__main__":
    import sys

    from stoker_ops.piped import main

    sys.exit(main())
