"""What exporters read of a queue, each time that they are asked: its figures, its workers, and what its backlog weighs.

Plain reads, no script: nothing of it must be of one moment, and each command keeps Redis for well under a millisecond
however long the queue is.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stoker.store import inspections, lookups
from stoker.store.connection import Command, Read
from stoker.store.keys import Keys
from stoker.store.records import CLASSES, WorkerRecord, class_of

A = TypeVar("A")
B = TypeVar("B")

SAMPLE = 256
"""Requests of a class whose tokens are looked at: all, or so many at random."""

HEADS = 16
"""Requests at the head of a class among which the oldest is looked for: its order is nearly that of arrival."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits, by class: the mean cost (tokens) of a request, exact up to `SAMPLE`, and the ids at the head."""

    mean_tokens: Mapping[str, float]
    heads: Mapping[str, Sequence[str]]


def backlog(keys: Keys, tenant_lanes: Sequence[str] = ()) -> Read[Backlog]:
    """Read what the waiting requests cost, and which may be the oldest; `tenant_lanes` are those in use."""
    sizes = Counter(map(class_of, tenant_lanes))
    commands: list[Command] = []
    lanes = [*CLASSES, *tenant_lanes]
    for lane in lanes:
        several = 1 + sizes[class_of(lane)]
        commands += [
            ("ZRANDMEMBER", keys.lane(lane), max(1, SAMPLE // several)),
            ("ZRANGE", keys.lane(lane), 0, max(1, HEADS // several) - 1),
            ("ZCARD", keys.lane(lane)),
        ]
    return Read(commands, functools.partial(_parse_backlog, lanes), what="read the backlog")


def _parse_backlog(lanes: Sequence[str], reply: list[Any]) -> Backlog:
    tokens, numbers = dict.fromkeys(CLASSES, 0.0), dict.fromkeys(CLASSES, 0)
    heads: dict[str, list[str]] = {name: [] for name in CLASSES}
    for lane, sample, first, number in zip(lanes, reply[::3], reply[1::3], reply[2::3], strict=True):
        name = class_of(lane)
        tokens[name] += number * _mean([_cost(member) for member in sample])
        numbers[name] += number
        heads[name] += [member.split(b":")[0].decode() for member in first]
    return Backlog({name: tokens[name] / max(1, numbers[name]) for name in CLASSES}, heads)


def _cost(member: bytes) -> int:
    _, prompt, most, _ = member.split(b":")
    return int(prompt) + int(most)


def _mean(costs: Sequence[int]) -> float:
    return sum(costs) / len(costs) if costs else 0.0


def figures(keys: Keys, tenant_lanes: Sequence[str] = ()) -> Read[tuple[list[WorkerRecord], Backlog]]:
    """Read the workers and the backlog in one round trip; `tenant_lanes` as the overview has them."""
    return _both(lookups.workers(keys), backlog(keys, tenant_lanes))


def oldest(keys: Keys, of: Backlog) -> Read[dict[str, int]]:
    """Read when the oldest request of each class was accepted, in microseconds; a class without any is left out."""
    read = inspections.accepted(keys, [request_id for ids in of.heads.values() for request_id in ids])
    return Read(
        read.commands, functools.partial(_parse_oldest, read, of), what="read the backlog", required=read.required
    )


def _parse_oldest(read: Read[dict[str, int]], of: Backlog, reply: list[Any]) -> dict[str, int]:
    accepted = read.parse(reply)
    stamps = {name: [accepted[i] for i in ids if i in accepted] for name, ids in of.heads.items()}
    return {name: min(found) for name, found in stamps.items() if found}


def _both(first: Read[A], second: Read[B]) -> Read[tuple[A, B]]:
    cut = len(first.commands)
    return Read(
        [*first.commands, *second.commands],
        lambda reply: (first.parse(reply[:cut]), second.parse(reply[cut:])),
        what=first.what,
    )
