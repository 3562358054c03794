"""What exporters read of a queue, each time that they are asked: its figures, its workers, and what its backlog weighs.

Plain reads, no script: nothing of it must be of one moment, and each command keeps Redis for well under a millisecond
however long the queue is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stoker.store import inspections, lookups
from stoker.store.connection import Command, Read
from stoker.store.keys import Keys
from stoker.store.lookups import Overview
from stoker.store.records import CLASSES, WorkerRecord

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


def backlog(keys: Keys) -> Read[Backlog]:
    """Read what the waiting requests cost, and which may be the oldest."""
    commands: list[Command] = []
    for name in CLASSES:
        commands += [("ZRANDMEMBER", keys.lane(name), SAMPLE), ("ZRANGE", keys.lane(name), 0, HEADS - 1)]
    return Read(commands, _parse_backlog, what="read the backlog")


def _parse_backlog(reply: list[Any]) -> Backlog:
    lanes = dict(zip(CLASSES, zip(reply[::2], reply[1::2], strict=True), strict=True))
    return Backlog(
        mean_tokens={name: _mean([_cost(member) for member in sample]) for name, (sample, _) in lanes.items()},
        heads={name: [member.split(b":")[0].decode() for member in heads] for name, (_, heads) in lanes.items()},
    )


def _cost(member: bytes) -> int:
    _, prompt, most, _ = member.split(b":")
    return int(prompt) + int(most)


def _mean(costs: Sequence[int]) -> float:
    return sum(costs) / len(costs) if costs else 0.0


def figures(keys: Keys) -> Read[tuple[Overview, tuple[list[WorkerRecord], Backlog]]]:
    """Read the overview, the workers and the backlog in one round trip."""
    return _both(lookups.overview(keys), _both(lookups.workers(keys), backlog(keys)))


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
