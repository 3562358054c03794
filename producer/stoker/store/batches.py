"""Batch files as Redis knows them: the calls of their scripts, and their records."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stoker.store.connection import Command, Read
from stoker.store.keys import Keys
from stoker.store.reads import pairs, scored
from stoker.store.scripts import BATCH_LEASE_US, Call

Ended = Literal["completed", "cancelled", "expired", "failed"]
OVER: frozenset[str] = frozenset({"completed", "cancelled", "expired", "failed"})
"""States after which nothing happens to a batch by itself."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch as Redis has it. Times are in microseconds since the epoch, 0 where there is none yet.

    `spec` is what was asked for and `progress` what its run last said, both as JSON objects; `runs` counts the runs
    that were enqueued, `epoch` the leases that were taken.
    """

    id: str
    spec: Mapping[str, Any]
    state: str
    want: str
    round: int
    epoch: int
    runs: int
    created_us: int
    deadline_us: int
    ended_us: int
    until_us: int
    host: str
    why: str
    progress: Mapping[str, Any]
    now_us: int

    @property
    def over(self) -> bool:
        """Whether it ended."""
        return self.state in OVER


# --- calls ------------------------------------------------------------------------------------------------------------


def create_batch(batch_id: str, spec: str, digest: str, window_us: int, epoch: int = 0, round_: int = 0) -> Call[str]:
    """Call that accepts a batch, at the epoch and round of the files it has; gives CREATED, SAME, CONFLICT or FULL."""
    return Call("create_batch", (batch_id, spec, digest, window_us, epoch, round_), _word)


@dataclass(frozen=True, slots=True)
class Leased:
    """Answer to `lease_batch`: HELD, with the rest, LOST or UNKNOWN. `left_us`: until the window ends."""

    word: str
    epoch: int = 0
    want: str = ""
    round: int = 0
    left_us: int = 0
    age_us: int = 0
    spec: str = ""


def lease_batch(batch_id: str, nonce: str, epoch: int, host: str, progress: str) -> Call[Leased]:
    """Call that takes (`epoch` 0) or renews a run's lease."""
    return Call("lease_batch", (batch_id, nonce, epoch, host, progress), _parse_leased)


def _parse_leased(reply: list[Any]) -> Leased:
    word, *rest = [part.decode() for part in reply]
    if word != "HELD":
        return Leased(word)
    epoch, want, number, left, age, spec = rest
    return Leased(word, int(epoch), want, int(number), int(left), int(age), spec)


def end_batch(batch_id: str, nonce: str, state: str, progress: str, why: str = "") -> Call[str]:
    """Call that ends a run; gives OK, LOST or UNKNOWN."""
    return Call("end_batch", (batch_id, nonce, state, progress, why), _word)


def steer_batch(batch_id: str, word: str, round_: int = 0, window_us: int = 0) -> Call[tuple[str, str]]:
    """Call that cancels, pauses, resumes or retries; gives OK, ENDED, LIVE or UNKNOWN, and the state."""
    return Call("steer_batch", (batch_id, word, round_, window_us), _parse_steered)


def _parse_steered(reply: list[Any]) -> tuple[str, str]:
    word, *state = [part.decode() for part in reply]
    return word, "".join(state)


def enqueue_batch(batch_id: str, runs: int, nonce: str) -> Call[int | None]:
    """Call that numbers a batch's next run; None where there is to be none now."""
    return Call("enqueue_batch", (batch_id, runs, nonce), lambda reply: int(reply[1]) if len(reply) > 1 else None)


def write_batch_file(
    batch_id: str, name: str, offset: int | None, piece: bytes, kept_ms: int, most: int
) -> Call[tuple[bool, int]]:
    """Call that writes a piece of a file at `offset` (None: it is the whole file); all of the batch's are kept on.

    Gives whether there was room within `most` bytes, and how many bytes the batch's files have, or would have.
    """
    arguments = (batch_id, name, -1 if offset is None else offset, piece, kept_ms, most)
    return Call("write_batch_file", arguments, lambda reply: (reply[0] == b"OK", int(reply[1])))


def remove_batch_file(batch_id: str, name: str) -> Call[str]:
    """Call that removes a file."""
    return Call("remove_batch_file", (batch_id, name), _word)


def _word(reply: list[Any]) -> str:
    return str(reply[0].decode())


# --- reads ------------------------------------------------------------------------------------------------------------


def records(keys: Keys, ids: Sequence[str]) -> Read[list[BatchRecord | None]]:
    """Read the records of batches, None for what is not known."""
    commands: list[Command] = [("TIME",), *(("HGETALL", keys.batch(batch_id)) for batch_id in ids)]
    return Read(commands, functools.partial(_parse_records, ids), what="read batches")


def _parse_records(ids: Sequence[str], reply: list[Any]) -> list[BatchRecord | None]:
    (seconds, micros), *found = reply
    now = int(seconds) * 1_000_000 + int(micros)
    return [_record(batch_id, pairs(fields), now) for batch_id, fields in zip(ids, found, strict=True)]


def _record(batch_id: str, fields: Mapping[bytes, bytes], now_us: int) -> BatchRecord | None:
    f = {name.decode(): value.decode() for name, value in fields.items()}
    if "spec" not in f:
        return None
    return BatchRecord(
        id=batch_id,
        spec=json.loads(f["spec"]),
        state=f["state"],
        want=f["want"],
        round=int(f["round"]),
        epoch=int(f["epoch"]),
        runs=int(f["runs"]),
        created_us=int(f["created"]),
        deadline_us=int(f["deadline"]),
        ended_us=int(f.get("ended", 0)),
        until_us=int(f["until"]),
        host=f.get("host", ""),
        why=f.get("why", ""),
        progress=json.loads(f.get("progress") or "{}"),
        now_us=now_us,
    )


def file_sizes(keys: Keys, batch_id: str) -> Read[dict[str, int]]:
    """Read the names and sizes (bytes) of the files that a batch keeps in Redis."""
    return Read([("HGETALL", keys.batch_files(batch_id))], _parse_sizes, what="read a batch's files")


def _parse_sizes(reply: list[Any]) -> dict[str, int]:
    return {name.decode(): int(size) for name, size in pairs(reply[0]).items()}


def file_piece(keys: Keys, batch_id: str, name: str, offset: int, size: int) -> Read[bytes]:
    """Read at most `size` bytes of a file from `offset` on; empty at its end."""
    command = ("GETRANGE", keys.batch_file(batch_id, name), offset, offset + size - 1)
    return Read([command], lambda reply: bytes(reply[0]), what="read a batch's file")


def batch_ids(keys: Keys) -> Read[list[str]]:
    """Read the ids of all batches; some may be gone."""
    return Read([("ZRANGE", keys.batches, 0, -1)], lambda reply: [entry.decode() for entry in reply[0]])


def due_ids(keys: Keys, limit: int = 100) -> Read[list[str]]:
    """Read the ids of live batches that nobody may hold; `enqueue_batch` has the last word.

    A time further ahead than any lease is a paused batch's, or was written before the clock was set back.
    """
    commands: list[Command] = [("TIME",), ("ZRANGE", keys.lapses, 0, limit - 1, "WITHSCORES")]
    return Read(commands, _parse_due, what="look for batches")


def _parse_due(reply: list[Any]) -> list[str]:
    (seconds, micros), entries = reply
    now = int(seconds) * 1_000_000 + int(micros)
    return [member.decode() for member, score in scored(entries) if not now < score <= now + BATCH_LEASE_US]
