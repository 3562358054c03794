"""The blocking client's tie to Redis in one process: it carries flows out, and one thread reads the wake-ups."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

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
from stoker.store import reads
from stoker.store.agreement import agree
from stoker.store.connection import Read, Store

log = logging.getLogger("stoker")


class Link:
    """One process's connections, its outstanding requests, and the thread that reads its wake-ups."""

    def __init__(self, config: Config) -> None:
        """Connect lazily; the thread starts when somebody first waits."""
        self.pid = os.getpid()
        self.state = State(config)
        self.store = Store(config)
        # Blocks longer than other reads may take; token streams and wake-ups are read on its connections.
        self.waiting = Store(config, block_s=config.block_ms / 1000)
        self.contact = Contact(config)
        self.agreed = False
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None

    def drive(self, flow: Flow[R], *, patiently: bool = True) -> R:
        """Carry out a flow's steps and return its value."""
        try:
            step = next(flow)  # what is wrong with a request is found before Redis is asked
            while True:
                try:
                    if not self.agreed:
                        agree(self.store, patiently=patiently)
                        self.agreed = True
                    reply = self._do(step, patiently)
                except BaseException as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            value: R = end.value
            return value

    def _do(self, step: Step, patiently: bool) -> object:
        match step:
            case Pause():
                self.sleep(step.seconds)
                return None
            case Claim():
                agree(self.store, patiently=patiently, claim=True)
                return None
            case Send():
                return self.drive(send(self.state, [step.item]))[0]
            case Post():
                return Unsent(step.call) if step.call.then else self.store.post(step.call)
            case Collect():
                if isinstance(step.posted, Unsent):
                    return self._do(step.posted.call, patiently)
                return step.posted.reply(patiently=patiently)
            case ReadFacts():
                return self.drive(read_facts(self.state), patiently=patiently)
            case Read():
                return self.store.read_patiently(step) if patiently else self.store.read(step)
            case _:
                # What waits for a disk or a replica blocks, as other calls may not.
                store = self.waiting if step.then else self.store
                return store.run_patiently(step) if patiently else store.run(step)

    def sleep(self, seconds: float) -> None:
        """Wait; raises when the client is closed meanwhile."""
        self.closed.wait(seconds)
        self.check_open()

    def check_open(self) -> None:
        """Raise when the client was closed, by another thread perhaps."""
        if self.closed.is_set():
            raise StokerError("this client is closed")

    # --- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, pending: Pending, timeout: float | None) -> bool:
        """Block until the outcome is there, at most `timeout` seconds; gives whether it is.

        Without a timeout it waits while Redis can be reached; raises `RedisUnavailable` when it is away for too long.
        """
        book, event = self.state.book, threading.Event()
        deadline = None if timeout is None else time.monotonic() + timeout
        comes = book.watch(pending)
        pauses = itertools.repeat(None) if comes else poll_pauses()
        if comes:
            self.read_wakeups()
        book.on_done(pending, event.set)
        try:
            for pause in pauses:
                event.clear()
                if not comes:
                    self._poll(pending)
                left = seconds_left(deadline)
                if pending.response is not None or left == 0:
                    return pending.response is not None
                self.check(timeout)
                event.wait(min((s for s in (pause, left) if s is not None), default=None))
        finally:
            book.off_done(pending, event.set)
        raise AssertionError("the pauses never end")

    def watch(self, pendings: Sequence[Pending], callbacks: Sequence[Callable[[], object]]) -> None:
        """Have each callback called when its outcome is there; those that no wake-up comes for are asked for now."""
        book = self.state.book
        self.drive(ask(self.state, [pending for pending in pendings if not book.watch(pending)]))
        for pending, callback in zip(pendings, callbacks, strict=True):
            book.on_done(pending, callback)
        self.read_wakeups()

    def check(self, timeout: float | None) -> None:
        """Raise when waiting is in vain: the client is closed, or Redis is away and there is no timeout."""
        self.check_open()
        if timeout is None and (error := self.contact.lost):
            raise RedisUnavailable(f"waiting for a result: {error}") from error

    def _poll(self, pending: Pending) -> None:
        try:
            self.drive(ask(self.state, [pending]), patiently=False)
        except RedisUnavailable as error:
            self.contact.bad(error)
        else:
            self.contact.good()

    # --- the reader ---------------------------------------------------------------------------------------------------

    def read_wakeups(self) -> None:
        """Start the reader, if it does not run."""
        with self._lock:
            self.check_open()
            if self._reader is None:
                self._reader = threading.Thread(target=self._read, name="stoker-wakeups", daemon=True)
                self._reader.start()

    def _read(self) -> None:
        pause, swept_at = 0.0, time.monotonic()
        while not self.closed.is_set():
            try:
                swept_at = self._turn(swept_at)
            except Exception as error:
                if self.closed.is_set():
                    return  # `close` cut the connection under a blocking read
                self._trouble(error)
                pause = min(TROUBLE_S, 2 * pause or 0.02)
                self.closed.wait(pause)
            else:
                pause = 0.0
                self.contact.good()

    def _turn(self, swept_at: float) -> float:
        """Read wake-ups once; ask for what none came for when it is time. Gives when that last happened."""
        state = self.state
        outcomes = self.waiting.read(reads.wakeups(state.keys, state.book.channel, state.config.block_ms / 1000))
        self.drive(deliver(state, outcomes), patiently=False)
        now = time.monotonic()
        if outcomes and not state.book.suspicious and now - swept_at < SWEEP_S:
            return swept_at
        self.drive(sweep(state, quiet=not outcomes), patiently=False)
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

    def close(self) -> None:
        """End the reader, wake up who waits, and close all connections."""
        with self._lock:
            self.closed.set()
            reader = self._reader
        self.state.book.wake_all()
        self._disconnect()
        if reader is None or reader is threading.current_thread():
            return
        while reader.is_alive():
            # Again, for it may have connected just after it was disconnected.
            reader.join(0.05)
            self._disconnect()

    def _disconnect(self) -> None:
        self.waiting.close()
        self.store.close()
