"""The scheduler's process: what does I/O around the parts that decide."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import Mapping, Set
from dataclasses import astuple

import structlog

from stoker.config import Config
from stoker.errors import ConfigError, RedisUnavailable
from stoker.every import Outage, every, pause
from stoker.exporter import exporting, loop_turns, scheduler_ports
from stoker.store import reads, scripts, views
from stoker.store.codec import class_windows_us
from stoker.store.connection import AsyncStore
from stoker.store.records import CLASSES, SUSPECT, Waiting, WorkerRecord, class_of
from stoker.store.requirements import check_server
from stoker.store.scripts import FENCED, Call, Dispatched, Told
from stoker.store.views import QueueView
from stoker_scheduler.answers import AnswerLengths
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import Batch, DynamicBatcher, Room
from stoker_scheduler.bell import IDLE_BLOCKS, Bell
from stoker_scheduler.figures import SchedulerFigures
from stoker_scheduler.health import HealthMonitor
from stoker_scheduler.instruments import Instruments
from stoker_scheduler.leader import CLAIMS, Leadership
from stoker_scheduler.metrics import MetricsCollector
from stoker_scheduler.preemption import Preemption, givers
from stoker_scheduler.prices import StepPrices
from stoker_scheduler.quarantine import half
from stoker_scheduler.queue import RequestQueue, largest_capacity
from stoker_scheduler.reserve import BatchRoom, Reserve
from stoker_scheduler.round import BLOCKED_HEADS, DEPTH, Round
from stoker_scheduler.service_time import ServiceTimes

log = structlog.get_logger()

RETRY_S = 0.2
HOUSEKEEPING_S = 5.0
AGES_S = 30.0


class Fenced(Exception):
    """Another process leads."""


class Scheduler:
    """Leads, or stands by to.

    1. Claims the lease, three times a heartbeat.
    2. Sleeps on the bell, or until something is due; then reads the queue in one round trip and acts on it:
    3. takes back what dead workers hold, ends delays and deadlines,
    4. orders what waits (RequestQueue), picks workers (LoadBalancer, HealthMonitor), forms batches (DynamicBatcher);
    5. keeps a reserve from BATCH, and asks workers for rows where better requests find no room (Reserve, Preemption);
    6. halves sets of suspects on a worker of their own; fails what no worker could ever hold.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store = AsyncStore(config)
        self._bell = Bell(config)
        self._health = HealthMonitor(config)
        self._prices = StepPrices()
        self._times = ServiceTimes(self._prices)
        self._queue = RequestQueue(config)
        self._leadership = Leadership(self._store, config, self._told)
        self._told_before: Told | None = None  # of the last tick, once it was asked for
        self._batcher = DynamicBatcher(config)
        self._balancer = LoadBalancer(config)
        self._reserve = Reserve(config)
        self._rooms: Mapping[str, BatchRoom] = {}
        self._preemption = Preemption(config)
        self._offline = True  # until a view says that there is none
        self._metrics = MetricsCollector(config)
        self._instruments = Instruments()
        self._store.timed = self._instruments.timed
        self._figures = SchedulerFigures(config, self._instruments, self._health, lambda: self._leadership.token)
        self._answers = AnswerLengths()
        self._expected: dict[str, int] = {}
        self._learned_for = ""  # the token under which lengths were taken in last
        self._stop = asyncio.Event()
        self._outage = Outage()
        self._known: list[WorkerRecord] = []
        self._shared: Mapping[str, int] = {}
        self._unanswered: Call[Dispatched] | None = None
        self._aged_at = 0.0
        self._batches_told = 0

    def stop(self) -> None:
        """End, and give the lease up."""
        self._stop.set()

    async def run(self) -> None:
        """Schedule until a signal or `stop`; raises what `serve` raises."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.serve()

    async def serve(self) -> None:
        """Schedule until stopped; raises `ConfigError` when the queue runs with another H, or Redis cannot hold it."""
        loop = asyncio.get_running_loop()
        ports, figures = scheduler_ports(self._config), self._figures
        with exporting(self._config, ports, figures, alive=loop_turns(loop), ready=figures.ready):
            try:
                await check_server(self._store, self._stop, self._outage)
            except ConfigError:
                await self._store.close()
                raise
            await self._run_loops()
        figures.close()

    async def _run_loops(self) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        tasks = [
            stopped,
            asyncio.create_task(
                every(self._config.heartbeat_ms / CLAIMS / 1000, self._leadership.tick, self._stop, self._outage)
            ),
            asyncio.create_task(self._schedule()),
            asyncio.create_task(every(HOUSEKEEPING_S, self._housekeeping, self._stop, self._outage)),
        ]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with contextlib.suppress(RedisUnavailable):
            await self._leadership.resign()
        await self._store.close()
        await self._bell.close()
        for task in done:
            task.result()

    async def _schedule(self) -> None:
        """Tick whenever the bell rings or something is due; only a leader hears the bell."""
        while not self._stop.is_set():
            if not self._leadership.leads.is_set():
                await self._bell.leave()
                await self._leadership.leads.wait()
            try:
                # Before the first tick, so that a new leader knows what the last one did.
                if self._learned_for != self._leadership.token:
                    await self._learn_lengths()
                with self._instruments.tick.time():
                    wait_s = await self.tick()
                self._told_before = None
                if wait_s > 0:
                    await self._bell.wait(wait_s)
            except Fenced:
                self._unanswered = None
                self._leadership.lost("fenced")
            except RedisUnavailable:
                # The leadership's loop says so once; here it is enough to go on trying.
                await pause(RETRY_S, self._stop)

    async def tick(self) -> float:
        """Do all that is due; returns after how many seconds to look again, should the bell not ring."""
        if self._unanswered:
            await self._repeat(self._unanswered)
        view = await self._read_view()
        self._known = view.workers
        self._health.observe(view.workers, time.monotonic())
        self._metrics.observe_workers(view.workers, time.monotonic())
        self._prices.observe(view.workers)
        self._times.observe(view.workers)
        if await self._take_back(view) + await self._end_what_is_due(view):
            return 0.0
        await self._dispatch_suspects(view)
        return await self._dispatch(view)

    # --- reading --------------------------------------------------------------------------------------------------

    async def _read_view(self) -> QueueView:
        depth = _depth(self._known)
        keys = self._store.keys
        view = await self._store.read(
            views.queue_view(
                keys,
                depth=depth,
                known=self._known,
                expected=self._expected,
                shared=self._shared,
                members=self._offline,
            )
        )
        await self._read_tenants(view, depth)
        self._offline = view.offline_waits or any(worker.batch_rows for worker in view.workers)
        for lane, asked in view.asked.items():
            page = view.lanes[lane]
            while self._queue.deeper(page, asked, view.workers):
                start = len(view.lanes[lane])
                page = await self._store.read(views.lane_page(keys, lane, start, asked, view.workers, self._expected))
                view.lanes[lane].extend(page)
        return view

    async def _read_tenants(self, view: QueueView, depth: int) -> None:
        """Add the lanes of the tenants whose turn may come, as far as they are not there yet: newcomers' alone."""
        if not view.active and not self._shared:
            self._queue.shares.observe({})
            return
        untold = {lane: len(view.lanes[lane]) for lane in CLASSES if view.lanes[lane]}
        self._shared = self._queue.share(view.active | untold, depth)
        missing = {lane: number for lane, number in self._shared.items() if lane not in view.lanes}
        if missing:
            pages = await self._store.read(views.tenant_pages(self._store.keys, missing, view.workers, self._expected))
            view.lanes.update(pages.lanes)
            view.asked.update(missing)
            view.weights.update(pages.weights)
        self._queue.shares.weigh(view.weights)

    # --- what is due ----------------------------------------------------------------------------------------------

    async def _take_back(self, view: QueueView) -> int:
        """Reclaim from the dead and the silent; the script has the last word on who is."""
        moved = 0
        for inc in self._health.lapsed(view.workers, self._config.lease_us):
            left = 1
            while left > 0:
                left = self._unfenced(await self._store.run(scripts.reclaim(self._leadership.token, inc)))
            if left == 0:
                log.warning("took work back", inc=inc)
                moved += 1
        return moved

    async def _end_what_is_due(self, view: QueueView) -> int:
        ended = 0
        token = self._leadership.token
        if view.next_due_us is not None and view.next_due_us <= view.now_us:
            ended += self._unfenced(await self._store.run(scripts.promote(token)))
        aged = time.monotonic() - self._aged_at >= AGES_S
        if aged or (view.next_deadline_us is not None and view.next_deadline_us <= view.now_us):
            self._aged_at = time.monotonic()
            expired = await self._store.run(scripts.expire(token))
            if expired is None:
                raise Fenced
            ended += len(expired)
        return ended

    def _wait_s(self, view: QueueView, linger_us: int) -> float:
        """Seconds until the next due time, deadline, lease or linger; at most the longest block, twice that if idle."""
        dues = [due - view.now_us for due in (view.next_due_us, view.next_deadline_us) if due is not None]
        dues += [self._config.lease_us + 1000 - worker.beat_age_us for worker in view.workers if worker.state == "live"]
        dues += [linger_us] if linger_us else []
        # What is late and still there waits for a grace to end: look again soon, not at once.
        soonest = min((due if due > 0 else 100_000 for due in dues), default=math.inf)
        most_s = self._config.block_ms / 1000 * (IDLE_BLOCKS if view.idle else 1)
        return min(max(soonest / 1e6, 0.001), most_s)

    # --- dispatching ----------------------------------------------------------------------------------------------

    async def _dispatch(self, view: QueueView) -> float:
        """Hand out what fits; returns the seconds to wait, 0 when there may be more."""
        order = self._queue.order(view.lanes, view.workers)
        await self._refuse(order.unholdable, view)
        shut = self._health.excluded()
        if view.quarantine and view.lanes[SUSPECT]:
            shut |= {view.quarantine}
        self._reserve.observe(view.workers, order.requests, view.now_us)
        self._rooms = self._reserve.rooms(view.workers, self._prices.of, view.now_us) if view.offline_waits else {}
        hand = Round(
            order.requests,
            view.workers,
            balancer=self._balancer,
            batcher=self._batcher,
            shut=shut,
            probing=self._health.probing(),
            linger_us=self._config.max_queue_delay_ms * 1000,
            now_us=view.now_us,
            speeds=self._times.speeds,
            rooms=self._rooms,
            largest=order.largest,
        )
        took = await self._hand_out(hand, view)
        if await self._make_room(hand, order.urgent, shut, view):
            placed = await self._hand_out(hand, view)
            if not placed:
                return 0.0
            took += placed
        more = any(len(view.lanes[lane]) >= asked for lane, asked in view.asked.items())
        return 0.0 if took and more and hand.has_free_row() else self._wait_s(view, hand.linger_us)

    async def _hand_out(self, hand: Round, view: QueueView) -> int:
        """Dispatch batch by batch; returns how many requests were taken."""
        took = 0
        while chosen := hand.next():
            worker, batch = chosen
            answer = await self._hand_over(worker, batch)
            took += self._account(batch, worker, answer, view.now_us)
            hand.done(worker, batch, more=answer.word == "OK" and "FULL" not in answer.words)
        return took

    async def _make_room(self, hand: Round, urgent: Set[str], shut: Set[str], view: QueueView) -> bool:
        """Ask workers for rows that requests without a place may take; returns whether that made room."""
        blocked = hand.unplaced()
        if not blocked or not (self._offline or any(request.id in urgent for request in blocked)):
            return False
        workers = [worker for worker in hand.fleet if worker.inc not in shut]
        held = view.held
        if not self._offline:
            workers = givers(workers, view.now_us)
            held = await self._store.read(views.held(self._store.keys, workers)) if workers else {}
        asked = 0
        for inc, rows in self._preemption.choose(blocked, urgent, workers, held, view.now_us).items():
            keys = [(row.id, row.delivery) for row in rows]
            words = await self._store.run(scripts.make_room(self._leadership.token, inc, keys))
            if words == ["FENCED"]:
                raise Fenced
            leaving = [row for row, word in zip(rows, words[1:], strict=True) if word == "ASKED"]
            hand.vacated(inc, leaving)
            asked += len(leaving)
            log.debug("preempted", inc=inc, ids=[row.id for row in leaving])
        return asked > 0

    async def _hand_over(self, worker: WorkerRecord, batch: Batch) -> Dispatched:
        """Dispatch; a call without an answer is repeated with its number before anything else is dispatched."""
        call = self._leadership.dispatch(worker.inc, list(zip(batch.requests, batch.costs, strict=True)))
        self._unanswered = call
        return await self._repeat(call)

    async def _repeat(self, call: Call[Dispatched]) -> Dispatched:
        answer = await self._store.run(call)
        self._unanswered = None
        if answer.word == "FENCED":
            raise Fenced
        return answer

    def _account(self, batch: Batch, worker: WorkerRecord, answer: Dispatched, now_us: int) -> int:
        """Note what was taken; returns how many."""
        took = [request for request, word in zip(batch.requests, answer.words, strict=False) if word == "TOOK"]
        if took:
            log.debug("dispatched", inc=worker.inc, ids=[request.id for request in took])
            self._queue.dispatched(took, now_us=now_us)
            self._times.dispatched((request.prompt_tokens, request.max_tokens) for request in took)
            self._metrics.observe_batch(batch, worker)
            self._instruments.dispatched(batch)
        return len(took)

    async def _dispatch_suspects(self, view: QueueView) -> None:
        """Run half of a set of suspects, on the quarantined worker or the one with the least to finish."""
        suspects = self._queue.suspects(view.lanes, view.workers).requests[: self._config.group]
        if not suspects:
            return
        able = [worker for worker in view.workers if worker.available and worker.capacity >= suspects[0].cost]
        holder = [worker for worker in able if worker.inc == view.quarantine]
        target = min(holder or able, key=lambda worker: (worker.held_rows, worker.inc), default=None)
        if target is None or (holder and target.held_rows):
            return
        groups = await self._store.read(reads.suspect_groups(self._store.keys, [request.id for request in suspects]))
        largest = largest_capacity(view.workers)
        # A worker that still holds something is answered DRAIN: what it takes then is decided by what it will hold.
        batch = half(suspects, groups, Room.of(target, share=len(suspects), largest=largest).emptied())
        if batch.requests:
            await self._hand_over(target, batch)

    async def _refuse(self, unholdable: tuple[Waiting, ...], view: QueueView) -> None:
        """Fail what no registered worker could hold, once it has waited long enough for a larger one."""
        terms_us = class_windows_us(self._config)
        for request in unholdable[: self._config.group]:
            waited_us = view.now_us - request.score + terms_us.get(class_of(request.lane), 0)
            if waited_us >= self._config.unschedulable_s * 1e6:
                await self._store.run(scripts.refuse(self._leadership.token, request))
                log.warning("unschedulable", id=request.id, cost=request.cost)

    def _told(self) -> Told:
        """Return what to leave in Redis; made once a tick, for between two of them it stays as it is."""
        if self._told_before is None:
            # What the fleet does when it is full, as submit reads it.
            forecast = self._times.forecast(self._known)
            self._told_before = scripts.told(
                self._health.not_closed(),
                self._queue.shares.served(),
                forecast.text() if forecast else "",
                {inc: astuple(speed) for inc, speed in self._times.speeds.items()},
                {inc: astuple(room) for inc, room in self._rooms.items()},
            )
        return self._told_before

    async def _learn_lengths(self) -> None:
        """Take in how long answers became, where less than max_tokens is kept free for them."""
        if self._config.reserve == "expected":
            self._answers.observe(await self._store.read(reads.answers(self._store.keys)))
            self._expected = self._answers.expected()
        self._learned_for = self._leadership.token

    # --- housekeeping ---------------------------------------------------------------------------------------------

    async def _housekeeping(self) -> None:
        """Take in the counters, and say how things go while something does."""
        if not self._leadership.token:
            return
        counts = await self._store.read(reads.counts(self._store.keys))
        self._metrics.observe_counts(counts, time.monotonic())
        await self._learn_lengths()
        now = self._metrics.snapshot()
        if now.requests_per_s or now.batches != self._batches_told:
            self._batches_told = now.batches
            log.info(
                "working",
                requests_per_s=round(now.requests_per_s, 1),
                batches=now.batches,
                batch_size=round(now.batch_size, 1),
                fill=round(now.fill, 3),
                efficiency=round(now.efficiency, 3),
                utilisation={name: round(share, 2) for name, share in now.utilisation.items()},
            )

    @staticmethod
    def _unfenced(number: int) -> int:
        if number == FENCED:
            raise Fenced
        return number


def _depth(fleet: list[WorkerRecord]) -> int:
    """Return how many entries of each lane to read for a fleet: more than it has rows are not handed out in a tick."""
    if not fleet:
        return DEPTH["continuous"]
    if any(worker.mode == "padded" for worker in fleet):
        return DEPTH["padded"]
    return min(DEPTH["continuous"], sum(worker.rows + worker.ahead for worker in fleet) + BLOCKED_HEADS)
