"""What benchmarks of a real model in a whole stack share: its limits, and requests whose answers are streamed."""

from __future__ import annotations

import json

from engine import BUDGET, LONGEST

from stoker import AsyncClient, InferenceRequest, InferenceResponse
from stoker_workers.demo import demo_model_path
from stoker_workers.engine import Work

DEMO_ENGINE = ("--model", "demo", "--engine", "torch", "--device", "cpu", "--dtype", "float32")


def demo_vocabulary() -> int:
    """Return how many token ids the demo model has."""
    return int(json.loads((demo_model_path() / "config.json").read_text())["vocab_size"])


def limits(rows: int) -> list[str]:
    """Return a worker's options for so many rows, with the limits of `bench/engine.py`."""
    sizes = {"max-num-seqs": rows, "max-num-batched-tokens": BUDGET, "kv-cache-tokens": rows * LONGEST}
    return [part for name, value in sizes.items() for part in (f"--{name}", str(value))]


async def streamed(client: AsyncClient, work: Work) -> tuple[list[int], InferenceResponse]:
    """Submit a request, read its answer as it comes; gives the ids that were read, and the outcome."""
    request = InferenceRequest(
        prompt_tokens=list(work.prompt), max_tokens=work.max_tokens, ignore_eos=True, stream=True
    )
    job = await client.submit(request)
    ids = [token async for chunk in job.stream() for token in chunk.token_ids]
    return ids, await job.result()
