"""What benchmarks of a whole stack share: its processes, and requests whose answers are streamed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine import BUDGET, LONGEST

from stoker import AsyncClient, Client, Config, InferenceRequest, InferenceResponse
from stoker_workers.demo import demo_model_path
from stoker_workers.engine import Work

STOKER = (sys.executable, "-c", "from stoker.cli import main; main()")
READY_S = 120
DEMO_ENGINE = ("--model", "demo", "--engine", "torch", "--device", "cpu", "--dtype", "float32")


def demo_vocabulary() -> int:
    """Return how many token ids the demo model has."""
    return int(json.loads((demo_model_path() / "config.json").read_text())["vocab_size"])


def limits(rows: int) -> list[str]:
    """Return a worker's options for so many rows, with the limits of `bench/engine.py`."""
    sizes = {"max-num-seqs": rows, "max-num-batched-tokens": BUDGET, "kv-cache-tokens": rows * LONGEST}
    return [part for name, value in sizes.items() for part in (f"--{name}", str(value))]


@contextmanager
def serving(url: str, queue: str, worker: Sequence[str]) -> Iterator[Config]:
    """Run a scheduler and a worker on one torch thread for the time of a block; gives the queue's settings."""
    settings = {"STOKER_REDIS_URL": url, "STOKER_QUEUE": queue, "STOKER_METRICS": "0", "OMP_NUM_THREADS": "1"}
    commands = (["scheduler"], ["worker", "--name", queue, *worker])
    processes = [
        subprocess.Popen([*STOKER, *command, "--log-level", "error"], env=os.environ | settings) for command in commands
    ]
    config = Config(redis_url=url, queue=queue)
    try:
        with Client(config=config) as client:
            deadline = time.monotonic() + READY_S
            while not client.workers():
                assert processes[1].poll() is None, "the worker ended"
                assert time.monotonic() < deadline, f"no worker within {READY_S} s"
                time.sleep(0.1)
        yield config
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)


async def streamed(client: AsyncClient, work: Work) -> tuple[list[int], InferenceResponse]:
    """Submit a request, read its answer as it comes; gives the ids that were read, and the outcome."""
    request = InferenceRequest(
        prompt_tokens=list(work.prompt), max_tokens=work.max_tokens, ignore_eos=True, stream=True
    )
    job = await client.submit(request)
    ids = [token async for chunk in job.stream() for token in chunk.token_ids]
    return ids, await job.result()
