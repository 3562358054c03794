"""How a batch stands, as its record says. Values only, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stoker.batch.spec import Spec
from stoker.store.batches import OVER, BatchRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """One batch at one moment. Times are Unix seconds, 0.0 where there is none yet.

    `state`: queued, running, cancelling, pausing, paused, completed, cancelled, expired or failed. `total`: lines, 0
    until they are counted. `errors`: failed lines by code. `workers`: answers by worker. `why`: what a failed batch
    died of, or what a live one waits for. With the `store` "redis" the files are written by `Batch.fetch` alone.
    """

    id: str
    state: str
    output: str
    errors_file: str
    store: str = "folder"
    total: int = 0
    done: int = 0
    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    created_at: float = 0.0
    ended_at: float = 0.0
    expires_at: float = 0.0
    now: float = 0.0
    runs: int = 0
    round: int = 0
    why: str = ""

    @property
    def over(self) -> bool:
        """Whether it ended: every line has its answer or its error, unless it failed."""
        return self.state in OVER

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers so far."""
        return self.prompt_tokens + self.completion_tokens


def status_of(record: BatchRecord) -> BatchStatus:
    """Return what a record says."""
    progress = record.progress
    errors = progress.get("errors", {})
    done = int(progress.get("done", 0))
    spec = Spec.from_dict(record.spec)
    return BatchStatus(
        id=record.id,
        state=_state(record),
        output=spec.output,
        errors_file=spec.errors,
        store=spec.store,
        total=int(progress.get("total", 0)),
        done=done,
        succeeded=int(progress.get("succeeded", 0)),
        failed=sum(errors.values()),
        in_flight=int(progress.get("in_flight", 0)),
        errors=errors,
        workers=progress.get("workers", {}),
        prompt_tokens=int(progress.get("prompt_tokens", 0)),
        completion_tokens=int(progress.get("completion_tokens", 0)),
        created_at=record.created_us / 1e6,
        ended_at=record.ended_us / 1e6,
        expires_at=record.deadline_us / 1e6,
        now=record.now_us / 1e6,
        runs=record.runs,
        round=record.round,
        why=record.why or _waits_for(record),
    )


def _state(record: BatchRecord) -> str:
    if not record.over and record.want == "cancel":
        return "cancelling"
    return "pausing" if record.state == "running" and record.want == "pause" else record.state


def _waits_for(record: BatchRecord) -> str:
    if record.state == "queued" and (record.now_us - record.created_us) > 5_000_000 and not record.runs:
        return "waits for a batch worker; start one with `stoker batch-worker`"
    return str(record.progress.get("waits_for", "")) if record.state == "running" else ""
