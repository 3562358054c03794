"""What a client waits for: one `Pending` a request, and the `Book` that wake-ups are looked up in. No I/O."""

from __future__ import annotations

import enum
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence

from stoker._calls import lost, response_from
from stoker.request import InferenceResponse
from stoker.store.codec import Outcome, Submission
from stoker.store.connection import new_id
from stoker.store.durability import MEMORY

Callback = Callable[[], object]

LEAST_SWEPT = 10_000
"""Of so many requests that were waited for it is not looked whether anybody still does."""


class Phase(enum.Enum):
    """How a request's outcome gets here."""

    SENT = "its submit is not answered yet"
    OWN = "a wake-up comes on this book's channel"
    FOREIGN = "another process or life submitted it: it must be asked for"


class Pending:
    """A request that some job, map or stream of this process waits for.

    Its book knows it weakly: when the last who waits drops it, it is gone. `submission` is kept until the outcome, to
    submit again what a Redis that lost its last writes does not know.
    """

    __slots__ = (
        "__weakref__",
        "book",
        "callbacks",
        "durability",
        "generation",
        "id",
        "nonce",
        "phase",
        "response",
        "since",
        "submission",
    )

    def __init__(self, request_id: str, book: Book, phase: Phase, since: float) -> None:
        """Wait for `request_id`; its nonce is unknown until a submit of this process is accepted."""
        self.id = request_id
        self.nonce = ""
        self.generation: str | None = None
        self.durability: str | None = None
        self.submission: Submission | None = None
        self.response: InferenceResponse | None = None
        self.callbacks: tuple[Callback, ...] = ()
        self.book = book
        self.phase = phase
        self.since = since


class Book:
    """The outstanding requests of one client in one process, and the channel on which their wake-ups come.

    Thread-safe. Callbacks run after its lock is released, in the thread that brought the outcome.
    """

    def __init__(self) -> None:
        """Open a book under a channel name of its own: a forked child's wake-ups must not go to its parent."""
        self.channel = new_id()
        self.suspicious = False
        # Reentrant: collecting garbage may close this book's client in the midst of a locked block.
        self._lock = threading.RLock()
        # In the order in which they were last asked for. A WeakValueDictionary takes four times as long for each.
        self._waiting: dict[str, weakref.ref[Pending]] = {}
        self._most = LEAST_SWEPT

    def __len__(self) -> int:
        """How many requests are waited for."""
        return len(self._pendings())

    def _pendings(self) -> list[Pending]:
        with self._lock:
            return [pending for ref in self._waiting.values() if (pending := ref()) is not None]

    def _find(self, request_id: str) -> Pending | None:
        ref = self._waiting.get(request_id)
        return None if ref is None else ref()

    # --- submitting ---------------------------------------------------------------------------------------------------

    def expect(self, ids: Iterable[str], phase: Phase) -> list[Pending]:
        """Return the one pending of each id, before its submit is sent: its wake-up may be faster than the answer."""
        with self._lock:
            self._forget()
            now, found = time.monotonic(), []
            for request_id in ids:
                pending = self._find(request_id)
                if pending is None:
                    pending = Pending(request_id, self, phase, now)
                    self._waiting[request_id] = weakref.ref(pending)
                found.append(pending)
            return found

    def _forget(self) -> None:
        """Drop those for whom nobody waits any more, once they may be half of all."""
        if len(self._waiting) > self._most:
            self._waiting = {name: ref for name, ref in self._waiting.items() if ref() is not None}
            self._most = max(LEAST_SWEPT, 2 * len(self._waiting))

    def accepted(
        self, pending: Pending, nonce: str, generation: str | None, submission: Submission | None = None
    ) -> Pending:
        """Note that a submit of ours made the request; gives the pending of this life of its id."""
        if pending.nonce not in ("", nonce) or (pending.response is not None and not pending.nonce):
            # An earlier life of the id, which ended unseen or was lost: who waits for that must not get this answer.
            self.lose(pending)
            pending = Pending(pending.id, self, Phase.OWN, time.monotonic())
        with self._lock:
            pending.nonce, pending.generation, pending.phase = nonce, generation, Phase.OWN
            pending.durability = MEMORY
            if pending.response is None:
                pending.submission, pending.since = submission, time.monotonic()
                ref = self._waiting.get(pending.id)
                if ref is None or ref() is not pending:
                    self._waiting[pending.id] = weakref.ref(pending)
        return pending

    def disown(self, pending: Pending, generation: str) -> None:
        """Note that the request now lives by another submit, whose wake-up goes elsewhere."""
        with self._lock:
            pending.nonce, pending.generation, pending.phase = "", generation, Phase.FOREIGN

    def known(self, pending: Pending, generation: str) -> Pending:
        """Note that Redis knew the request already: if no submit of this process made it, no wake-up comes here."""
        with self._lock:
            if pending.phase is Phase.SENT:
                pending.phase, pending.generation = Phase.FOREIGN, generation
            return pending

    def refused(self, pending: Pending) -> None:
        """Note that a submit was not accepted or not answered. Whoever else holds this pending asks for it."""
        with self._lock:
            if pending.phase is Phase.SENT:
                pending.phase = Phase.FOREIGN

    # --- waiting ------------------------------------------------------------------------------------------------------

    def watch(self, pending: Pending) -> bool:
        """Take in a pending of before a fork; gives whether its outcome comes by itself."""
        if pending.book is self and self._find(pending.id) is not None:  # as nearly always
            return pending.phase is not Phase.FOREIGN
        with self._lock:
            if pending.book is not self:
                # The callbacks belong to threads of the parent.
                pending.book, pending.phase, pending.callbacks = self, Phase.FOREIGN, ()
            if pending.response is None and self._find(pending.id) is None:
                self._waiting[pending.id] = weakref.ref(pending)
            return pending.phase is not Phase.FOREIGN

    def on_done(self, pending: Pending, callback: Callback) -> None:
        """Call back when the outcome is there (at once, if it is) and when waiting may be in vain (`wake_all`)."""
        with self._lock:
            done = pending.response is not None
            if not done:
                pending.callbacks += (callback,)
        if done:
            callback()

    def off_done(self, pending: Pending, callback: Callback) -> None:
        """Do not call back any more."""
        if not pending.callbacks:  # called, as most are
            return
        with self._lock:
            pending.callbacks = tuple(other for other in pending.callbacks if other != callback)

    def wake_all(self) -> None:
        """Let everybody who waits look up: the client was closed, or Redis is away for too long."""
        callbacks = [callback for pending in self._pendings() for callback in pending.callbacks]
        for callback in callbacks:
            callback()

    # --- outcomes -----------------------------------------------------------------------------------------------------

    def deliver(self, outcomes: Iterable[Outcome]) -> list[Pending]:
        """Fulfil what is waited for; gives those whose result was too large for its wake-up."""
        large = []
        for outcome in outcomes:
            pending = self._find(outcome.id)
            if pending is None or pending.nonce not in ("", outcome.nonce):
                continue
            if outcome.body is None:
                large.append(pending)
            else:
                self.fulfil(pending, response_from(outcome), outcome.nonce)
        return large

    def judge(
        self,
        asked: Sequence[Pending],
        generation: str | None,
        outcomes: Sequence[Outcome | None],
        alive: Sequence[bool] | None = None,
    ) -> list[Pending]:
        """Fulfil what was found, and what is lost.

        Gives what vanished: of this process and generation, yet neither ended nor there. Only with `alive` (whether the
        payload is there) this can be told.
        """
        vanished = []
        for i, (pending, outcome) in enumerate(zip(asked, outcomes, strict=True)):
            if outcome is not None and pending.nonce in ("", outcome.nonce):
                self.fulfil(pending, response_from(outcome), outcome.nonce)
            elif pending.phase is Phase.SENT:
                continue
            elif outcome is not None or (pending.generation is not None and pending.generation != generation):
                self.lose(pending)
            elif alive is not None and not alive[i]:
                if pending.phase is Phase.OWN and pending.submission is not None:
                    vanished.append(pending)
                else:
                    self.lose(pending)
        return vanished

    def lose(self, pending: Pending) -> None:
        """Fulfil with RequestLost: Redis does not know the request."""
        self.fulfil(pending, lost(pending.id), pending.nonce)

    def fulfil(self, pending: Pending, response: InferenceResponse, nonce: str) -> None:
        """Give the pending its response, once, and tell those who wait."""
        with self._lock:
            if pending.response is not None:
                return
            pending.response, pending.nonce, pending.submission = response, nonce, None
            callbacks, pending.callbacks = pending.callbacks, ()
            ref = self._waiting.get(pending.id)
            if ref is not None and ref() is pending:
                del self._waiting[pending.id]
        for callback in callbacks:
            callback()

    # --- asking -------------------------------------------------------------------------------------------------------

    def oldest(self, most: int, phase: Phase) -> list[Pending]:
        """Return at most `most` requests of this phase, those first that were not asked for the longest time."""
        with self._lock:
            found = list(itertools.islice((p for p in self._pendings() if p.phase is phase), most))
            for pending in found:
                self._waiting[pending.id] = self._waiting.pop(pending.id)
            return found
