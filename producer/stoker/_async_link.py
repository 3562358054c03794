"""The awaited client's tie to Redis in one event loop: it carries flows out, and two tasks read for all who wait."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from stoker._calls import fitting
from stoker._contact import SWEEP_S, TROUBLE_S, Contact, poll_pauses, seconds_left
from stoker._flows import (
    Claim,
    Collect,
    Flow,
    Pause,
    Post,
    R,
    ReadFacts,
    Send,
    State,
    Step,
    Unsent,
    ask,
    deliver,
    read_facts,
    send,
    sweep,
)
from stoker._outstanding import Pending
from stoker.config import Config
from stoker.errors import RedisUnavailable, StokerError
from stoker.store import lookups, reads
from stoker.store.agreement import agree_async
from stoker.store.codec import Submission
from stoker.store.connection import AsyncStore, Read
from stoker.store.lookups import BEGINNING, Place
from stoker.store.reads import TokenRecord

log = logging.getLogger("stoker")

T = TypeVar("T")

READS = 8
"""How many reads of token streams are under way at a time, of first tokens and of others; each has a connection."""

SHARES = 5
"""Reads of token streams begin at least this part of `flush_ms` apart."""

FIRST_SHARES = 25
"""The same of those that wait for first tokens."""


class AsyncLink:
    """One event loop's connections, its outstanding requests, and the tasks that read for all of them."""

    def __init__(self, config: Config) -> None:
        """Connect lazily; the tasks start when somebody first waits."""
        self.pid = os.getpid()
        self.loop = asyncio.get_running_loop()
        self.state = State(config)
        self.store = AsyncStore(config)
        # Blocks longer than other reads may take; token streams and wake-ups are read on its connections.
        self.waiting = AsyncStore(config, block_s=config.block_ms / 1000)
        self.contact = Contact(config)
        self.agreed = False
        self.streams = Streams(self)
        self.sender = Sender(self)
        self.closed = False
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def drive(self, flow: Flow[R], *, patiently: bool = True) -> R:
        """Carry out a flow's steps and return its value."""
        try:
            step = next(flow)  # what is wrong with a request is found before Redis is asked
            while True:
                try:
                    if not self.agreed:
                        await self._agree(patiently)
                    reply = await self._do(step, patiently)
                except BaseException as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            value: R = end.value
            return value

    async def _do(self, step: Step, patiently: bool) -> object:
        match step:
            case Send():
                return await self.sender.send(step.item)
            case Pause():
                await asyncio.sleep(step.seconds)
                self.check_open()
                return None
            case Claim():
                await agree_async(self.store, patiently=patiently, claim=True)
                return None
            case Post():
                return Unsent(step.call)
            case Collect():
                return await self._do(step.posted.call, patiently)
            case ReadFacts():
                return await self._together("facts", lambda: self.drive(read_facts(self.state)))
            case Read():
                return await (self.store.read_patiently(step) if patiently else self.store.read(step))
            case _:
                # What waits for a disk or a replica blocks, as other calls may not.
                store = self.waiting if step.then else self.store
                return await (store.run_patiently(step) if patiently else store.run(step))

    async def _agree(self, patiently: bool) -> None:
        name = "agree" if patiently else "agree-at-once"
        await self._together(name, lambda: agree_async(self.store, patiently=patiently))
        self.agreed = True

    async def _together(self, name: str, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `body` gives, which runs once for all who want it meanwhile."""
        task = self.start(name, body)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                self.check_open()
            raise

    def check_open(self) -> None:
        """Raise when the client was closed, by another task perhaps."""
        if self.closed:
            raise StokerError("this client is closed")

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def wait(self, pending: Pending, timeout: float | None) -> bool:  # noqa: ASYNC109 (as the other client's)
        """Wait until the outcome is there, at most `timeout` seconds; gives whether it is.

        Without a timeout it waits while Redis can be reached; raises `RedisUnavailable` when it is away for too long.
        """
        book, deadline = self.state.book, None if timeout is None else time.monotonic() + timeout
        comes = book.watch(pending)
        if comes:
            self.read_wakeups()
        for pause in itertools.repeat(None) if comes else poll_pauses():
            if not comes:
                await self._poll(pending)
            left = seconds_left(deadline)
            if pending.response is not None or left == 0:
                return pending.response is not None
            self.check(timeout)
            seconds = pause if left is None else left if pause is None else min(pause, left)
            woken = self.loop.create_future()
            wake = functools.partial(_wake, woken)
            # A timer costs less than a task.
            timer = None if seconds is None else self.loop.call_later(seconds, wake)
            book.on_done(pending, wake)
            try:
                await woken
            finally:
                book.off_done(pending, wake)
                if timer:
                    timer.cancel()
        raise AssertionError("the pauses never end")

    async def watch(self, pendings: Sequence[Pending], callbacks: Sequence[Callable[[], object]]) -> None:
        """Have each callback called when its outcome is there; those that no wake-up comes for are asked for now."""
        book = self.state.book
        await self.drive(ask(self.state, [pending for pending in pendings if not book.watch(pending)]))
        for pending, callback in zip(pendings, callbacks, strict=True):
            book.on_done(pending, callback)
        self.read_wakeups()

    def check(self, timeout: float | None) -> None:
        """Raise when waiting is in vain: the client is closed, or Redis is away and there is no timeout."""
        self.check_open()
        if timeout is None and (error := self.contact.lost):
            raise RedisUnavailable(f"waiting for a result: {error}") from error

    async def _poll(self, pending: Pending) -> None:
        try:
            await self.drive(ask(self.state, [pending]), patiently=False)
        except RedisUnavailable as error:
            self.contact.bad(error)
        else:
            self.contact.good()

    # --- the readers --------------------------------------------------------------------------------------------------

    def read_wakeups(self) -> None:
        """Start the reader of wake-ups, if it does not run."""
        self.start("wakeups", self._read)

    def start(self, name: str, body: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Start a task, if it does not run; gives the task."""
        self.check_open()
        task = self._tasks.get(name)
        if task is None or task.done():
            task = self._tasks[name] = self.loop.create_task(body(), name=f"stoker-{name}")
        return task

    async def _read(self) -> None:
        pause, swept_at = 0.0, time.monotonic()
        while not self.closed:
            try:
                swept_at = await self._turn(swept_at)
            except Exception as error:
                self._trouble(error)
                pause = min(TROUBLE_S, 2 * pause or 0.02)
                await asyncio.sleep(pause)
            else:
                pause = 0.0
                self.contact.good()

    async def _turn(self, swept_at: float) -> float:
        """Read wake-ups once; ask for what none came for when it is time. Gives when that last happened."""
        state = self.state
        outcomes = await self.waiting.read(reads.wakeups(state.keys, state.book.channel, state.config.block_ms / 1000))
        await self.drive(deliver(state, outcomes), patiently=False)
        now = time.monotonic()
        if outcomes and not state.book.suspicious and now - swept_at < SWEEP_S:
            return swept_at
        await self.drive(sweep(state, quiet=not outcomes), patiently=False)
        return now

    def _trouble(self, error: Exception) -> None:
        """A wake-up may have been lost with the reply, and Redis may come back without what it had."""
        self.state.book.suspicious = True
        if isinstance(error, RedisUnavailable):
            self.contact.bad(error)
            if self.contact.lost:
                self.state.book.wake_all()
        else:
            log.error("reading wake-ups failed; trying again", exc_info=error)

    async def close(self) -> None:
        """End the tasks, wake up who waits, and close all connections."""
        self.closed = True
        self.state.book.wake_all()
        self.streams.wake_all()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.sender.fail(StokerError("this client is closed"))
        await self.waiting.close()
        await self.store.close()


class Sender:
    """Submits the requests of single calls: the first leaves at once, those that come meanwhile leave together."""

    def __init__(self, link: AsyncLink) -> None:
        """Send nothing yet."""
        self._link = link
        self._waiting: list[tuple[Submission, asyncio.Future[Pending | StokerError]]] = []

    async def send(self, item: Submission) -> Pending | StokerError:
        """Return who waits for the request, or why it was not accepted; raises what the call raised."""
        future: asyncio.Future[Pending | StokerError] = self._link.loop.create_future()
        self._waiting.append((item, future))
        self._link.start("submits", self._run)
        return await future

    async def _run(self) -> None:
        state = self._link.state
        while self._waiting:
            # Who was cancelled before its request left gave it up.
            waiting = [(item, future) for item, future in self._waiting if not future.done()]
            n = fitting([item for item, _ in waiting[: state.config.group]])
            group, self._waiting = waiting[:n], waiting[n:]
            if not group:
                continue
            try:
                outcomes = await self._link.drive(send(state, [item for item, _ in group]))
            except asyncio.CancelledError:
                self._waiting += group
                raise
            except Exception as error:
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), outcome in zip(group, outcomes, strict=True):
                    if not future.done():
                        future.set_result(outcome)

    def fail(self, error: StokerError) -> None:
        """Raise in everybody who waits: the client was closed."""
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()


class Lane:
    """Who waits for tokens of one kind, and the reads for them that are under way; these begin so far apart."""

    def __init__(self, name: str, apart_s: float) -> None:
        """Wait for nothing yet."""
        self.name = name
        self.apart_s = apart_s
        self.waiting: dict[Place, list[asyncio.Future[list[TokenRecord]]]] = {}
        self.reading: list[Sequence[Place]] = []
        self.changed = asyncio.Event()

    def leave(self, place: Place, future: asyncio.Future[list[TokenRecord]]) -> None:
        """Do not wait any more."""
        futures = self.waiting.get(place, [])
        if future in futures:
            futures.remove(future)
            if not futures:
                del self.waiting[place]

    def unread(self) -> list[Place]:
        """Where no read reads yet: of several places in a stream the furthest behind, which lacks what others have."""
        reading = set(itertools.chain.from_iterable(self.reading))
        found: dict[tuple[str, str], Place] = {}
        for place in self.waiting:
            stream = place[:2]
            if place not in reading and (stream not in found or _entry(place) < _entry(found[stream])):
                found[stream] = place
        return list(found.values())

    def give(self, found: dict[Place, list[TokenRecord]]) -> None:
        """Give who waits at these places what was read there."""
        for place, records in found.items():
            for future in self.waiting.pop(place, []):
                if not future.done():
                    future.set_result(records)

    def fail(self, places: Sequence[Place], error: Exception) -> None:
        """Raise in everybody who waits at these places."""
        for future in itertools.chain.from_iterable(self.waiting.pop(place, []) for place in places):
            if not future.done():
                future.set_exception(error)


class Streams:
    """Reads the token streams of all who wait for tokens, many at a time: a read each would need a connection each.

    Who comes while a read is under way is read for in another one, of at most `READS`: a read lasts while no token
    comes. It costs Redis a look at each stream that is in it, and what a worker publishes together wakes it with the
    first of them alone. So reads begin `flush_ms / SHARES` apart at least, and take together what came meanwhile. Who
    waits for a first token is in reads of their own, which the many tokens of answers that go on do not end.
    """

    def __init__(self, link: AsyncLink) -> None:
        """Read nothing yet."""
        self._link = link
        self._firsts = Lane("first-tokens", self._flush_ms / 1000 / FIRST_SHARES)
        self._others = Lane("tokens", self._flush_ms / 1000 / SHARES)
        self._born_s = link.loop.time()

    async def read(self, place: Place, block_ms: int) -> list[TokenRecord]:
        """Return the records past a place, waiting for one at most about `block_ms`."""
        lane = self._firsts if place[2] == BEGINNING else self._others
        future: asyncio.Future[list[TokenRecord]] = self._link.loop.create_future()
        lane.waiting.setdefault(place, []).append(future)
        lane.changed.set()
        self._link.start(lane.name, lambda: self._run(lane))
        try:
            # Python 3.11's `wait_for` drops a cancel that comes together with what it waits for.
            async with asyncio.timeout(max(block_ms, self._flush_ms) / 1000):
                return await future
        except TimeoutError:
            return []
        finally:
            lane.leave(place, future)

    @property
    def _flush_ms(self) -> int:
        return self._link.state.config.flush_ms

    def wake_all(self) -> None:
        """Let everybody who waits look up: the client was closed."""
        for lane in (self._firsts, self._others):
            lane.give({place: [] for place in lane.waiting})

    async def _run(self, lane: Lane) -> None:
        async with asyncio.TaskGroup() as group:
            while not self._link.closed:
                lane.changed.clear()
                places = lane.unread() if len(lane.reading) < READS else []
                if not places:
                    await lane.changed.wait()
                    continue
                lane.reading.append(places)
                group.create_task(self._turn(lane, places))
                await asyncio.sleep(lane.apart_s)

    async def _turn(self, lane: Lane, places: Sequence[Place]) -> None:
        read = lookups.token_streams(self._link.state.keys, places, self._block_ms())
        try:
            lane.give(await self._link.waiting.read_patiently(read))
        except Exception as error:
            lane.fail(places, error)
        finally:
            lane.reading.remove(places)
            lane.changed.set()

    def _block_ms(self) -> int:
        """How long a read may last: all end at the same moments, so that those of newcomers join the others."""
        left = self._flush_ms - int(1000 * (self._link.loop.time() - self._born_s)) % self._flush_ms
        return left if left > self._flush_ms / SHARES else left + self._flush_ms


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _entry(place: Place) -> list[int]:
    return [int(part) for part in place[2].split("-")]
