"""Short calls of the scripts of batch files, on the queue of the protocol's tests."""

from __future__ import annotations

from protocol.rig import Queue
from stoker.store import batches as b

SECOND = 1_000_000
LEASE = 5 * SECOND
WINDOW = 3600 * SECOND
KEPT = 7 * 86_400
"""How long an ended batch is known, in seconds."""
FILES_KEPT = 90
"""How long `write` keeps a batch's files, in seconds."""


def create(
    q: Queue, batch_id: str = "b", digest: str = "d", window: int = WINDOW, epoch: int = 0, round_: int = 0
) -> str:
    return q.store.run(b.create_batch(batch_id, '{"a":1}', digest, window, epoch, round_))


def lease(q: Queue, nonce: str = "r1", epoch: int = 0, progress: str = "") -> b.Leased:
    return q.store.run(b.lease_batch("b", nonce, epoch, "host", progress))


def end(q: Queue, nonce: str = "r1", state: str = "completed", why: str = "") -> str:
    return q.store.run(b.end_batch("b", nonce, state, "{}", why))


def steer(q: Queue, word: str, round_: int = 0) -> tuple[str, str]:
    return q.store.run(b.steer_batch("b", word, round_, WINDOW))


def enqueue(q: Queue, runs: int = 0, nonce: str = "s1") -> int | None:
    return q.store.run(b.enqueue_batch("b", runs, nonce))


def write(q: Queue, piece: bytes, offset: int | None = 0, name: str = "out-1", most: int = 1000) -> tuple[bool, int]:
    return q.store.run(b.write_batch_file("b", name, offset, piece, FILES_KEPT * 1000, most))


def contents(q: Queue, name: str = "out-1") -> bytes:
    return q.store.read(b.file_piece(q.store.keys, "b", name, 0, 1 << 20))


def due(q: Queue) -> list[str]:
    """The batches that a look at the clock of the test finds."""
    return [name for name, at in q.dump().get("lapses", {}).items() if at <= q.now]


def state(q: Queue) -> str:
    return str(q.dump()["batch:b"]["state"])
