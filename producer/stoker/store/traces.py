"""What Redis still knows of one request, from its submission to its end."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stoker.store.codec import FAILURE_BYTES, STAMP, decode_outcome, response_of
from stoker.store.connection import Command, Read
from stoker.store.keys import Keys
from stoker.store.lookups import DEAD_HEAD, HEAD, dead_letter, dead_parts
from stoker.store.records import CLASSES, SUSPECT, Waiting, lane_of, parse_tail

STATES = {"Q": "queued", "D": "dispatched", "R": "running", "Y": "delayed"}
RESULT_HEAD = 4096 + FAILURE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One request at `now_us`; times are microseconds by the clock of Redis.

    `history`: how its last attempts ended, oldest first, as (incarnation, cause). `retry_of`: the dead letter that it
    was made from. `waiting`: its place in line, where it is queued; its score is known once it was dispatched.
    `reason` and `message` say why it failed, `worker` who answered it.
    """

    id: str
    now_us: int
    state: str
    accepted_us: int | None = None
    begun_us: int | None = None
    settled_us: int | None = None
    deadline_us: int | None = None
    priority: str | None = None
    tenant: str | None = None
    attempts: int = 0
    failures: int | None = None
    losses: int | None = None
    history: Sequence[tuple[str, str]] = ()
    retry_of: str | None = None
    waiting: Waiting | None = None
    reason: str | None = None
    message: str | None = None
    worker: str | None = None
    affinity: int | None = None


def trace(keys: Keys, request_id: str) -> Read[Trace | None]:
    """Read what is known of a request; None where that is nothing. The result is read last, as `reads.status` does."""
    commands: list[Command] = [
        ("TIME",),
        ("GETRANGE", keys.payload(request_id), 0, HEAD - 1),
        ("GET", keys.flight(request_id)),
        ("GETRANGE", keys.dead(request_id), 0, DEAD_HEAD - 1),
        ("GETRANGE", keys.result(request_id), 0, RESULT_HEAD - 1),
    ]
    return Read(commands, functools.partial(_parse_trace, request_id), what="read a request")


def _parse_trace(request_id: str, reply: list[Any]) -> Trace | None:
    (seconds, micros), payload, flight, letter, result = reply
    now_us = int(seconds) * 1_000_000 + int(micros)
    if result:
        return _ended(request_id, now_us, result, letter)
    if letter:
        return _buried(request_id, now_us, letter)
    if payload:
        return _living(request_id, now_us, payload, flight)
    return None


def _ended(request_id: str, now_us: int, result: bytes, letter: bytes) -> Trace:
    outcome = decode_outcome(result)
    response = response_of(outcome)
    known: dict[str, Any] = {}
    if letter:
        buried = _buried(request_id, now_us, letter)
        known = {"failures": buried.failures, "losses": buried.losses, "priority": buried.priority}
        known |= {"tenant": buried.tenant, "retry_of": buried.retry_of}
    return Trace(
        id=request_id,
        now_us=now_us,
        state=outcome.status,
        accepted_us=outcome.accepted_us,
        begun_us=outcome.begun_us,
        settled_us=outcome.settled_us,
        attempts=outcome.attempts,
        history=_history(outcome.history),
        reason=outcome.reason or None,
        message=str(response.error) if response.error else None,
        worker=response.worker if outcome.status == "succeeded" else None,
        **known,
    )


def _buried(request_id: str, now_us: int, letter: bytes) -> Trace:
    found, payload = dead_letter(request_id, letter), dead_parts(letter)[2]
    return Trace(
        id=request_id,
        now_us=now_us,
        state="failed",
        accepted_us=int(payload[:STAMP]),
        settled_us=int(found.at_s * 1e6),
        priority=found.priority,
        tenant=found.tenant,
        attempts=found.attempts,
        failures=found.failures,
        losses=found.losses,
        history=_history(found.history),
        retry_of=_header(payload)["link"] or None,
        reason=found.reason,
        message=found.message or None,
    )


def _living(request_id: str, now_us: int, payload: bytes, flight: bytes | None) -> Trace:
    header, accepted_us = _header(payload), int(payload[:STAMP])
    lives_us = int(header["timeout"])
    f = _flight(flight)
    state = STATES[f["state"]]
    lane = SUSPECT if f["group"] else lane_of(header["class"], header["tenant"])
    prompt, most, exact, affinity = parse_tail(header["tail"])
    member = f"{request_id}:{header['tail']}"
    score = float(f["score"] or "nan")
    return Trace(
        id=request_id,
        now_us=now_us,
        state=state,
        accepted_us=accepted_us,
        begun_us=int(f["begun"]) if f["begun"] else None,
        deadline_us=accepted_us + lives_us if lives_us else None,
        priority=header["class"],
        tenant=header["tenant"] or None,
        attempts=int(f["attempts"]),
        failures=int(f["failures"]),
        losses=int(f["losses"]),
        history=_history(f["history"]),
        retry_of=header["link"] or None,
        affinity=affinity,
        waiting=Waiting(request_id, lane, member, score, prompt, most, exact, affinity=affinity)
        if state == "queued"
        else None,
    )


_HEADER = ("nonce", "digest", "class", "tenant", "timeout", "term", "tail", "bytes", "reply", "stream", "link")
_FLIGHT = ("delivery", "state", "score", "attempts", "failures", "losses", "group", "solo", "begun", "history")
_FRESH = dict.fromkeys(_FLIGHT, "") | {"state": "Q", "attempts": "0", "failures": "0", "losses": "0"}


def _header(payload: bytes) -> dict[str, str]:
    _, *fields = payload[STAMP:].split(b"|", len(_HEADER) + 1)[:-1]
    return {name: field.decode() for name, field in zip(_HEADER, fields, strict=True)}


def _flight(text: bytes | None) -> dict[str, str]:
    """Return the fields that change, of a record whose others repeat the header; there is none before a dispatch."""
    if not text:
        return _FRESH
    return dict(zip(_FLIGHT, text.decode().split("|", len(_FLIGHT))[:-1], strict=True))


def _history(text: str) -> list[tuple[str, str]]:
    entries = (entry.rpartition(",") for entry in text.split(";") if entry)
    return [(inc, cause) for inc, _, cause in entries]


def place(keys: Keys, request_id: str, waiting: Waiting | None) -> Read[float | None]:
    """Read the score of what is queued, or when what is delayed is due; None for neither (any more)."""
    where = (keys.lane(waiting.lane), waiting.member) if waiting else (keys.delayed, request_id)
    return Read(
        [("ZSCORE", *where)], lambda reply: None if reply[0] is None else float(reply[0]), what="read its place"
    )


def ahead(keys: Keys, lane: str, score: float, tenant_lanes: Sequence[str] = ()) -> Read[int]:
    """Count what stands before a score: in all lanes of clean work (`tenant_lanes` too), or among the suspects."""
    lanes = [lane] if lane == SUSPECT else [*CLASSES, *tenant_lanes]
    commands: list[Command] = [("ZCOUNT", keys.lane(name), "-inf", f"({score:.0f}") for name in lanes]
    return Read(commands, lambda reply: sum(int(number) for number in reply), what="count what is ahead")


def holder(keys: Keys, request_id: str, incs: Sequence[str]) -> Read[str | None]:
    """Read which of the incarnations holds a request."""
    commands: list[Command] = [("TIME",), *(("HEXISTS", keys.work(inc), request_id) for inc in incs)]
    return Read(
        commands,
        lambda reply: next((inc for inc, held in zip(incs, reply[1:], strict=True) if held), None),
        what="read who holds it",
    )
