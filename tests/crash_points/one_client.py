"""A client that submits requests of every fate, reads streams, cancels, and writes what became of each.

python one_client.py FILE ROUND POISON: ROUND goes into the ids; with POISON 1 one request kills its worker, twice. Run
again after its end by a crash it does the same under the same ids.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from stoker import Client, InferenceRequest, Job

WAIT_S = 90.0
LONG = 20_000
"""Tokens of an answer that takes minutes: what has so many is cancelled or expires."""

OFFLINE: dict[str, dict[str, Any]] = {
    f"offline-{i}": {"prompt_tokens": [3, i], "max_tokens": 2 * LONG + 4_000, "priority": "batch"} for i in range(2)
}
"""They hold so much of both workers that what is long must have their room."""

FATES: dict[str, dict[str, Any]] = {
    **{f"plain-{i}": {"prompt_tokens": [i, 2, 3], "max_tokens": 40} for i in range(6)},
    **{f"stream-{i}": {"prompt_tokens": [i, 4], "max_tokens": 120, "stream": True} for i in range(2)},
    "flaky": {"prompt_tokens": [7], "max_tokens": 4},
    "cancelled": {"prompt_tokens": [8], "max_tokens": LONG},
    "late": {"prompt_tokens": [9], "max_tokens": LONG, "timeout": 1.0},
    "huge": {"prompt_tokens": [1], "max_tokens": 5 * LONG},
}
POISON: dict[str, dict[str, Any]] = {
    "beside": {"prompt_tokens": [5], "max_tokens": 30},
    "poison": {"prompt_tokens": [6], "max_tokens": 4},
}


def submit(client: Client, fates: dict[str, dict[str, Any]], count: str) -> dict[str, Job]:
    """Submit in one call; gives a job by its fate."""
    requests = [InferenceRequest(request_id=f"{name}-{count}", **fields) for name, fields in fates.items()]
    # The late one is to run, and to be ended there.
    jobs = client.submit_many(requests, check_deadline=False)
    return {name: job for name, job in zip(fates, jobs, strict=True) if isinstance(job, Job)}


def wait_until_it_runs(job: Job) -> None:
    """Return once a request runs, or soon if it does not."""
    until = time.monotonic() + 1
    while job.status() != "running" and time.monotonic() < until:
        time.sleep(0.05)


def streamed(job: Job) -> list[int]:
    """Return the tokens that a reader of the stream sees, each at its offset."""
    seen: list[int] = []
    for chunk in job.stream(timeout=WAIT_S):
        if chunk.offset != len(seen):
            raise AssertionError(f"{job.id}: offset {chunk.offset} after {len(seen)} tokens")
        seen += chunk.token_ids
    return seen


def main() -> None:
    file, count, poison = sys.argv[1:]
    with Client() as client:
        offline = submit(client, OFFLINE, count)
        for job in offline.values():
            wait_until_it_runs(job)
        jobs = submit(client, FATES, count)
        wait_until_it_runs(jobs["cancelled"])
        for job in (jobs["cancelled"], *offline.values()):
            job.cancel()
        jobs |= offline
        seen = {name: streamed(job) for name, job in jobs.items() if name.startswith("stream")}
        for job in jobs.values():
            job.response(timeout=WAIT_S)
        if poison == "1":
            jobs |= submit(client, POISON, count)
        ends = {name: job.response(timeout=WAIT_S) for name, job in jobs.items()}
    for name, tokens in seen.items():
        if tokens != ends[name].token_ids:
            raise AssertionError(f"{name}: the stream and the answer differ")
    written = Path(f"{file}.part")
    written.write_text(json.dumps({name: [end.status, len(end.token_ids or ())] for name, end in ends.items()}))
    written.rename(file)


if __name__ == "__main__":
    main()
