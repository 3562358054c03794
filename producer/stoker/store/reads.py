"""What is read from Redis without changing it: commands sent together, and a value made of their replies."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.store.codec import Outcome, decode_outcome
from stoker.store.connection import Command, Read
from stoker.store.keys import Keys
from stoker.store.pack import unpack, unpack_tokens

MAXMEMORY = "maxmemory"
PADDED = "padded"
_GROUP = 6  # of the fields of a flight record, as in lua/pieces/flight.lua


@dataclass(frozen=True, slots=True)
class Card:
    """The queue's model: its identity, and what the card says (name, dtype, vocabulary, context, mode)."""

    identity: str
    fields: Mapping[str, Any]

    @property
    def context(self) -> int:
        """The most prompt + max_tokens; 0 for no bound."""
        return int(self.fields.get("context", 0))

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id; 0 for no bound."""
        return int(self.fields.get("vocabulary", 0))

    @property
    def padded(self) -> bool:
        """Whether whole batches run at once and no tokens are generated: max_tokens then counts for nothing."""
        return self.fields.get("mode") == PADDED

    @property
    def task(self) -> str:
        """What the model does: generate, embed, classify, or custom (a user's own class)."""
        return str(self.fields.get("task", "generate"))


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """What a client should know before it submits. `bytes_per_token` is 0 until the queue has learned it."""

    generation: str | None
    card: Card | None
    bytes_per_token: float
    maxmemory: int


def queue_facts(keys: Keys) -> Read[QueueFacts]:
    """Read what submit checks against."""
    commands: list[Command] = [
        ("GET", keys.generation),
        ("GET", keys.card),
        ("HMGET", keys.rates, "text_bytes", "text_tokens"),
        ("INFO", "memory"),
    ]
    return Read(commands, _parse_facts, what="submit", required=3)


def _parse_facts(reply: list[Any]) -> QueueFacts:
    generation, card, rates, info = reply
    text_bytes, text_tokens = (int(part or 0) for part in rates)
    return QueueFacts(
        generation=generation.decode() if generation else None,
        card=model_card(card),
        bytes_per_token=text_bytes / text_tokens if text_tokens else 0.0,
        maxmemory=_maxmemory(info),
    )


def _maxmemory(info: Any) -> int:
    """0, for no bound, where there is none or Redis does not tell."""
    if info is None:
        return 0
    if isinstance(info, Mapping):
        return int(info.get(MAXMEMORY, 0))
    lines = (line.partition(":") for line in info.decode().splitlines())
    return next((int(value) for name, _, value in lines if name == MAXMEMORY), 0)


def card(keys: Keys) -> Read[Card | None]:
    """Read the model card, None before the first worker."""
    return Read([("GET", keys.card)], lambda reply: model_card(reply[0]))


def model_card(data: bytes | None) -> Card | None:
    """Return the card in the key `card`."""
    if not data:
        return None
    identity, _, body = data.partition(b"|")
    return Card(identity.decode(), unpack(body, "card"))


def outcomes(keys: Keys, ids: Sequence[str]) -> Read[tuple[str | None, list[Outcome | None]]]:
    """Read the generation, and the results of requests in one MGET."""
    command = ("MGET", keys.generation, *(keys.result(request_id) for request_id in ids))
    return Read([command], _parse_outcomes, what="read results")


def _parse_outcomes(reply: list[Any]) -> tuple[str | None, list[Outcome | None]]:
    generation, *results = reply[0]
    found = [decode_outcome(data) if data else None for data in results]
    return (generation.decode() if generation else None), found


def status(keys: Keys, request_id: str) -> Read[str]:
    """Read the state of a request: queued, dispatched, running, delayed, an outcome, or unknown.

    The result is read last: a request that ends between the reads is never unknown.
    """
    commands: list[Command] = [
        ("EXISTS", keys.payload(request_id)),
        ("GETRANGE", keys.flight(request_id), 0, 255),
        ("GETRANGE", keys.result(request_id), 0, 15),
    ]
    return Read(commands, _parse_status, what="read the status")


def _parse_status(reply: list[Any]) -> str:
    payload, flight, result = reply
    if result:
        return str(result.partition(b"|")[0].decode())
    if flight:
        return {"Q": "queued", "D": "dispatched", "R": "running", "Y": "delayed"}[flight.split(b"|")[1].decode()]
    return "queued" if payload else "unknown"


def wakeups(keys: Keys, client: str, block_s: float) -> Read[list[Outcome]]:
    """Read one client's wake-ups: wait for the first at most `block_s`, then take what else is there.

    BLPOP and LPOP go out together, so that a group costs one round trip.
    """
    reply_key = keys.reply(client)
    commands: list[Command] = [("BLPOP", reply_key, block_s), ("LPOP", reply_key, 1024)]
    return Read(commands, _parse_wakeups, what="read wake-ups")


def _parse_wakeups(reply: list[Any]) -> list[Outcome]:
    first, rest = reply
    entries = ([first[1]] if first else []) + list(rest or [])
    return [decode_outcome(entry) for entry in entries]


def bell(keys: Keys, block_s: float) -> Read[bool]:
    """Wait for the scheduler's bell at most `block_s`; gives whether it rang."""
    return Read([("BLPOP", keys.bell, block_s)], lambda reply: reply[0] is not None)


@dataclass(frozen=True, slots=True)
class Doorbell:
    """One entry of a worker's stream; `delivery` is empty where the entry was deleted under it.

    `costs` are the tokens that are reserved for each id. `leave` are the (id, delivery) to give back.
    """

    entry: str
    delivery: str
    ids: tuple[str, ...]
    costs: tuple[int, ...] = ()
    leave: tuple[tuple[str, str], ...] = ()


def doorbells(keys: Keys, inc: str, *, own: bool, block_ms: int, count: int) -> Read[list[Doorbell]]:
    """Read an incarnation's stream: its `own` pending entries again (never blocks), or new ones."""
    head: list[str | int] = ["XREADGROUP", "GROUP", "workers", "child", "COUNT", count]
    block: list[str | int] = [] if own else ["BLOCK", block_ms]
    command = (*head, *block, "STREAMS", keys.stream(inc), "0" if own else ">")
    return Read([command], _parse_doorbells)


def _parse_doorbells(reply: list[Any]) -> list[Doorbell]:
    return [_doorbell(entry, fields) for _, entries in streams(reply[0]) for entry, fields in entries]


def _doorbell(entry: bytes, fields: Any) -> Doorbell:
    named = pairs(fields) if fields else {}
    ids = named.get(b"ids", b"").decode().split()
    costs = map(int, named.get(b"costs", b"").split())
    leave = named.get(b"leave", b"").decode().split()
    asked = tuple(zip(leave[::2], leave[1::2], strict=True))
    return Doorbell(entry.decode(), named.get(b"delivery", b"").decode(), tuple(ids), tuple(costs), asked)


def running(keys: Keys, inc: str) -> Read[list[tuple[str, str]]]:
    """Read which attempts an incarnation runs, each an id and its delivery, as Redis knows it."""
    return Read([("HGETALL", keys.work(inc))], _parse_running)


def _parse_running(reply: list[Any]) -> list[tuple[str, str]]:
    members = ((request_id.decode(), member.decode().split("|")) for request_id, member in pairs(reply[0]).items())
    return [(request_id, member[0]) for request_id, member in members if member[2] == "R"]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One entry of a token stream, whose id is `<attempt>-<offset + 1>`.

    `end` is the request's outcome in its last entry, else empty.
    """

    entry: str
    attempt: int
    offset: int
    token_ids: list[int]
    text: str
    end: str = ""


def tokens(keys: Keys, request_id: str, nonce: str, after: str, block_ms: int) -> Read[list[TokenRecord]]:
    """Read a token stream past the entry `after`, waiting for one at most `block_ms` (0: not at all).

    An idle Redis looks at its timeouts only ten times a second, so that a short wait may take 100 ms.
    """
    block: Command = ("BLOCK", block_ms) if block_ms else ()
    command = ("XREAD", "COUNT", 256, *block, "STREAMS", keys.tokens(request_id, nonce), after)
    return Read([command], _parse_tokens, what="read tokens")


def _parse_tokens(reply: list[Any]) -> list[TokenRecord]:
    return [
        token_record(entry.decode(), pairs(fields)) for _, entries in streams(reply[0]) for entry, fields in entries
    ]


def published(keys: Keys, requests: Sequence[tuple[str, str]]) -> Read[list[list[TokenRecord]]]:
    """Read all that was published of streaming requests, each an id and its nonce."""
    commands: list[Command] = [("XRANGE", keys.tokens(request_id, nonce), "-", "+") for request_id, nonce in requests]
    return Read(commands, _parse_published, what="read tokens")


def _parse_published(reply: list[Any]) -> list[list[TokenRecord]]:
    return [[token_record(entry.decode(), pairs(fields)) for entry, fields in entries] for entries in reply]


def token_record(entry: str, fields: Mapping[bytes, bytes]) -> TokenRecord:
    """Return one entry of a token stream."""
    if b"end" in fields:
        return TokenRecord(entry, 0, 0, [], "", fields[b"end"].decode())
    attempt, _, place = entry.partition("-")
    ids = unpack_tokens(fields[b"ids"], "token_ids")
    return TokenRecord(entry, int(attempt), int(place) - 1, ids, fields[b"text"].decode())


def counts(keys: Keys) -> Read[dict[str, int]]:
    """Read the running totals: waiting, waiting_bytes, submitted, one per outcome, tokens; a tenant's after a colon."""
    return Read([("HGETALL", keys.counts)], _parse_numbers)


def suspect_groups(keys: Keys, ids: Sequence[str]) -> Read[dict[str, str]]:
    """Read for each suspect the incarnation whose death made it one; who left meanwhile is missing."""
    command = ("MGET", *(keys.flight(request_id) for request_id in ids))
    return Read([command], functools.partial(_parse_groups, ids))


def _parse_groups(ids: Sequence[str], reply: list[Any]) -> dict[str, str]:
    flights = zip(ids, reply[0], strict=True)
    return {request_id: flight.split(b"|")[_GROUP].decode() for request_id, flight in flights if flight}


@dataclass(frozen=True, slots=True)
class Answers:
    """How long answers were: histograms by `<metric>:<class>:<bucket>`, and tokens of tenants' last ones by lane."""

    histograms: Mapping[str, int]
    lengths: Mapping[str, Sequence[int]]


def answers(keys: Keys) -> Read[Answers]:
    """Read how long answers were lately, of the classes and of the tenants in them."""
    return Read([("HGETALL", keys.histograms), ("LRANGE", keys.answers, 0, -1)], _parse_answers)


def _parse_answers(reply: list[Any]) -> Answers:
    lengths: defaultdict[str, list[int]] = defaultdict(list)
    for entry in reply[1]:
        lane, _, tokens = entry.decode().rpartition(":")
        lengths[lane].append(int(tokens))
    return Answers(_parse_numbers(reply), lengths)


def _parse_numbers(reply: list[Any]) -> dict[str, int]:
    return {name.decode(): int(number) for name, number in pairs(reply[0]).items()}


def pairs(reply: Any) -> dict[bytes, bytes]:
    """Return a reply of fields and values as a dict."""
    if isinstance(reply, Mapping):
        return dict(reply)
    if reply and isinstance(reply[0], list | tuple):
        return dict(reply)
    return dict(zip(reply[::2], reply[1::2], strict=True))


def scored(reply: Any) -> list[tuple[bytes, float]]:
    """Return a reply WITHSCORES as pairs."""
    if reply and isinstance(reply[0], list | tuple):
        return [(member, float(score)) for member, score in reply]
    return [(member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True)]


def streams(reply: Any) -> list[tuple[bytes, Any]]:
    """Return a reply of XREAD as (key, entries)."""
    if not reply:
        return []
    return list(reply.items()) if isinstance(reply, Mapping) else [tuple(pair) for pair in reply]
