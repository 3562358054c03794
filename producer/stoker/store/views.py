"""The queue as a scheduler sees it: the heads of the lanes, and the workers with what they hold, in one round trip."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from stoker.store.connection import Command, Read
from stoker.store.keys import Keys
from stoker.store.reads import PADDED, pairs, scored
from stoker.store.records import AHEAD, LANES, Held, Waiting, WorkerRecord, class_of, parse_tail, tenant_of

MOST_ACTIVE = 1024
"""Lanes of tenants that a look at the queue knows of; where more are in use, some by chance."""

NOTHING_EXPECTED: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class QueueView:
    """All that the scheduler decides on, read in one round trip; times in microseconds by the clock of Redis.

    `asked`: how many entries of each lane were asked for. `active`: the tenants' lanes, with how many wait in each; of
    very many some by chance. `weights`: those of the tenants whose lanes were read, where one is set.
    `held`: what each incarnation holds, where that was asked for.
    """

    now_us: int
    lanes: dict[str, list[Waiting]]
    asked: dict[str, int]
    active: dict[str, int]
    weights: dict[str, float]
    workers: list[WorkerRecord]
    next_due_us: int | None
    next_deadline_us: int | None
    quarantine: str | None
    held: Mapping[str, Sequence[Held]]

    @property
    def offline_waits(self) -> bool:
        """Whether any request of class BATCH waits."""
        return any(entries[0].offline for entries in self.lanes.values() if entries)

    @property
    def idle(self) -> bool:
        """Whether nothing is live: nothing waits, is delayed or is held."""
        waits = self.active or self.next_due_us is not None or any(self.lanes.values())
        return not waits and not any(worker.held_rows for worker in self.workers)


def queue_view(
    keys: Keys,
    *,
    depth: int,
    known: Sequence[WorkerRecord] = (),
    expected: Mapping[str, int] = NOTHING_EXPECTED,
    shared: Mapping[str, int] = NOTHING_EXPECTED,
    members: bool = False,
) -> Read[QueueView]:
    """Read the heads of all lanes (`depth` each), the workers and what they hold, and what is due next.

    Of tenants' lanes those in `shared` are read, each with the number of entries that stands there.

    `expected` are the tokens to expect of an answer, by lane, or by class for all others of its lanes.

    `known` are the workers of the view before: only they can hold anything. Of a rect cache all members are read, for
    the longest matters; of others the number is enough, unless `members` asks which they are (of workers that run no
    padded batches).
    """
    asked = {**dict.fromkeys(LANES, depth), **shared}
    named = {record.inc for record in known if members and record.mode != PADDED}
    commands: list[Command] = [
        ("TIME",),
        ("HGETALL", keys.inc),
        ("HGETALL", keys.credit),
        ("ZRANGE", keys.beats, 0, -1, "WITHSCORES"),
        ("ZRANGE", keys.delayed, 0, 0, "WITHSCORES"),
        ("ZRANGE", keys.deadlines, 0, 0, "WITHSCORES"),
        ("GET", keys.quarantine),
        ("HRANDFIELD", keys.active, MOST_ACTIVE, "WITHVALUES"),
        _weights_of(keys, shared),
        *(("ZRANGE", keys.lane(lane), 0, number - 1, "WITHSCORES") for lane, number in asked.items()),
        *((_looked_at(record, record.inc in named), keys.work(record.inc)) for record in known),
    ]
    return Read(commands, functools.partial(_parse_view, [record.inc for record in known], asked, expected, named))


def _looked_at(record: WorkerRecord, named: bool) -> str:
    return "HGETALL" if named else "HVALS" if record.cache == "rect" else "HLEN"


def _weights_of(keys: Keys, lanes: Iterable[str]) -> Command:
    return ("HMGET", keys.tenants, *(f"{tenant}:weight" for tenant in _tenants(lanes)))


def _tenants(lanes: Iterable[str]) -> list[str]:
    # The empty tenant is never set; with it, the command always has a field.
    return sorted({"", *map(tenant_of, lanes)})


def _parse_weights(lanes: Iterable[str], reply: Sequence[bytes | None]) -> dict[str, float]:
    return {tenant: float(number) for tenant, number in zip(_tenants(lanes), reply, strict=True) if number}


@dataclass(frozen=True, slots=True)
class TenantPages:
    """The heads of some tenants' lanes, and the weights of those tenants where one is set."""

    lanes: dict[str, list[Waiting]]
    weights: dict[str, float]


def tenant_pages(
    keys: Keys, shared: Mapping[str, int], workers: Sequence[WorkerRecord], expected: Mapping[str, int]
) -> Read[TenantPages]:
    """Read so many entries of tenants' lanes as `shared` says, as `workers` would run them."""
    commands: list[Command] = [_weights_of(keys, shared)]
    commands += [("ZRANGE", keys.lane(lane), 0, number - 1, "WITHSCORES") for lane, number in shared.items()]

    def parse(reply: list[Any]) -> TenantPages:
        padded = all_padded(workers)
        pages = zip(shared, reply[1:], strict=True)
        lanes = {lane: _waiting(lane, entries, padded, expected) for lane, entries in pages}
        return TenantPages(lanes, _parse_weights(shared, reply[0]))

    return Read(commands, parse)


def lane_page(
    keys: Keys,
    lane: str,
    start: int,
    count: int,
    workers: Sequence[WorkerRecord] = (),
    expected: Mapping[str, int] = NOTHING_EXPECTED,
) -> Read[list[Waiting]]:
    """Read `count` entries of a lane from place `start` on, as `workers` would run them; `expected` as for a view."""
    command = ("ZRANGE", keys.lane(lane), start, start + count - 1, "WITHSCORES")
    return Read([command], lambda reply: _waiting(lane, reply[0], all_padded(workers), expected))


def held(keys: Keys, workers: Sequence[WorkerRecord]) -> Read[Mapping[str, Sequence[Held]]]:
    """Read which requests workers hold, by incarnation."""
    incs = [worker.inc for worker in workers]
    return Read(
        [("HGETALL", keys.work(inc)) for inc in incs],
        lambda reply: {inc: _held(found, named=True) for inc, found in zip(incs, reply, strict=True)},
    )


def _parse_view(
    known: Sequence[str], asked: dict[str, int], expected: Mapping[str, int], named: Set[str], reply: list[Any]
) -> QueueView:
    (seconds, micros), incs, credit, beats, delayed, deadlines, quarantine, active, weights = reply[:9]
    now = int(seconds) * 1_000_000 + int(micros)
    lanes = dict(zip(asked, reply[9 : 9 + len(asked)], strict=True))
    members = dict(zip(known, reply[9 + len(asked) :], strict=True))
    stamps, tokens = dict(scored(beats)), pairs(credit)
    records, held_by = [], {}
    for name, text in pairs(incs).items():
        found = members.get(name.decode(), 0)
        counted = isinstance(found, int)
        held = [] if counted else _held(found, name.decode() in named)
        held_by[name.decode()] = held
        staying = [member for member in held if member.cost]
        offline = [member.cost for member in staying if member.offline]
        records.append(
            dataclasses.replace(
                worker_record(name.decode(), text.decode()),
                beat_age_us=now - int(stamps.get(name, 0)),
                held_tokens=int(tokens.get(name, 0)),
                held_rows=found if counted else len(staying),
                longest=max((member.cost for member in held), default=0),
                batch_rows=len(offline),
                batch_tokens=sum(offline),
            )
        )
    padded = all_padded(records)
    return QueueView(
        now_us=now,
        lanes={lane: _waiting(lane, entries, padded, expected) for lane, entries in lanes.items()},
        asked=asked,
        active=active_lanes(active),
        weights=_parse_weights(asked.keys() - set(LANES), weights),
        workers=sorted(records, key=lambda record: record.inc),
        next_due_us=_first_score(delayed),
        next_deadline_us=_first_score(deadlines),
        quarantine=quarantine.decode().rpartition("|")[0] if quarantine else None,
        held=held_by,
    )


def active_lanes(reply: Any) -> dict[str, int]:
    """Return how many wait in each lane of a tenant, of the hash `active`."""
    numbers = {name.decode(): int(number) for name, number in pairs(reply or {}).items()}
    return {name: number for name, number in sorted(numbers.items()) if tenant_of(name)}


def _held(found: Any, named: bool) -> list[Held]:
    """Return the members of a work hash, with their ids where they are `named`."""
    members = pairs(found).items() if named else ((b"", data) for data in found)
    held = []
    for request_id, data in members:
        delivery, cost, _, since, name, before = data.decode().split("|")
        held.append(Held(request_id.decode(), delivery, int(cost), int(since), name, int(before)))
    return held


def worker_record(inc: str, text: str) -> WorkerRecord:
    """Return one field of the hash `inc`; what it holds and its beat stand elsewhere."""
    f = text.split("|")
    figures = {name: int(number) for name, _, number in (pair.partition("=") for pair in f[14].split(",") if pair)}
    return WorkerRecord(
        inc=inc,
        worker=f[0],
        capacity=int(f[2]),
        rows=int(f[3]),
        budget=int(f[4]),
        mode=f[5],
        cache=f[6],
        state=f[7],
        accepting=f[8] == "1",
        drained=f[9] == "1",
        progress=int(f[10]),
        rate=float(f[11]),
        faults=int(f[12]),
        successes=int(f[13]),
        ahead=min(figures.get(AHEAD, 0), int(f[3])),
        figures=figures,
    )


def all_padded(workers: Sequence[WorkerRecord]) -> bool:
    """Return whether all live workers run padded batches: nothing is generated there."""
    modes = {worker.mode for worker in workers if worker.state == "live"}
    return modes == {PADDED}


def _waiting(lane: str, entries: Any, padded: bool, expected: Mapping[str, int]) -> list[Waiting]:
    """Return a lane's entries; where workers run padded batches nothing is generated, so only the prompt counts."""
    answer = None if padded else expected.get(lane, expected.get(class_of(lane)))
    waiting = []
    for data, score in scored(entries):
        member = data.decode()
        request_id, _, tail = member.partition(":")
        prompt, most, exact, affinity = parse_tail(tail)
        tokens = 0 if padded else most
        waiting.append(Waiting(request_id, lane, member, score, prompt, tokens, exact, answer, affinity))
    return waiting


# --- reply shapes: execute_command leaves some as RESP2 lists, some as RESP3 maps -------------------------------------


def _first_score(reply: Any) -> int | None:
    entries = scored(reply)
    return int(entries[0][1]) if entries else None
