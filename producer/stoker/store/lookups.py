"""What clients and operators look up: whether requests still live, token streams, dead letters, the whole queue."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker.store.codec import FAILURE_BYTES, STAMP, Outcome, decode_outcome
from stoker.store.connection import Command, Read
from stoker.store.keys import Keys
from stoker.store.pack import unpack
from stoker.store.reads import (
    Card,
    TokenRecord,
    model_card,
    pairs,
    scored,
    streams,
    token_record,
)
from stoker.store.records import LANES, WorkerRecord
from stoker.store.views import MOST_ACTIVE, active_lanes, worker_record

HEAD = STAMP + 496
DEAD_FIELDS = 7
DEAD_HEAD = 4096 + FAILURE_BYTES
"""More than a dead letter's fields (eight attempts, each with its worker's name), its message and the header behind."""

MOST_DEAD = 1 << 31
"""No place in a sorted set is further back; Redis takes no larger numbers than 64 bits."""


@dataclass(frozen=True, slots=True)
class Lives:
    """Per request asked for: its outcome where it ended, and whether Redis still has its payload where not."""

    generation: str | None
    outcomes: Sequence[Outcome | None]
    alive: Sequence[bool]


def lives(keys: Keys, ids: Sequence[str]) -> Read[Lives]:
    """Read whether requests ended, wait, or are unknown.

    The results are read last: a request that ends between the reads is never unknown.
    """
    commands: list[Command] = [("EXISTS", keys.payload(request_id)) for request_id in ids]
    commands.append(("MGET", keys.generation, *(keys.result(request_id) for request_id in ids)))
    return Read(commands, _parse_lives, what="read results")


def _parse_lives(reply: list[Any]) -> Lives:
    *payloads, (generation, *results) = reply
    return Lives(
        generation=generation.decode() if generation else None,
        outcomes=[decode_outcome(data) if data else None for data in results],
        alive=[bool(payload) for payload in payloads],
    )


@dataclass(frozen=True, slots=True)
class Census:
    """The outcomes of requests, None where they did not end, and how many of all had not when it began."""

    generation: str | None
    outcomes: Sequence[Outcome | None]
    alive: int


def census(keys: Keys, ids: Sequence[str]) -> Read[Census]:
    """Read whether requests ended, and count those that live, at less cost than `lives`.

    The results are read last: a request that ends between the reads is counted, too.
    """
    commands: list[Command] = [
        ("EXISTS", *(keys.payload(request_id) for request_id in ids)),
        ("MGET", keys.generation, *(keys.result(request_id) for request_id in ids)),
    ]
    return Read(commands, _parse_census, what="read results")


def _parse_census(reply: list[Any]) -> Census:
    alive, (generation, *results) = reply
    outcomes = [decode_outcome(data) if data else None for data in results]
    return Census(generation.decode() if generation else None, outcomes, alive)


def nonce(keys: Keys, request_id: str) -> Read[str]:
    """Read the nonce of the life that an id is in, empty where Redis does not know the id."""
    commands: list[Command] = [
        ("GETRANGE", keys.payload(request_id), 0, HEAD - 1),
        ("GETRANGE", keys.result(request_id), 0, HEAD - 1),
    ]
    return Read(commands, _parse_nonce)


def _parse_nonce(reply: list[Any]) -> str:
    payload, result = reply
    head = payload[STAMP:] or result
    return str(head.split(b"|", 2)[1].decode()) if head else ""


Place = tuple[str, str, str]
"""Where a reader of a token stream is: the request's id, its nonce, and the last entry read (`BEGINNING` at first)."""

BEGINNING = "0"


def token_streams(keys: Keys, places: Sequence[Place], block_ms: int) -> Read[dict[Place, list[TokenRecord]]]:
    """Read past places in different streams, waiting for the first entry at most `block_ms`; gives those with news."""
    named = {keys.tokens(request_id, nonce): (request_id, nonce, after) for request_id, nonce, after in places}
    head: Command = ("XREAD", "COUNT", 256, "BLOCK", block_ms, "STREAMS")
    command = (*head, *named, *(after for _, _, after in named.values()))
    return Read([command], functools.partial(_parse_streams, named), what="read tokens")


def _parse_streams(named: Mapping[str, Place], reply: list[Any]) -> dict[Place, list[TokenRecord]]:
    return {
        named[key.decode()]: [token_record(entry.decode(), pairs(fields)) for entry, fields in entries]
        for key, entries in streams(reply[0])
    }


def tenant_settings(keys: Keys) -> Read[dict[str, dict[str, float]]]:
    """Read what is set for tenants, by tenant and setting."""
    return Read([("HGETALL", keys.tenants)], _parse_tenant_settings, what="read the tenants")


def _parse_tenant_settings(reply: list[Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for key, number in pairs(reply[0]).items():
        tenant, _, name = key.decode().partition(":")
        found.setdefault(tenant, {})[name] = float(number)
    return found


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A failed request that is kept.

    `at_s` is Unix time; `message` says more than the word `reason`, empty where nobody could; `history`: how its last
    attempts ended, `inc,cause;...`.
    """

    id: str
    at_s: float
    reason: str
    message: str
    attempts: int
    failures: int
    losses: int
    history: str
    priority: str
    tenant: str | None


def dead_ids(keys: Keys, limit: int) -> Read[list[str]]:
    """Read the ids of the newest dead letters."""
    command = ("ZRANGE", keys.dead_letters, 0, min(max(limit, 1), MOST_DEAD) - 1, "REV")
    return Read([command], lambda reply: [entry.decode() for entry in reply[0]])


def dead_letters(keys: Keys, ids: Sequence[str]) -> Read[list[DeadLetter]]:
    """Read dead letters, without their payloads; those that are gone are left out."""
    commands: list[Command] = [("GETRANGE", keys.dead(request_id), 0, DEAD_HEAD - 1) for request_id in ids]
    return Read(commands, functools.partial(_parse_dead, ids))


def _parse_dead(ids: Sequence[str], reply: list[Any]) -> list[DeadLetter]:
    return [dead_letter(request_id, data) for request_id, data in zip(ids, reply, strict=True) if data]


def dead_parts(data: bytes) -> tuple[list[bytes], bytes, bytes]:
    """Return a dead letter's texts, the body of its failure, and the payload, which may be cut short."""
    *texts, size, rest = data.split(b"|", DEAD_FIELDS)
    return texts, rest[: int(size)], rest[int(size) :]


def dead_letter(request_id: str, data: bytes) -> DeadLetter:
    """Return the dead letter in `data`, whose payload may be cut short."""
    (at, reason, attempts, failures, losses, history), body, payload = dead_parts(data)
    _, _, _, priority, tenant, *_ = payload[STAMP:].split(b"|", 5)
    return DeadLetter(
        id=request_id,
        at_s=int(at) / 1e6,
        reason=reason.decode(),
        message=unpack(body, "dead letter").get("message", "") if body else "",
        attempts=int(attempts),
        failures=int(failures),
        losses=int(losses),
        history=history.decode(),
        priority=priority.decode(),
        tenant=tenant.decode() or None,
    )


@dataclass(frozen=True, slots=True)
class Overview:
    """A queue at one moment: the sizes of its sets, its running totals, its histograms, its leader and its model.

    `lanes`: what waits, by class. `circuits`: what the leader holds not closed, by worker. `tenant_lanes`: the lanes of
    tenants in use, of very many some by chance. `served`: tokens over weight, by lane of a class with tenants.
    `speeds`: what the leader knows of workers, by incarnation: tokens a second of a full one, and the seconds of a
    token of max_tokens on an empty one. `rooms`: what BATCH may take of them while it leaves room, the fields of
    `BatchRoom`.
    """

    now_us: int
    generation: str | None
    lanes: Mapping[str, int]
    delayed: int
    dead: int
    counts: Mapping[str, int]
    histograms: Mapping[str, int]
    rates: Mapping[str, float]
    leader: str | None
    leader_until_us: int
    circuits: Mapping[str, str]
    card: Card | None
    tenant_lanes: Sequence[str] = ()
    served: Mapping[str, float] = field(default_factory=dict)
    speeds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rooms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def named(text: bytes | None) -> dict[str, str]:
    """Return what stands in `name=value` pairs between `|`."""
    return dict(pair.split("=", 1) for pair in text.decode().split("|")) if text else {}


def overview(keys: Keys) -> Read[Overview]:
    """Read all that is counted of a queue, apart from its workers."""
    commands: list[Command] = [
        ("TIME",),
        ("GET", keys.generation),
        ("ZCARD", keys.delayed),
        ("ZCARD", keys.dead_letters),
        ("HGETALL", keys.counts),
        ("HGETALL", keys.histograms),
        ("HGETALL", keys.rates),
        ("HMGET", keys.leader, "token", "until", "circuits", "served", "speeds", "rooms"),
        ("GET", keys.card),
        ("HMGET", keys.active, *LANES),
        ("HRANDFIELD", keys.active, MOST_ACTIVE, "WITHVALUES"),
        *(("ZCARD", keys.lane(lane)) for lane in LANES),
    ]
    return Read(commands, _parse_overview, what="read the figures")


def _parse_overview(reply: list[Any]) -> Overview:
    (seconds, micros), generation, delayed, dead, counts, histograms, rates, leads, card, shared, active, *lanes = reply
    leader, until, circuits, served, speeds, rooms = leads
    return Overview(
        now_us=int(seconds) * 1_000_000 + int(micros),
        generation=generation.decode() if generation else None,
        lanes={lane: own + int(of or 0) for lane, own, of in zip(LANES, lanes, shared, strict=True)},
        delayed=delayed,
        dead=dead,
        counts={name.decode(): int(number) for name, number in pairs(counts).items()},
        histograms={name.decode(): int(number) for name, number in pairs(histograms).items()},
        rates={name.decode(): float(number) for name, number in pairs(rates).items()},
        leader=leader.decode() if leader else None,
        leader_until_us=int(until or 0),
        circuits=named(circuits),
        card=model_card(card),
        tenant_lanes=tuple(active_lanes(active)),
        served={lane: float(number) for lane, number in named(served).items()},
        speeds=_numbers(speeds),
        rooms=_numbers(rooms),
    )


def _numbers(told: bytes | None) -> dict[str, tuple[float, ...]]:
    return {inc: tuple(map(float, numbers.split(","))) for inc, numbers in named(told).items()}


def worker_count(keys: Keys) -> Read[int]:
    """Read how many workers are registered, or have work that is not taken back yet."""
    return Read([("HLEN", keys.inc)], lambda reply: int(reply[0]), what="count the workers")


def beats(keys: Keys) -> Read[dict[str, float]]:
    """Read when each incarnation beat last, in microseconds by the clock of Redis."""
    commands: list[Command] = [("ZRANGE", keys.beats, 0, -1, "WITHSCORES")]
    return Read(commands, lambda reply: {inc.decode(): float(at) for inc, at in reply[0]}, what="read who beats")


def workers(keys: Keys) -> Read[list[WorkerRecord]]:
    """Read all registered incarnations, sorted; how many rows each holds is another read."""
    commands: list[Command] = [
        ("TIME",),
        ("HGETALL", keys.inc),
        ("HGETALL", keys.credit),
        ("ZRANGE", keys.beats, 0, -1, "WITHSCORES"),
    ]
    return Read(commands, _parse_workers, what="read the workers")


def _parse_workers(reply: list[Any]) -> list[WorkerRecord]:
    (seconds, micros), incs, credit, beats = reply
    now = int(seconds) * 1_000_000 + int(micros)
    stamps, tokens = dict(scored(beats)), pairs(credit)
    records = [
        dataclasses.replace(
            worker_record(name.decode(), text.decode()),
            beat_age_us=now - int(stamps.get(name, 0)),
            held_tokens=int(tokens.get(name, 0)),
        )
        for name, text in pairs(incs).items()
    ]
    return sorted(records, key=lambda record: record.inc)


def held_rows(keys: Keys, incs: Iterable[str]) -> Read[list[int]]:
    """Read how many requests each incarnation holds."""
    return Read([("HLEN", keys.work(inc)) for inc in incs], list)
