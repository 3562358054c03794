"""What a client does, step by step, written once for both clients.

A flow is a generator that yields calls, reads and pauses, and is sent what they gave. The clients only carry the steps
out, one by blocking, the other by awaiting; the flows themselves do no I/O.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stoker._calls import T, fitting, full_pause, groups, over_card, refusal, unique
from stoker._outstanding import Book, Pending, Phase
from stoker.config import Config
from stoker.errors import InvalidRequest, QueueFull, RedisUnavailable, RequestLost, StokerError
from stoker.request import InferenceRequest
from stoker.store import lookups, reads, scripts
from stoker.store.codec import BYTES_PER_TOKEN, Submission, encode
from stoker.store.connection import Read, new_id
from stoker.store.keys import Keys
from stoker.store.reads import QueueFacts
from stoker.store.scripts import Call

FACTS_AGE_S = 30.0
CARD_AGE_S = 1.0
"""A refusal must not rest on a card older than this: an operator may have replaced it."""

SWEEP_MOST = 4096
FETCH_GROUP = 64
"""Results too large for a wake-up that are fetched at once."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A step that waits."""

    seconds: float


Step = Call[Any] | Read[Any] | Pause
R = TypeVar("R")
Flow = Generator[Step, Any, R]


class State:
    """What one client knows in one process."""

    def __init__(self, config: Config) -> None:
        """Know nothing yet."""
        self.config = config
        self.keys = Keys(config.queue)
        self.book = Book()
        self.facts: QueueFacts | None = None
        self.facts_at = 0.0
        self.generation: str | None = None

    def saw_generation(self, generation: str | None) -> None:
        """Note which Redis history answered. Another one than before: what is outstanding may be lost."""
        if self.generation is not None and generation != self.generation:
            self.facts = None
            self.book.suspicious = True
        self.generation = generation or self.generation

    @property
    def most_bytes(self) -> int:
        """What may wait in bytes: the setting, and never over half of Redis' own limit."""
        maxmemory = self.facts.maxmemory if self.facts else 0
        return min(self.config.max_waiting_bytes, maxmemory // 2 or self.config.max_waiting_bytes)


def run(call: Call[T]) -> Flow[T]:
    """Make one call."""
    reply: T = yield call
    return reply


def read(what: Read[T]) -> Flow[T]:
    """Make one read."""
    reply: T = yield what
    return reply


# --- submitting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request ready to be sent, and who waits for it."""

    pending: Pending
    submission: Submission


def queue_facts(state: State, max_age_s: float = FACTS_AGE_S) -> Flow[QueueFacts]:
    """Return what submit checks against, read again when it is older than `max_age_s`."""
    if state.facts is None or time.monotonic() - state.facts_at > max_age_s:
        facts = yield from read(reads.queue_facts(state.keys))
        state.saw_generation(facts.generation)
        state.facts, state.facts_at = facts, time.monotonic()
    return state.facts


def prepare(state: State, requests: Sequence[InferenceRequest]) -> Flow[list[Outgoing | InvalidRequest]]:
    """Check and encode requests; ids and nonces are fixed here, so that a repeated call is the same call."""
    facts = yield from queue_facts(state)
    if any(over_card(request, facts.card) for request in requests):
        facts = yield from queue_facts(state, CARD_AGE_S)
    return [over_card(request, facts.card) or _outgoing(state, request, facts) for request in requests]


def _outgoing(state: State, request: InferenceRequest, facts: QueueFacts) -> Outgoing | InvalidRequest:
    request_id = request.request_id or unique()
    try:
        submission = encode(
            request,
            request_id=request_id,
            nonce=unique(),
            reply=state.book.channel,
            config=state.config,
            bytes_per_token=facts.bytes_per_token or BYTES_PER_TOKEN,
        )
    except InvalidRequest as error:
        return error
    return Outgoing(state.book.expect(request_id, Phase.SENT), submission)


def send(state: State, items: Sequence[Outgoing]) -> Flow[list[Pending | StokerError]]:
    """Submit one group; gives who waits for each, or why it was not accepted."""
    call = scripts.submit(new_id(), state.most_bytes, [item.submission for item in items])
    try:
        generation, answers = yield from run(call)
    except BaseException:
        for item in items:
            state.book.refused(item.pending)
        raise
    state.saw_generation(generation)
    outcomes = [_conclude(state, item, answer, generation) for item, answer in zip(items, answers, strict=True)]
    done = [item.pending for item, answer in zip(items, answers, strict=True) if answer.word == "DONE"]
    yield from fetch(state, done)
    return outcomes


def _conclude(state: State, item: Outgoing, answer: scripts.Accepted, generation: str) -> Pending | StokerError:
    if error := refusal(answer, item.submission.id, state.config.queue):
        state.book.refused(item.pending)
        return error
    if answer.word == "ACCEPTED":
        return state.book.accepted(item.pending, item.submission, generation)
    return state.book.known(item.pending, generation)


def submit(state: State, requests: Sequence[InferenceRequest]) -> Flow[list[Pending | StokerError]]:
    """Submit in groups; gives who waits for each, or an error for each: one's error is nobody else's."""
    prepared = yield from prepare(state, requests)
    outcomes: list[Pending | StokerError | None] = [
        item if isinstance(item, InvalidRequest) else None for item in prepared
    ]
    ready = [(i, item) for i, item in enumerate(prepared) if isinstance(item, Outgoing)]
    while ready:
        n = fitting([item.submission for _, item in ready[: state.config.group]], state.config.group)
        try:
            answers = yield from send(state, [item for _, item in ready[:n]])
        except RedisUnavailable as error:
            # What was accepted before keeps its handle; the rest is not tried in vain.
            answers = [error] * (n := len(ready))
        for (i, _), answer in zip(ready[:n], answers, strict=True):
            outcomes[i] = answer
        del ready[:n]
    return [outcome for outcome in outcomes if outcome is not None]


def submit_one(state: State, request: InferenceRequest, block: bool, block_timeout: float | None) -> Flow[Pending]:
    """Submit one request; with `block` wait for room in a full queue, at most `block_timeout` seconds."""
    deadline = None if block_timeout is None else time.monotonic() + block_timeout
    while True:
        [outcome] = yield from submit(state, [request])
        if isinstance(outcome, Pending):
            return outcome
        if not block or not isinstance(outcome, QueueFull):
            raise outcome
        pause = full_pause(outcome.retry_after, deadline, time.monotonic())
        if pause is None:
            raise outcome
        yield Pause(pause)


# --- outcomes ---------------------------------------------------------------------------------------------------------


def deliver(state: State, outcomes: Iterable[Any]) -> Flow[None]:
    """Hand wake-ups to those who wait, and fetch the results that were too large for theirs."""
    yield from fetch(state, state.book.deliver(outcomes))


def fetch(state: State, pendings: Sequence[Pending]) -> Flow[None]:
    """Read results by id."""
    for group in groups(pendings, FETCH_GROUP):
        generation, outcomes = yield from read(reads.outcomes(state.keys, [pending.id for pending in group]))
        state.book.judge(group, generation, outcomes)


def ask(state: State, pendings: Sequence[Pending]) -> Flow[None]:
    """Look whether requests ended, and whether those that did not are still there; submits again what vanished."""
    for group in groups(pendings, state.config.group):
        found = yield from read(lookups.lives(state.keys, [pending.id for pending in group]))
        state.saw_generation(found.generation)
        vanished = state.book.judge(group, found.generation, found.outcomes, found.alive)
        yield from _restore(state, vanished)


def _restore(state: State, vanished: Sequence[Pending]) -> Flow[None]:
    """Submit again, as the same requests, what Redis accepted and lost in a crash or failover."""
    # What is older than a result's life may have ended unseen: it must not run twice.
    born = time.monotonic() - state.config.result_ttl_s
    young = [(p, p.submission) for p in vanished if p.since > born and p.submission is not None]
    for pending in vanished:
        if pending.since <= born:
            state.book.lose(pending)
    while young:
        n = fitting([submission for _, submission in young[: state.config.group]], state.config.group)
        call = scripts.submit(new_id(), state.most_bytes, [submission for _, submission in young[:n]])
        generation, answers = yield from run(call)
        for (pending, _), answer in zip(young[:n], answers, strict=True):
            if answer.word == "CONFLICT":
                state.book.lose(pending)
            elif answer.word == "FULL":
                state.book.suspicious = True
            elif answer.word != "ACCEPTED":
                state.book.disown(pending, generation)
        del young[:n]


def sweep(state: State, quiet: bool) -> Flow[None]:
    """Ask for what no wake-up came for: all of it after trouble, the longest unasked of it otherwise.

    `quiet`: no wake-up came for a second, so that Redis and this client have time.
    """
    book = state.book
    suspicious, book.suspicious = book.suspicious, False
    most = len(book) if suspicious else SWEEP_MOST if quiet else state.config.group
    own, foreign = book.oldest(most, Phase.OWN), book.oldest(most, Phase.FOREIGN)
    born = time.monotonic() - state.config.result_ttl_s
    doubtful = [pending for pending in own if suspicious or pending.since < born]
    try:
        yield from ask(state, foreign + doubtful)
        for group in groups([pending for pending in own if not suspicious and pending.since >= born], state.config.group):
            generation, outcomes = yield from read(reads.outcomes(state.keys, [pending.id for pending in group]))
            state.saw_generation(generation)
            book.judge(group, generation, outcomes)
    except BaseException:
        book.suspicious = True
        raise


def stream_nonce(state: State, pending: Pending) -> Flow[str]:
    """Return the nonce that a request's token stream is named by, empty where Redis does not know the request."""
    if pending.nonce:
        return pending.nonce
    return (yield from read(lookups.nonce(state.keys, pending.id)))


# --- operators --------------------------------------------------------------------------------------------------------


def retry_dead(state: State, request_id: str) -> Flow[Pending]:
    """Submit a dead letter again under a new id; raises `RequestLost` where there is none."""
    facts = yield from queue_facts(state, 0)
    fresh, nonce = unique(), unique()
    pending = state.book.expect(fresh, Phase.SENT)
    try:
        word = yield from run(scripts.retry_dead(request_id, fresh, nonce, state.book.channel))
    except BaseException:
        state.book.refused(pending)
        raise
    if word != "OK":
        raise RequestLost(request_id)
    return state.book.accepted(pending, Submission(fresh, nonce, b"", b""), facts.generation or "")
