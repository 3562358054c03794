"""The parent of a worker: starts the child that runs the model, speaks for it to the queue, and buries it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time

import structlog

from stoker.config import Config, check_name
from stoker.errors import ConfigError, RedisUnavailable
from stoker.every import Outage, every, pause
from stoker.exporter import exporting, loop_turns, worker_ports
from stoker.store import scripts
from stoker.store.codec import encode_failure
from stoker.store.connection import AsyncStore, new_id
from stoker.store.pack import pack, unpack
from stoker.store.records import AHEAD, FULL_CAPACITY
from stoker.store.requirements import check_server
from stoker.store.scripts import Beat, Beaten, Call, Registration, T
from stoker_workers.ahead import Ahead
from stoker_workers.backoff import Backoff
from stoker_workers.child import Child
from stoker_workers.engines import CALLABLE, kind_of
from stoker_workers.figures import DRAINING, LOADING, RESTARTING, STARTING, WorkerFigures
from stoker_workers.messages import (
    Costs,
    Drain,
    EngineOptions,
    Loaded,
    Nudge,
    Serve,
    Stop,
)
from stoker_workers.progress import Progress
from stoker_workers.same_model import check_shards, other_model

log = structlog.get_logger()

RETRY_S = 0.2
LOOK_S = 0.2
HAND_BACK_S = 5.0
"""How long a child may take to hand back what is left after its grace, before it is killed."""
FIGURES = ("steps", "row_steps", "token_steps", "busy_us", "prompt_tokens", "generation_tokens", "finished")


class Supervisor:
    """One worker: a name, a child at a time, an incarnation for each.

    1. Numbers and starts the child, waits for its model, registers it.
    2. Beats each H with the child's counters, and passes on which rows moved on.
    3. Reports a dead child before the next one registers, so that its work is taken back at once.
    4. On SIGTERM lets the child finish or hand back, and takes leave; a second one hands back at once.
    """

    def __init__(
        self,
        config: Config,
        options: EngineOptions,
        *,
        name: str | None = None,
        log_level: str = "info",
        metrics_port: int | None = None,
    ) -> None:
        """Supervise a child with `options`; `name` must be unique in the queue, by default made of host and pid.

        `metrics_port`: None for the first free one behind the scheduler's.
        """
        self.name = check_name("name", name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}")
        self._config = config
        self._options = options
        self._log_level = log_level
        self._store = AsyncStore(config)
        self._metrics_port = metrics_port
        self.figures = WorkerFigures(self.name)
        self._store.timed = self.figures.timed
        self._stop = asyncio.Event()
        self.outage = Outage()
        self._hurry = False
        self._backoff = Backoff()
        self._loaded_once = False
        self._sacrificed = False
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
        """Work until stopped.

        Raises `ConfigError` when the model cannot be loaded the first time, another has the name, or Redis cannot hold
        a queue.
        """
        structlog.contextvars.bind_contextvars(worker=self.name)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        ports, figures = worker_ports(self._config, self._metrics_port), self.figures
        try:
            with exporting(self._config, ports, figures, alive=loop_turns(loop), ready=figures.ready):
                await check_server(self._store, self._stop, self.outage)
                await self._children()
        finally:
            await self._store.close()
        if self._error:
            raise self._error

    async def _children(self) -> None:
        while not self._stop.is_set():
            served_s = await self._one_child()
            sacrificed, self._sacrificed = self._sacrificed, False
            if not self._stop.is_set():
                self.figures.enter(RESTARTING)
                wait_s = self._backoff.next_s(served_s, blameless=sacrificed, jitter=random.random())  # noqa: S311
                await pause(wait_s, self._stop)

    async def _one_child(self) -> float:
        """See a child through its life; returns for how many seconds it served."""
        self.figures.enter(STARTING)
        number = await self._until_answered(scripts.incarnate())
        if number is None:
            return 0.0
        child = Child(self._config, self._options, f"{self.name}:{number}-{new_id()[:8]}", self._log_level)
        await child.start()
        self.figures.begin(child.board)
        self.figures.enter(LOADING)
        try:
            if loaded := await self._load(child):
                started_s = time.monotonic()
                await self._serve(child, number, loaded)
                return time.monotonic() - started_s
            if not self._stop.is_set():
                self.figures.died("load")
        finally:
            self.figures.end()
            await child.end()
        return 0.0

    async def _load(self, child: Child) -> Loaded | None:
        """Wait for the model. One that was loaded before may come back: its folder is replaced, a disk returns."""
        try:
            loaded = await child.loaded(self._config.load_timeout_s, self._stop)
        except ConfigError as error:
            if not self._loaded_once:
                raise
            log.error("model not loaded, trying again", inc=child.inc, error=str(error))
            return None
        self._loaded_once |= loaded is not None
        return loaded

    async def _serve(self, child: Child, number: int, loaded: Loaded) -> None:
        """Register, and again under a new incarnation whenever the old one is void, until the child or we end."""
        while child.alive and not self._stop.is_set():
            generation = await self._register(child.inc, number, loaded)
            if generation is None:
                return
            child.tell(Serve(child.inc))
            self.figures.serve(loaded.card["name"])
            log.info("serving", inc=child.inc, model=loaded.card["name"], dtype=loaded.card["dtype"])
            life = Life(self, child, generation, loaded)
            void = await life.run()
            if life.left:
                return
            if not void:
                break
            log.warning("incarnation void, registering anew", inc=child.inc, reason=void)
            number = await self._until_answered(scripts.incarnate()) or number
            child.inc = f"{self.name}:{number}-{new_id()[:8]}"
        if child.alive:
            return
        cause, crash_set = child.cause_of_death()
        self.figures.died(child.fault)
        log.warning("child died", inc=child.inc, cause=child.fault, code=child.code, in_step=len(crash_set))
        obituary = encode_failure(await child.obituary())
        reported = await self._until_answered(scripts.report(child.inc, cause, crash_set, obituary), patient=True)
        self._sacrificed = bool(reported and reported.quarantined)

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
        await check_shards(self._config, card)
        answer = await self._until_answered(scripts.register(item, new_id(), self._config))
        if answer is None:
            return None
        match answer.word:
            case "OK":
                return answer.detail.decode()
            case "OTHER_MODEL":
                theirs = unpack(answer.detail.partition(b"|")[2], "card")
                raise other_model(self._config.queue, theirs, card)
            case "OTHER_H":
                theirs = int(answer.detail) // 1000
                raise ConfigError(f"heartbeat_ms: the queue runs with {theirs}, got {self._config.heartbeat_ms}")
            case _ if answer.detail == b"superseded":
                raise ConfigError(superseded(self.name))
            case _:
                raise ConfigError(f"worker {self.name!r}: refused as {answer.detail.decode()}")

    async def _until_answered(self, call: Call[T], *, patient: bool = False) -> T | None:
        """Repeat the call while Redis does not answer; None when told to stop meanwhile (`patient`: 5 s later)."""
        patience = 0.0
        while not self._stop.is_set() or patience < 5.0 * patient:
            try:
                answer = await self._store.run(call)
            except RedisUnavailable as error:
                self.outage.lost(call.script, error)
                patience += RETRY_S if self._stop.is_set() else 0.0
                await asyncio.sleep(RETRY_S)
            else:
                self.outage.back(call.script)
                return answer
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
    def own_code(self) -> bool:
        """Whether the child runs a class of the user's own, whose steps may take any time."""
        return CALLABLE in (self._options.engine, kind_of(self._options.model))

    @property
    def hurry(self) -> bool:
        """Whether even the grace is over."""
        return self._hurry


class Life:
    """One incarnation from its registration to its end: heartbeats, and the way out."""

    def __init__(self, supervisor: Supervisor, child: Child, generation: str, loaded: Loaded) -> None:
        """Live as `child.inc` under `generation`."""
        self.left = False
        """Whether it took leave, after which the child's end is no death."""
        self._supervisor = supervisor
        self._child = child
        self._generation = generation
        self._capacity: int = loaded.capacity["tokens"]
        self._over = asyncio.Event()
        self._void = ""
        self._costs: dict[tuple[str, str], int] = {}
        self._rate = 0.0
        self._last = child.board.read()
        # A padded worker's rows have room for the batch behind the running one already.
        ahead_ms = 0 if loaded.card["mode"] == "padded" else supervisor.config.ahead_ms
        self._ahead = Ahead(loaded.capacity["rows"], ahead_ms)
        self._progress = Progress(
            limit_s=supervisor.config.hung_s,
            interval_s=supervisor.config.heartbeat_ms / 1000,
            own_code=supervisor.own_code,
        )

    async def run(self) -> str:
        """Beat until the end; returns why the incarnation is void, empty if it is not."""
        beat_s = self._supervisor.config.heartbeat_ms / 1000
        tasks = [
            asyncio.create_task(every(beat_s, self._beat, self._over, self._supervisor.outage)),
            asyncio.create_task(every(beat_s, self._watch_progress, self._over)),
            asyncio.create_task(self._watch_child()),
            asyncio.create_task(self._watch_model()),
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
        figures = {name: counters[name] for name in FIGURES}
        beat = Beat(
            inc=self._child.inc,
            generation=self._generation,
            accepting=not self._supervisor.stopping.is_set() and not self._child.away,
            capacity=self._capacity if self._child.holds is None else self._child.holds,
            progress=counters["progress"],
            rate=self._measured_rate(counters),
            faults=counters["faults"],
            successes=counters["successes"],
            figures=figures | {FULL_CAPACITY: self._capacity, AHEAD: self._ahead.observe(counters)},
            costs=costs,
        )
        answer = await self._supervisor.store.run(scripts.beat(beat, self._supervisor.config))
        self._supervisor.figures.beat()
        for key in costs:
            self._costs.pop(key, None)
        await self._heed(answer)

    async def _heed(self, answer: Beaten) -> None:
        if answer.word == "OK":
            if answer.named:
                self._child.tell(Stop([list(key) for key in answer.named]))
            return
        if answer.detail == "superseded":
            self._supervisor.give_up(ConfigError(superseded(self._supervisor.name)))
        self._void = answer.detail or answer.word
        self._over.set()

    def _measured_rate(self, counters: dict[str, int]) -> float:
        """Tokens a second of busy time, smoothed, for who looks: it depends on how full the worker was."""
        tokens = sum(counters[name] - self._last[name] for name in ("prompt_tokens", "generation_tokens"))
        busy_s = (counters["busy_us"] - self._last["busy_us"]) / 1e6
        if tokens > 0 and busy_s > 0:
            now = tokens / busy_s
            self._rate = now if not self._rate else 0.7 * self._rate + 0.3 * now
            self._last = counters
        return self._rate

    async def _watch_progress(self) -> None:
        """Nudge the child; kill it when it stands still, whether Redis answers or not."""
        if self._progress.hung(self._child.board.read(), time.monotonic()):
            log.error("child hung, killing it", inc=self._child.inc, in_step=len(self._child.board.crash_set()))
            self._child.kill_hung()
        else:
            self._child.tell(Nudge(self._ahead.requests))

    async def _watch_child(self) -> None:
        await self._child.wait()
        if not self._supervisor.stopping.is_set():  # else it is expected, and leave is taken first
            self._over.set()

    async def _watch_model(self) -> None:
        """Say at once that a model elsewhere went away or came back, or that the child holds less or more than before:
        a beat later its requests would have come.
        """
        while True:
            await self._child.turned.wait()
            self._child.turned.clear()
            await self._beat_quietly()

    async def _watch_stop(self) -> None:
        """Quiet, then finish or hand back, then take leave."""
        supervisor, child = self._supervisor, self._child
        await supervisor.stopping.wait()
        supervisor.figures.enter(DRAINING)
        await self._beat_quietly()
        child.tell(Drain(0.0 if supervisor.hurry else supervisor.config.drain_timeout_s))
        drained = asyncio.create_task(child.until_drained())
        patience_s = supervisor.config.drain_timeout_s + HAND_BACK_S
        while not drained.done() and child.alive:
            if supervisor.hurry:
                child.tell(Drain(0.0))
                patience_s = min(patience_s, HAND_BACK_S)
            if patience_s <= 0:
                log.error("child does not end, killing it", inc=child.inc)
                child.kill()
            await asyncio.wait([drained], timeout=LOOK_S)
            patience_s -= LOOK_S
        # It ends as soon as it said so: its last word may still be in the pipe.
        await asyncio.wait([drained], timeout=1.0)
        if drained.done():
            await self._leave()
        drained.cancel()
        self._over.set()

    async def _beat_quietly(self) -> None:
        with contextlib.suppress(RedisUnavailable):
            await self._beat()

    async def _leave(self) -> None:
        with contextlib.suppress(RedisUnavailable):
            word = await self._supervisor.store.run_patiently(scripts.deregister(self._child.inc))
            self.left = True
            log.info("left", inc=self._child.inc, word=word)
            if word == "HELD":
                # What arrived while we left: reported as dead, it is taken back at once.
                await self._supervisor.store.run_patiently(scripts.report(self._child.inc, "left", []))


def superseded(name: str) -> str:
    """Return what to say when another process has our name."""
    return f"another worker took the name {name!r}; give each its own with --name"
