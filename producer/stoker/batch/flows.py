"""What a client does with batches, step by step, written once for both clients. No I/O; see `stoker._flows`."""

from __future__ import annotations

from collections.abc import Sequence

from stoker._calls import groups
from stoker._flows import Flow, State, read, run
from stoker.batch.spec import Spec
from stoker.errors import IdempotencyConflict, StokerError
from stoker.store import batches
from stoker.store.batches import BatchRecord


class BatchUnknown(StokerError):
    """Redis knows no batch of this id: never submitted, forgotten after `batch_ttl_s`, or Redis came back empty."""

    def __init__(self, batch_id: str) -> None:
        """Name the batch."""
        super().__init__(
            f"batch {batch_id!r} is unknown: never submitted, or forgotten; "
            "`stoker batch resume OUTPUT` goes on with the files that it left"
        )


class BatchNotReady(StokerError):
    """The batch is in a state in which this cannot be asked of it."""


def create(state: State, spec: Spec, window_s: float, epoch: int = 0, round_: int = 0) -> Flow[None]:
    """Accept a batch; raises `IdempotencyConflict` where another one has its id, and `StokerError`."""
    call = batches.create_batch(spec.id, spec.to_json(), spec.digest, int(window_s * 1e6), epoch, round_)
    word = yield from run(call)
    if word == "CONFLICT":
        raise IdempotencyConflict(spec.id)
    if word == "FULL":
        raise StokerError(f"queue {state.config.queue!r} remembers too many batches; the oldest go after batch_ttl_s")


def record(state: State, batch_id: str) -> Flow[BatchRecord]:
    """Read one batch; raises `BatchUnknown`."""
    [found] = yield from read(batches.records(state.keys, [batch_id]))
    if found is None:
        raise BatchUnknown(batch_id)
    return found


def records(state: State) -> Flow[list[BatchRecord]]:
    """Read all batches, the newest first."""
    ids = yield from read(batches.batch_ids(state.keys))
    found: list[BatchRecord] = []
    for group in groups(ids, state.config.group):
        found += [one for one in (yield from read(batches.records(state.keys, group))) if one]
    return sorted(found, key=lambda one: one.created_us, reverse=True)


def steer(state: State, batch_id: str, word: str) -> Flow[str]:
    """Cancel, pause or resume; gives the state. Raises `BatchUnknown`, and `BatchNotReady` for what is over."""
    answer, now = yield from run(batches.steer_batch(batch_id, word))
    if answer == "UNKNOWN":
        raise BatchUnknown(batch_id)
    if answer == "ENDED":
        raise BatchNotReady(f"batch {batch_id!r} is over ({now}); there is nothing to {word}")
    return now


def retry(state: State, batch_id: str, window_s: float) -> Flow[int]:
    """Run the failed lines again; gives how many. Raises `BatchUnknown`, `BatchNotReady`."""
    found = yield from record(state, batch_id)
    failed = sum(map(int, found.progress.get("errors", {}).values()))
    if found.state == "failed":
        raise BatchNotReady(f"batch {batch_id!r} failed as a whole ({found.why}); use resume")
    if found.over and not failed:
        raise BatchNotReady(f"batch {batch_id!r} has no failed lines")
    answer, now = yield from run(batches.steer_batch(batch_id, "retry", found.round, int(window_s * 1e6)))
    if answer != "OK":
        raise BatchNotReady(f"batch {batch_id!r} is not over yet ({now}); retry it when it is")
    return failed


def named(state: State, ids: Sequence[str]) -> Flow[list[BatchRecord | None]]:
    """Read some batches."""
    return (yield from read(batches.records(state.keys, ids)))
