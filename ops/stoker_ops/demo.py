"""What `stoker demo` does: a stack for a moment, requests through the SDK, and figures of how it went."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from stoker.async_client import AsyncClient
from stoker.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from stoker.config import Config
from stoker.errors import ConfigError, InvalidRequest, RequestError
from stoker.request import InferenceRequest, InferenceResponse, RequestPriority
from stoker.store.records import WorkerRecord
from stoker_ops.interrupt import end_all, interruptible, parent_ends
from stoker_ops.local import LocalStack
from stoker_ops.screen import Screen, make_screen
from stoker_ops.settings import StackSettings
from stoker_workers.demo import sample_prompts

STREAMED_PROMPT = 'The "with" statement is used to'
STREAMED_TOKENS = 96
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_FIGURES_BEATS = 3
_POLL_S = 0.05


def read_prompts(file: Path | None) -> list[InferenceRequest]:
    """Return the requests in a file of JSON lines, or those that come with the demo model."""
    if file is None:
        return [
            InferenceRequest(
                prompt=sample.prompt,
                messages=sample.messages,
                max_tokens=sample.max_tokens,
                priority=RequestPriority(sample.priority),
            )
            for sample in sample_prompts()
        ]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    requests = [_request(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise ConfigError(f"{file} has no request in it")
    return requests


def _request(line: str, where: str) -> InferenceRequest:
    try:
        return InferenceRequest(**json.loads(line))
    except (ValueError, TypeError) as error:  # no JSON, no object, an unknown field, an InvalidRequest
        raise ConfigError(f"{where}: {error}") from error


async def run_demo(
    config: Config, settings: StackSettings, requests: Sequence[InferenceRequest], *, as_json: bool
) -> int:
    """Start a stack, push the requests, show how it goes and how it went; returns the exit code."""
    stack = LocalStack(config, settings)
    with interruptible(stack) as interrupt:
        # Nobody looks at a demo whose starter (make, a script) was killed.
        watch = asyncio.create_task(parent_ends())
        watch.add_done_callback(interrupt)
        try:
            report = await _run(stack, settings.options.model, requests, make_screen(quiet=as_json))
        except asyncio.CancelledError:
            return EXIT_INTERRUPTED
        finally:
            watch.remove_done_callback(interrupt)
            watch.cancel()
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    return EXIT_OK if report.failed == 0 else EXIT_FAILED


async def _run(stack: LocalStack, model: str, requests: Sequence[InferenceRequest], screen: Screen) -> Report:
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as running:
        with screen.starting(f"starting a Redis, a scheduler and the workers, which load {model} ..."):
            await running.enter_async_context(stack)
            client = await running.enter_async_context(AsyncClient(config=stack.config))
        ready_s = time.monotonic() - started
        screen.say(
            f"ready after {ready_s:.1f} s: {', '.join(stack.workers)} serve {model}; pushing {len(requests)} requests"
        )
        started = time.monotonic()
        responses = await stack.during(_push(client, requests, screen))
        seconds = time.monotonic() - started
        done = sum(response.status == "succeeded" for response in responses)
        report = make_report(model, responses, await _figures(client, stack, done), seconds=seconds, ready_s=ready_s)
        screen.table(report)
    return report


async def _push(client: AsyncClient, requests: Sequence[InferenceRequest], screen: Screen) -> list[InferenceResponse]:
    """Submit all, and one more whose answer is streamed; returns the responses."""
    responses = []
    with screen.live(len(requests) + 1):
        jobs = await client.submit_many(requests)
        streaming = asyncio.create_task(_stream(client, screen))
        try:
            async for response in client.as_completed(jobs):
                responses.append(response)
                screen.finished(response)
            responses.append(await streaming)
        finally:
            await end_all([streaming])
        screen.finished(responses[-1])
    return responses


async def _stream(client: AsyncClient, screen: Screen) -> InferenceResponse:
    """Ask one more thing while the others wait, ahead of them, and show the answer as it comes."""
    screen.asked(STREAMED_PROMPT)
    job = await client.submit(
        prompt=STREAMED_PROMPT, max_tokens=STREAMED_TOKENS, priority=RequestPriority.CRITICAL, stream=True
    )
    with contextlib.suppress(RequestError, InvalidRequest):  # how it ended is in the response
        async for chunk in job.stream():
            screen.piece(chunk)
    return await job.response()


async def _figures(client: AsyncClient, stack: LocalStack, finished: int) -> list[WorkerRecord]:
    """Return the workers once their beats have told of all that finished, or soon after."""
    deadline = time.monotonic() + _FIGURES_BEATS * stack.config.heartbeat_ms / 1000
    while True:
        workers = [record for record in await client.workers() if record.state == "live"]
        told = sum(record.figures.get("finished", 0) for record in workers)
        if told >= finished or time.monotonic() > deadline:
            return workers
        await asyncio.sleep(_POLL_S)


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """What one worker did. `batch_fill`: the mean share of its rows that were in use in a step."""

    name: str
    requests: int
    share: float
    tokens: int
    rows: int
    mean_rows: float | None
    batch_fill: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a demo went. Times by the clock of Redis, in milliseconds, None where nothing was measured."""

    model: str
    requests: int
    succeeded: int
    failed: int
    reasons: list[str]
    ready_s: float
    seconds: float
    tokens: int
    tokens_per_s: float
    requests_per_s: float
    queue_ms: dict[str, float | None]
    ttft_ms: dict[str, float | None]
    e2e_ms: dict[str, float | None]
    batch_fill: float | None
    workers: list[WorkerFigures]


def make_report(
    model: str,
    responses: Sequence[InferenceResponse],
    workers: Sequence[WorkerRecord],
    *,
    seconds: float,
    ready_s: float,
) -> Report:
    """Return the figures of these responses and of the workers that gave them."""
    good = [response for response in responses if response.status == "succeeded"]
    bad = [response for response in responses if response.status != "succeeded"]
    tokens = sum(response.usage.completion_tokens for response in good)
    figures = [_worker(record, good) for record in workers]
    steps = sum(record.figures.get("steps", 0) for record in workers)
    room = sum(record.figures.get("steps", 0) * record.rows for record in workers)
    timings = [response.timings for response in good]
    return Report(
        model=model,
        requests=len(responses),
        succeeded=len(good),
        failed=len(bad),
        reasons=sorted({str(response.error) for response in bad})[:5],
        ready_s=round(ready_s, 3),
        seconds=round(seconds, 3),
        tokens=tokens,
        tokens_per_s=round(tokens / seconds, 1),
        requests_per_s=round(len(good) / seconds, 1),
        queue_ms=percentiles([timing.queue_ms for timing in timings]),
        ttft_ms=percentiles([timing.ttft_ms for timing in timings]),
        e2e_ms=percentiles([timing.e2e_ms for timing in timings]),
        batch_fill=round(sum(_row_steps(record) for record in workers) / room, 4) if steps else None,
        workers=sorted(figures, key=lambda worker: worker.name),
    )


def _worker(record: WorkerRecord, good: Sequence[InferenceResponse]) -> WorkerFigures:
    own = [response for response in good if response.worker == record.worker]
    steps = record.figures.get("steps", 0)
    return WorkerFigures(
        name=record.worker,
        requests=len(own),
        share=round(len(own) / len(good), 4) if good else 0.0,
        tokens=sum(response.usage.completion_tokens for response in own),
        rows=record.rows,
        mean_rows=round(_row_steps(record) / steps, 2) if steps else None,
        batch_fill=round(_row_steps(record) / steps / record.rows, 4) if steps else None,
    )


def _row_steps(record: WorkerRecord) -> int:
    return record.figures.get("row_steps", 0)


def percentiles(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return p50, p95 and p99 by nearest rank: each is a value that was measured."""
    known = sorted(value for value in values if value is not None)
    last = len(known) - 1
    return {
        name: round(known[min(last, int(share * len(known)))], 3) if known else None
        for name, share in PERCENTILES.items()
    }
