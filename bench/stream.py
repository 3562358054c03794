"""What streamed answers cost Redis, and how late their tokens come: many rows of `sim` workers, all read as they grow.

    python bench/stream.py --workers 8 --rows 64 --tokens 40

Workers, a scheduler, Redis (AOF everysec) and the readers share this machine. Every row is always taken: who has read
an answer to its end asks for the next. `--measured` of the streams are read through the SDK's `AsyncClient`, and only
these are timed; the others by a plain loop around the same read of Redis, for the SDK's reading of all of them would
take a core of its own.

- stream-redis: percent of a core that Redis takes, for the wanted rate of tokens. Where the machine could not hold that
  rate, what was found is multiplied by wanted over reached, and the output says so.
- stream-ttft: from submit to the first piece, less what the worker took from begin to its first token; p99, ms.
- stream-gap: between two pieces of an answer; p99, in intervals at which a worker publishes (`flush_ms`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
from figures import Bar, Rounds, save, table, verdicts
from fleet import PROMPT_TOKENS, Fleet, fleet
from latency import percentile

from stoker import AsyncClient, Client, Config, InferenceRequest
from stoker._async_link import SHARES
from stoker.store import lookups
from stoker.store.connection import Store

PROMPT = [(31 * j) % 32_000 for j in range(PROMPT_TOKENS)]
LENGTH = 200
FLUSH_MS = Config().flush_ms
REDIS_BAR, TTFT_BAR, GAP_BAR = 50.0, 10.0, 2.0
HELD = 0.95
SHOWN = ("redis", "redis in scripts", "scheduler", "readers", "other work")


@dataclass
class Taken:
    """What the timed readers saw since they were last asked: seconds, and tokens."""

    ttft_s: list[float] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    tokens: int = 0


class Others(NamedTuple):
    """The process that reads what is not timed, and how many tokens it has read so far."""

    read: Synchronized[int]
    process: psutil.Process

    def cpu_s(self) -> float:
        """Return the CPU seconds that it has used so far."""
        return sum(self.process.cpu_times()[:2])


def request(length: int = LENGTH) -> InferenceRequest:
    """Return a streamed request."""
    return InferenceRequest(prompt_tokens=PROMPT, max_tokens=length, stream=True, ignore_eos=True)


async def read_on(client: AsyncClient, taken: Taken, length: int) -> None:
    """Read one answer after the other, the first of this length."""
    while True:
        asked, last, first_s = time.perf_counter(), 0.0, 0.0
        job = await client.submit(request(length))
        async for chunk in job.stream():
            now = time.perf_counter()
            if last:
                taken.gap_s.append(now - last)
            else:
                first_s = now - asked
            last = now
            taken.tokens += len(chunk.token_ids)
        times = (await job.result()).timings
        assert times.ttft_ms is not None
        assert times.queue_ms is not None
        taken.ttft_s.append(first_s - (times.ttft_ms - times.queue_ms) / 1000)
        taken.queue_s.append(times.queue_ms / 1000)
        length = LENGTH


def read_plainly(url: str, streams: int, read: Synchronized[int]) -> None:
    """Read so many answers at a time until killed, and count their tokens: the client's calls, without its objects.

    Its reads begin as far apart as those of an `AsyncClient`.
    """
    spread = random.Random(2)
    with Client(url) as client:
        store = Store(client.config)
        keys = store.keys
        places: dict[tuple[str, str], str] = {}

        def ask(requests: list[InferenceRequest]) -> None:
            for job in client.submit_many(requests):
                places[job.id, job._pending.nonce] = "0"

        ask([request(spread.randint(2, LENGTH)) for _ in range(streams)])
        begun = 0.0
        while places:
            time.sleep(max(0.0, begun + FLUSH_MS / 1000 / SHARES - time.monotonic()))
            begun = time.monotonic()
            wanted = [(*stream, after) for stream, after in places.items()]
            ended = 0
            for place, records in store.read(lookups.token_streams(keys, wanted, FLUSH_MS)).items():
                places[place[:2]] = records[-1].entry
                with read.get_lock():
                    read.value += sum(len(record.token_ids) for record in records)
                if records[-1].end:
                    del places[place[:2]]
                    ended += 1
            if ended:
                ask([request()] * ended)


@contextmanager
def plain_reader(url: str, streams: int) -> Iterator[Others]:
    """Run `read_plainly` for the time of a block."""
    context = multiprocessing.get_context("spawn")
    read = context.Value("q", 0)
    process = context.Process(target=read_plainly, args=(url, streams, read), daemon=True)
    process.start()
    try:
        yield Others(read, psutil.Process(process.pid))
    finally:
        process.kill()
        process.join()


async def windows(stack: Fleet, others: Others, options: argparse.Namespace) -> Rounds:
    """Return what each window of time saw, the first left out."""
    taken, spread, rounds = Taken(), random.Random(1), []

    def cpu_s() -> dict[str, float]:
        busy = psutil.cpu_times()
        of_stack = stack.cpu_s() | {"readers": time.process_time() + others.cpu_s()}
        other = sum(busy) - busy.idle - busy.iowait - sum(of_stack.values())
        return of_stack | {"redis in scripts": stack.script_us() / 1e6, "other work": other}

    async with AsyncClient(stack.url) as client, asyncio.TaskGroup() as group:
        lengths = [spread.randint(2, LENGTH) for _ in range(options.measured)]
        tasks = [group.create_task(read_on(client, taken, length)) for length in lengths]
        for _ in range(options.rounds + 1):
            taken.ttft_s, taken.queue_s, taken.gap_s, taken.tokens = [], [], [], 0
            cpu, before, began = cpu_s(), others.read.value, time.perf_counter()
            await asyncio.sleep(options.seconds)
            passed = time.perf_counter() - began
            used = {name: 100 * (now - cpu[name]) / passed for name, now in cpu_s().items()}
            found = {"tokens/s": (taken.tokens + others.read.value - before) / passed}
            for name, times in (("added ttft", taken.ttft_s), ("in the queue", taken.queue_s), ("gap", taken.gap_s)):
                found |= {f"{name}, p{percent}": percentile(times, percent) for percent in (50, 99)}
            found |= {f"{name}, %": used[name] for name in SHOWN}
            rounds.append(found | {"workers, %": sum(used[name] for name in used if name.startswith("worker"))})
        for task in tasks:
            task.cancel()
    return rounds[1:]


def measured(options: argparse.Namespace) -> Rounds:
    """Run the stack and its readers."""
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder:
        profile = Path(folder) / "profile.json"
        profile.write_text(
            json.dumps({"base_ms": 1000 / options.tokens, "prefill_ms": 0, "row_ms": 0, "resident_ms": 0})
        )
        limits = ("--max-num-seqs", str(options.rows), "--max-num-batched-tokens", "65536")
        streams = options.workers * options.rows - options.measured
        with (
            fleet(options.workers, *limits, profile=str(profile)) as stack,
            plain_reader(stack.url, streams) as others,
        ):
            return asyncio.run(windows(stack, others, options))


def redis_share(found: Mapping[str, float], wanted: float) -> float:
    """Return the percent of a core that Redis takes for `wanted` tokens a second, in proportion where fewer came."""
    return found["redis, %"] * max(1.0, wanted / found["tokens/s"])


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=float, default=40, help="a second, for each row")
    parser.add_argument("--measured", type=int, default=64, help="how many of the streams are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    rounds = measured(options)
    table(rounds, "tokens/s, ms, % of a core")
    wanted = options.workers * options.rows * options.tokens
    reached = median(one["tokens/s"] for one in rounds)
    load = f"{options.workers} workers x {options.rows} rows x {options.tokens:g} tokens/s"
    print(f"{load}: {reached:,.0f} of {wanted:,.0f} tokens/s reached")
    if reached < HELD * wanted:
        other = median(one["other work, %"] for one in rounds)
        print(f"{os.cpu_count()} cores, {other:.0f} % of one taken by other work, did not hold that.")
        print("Redis' share is multiplied by wanted over reached.")
    bars = [
        Bar("stream-redis", median(redis_share(one, wanted) for one in rounds), REDIS_BAR, at_most=True),
        Bar("stream-ttft", median(one["added ttft, p99"] for one in rounds), TTFT_BAR, at_most=True),
        Bar("stream-gap", median(one["gap, p99"] for one in rounds) / FLUSH_MS, GAP_BAR, at_most=True),
    ]
    save("stream", rounds, bars, "figures", more={"load": load, "wanted_tokens_per_s": wanted})
    verdicts(bars)


if __name__ == "__main__":
    main()
