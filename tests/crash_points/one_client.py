"""A client that submits requests of every fate, reads streams, cancels, and writes what became of each.

python one_client.py FILE: run again after its end by a crash it does the same under the same ids.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from stoker import Client, InferenceRequest, Job

WAIT_S = 90.0
LONG = 20_000
"""Tokens of an answer that takes minutes: what has so many is cancelled or expires."""

PLAIN = [InferenceRequest(request_id=f"plain-{i}", prompt_tokens=[i, 2, 3], max_tokens=40) for i in range(6)]
STREAMS = [
    InferenceRequest(request_id=f"stream-{i}", prompt_tokens=[i, 4], max_tokens=120, stream=True) for i in range(2)
]
ODD = [
    InferenceRequest(request_id="flaky", prompt_tokens=[7], max_tokens=4),
    InferenceRequest(request_id="cancelled", prompt_tokens=[8], max_tokens=LONG),
    InferenceRequest(request_id="late", prompt_tokens=[9], max_tokens=LONG, timeout=1.0),
    InferenceRequest(request_id="huge", prompt_tokens=[1], max_tokens=5 * LONG),
]
LATER = [
    InferenceRequest(request_id="beside", prompt_tokens=[5], max_tokens=30),
    InferenceRequest(request_id="poison", prompt_tokens=[6], max_tokens=4),
]


def submit(client: Client, requests: list[InferenceRequest]) -> dict[str, Job]:
    """Submit in one call; gives a job by id."""
    jobs = client.submit_many(requests)
    return {job.id: job for job in jobs if isinstance(job, Job)}


def cancel(job: Job) -> None:
    """Cancel a request once it runs, or soon if it does not."""
    until = time.monotonic() + 1
    while job.status() != "running" and time.monotonic() < until:
        time.sleep(0.05)
    job.cancel()


def streamed(job: Job) -> list[int]:
    """Return the tokens that a reader of the stream sees, each at its offset."""
    seen: list[int] = []
    for chunk in job.stream(timeout=WAIT_S):
        if chunk.offset != len(seen):
            raise AssertionError(f"{job.id}: offset {chunk.offset} after {len(seen)} tokens")
        seen += chunk.token_ids
    return seen


def main() -> None:
    with Client() as client:
        jobs = submit(client, [*PLAIN, *STREAMS, *ODD])
        cancel(jobs["cancelled"])
        seen = {name: streamed(job) for name, job in jobs.items() if name.startswith("stream")}
        for job in jobs.values():
            job.response(timeout=WAIT_S)
        jobs |= submit(client, LATER)
        ends = {name: job.response(timeout=WAIT_S) for name, job in jobs.items()}
    for name, tokens in seen.items():
        if tokens != ends[name].token_ids:
            raise AssertionError(f"{name}: the stream and the answer differ")
    facts = {
        name: {"status": end.status, "tokens": len(end.token_ids or ()), "attempts": end.attempts}
        for name, end in ends.items()
    }
    Path(sys.argv[1]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
