"""The parent of a worker: starts the child that runs the model, speaks for it to the queue, and buries it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import Any

import structlog

from stoker.config import Config, check_name
from stoker.errors import ConfigError, ModelMismatch, RedisUnavailable
from stoker.every import every, pause
from stoker.store import scripts
from stoker.store.connection import AsyncStore, new_id
from stoker.store.pack import pack, unpack
from stoker.store.requirements import check_server
from stoker.store.scripts import Beat, Beaten, Call, Registration, T
from stoker_workers.child import Child
from stoker_workers.messages import (
    Costs,
    Drain,
    EngineOptions,
    Loaded,
    Serve,
    Stop,
)

log = structlog.get_logger()

RETRY_S = 0.2
CALM_S = 60.0
BACKOFF_MAX_S = 60.0
FIGURES = ("steps", "row_steps", "busy_us", "prompt_tokens", "generation_tokens", "finished")


class Supervisor:
    """One worker: a name, a child at a time, an incarnation for each.

    1. Numbers and starts the child, waits for its model, registers it.
    2. Beats each H with the child's counters, and passes on which rows moved on.
    3. Reports a dead child before the next one registers, so that its work is taken back at once.
    4. On SIGTERM lets the child finish or hand back, and takes leave; a second one hands back at once.
    """

    def __init__(
        self, config: Config, options: EngineOptions, *, name: str | None = None, log_level: str = "info"
    ) -> None:
        """Supervise a child with `options`; `name` must be unique in the queue, by default made of host and pid."""
        self.name = check_name("name", name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}")
        self._config = config
        self._options = options
        self._log_level = log_level
        self._store = AsyncStore(config)
        self._stop = asyncio.Event()
        self._hurry = False
        self._failures = 0
        self._error: ConfigError | None = None

    def stop(self) -> None:
        """Drain and end; the second call hands back at once."""
        self._hurry = self._stop.is_set()
        self._stop.set()

    def give_up(self, error: ConfigError) -> None:
        """End now, and let `run` raise `error`."""
        self._error = error
        self._stop.set()

    async def run(self) -> None:
        """Work until stopped; raises `ConfigError` when the model can never be loaded, another has the name, or Redis
        cannot hold a queue."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            await check_server(self._store, self._stop)
            while not self._stop.is_set():
                started = time.monotonic()
                await self._one_child()
                if not self._stop.is_set():
                    await pause(self._restart_delay(time.monotonic() - started), self._stop)
        finally:
            await self._store.close()
        if self._error:
            raise self._error

    def _restart_delay(self, lived_s: float) -> float:
        """None after a calm life; else 1, 2, 4 .. 60 s: a model that cannot be loaded must not cause a storm."""
        if lived_s >= CALM_S:
            self._failures = 0
            return 0.0
        self._failures += 1
        return 0.0 if self._failures == 1 else min(BACKOFF_MAX_S, 2.0 ** (self._failures - 2))

    async def _one_child(self) -> None:
        number = await self._until_answered(scripts.incarnate())
        if number is None:
            return
        child = Child(self._config, self._options, f"{self.name}:{number}-{new_id()[:8]}", self._log_level)
        await child.start()
        try:
            loaded = await child.loaded(self._config.load_timeout_s, self._stop)
            if loaded:
                await self._serve(child, number, loaded)
        finally:
            await child.end()

    async def _serve(self, child: Child, number: int, loaded: Loaded) -> None:
        """Register, and again under a new incarnation whenever the old one is void, until the child or we end."""
        while child.alive and not self._stop.is_set():
            generation = await self._register(child.inc, number, loaded)
            if generation is None:
                return
            await child.tell(Serve(child.inc))
            log.info("serving", inc=child.inc, model=loaded.card["name"], dtype=loaded.card["dtype"])
            void = await Life(self, child, generation, loaded).run()
            if not void:
                break
            log.warning("incarnation void, registering anew", inc=child.inc, reason=void)
            number = await self._until_answered(scripts.incarnate()) or number
            child.inc = f"{self.name}:{number}-{new_id()[:8]}"
        if child.alive:
            return
        cause, crash_set = child.cause_of_death()
        log.warning("child died", inc=child.inc, cause=cause, code=child.code, in_step=len(crash_set))
        await self._until_answered(scripts.report(child.inc, cause, crash_set), patient=True)

    async def _register(self, inc: str, number: int, loaded: Loaded) -> str | None:
        card, capacity = loaded.card, loaded.capacity
        item = Registration(
            inc=inc,
            worker=self.name,
            number=number,
            identity=card["identity"],
            card=pack(card),
            capacity=capacity["tokens"],
            rows=capacity["rows"],
            budget=capacity["budget"],
            mode=card["mode"],
            cache=capacity["cache"],
        )
        answer = await self._until_answered(scripts.register(item, new_id(), self._config))
        if answer is None:
            return None
        match answer.word:
            case "OK":
                return answer.detail.decode()
            case "OTHER_MODEL":
                raise ModelMismatch(_other_model(self._config.queue, answer.detail, card))
            case "OTHER_H":
                theirs = int(answer.detail) // 1000
                raise ConfigError(f"heartbeat_ms: the queue runs with {theirs}, got {self._config.heartbeat_ms}")
            case _ if answer.detail == b"superseded":
                raise ConfigError(superseded(self.name))
            case _:
                raise ConfigError(f"worker {self.name!r}: refused as {answer.detail.decode()}")

    async def _until_answered(self, call: Call[T], *, patient: bool = False) -> T | None:
        """Repeat the call while Redis does not answer; None when told to stop meanwhile (`patient`: 5 s later)."""
        complained = False
        patience = 0.0
        while not self._stop.is_set() or patience < 5.0 * patient:
            try:
                return await self._store.run(call)
            except RedisUnavailable as error:
                if not complained:
                    log.warning("redis unavailable, waiting", error=str(error))
                complained = True
                patience += RETRY_S if self._stop.is_set() else 0.0
                await asyncio.sleep(RETRY_S)
        return None

    @property
    def config(self) -> Config:
        """The settings that the child shares."""
        return self._config

    @property
    def store(self) -> AsyncStore:
        """The queue."""
        return self._store

    @property
    def stopping(self) -> asyncio.Event:
        """Set once the worker is to end."""
        return self._stop

    @property
    def hurry(self) -> bool:
        """Whether even the grace is over."""
        return self._hurry


class Life:
    """One incarnation from its registration to its end: heartbeats, and the way out."""

    def __init__(self, supervisor: Supervisor, child: Child, generation: str, loaded: Loaded) -> None:
        """Live as `child.inc` under `generation`."""
        self._supervisor = supervisor
        self._child = child
        self._generation = generation
        self._capacity: int = loaded.capacity["tokens"]
        self._over = asyncio.Event()
        self._void = ""
        self._costs: dict[tuple[str, str], int] = {}
        self._rate = 0.0
        self._last = child.board.read()

    async def run(self) -> str:
        """Beat until the end; returns why the incarnation is void, empty if it is not."""
        tasks = [
            asyncio.create_task(every(self._supervisor.config.heartbeat_ms / 1000, self._beat, self._over)),
            asyncio.create_task(self._watch_child()),
            asyncio.create_task(self._watch_stop()),
        ]
        await self._over.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return self._void

    async def _beat(self) -> None:
        for message in self._child.news():
            if isinstance(message, Costs):
                self._costs |= {(request_id, delivery): tokens for request_id, delivery, tokens in message.rows}
        counters = self._child.board.read()
        costs = dict(self._costs)
        beat = Beat(
            inc=self._child.inc,
            generation=self._generation,
            accepting=not self._supervisor.stopping.is_set(),
            capacity=self._capacity,
            progress=counters["progress"],
            rate=self._measured_rate(counters),
            faults=counters["faults"],
            successes=counters["successes"],
            figures={name: counters[name] for name in FIGURES},
            costs=costs,
        )
        answer = await self._supervisor.store.run(scripts.beat(beat, self._supervisor.config))
        for key in costs:
            self._costs.pop(key, None)
        await self._heed(answer)

    async def _heed(self, answer: Beaten) -> None:
        if answer.word == "OK":
            if answer.named:
                await self._child.tell(Stop([list(key) for key in answer.named]))
            return
        if answer.detail == "superseded":
            self._supervisor.give_up(ConfigError(superseded(self._supervisor.name)))
        self._void = answer.detail or answer.word
        self._over.set()

    def _measured_rate(self, counters: dict[str, int]) -> float:
        """Tokens a second of busy time, smoothed: what placement divides outstanding tokens by."""
        tokens = sum(counters[name] - self._last[name] for name in ("prompt_tokens", "generation_tokens"))
        busy_s = (counters["busy_us"] - self._last["busy_us"]) / 1e6
        if tokens > 0 and busy_s > 0:
            now = tokens / busy_s
            self._rate = now if not self._rate else 0.7 * self._rate + 0.3 * now
            self._last = counters
        return self._rate

    async def _watch_child(self) -> None:
        await self._child.wait()
        self._over.set()

    async def _watch_stop(self) -> None:
        """Quiet, then finish or hand back, then take leave."""
        supervisor, child = self._supervisor, self._child
        await supervisor.stopping.wait()
        await self._beat_quietly()
        await child.tell(Drain(0.0 if supervisor.hurry else supervisor.config.drain_timeout_s))
        drained = asyncio.create_task(child.until_drained())
        while not drained.done() and child.alive:
            if supervisor.hurry:
                await child.tell(Drain(0.0))
            await asyncio.wait([drained], timeout=0.2)
        if child.alive and await drained:
            await self._leave()
        drained.cancel()
        self._over.set()

    async def _beat_quietly(self) -> None:
        with contextlib.suppress(RedisUnavailable):
            await self._beat()

    async def _leave(self) -> None:
        with contextlib.suppress(RedisUnavailable):
            word = await self._supervisor.store.run_patiently(scripts.deregister(self._child.inc))
            log.info("left", inc=self._child.inc, word=word)
            if word == "HELD":
                # What arrived while we left: reported as dead, it is taken back at once.
                await self._supervisor.store.run_patiently(scripts.report(self._child.inc, "left", []))


def superseded(name: str) -> str:
    """Return what to say when another process has our name."""
    return f"another worker took the name {name!r}; give each its own with --name"


def _other_model(queue: str, theirs: bytes, ours: dict[str, Any]) -> str:
    card = unpack(theirs.partition(b"|")[2], "card")
    shown = [
        f"{side}: {c['name']} ({c['dtype']}, {c['identity'][:12]})" for side, c in (("queue", card), ("worker", ours))
    ]
    return f"queue {queue!r} serves another model; {'; '.join(shown)}; see `stoker queue set-model`"
