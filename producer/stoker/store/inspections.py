"""What only operators look at: the server and its settings, what lies under a queue's prefix, a dead letter whole.

An ACL may forbid much of it: what Redis refuses to tell is None, while what the queue itself needs raises.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.config import NAME
from stoker.request import InferenceRequest
from stoker.store.codec import STAMP, decode_payload
from stoker.store.connection import Command, Read
from stoker.store.keys import Keys
from stoker.store.lookups import dead_parts
from stoker.store.reads import pairs
from stoker.store.records import CLASSES, SUSPECT

_OF_SCRIPTS = ("epoch", "incs", "tick", "grace", "skew", "mark", "h", "kept", "tickets")
_QUEUE = Keys("q")

PLAIN_KEYS = frozenset([key.removeprefix(_QUEUE.prefix) for key in vars(_QUEUE).values()]) - {""} | {*_OF_SCRIPTS}
"""The keys of a queue that are there once, without their prefix."""

_INC = rf"{NAME.pattern}:\d+-{NAME.pattern}"

KEY_FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("payload", "flight", "result", "dead", "reply", "batch", "files"), NAME.pattern),
    **dict.fromkeys(("work", "stream", "void", "obituary"), _INC),
    **dict.fromkeys(("tokens", "file"), f"{NAME.pattern}:{NAME.pattern}"),
    "lane": rf"{SUSPECT}|(?:{'|'.join(CLASSES)})(?::{NAME.pattern})?",
    "kept": r"\d+",
}
"""The keys of a queue that are there many times: what stands before their first colon, and what may stand behind."""

VOID = "void:"


def is_ours(name: str) -> bool:
    """Return whether a queue has a key of this name (without its prefix); see the table in `PROTOCOL.md`."""
    if name in PLAIN_KEYS:
        return True
    family, colon, rest = name.partition(":")
    return bool(colon) and family in KEY_FAMILIES and re.fullmatch(KEY_FAMILIES[family], rest) is not None


def ping() -> Read[None]:
    """Ask for a PONG: the time that this takes is the distance to Redis."""
    return Read([("PING",)], lambda reply: None, what="ping")


def clock() -> Read[int]:
    """Read the clock of Redis, in microseconds since the epoch."""
    return Read([("TIME",)], lambda reply: int(reply[0][0]) * 1_000_000 + int(reply[0][1]), what="read the clock")


@dataclass(frozen=True, slots=True)
class Server:
    """What Redis says about itself. `info` has the fields of INFO; either is None where an ACL forbids to look."""

    info: Mapping[str, str] | None
    appendfsync: str | None


def info() -> Read[Mapping[str, str] | None]:
    """Read the fields of INFO; None where an ACL forbids to look."""
    # The first command only makes the other optional.
    return Read([("PING",), ("INFO",)], lambda reply: _info(reply[1]), what="read about the server", required=1)


def server() -> Read[Server]:
    """Read what Redis says about itself, and a setting of its, which few users may see."""
    # The first command only makes the others optional.
    commands: list[Command] = [("PING",), ("INFO",), ("CONFIG", "GET", "appendfsync")]
    return Read(commands, _parse_server, what="read the server's settings", required=1)


def _parse_server(reply: list[Any]) -> Server:
    _, info, settings = reply
    values = pairs(settings) if settings else {}
    appendfsync = values.get(b"appendfsync")
    return Server(_info(info), appendfsync.decode() if appendfsync else None)


def _info(reply: Any) -> Mapping[str, str] | None:
    if reply is None:
        return None
    if isinstance(reply, Mapping):
        return {str(name): str(value) for name, value in reply.items()}
    lines = (line.partition(":") for line in reply.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}


def heartbeat(keys: Keys) -> Read[int | None]:
    """Read the heartbeat that the queue runs with, in microseconds; None while it never had a scheduler or worker."""
    return Read([("GET", f"{keys.prefix}h")], lambda reply: int(reply[0]) if reply[0] else None)


@dataclass(frozen=True, slots=True)
class Page:
    """Some keys under a queue's prefix, their names without it; `cursor` goes on from there, 0 at the end."""

    cursor: int
    names: Sequence[str]


def key_page(keys: Keys, cursor: int, count: int) -> Read[Page | None]:
    """Read about as many names of keys as lie among `count` keys of this Redis, from a cursor on (0 at first)."""
    # A queue's name has no character that means anything in a pattern.
    commands: list[Command] = [("PING",), ("SCAN", cursor, "MATCH", f"{keys.prefix}*", "COUNT", count)]
    return Read(commands, functools.partial(_parse_page, keys.prefix), what="read the names of keys", required=1)


def _parse_page(prefix: str, reply: list[Any]) -> Page | None:
    if reply[1] is None:
        return None
    cursor, names = reply[1]
    return Page(int(cursor), [name.decode(errors="replace").removeprefix(prefix) for name in names])


def queue_page(cursor: int, count: int) -> Read[Page | None]:
    """Read the names of the queues that have a key among `count` keys of this Redis, from a cursor on (0 at first)."""
    commands: list[Command] = [("PING",), ("SCAN", cursor, "MATCH", Keys("*").generation, "COUNT", count)]
    return Read(commands, _parse_queues, what="read the names of queues", required=1)


def _parse_queues(reply: list[Any]) -> Page | None:
    if reply[1] is None:
        return None
    cursor, names = reply[1]
    before, _, after = Keys("*").generation.partition("*")
    return Page(int(cursor), [name.decode().removeprefix(before).removesuffix(after) for name in names])


def voids(keys: Keys, incs: Iterable[str]) -> Read[dict[str, str]]:
    """Read why incarnations may not come back: superseded, dead, lost or gone. Those that may are left out."""
    asked = list(incs)
    commands: list[Command] = [("GET", keys.void(inc)) for inc in asked]
    return Read(
        commands,
        lambda reply: {inc: why.decode() for inc, why in zip(asked, reply, strict=True) if why},
        what="read lost workers",
    )


def accepted(keys: Keys, ids: Sequence[str]) -> Read[dict[str, int]]:
    """Read when requests that still live were accepted, in microseconds.

    Those that ended are left out, and all where an ACL forbids to look at what was asked.
    """
    commands: list[Command] = [("PING",)]
    commands += [("GETRANGE", keys.payload(request_id), 0, STAMP - 1) for request_id in ids]
    return Read(commands, functools.partial(_parse_accepted, ids), required=1)


def _parse_accepted(ids: Sequence[str], reply: list[Any]) -> dict[str, int]:
    return {request_id: int(at) for request_id, at in zip(ids, reply[1:], strict=True) if at}


def dead_request(keys: Keys, request_id: str) -> Read[InferenceRequest | None]:
    """Read the request of a dead letter, as it was submitted; None where there is no such letter."""
    return Read([("GET", keys.dead(request_id))], functools.partial(_parse_dead_request, request_id))


def _parse_dead_request(request_id: str, reply: list[Any]) -> InferenceRequest | None:
    if not reply[0]:
        return None
    return decode_payload(request_id, dead_parts(reply[0])[2], 0).request
