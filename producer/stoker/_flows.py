"""What a client does, step by step, written once for both clients.

A flow is a generator that yields calls, reads and pauses, and is sent what they gave. The clients only carry the steps
out, one by blocking, the other by awaiting; the flows themselves do no I/O.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from stoker._calls import (
    Encoder,
    Forms,
    Item,
    T,
    as_request,
    fitting,
    fresh_id,
    full_pause,
    groups,
    refusal,
    unique,
)
from stoker._outstanding import Book, Pending, Phase
from stoker.config import Config, check_name
from stoker.errors import InvalidRequest, ModelMismatch, QueueFull, RedisUnavailable, RequestLost, StokerError
from stoker.request import InferenceResponse
from stoker.stats import Stats, assemble
from stoker.store import lookups, reads, scripts
from stoker.store.codec import BYTES_PER_TOKEN, Submission
from stoker.store.connection import Posted, Read, new_id
from stoker.store.durability import IN_MEMORY, MEMORY, Durability
from stoker.store.keys import Keys
from stoker.store.lookups import DeadLetter, Overview
from stoker.store.pack import pack
from stoker.store.reads import Card, QueueFacts
from stoker.store.records import WorkerRecord
from stoker.store.scripts import MAX_TENANT_SETTINGS, Call
from stoker.tenants import SETTINGS, check_setting, number_text

NOTHING: Mapping[str, Any] = MappingProxyType({})
FACTS_AGE_S = 30.0
CARD_AGE_S = 1.0
"""A refusal must not rest on a card older than this: an operator may have replaced it."""

CUSTOM = "custom"
SWEEP_MOST = 4096
FETCH_GROUP = 64
"""Results too large for a wake-up that are fetched at once."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A step that waits."""

    seconds: float


@dataclass(slots=True)
class Send:
    """A step that submits one request, alone or along with those of other calls; gives what `send` gives for it."""

    item: Submission


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that fixes the number of shards, or raises `ConfigError` where it is another one."""


@dataclass(frozen=True, slots=True)
class ReadFacts:
    """A step that gives what `read_facts` gives, which is read once for all who want it meanwhile."""


@dataclass(frozen=True, slots=True)
class Unsent:
    """A posted call that is made when its reply is wanted."""

    call: Call[Any]

    def drop(self) -> None:
        """Nothing is under way."""


@dataclass(frozen=True, slots=True)
class Post:
    """A step that sends a call if it can do so without waiting; gives what `Collect` gives the reply of."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Collect:
    """A step that gives the value of a posted call."""

    posted: Posted[Any] | Unsent


Step = Call[Any] | Read[Any] | Pause | Send | Claim | ReadFacts | Post | Collect
R = TypeVar("R")
Flow = Generator[Step, Any, R]


class State:
    """What one client knows in one process."""

    def __init__(self, config: Config) -> None:
        """Know nothing yet."""
        self.config = config
        self.keys = Keys(config.tag)
        self.book = Book()
        self.forms = Forms(self.book.channel, config)
        self.facts: QueueFacts | None = None
        self.facts_at = 0.0
        self.generation: str | None = None
        self.claimed = config.shards == 1

    def saw_generation(self, generation: str | None) -> None:
        """Note which Redis history answered. Another one than before: what is outstanding may be lost."""
        if self.generation is not None and generation != self.generation:
            self.facts = None
            self.book.suspicious = True
        self.generation = generation or self.generation

    def facts_fresh(self, max_age_s: float = FACTS_AGE_S) -> bool:
        """Whether what submit checks against is known, and not older than that."""
        return self.facts is not None and time.monotonic() - self.facts_at <= max_age_s

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


def queue_facts(state: State, max_age_s: float = FACTS_AGE_S) -> Flow[QueueFacts]:
    """Return what submit checks against, read again when it is older than `max_age_s`."""
    facts = state.facts
    if facts is None or not state.facts_fresh(max_age_s):
        facts = yield ReadFacts()
    return facts


def read_facts(state: State) -> Flow[QueueFacts]:
    """Read what submit checks against."""
    facts = yield from read(reads.queue_facts(state.keys))
    state.saw_generation(facts.generation)
    state.facts, state.facts_at = facts, time.monotonic()
    return facts


def check_task(state: State, task: str) -> Flow[None]:
    """Raise `ModelMismatch` where the queue's model is known to do something else; a user's class may do anything."""
    facts = yield from queue_facts(state, CARD_AGE_S)
    if facts.card is not None and facts.card.task not in (task, CUSTOM):
        name, does = facts.card.fields.get("name"), facts.card.task
        raise ModelMismatch(
            f"queue {state.config.queue!r} serves {name!r} to {does}, not to {task};"
            f" run `stoker worker --task {task}` on a queue of its own"
        )


def prepare(
    state: State,
    items: Sequence[Item | None],
    fields: Mapping[str, Any] = NOTHING,
    *,
    displace: bool = False,
    check_deadline: bool = True,
) -> Flow[list[Submission | InvalidRequest]]:
    """Check and encode requests."""

    def encoded(facts: QueueFacts) -> tuple[Encoder, list[Submission | InvalidRequest]]:
        encoder = Encoder(
            fields,
            forms=state.forms,
            card=facts.card,
            bytes_per_token=facts.bytes_per_token or BYTES_PER_TOKEN,
            displace=displace,
            check_deadline=check_deadline,
        )
        return encoder, [encoder(item) for item in items]

    encoder, found = encoded((yield from queue_facts(state)))
    if encoder.over_card:
        _, found = encoded((yield from queue_facts(state, CARD_AGE_S)))
    return found


@dataclass(slots=True)
class Sent:
    """A group under way."""

    items: Sequence[Submission]
    pendings: Sequence[Pending]
    durability: Durability
    posted: Posted[Any] | Unsent

    def give_up(self, book: Book) -> None:
        """Nobody waits for its answer, if it has not come."""
        self.posted.drop()
        for pending in self.pendings:
            book.refused(pending)


def post(state: State, items: Sequence[Submission], durability: Durability) -> Flow[Sent]:
    """Submit one group; `collect` waits for the answer."""
    if not state.claimed:
        yield Claim()
        state.claimed = True
    pendings = state.book.expect((item.id for item in items), Phase.SENT)
    commands = durability.commands(state.config.durability_timeout_s)
    call = scripts.followed(scripts.submit(new_id(), state.most_bytes, items), commands)
    sent = Sent(items, pendings, durability, Unsent(call))
    try:
        sent.posted = yield Post(call)
    except BaseException:
        sent.give_up(state.book)
        raise
    return sent


def collect(state: State, sent: Sent) -> Flow[list[Pending | StokerError]]:
    """Wait until a group is accepted and that durable; gives who waits for each request, or why it was not accepted."""
    book = state.book
    try:
        (generation, answers), replies = yield Collect(sent.posted)
    except BaseException:
        sent.give_up(book)
        raise
    state.saw_generation(generation)
    reached = sent.durability.reached(replies)
    outcomes: list[Pending | StokerError] = []
    done = []
    for pending, item, answer in zip(sent.pendings, sent.items, answers, strict=True):
        if answer.word == "ACCEPTED":
            pending = book.accepted(pending, item.nonce, generation, item)
        elif error := refusal(answer, item.id, state.config.queue):
            book.refused(pending)
            outcomes.append(error)
            continue
        else:
            book.known(pending, generation)
        # A later submit of the same request that asks for less takes nothing from what an earlier one reached.
        if reached != MEMORY or pending.durability is None:
            pending.durability = reached
        outcomes.append(pending)
        if answer.word == "DONE":
            done.append(pending)
    yield from fetch(state, done)
    return outcomes


def send(
    state: State, items: Sequence[Submission], durability: Durability = IN_MEMORY
) -> Flow[list[Pending | StokerError]]:
    """Submit one group, and wait for the answer."""
    sent = yield from post(state, items, durability)
    return (yield from collect(state, sent))


def submit(
    state: State,
    items: Sequence[Item],
    durability: Durability = IN_MEMORY,
    *,
    displace: bool = False,
    check_deadline: bool = True,
) -> Flow[list[Pending | StokerError]]:
    """Submit in groups; gives who waits for each, or an error for each: one's error is nobody else's."""
    prepared: list[Submission | InvalidRequest] = []
    answers: list[Pending | StokerError] = []
    wishes = {"displace": displace, "check_deadline": check_deadline}
    rest: Iterator[Pending | StokerError] = iter(answers)
    try:
        yield from _submit(state, items, durability, wishes, prepared, answers)
    except RedisUnavailable as error:
        if not prepared:
            raise
        # What was accepted before keeps its handle; the rest is not tried in vain.
        rest = itertools.chain(answers, itertools.repeat(error))
    tried = [next(rest) if isinstance(item, Submission) else item for item in prepared]
    return tried + [next(rest) for _ in items[len(tried) :]]


def _submit(
    state: State,
    items: Sequence[Item],
    durability: Durability,
    wishes: dict[str, bool],
    prepared: list[Submission | InvalidRequest],
    answers: list[Pending | StokerError],
) -> Flow[None]:
    """Add to `prepared` and `answers`. Each group is checked and encoded while Redis takes the one before."""
    sent: Sent | None = None
    try:
        for group in groups(items, state.config.group):
            fresh = yield from prepare(
                state, group, displace=wishes["displace"], check_deadline=wishes["check_deadline"]
            )
            prepared += fresh
            ready = [item for item in fresh if isinstance(item, Submission)]
            while ready:
                n = fitting(ready)
                if sent:
                    answers += yield from collect(state, sent)
                sent = yield from post(state, ready[:n], durability)
                del ready[:n]
        if sent:
            answers += yield from collect(state, sent)
            sent = None
    finally:
        if sent:
            sent.give_up(state.book)


def submit_one(
    state: State,
    request: Item | None,
    fields: Mapping[str, Any],
    durability: Durability,
    block: bool,
    block_timeout: float | None,
    *,
    displace: bool = False,
    check_deadline: bool = True,
) -> Flow[Pending]:
    """Submit one request; with `block` wait for room in a full queue, at most `block_timeout` seconds."""
    deadline = None if block_timeout is None else time.monotonic() + block_timeout
    if not state.facts_fresh():
        as_request(request, fields)  # what is wrong with it must not wait for a Redis that may be away
    [item] = yield from prepare(state, [request], fields, displace=displace, check_deadline=check_deadline)
    if not isinstance(item, Submission):
        raise item
    while True:
        outcome: Pending | StokerError
        if durability.level == MEMORY:
            outcome = yield Send(item)
        else:  # what others ask of Redis beside it would wait along
            [outcome] = yield from send(state, [item], durability)
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
    # It was accepted before, with the time that it has left.
    young = [
        (p, replace(p.submission, check_deadline=False))
        for p in vanished
        if p.since > born and p.submission is not None
    ]
    for pending in vanished:
        if pending.since <= born:
            state.book.lose(pending)
    while young:
        n = fitting([item for _, item in young[: state.config.group]])
        call = scripts.submit(new_id(), state.most_bytes, [item for _, item in young[:n]])
        generation, answers = yield from run(call)
        for (pending, _), answer in zip(young[:n], answers, strict=True):
            pending.durability = MEMORY  # whatever held it before is gone
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
    usual = [pending for pending in own if not suspicious and pending.since >= born]
    try:
        yield from ask(state, foreign + doubtful)
        for group in groups(usual, state.config.group):
            found = yield from read(lookups.census(state.keys, [pending.id for pending in group]))
            state.saw_generation(found.generation)
            book.judge(group, found.generation, found.outcomes)
            if found.alive < found.outcomes.count(None):
                # Redis forgot some, in a crash or failover that no connection of ours noticed.
                book.suspicious = True
    except BaseException:
        book.suspicious = True
        raise


def outcome(state: State, pending: Pending) -> Flow[InferenceResponse | None]:
    """Return a request's response, None while it goes on."""
    if pending.response is None:
        yield from ask(state, [pending])
    return pending.response


def status(state: State, request_id: str) -> Flow[str]:
    """Read the state that a request is in."""
    return (yield from read(reads.status(state.keys, request_id)))


def cancel(state: State, pending: Pending) -> Flow[bool]:
    """End a request; gives whether it is cancelled now."""
    return (yield from run(scripts.cancel(pending.id, pending.nonce))) == "OK"


def stream_nonce(state: State, pending: Pending) -> Flow[str]:
    """Return the nonce that a request's token stream is named by, empty where Redis does not know the request."""
    if pending.nonce:
        return pending.nonce
    return (yield from read(lookups.nonce(state.keys, pending.id)))


# --- operators --------------------------------------------------------------------------------------------------------


def retry_dead(state: State, request_id: str) -> Flow[Pending]:
    """Submit a dead letter again under a new id; raises `RequestLost` where there is none."""
    facts = yield from queue_facts(state, 0)
    fresh, nonce = fresh_id(state.config), unique()
    [pending] = state.book.expect([fresh], Phase.SENT)
    try:
        word = yield from run(scripts.retry_dead(request_id, fresh, nonce, state.book.channel))
    except BaseException:
        state.book.refused(pending)
        raise
    if word != "OK":
        raise RequestLost(request_id)
    return state.book.accepted(pending, nonce, facts.generation)


def purge_dead(state: State, ids: Sequence[str]) -> Flow[int]:
    """Forget dead letters; gives how many there were."""
    purged = 0
    for group in groups(ids, state.config.group):
        purged += yield from run(scripts.purge_dead(group))
    return purged


def dead_letters(state: State, limit: int) -> Flow[list[DeadLetter]]:
    """Read the newest dead letters."""
    ids = yield from read(lookups.dead_ids(state.keys, limit))
    letters: list[DeadLetter] = []
    for group in groups(ids, state.config.group):
        letters += yield from read(lookups.dead_letters(state.keys, group))
    return letters


def set_model(state: State, identity: str, fields: Mapping[str, Any]) -> Flow[None]:
    """Replace the model card; raises `ModelMismatch` while workers of another model are registered."""
    word = yield from run(scripts.set_model(identity, pack(dict(fields), "card") if identity else b""))
    if word != "OK":
        raise ModelMismatch(f"queue {state.config.queue!r} has workers of another model; stop them first")
    state.facts = None


def card(state: State) -> Flow[Card | None]:
    """Read the card of the queue's model."""
    return (yield from read(reads.card(state.keys)))


def drain(state: State, worker: str, drained: bool) -> Flow[bool]:
    """Stop or resume work for a worker; gives whether it is there."""
    return (yield from run(scripts.drain(worker, drained))) == "OK"


def tenants(state: State) -> Flow[dict[str, dict[str, float]]]:
    """Read what is set for tenants."""
    return (yield from read(lookups.tenant_settings(state.keys)))


def set_tenant(state: State, tenant: str, values: Mapping[str, float | None]) -> Flow[None]:
    """Set numbers for a tenant, None: no longer; raises `InvalidRequest`, also where the queue keeps no more."""
    check_name("tenant", tenant)
    if not values:
        raise InvalidRequest("setting", f"give at least one of {', '.join(SETTINGS)}", None)
    texts = {name: "" if value is None else number_text(check_setting(name, value)) for name, value in values.items()}
    if (yield from run(scripts.set_tenant(tenant, texts))) != "OK":
        raise InvalidRequest("tenant", f"the queue keeps at most {MAX_TENANT_SETTINGS} settings of tenants", tenant)


def workers(state: State) -> Flow[list[WorkerRecord]]:
    """Read the registered workers and what they hold."""
    records = yield from read(lookups.workers(state.keys))
    if not records:
        return []
    rows = yield from read(lookups.held_rows(state.keys, [record.inc for record in records]))
    return [replace(record, held_rows=held) for record, held in zip(records, rows, strict=True)]


def survey(state: State) -> Flow[tuple[Overview, list[WorkerRecord]]]:
    """Read what a queue's figures are made of."""
    overview = yield from read(lookups.overview(state.keys))
    return overview, (yield from workers(state))


def queue_stats(state: State) -> Flow[Stats]:
    """Read the queue's figures."""
    overview, records = yield from survey(state)
    return assemble(state.config.queue, overview, records, state.config.lease_us / 1e6)
