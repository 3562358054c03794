"""What the benches of overload share: a stack with a slow `sim` model, its capacity, and an open-loop load."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from processes import serving

from stoker import Client, Config, InferenceRequest, Job, StokerError
from stoker_ops.embedded import start

ROWS, PROMPT, ANSWER = 16, 64, 32
HEARTBEAT_MS = 200
PACE_S = 0.02
WORKER = ("--model", "sim", "--max-num-seqs", str(ROWS), "--kv-cache-tokens", str(2 * ROWS * (PROMPT + ANSWER)))


def request(**fields: object) -> InferenceRequest:
    """Return a request like all others, but for `fields`."""
    values = {"prompt_tokens": [7] * PROMPT, "max_tokens": ANSWER, "ignore_eos": True} | fields
    return InferenceRequest(**values)  # type: ignore[arg-type]  # the fields are checked by the request


@contextmanager
def stack(**settings: object) -> Iterator[Config]:
    """Run Redis, a scheduler and a worker for the time of a block; gives the settings of a client."""
    os.environ["STOKER_HEARTBEAT_MS"] = str(HEARTBEAT_MS)
    os.environ |= {f"STOKER_{name.upper()}": str(value) for name, value in settings.items()}
    with (
        tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder,
        start(folder) as server,
        serving(server.url, "bench", WORKER) as config,
    ):
        yield config


def capacity(client: Client, seconds: float) -> float:
    """Return how many requests a second a full fleet ends, over this long; its scheduler learns what they cost."""
    until = time.monotonic() + seconds
    ends = []
    with Client(config=client.config.model_copy(update={"in_flight": 4 * ROWS})) as steady:
        for response in steady.map(request() for _ in iter(lambda: time.monotonic() < until, False)):
            response.unwrap()
            ends.append(time.monotonic())
    # Where it began and ends the fleet is not full.
    full = ends[4 * ROWS : -4 * ROWS]
    return (len(full) - 1) / (full[-1] - full[0])


def offered(
    client: Client, rate: float, seconds: float, make: Callable[[int], InferenceRequest], **wishes: bool
) -> Sequence[Job | StokerError]:
    """Submit so many requests a second for this long, whatever becomes of them; gives jobs and refusals in order."""
    outcomes: list[Job | StokerError] = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        due = int(rate * now) - len(outcomes)
        if due > 0:
            outcomes += client.submit_many([make(len(outcomes) + i) for i in range(due)], **wishes)
        time.sleep(max(0.0, PACE_S - (time.monotonic() - began - now)))
    return outcomes
