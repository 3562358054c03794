"""What interactive requests feel of a running batch, and what the batch gets, with real processes.

    python bench/batch_beside.py                      # 5 rounds, and bursts after 5 idle minutes: 40 minutes
    python bench/batch_beside.py --idle 20            # bursts after 20 s, with a reserve that is as much shorter

An embedded Redis, a scheduler and one `sim` worker of 64 rows. Interactive: Poisson arrivals (an open loop), 100-300
tokens in and 50-150 out, at `--load` of the rate that saturates the worker. Offline: a process that keeps 192 requests
of class BATCH in flight, 64-192 tokens in and 128-384 out. A round is interactive alone, interactive beside the batch,
interactive saturated, `--burst` requests at once, and the same burst after `--idle` seconds in which only the batch ran
(its rate alone is that of the second half of them), in alternating order.

Times are those that the queue notes: accepted to first token (TTFT), and the mean time of a later token of each answer
(TPOT). What is left over for the batch is its rate alone, less the share that interactive takes of its own saturated
rate. Ratios are of one round, and their medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from figures import Bar, Rounds, save, verdicts
from processes import serving

from stoker import AsyncClient, Config, InferenceRequest, InferenceResponse, RequestPriority
from stoker.store import lookups, reads, views
from stoker.store.connection import Store
from stoker_ops.embedded import start

ROWS = 64
IN_FLIGHT = 3 * ROWS
PROFILE = {"base_ms": 7.0, "prefill_ms": 0.032, "row_ms": 0.02, "resident_ms": 0.00005}
"""Those of `stoker simulate`: 8 billion parameters on an H100. `--slower` lets what processes cost be small beside."""

IDLE_S = 300.0
BARS = {
    "TTFT p50": 1.2,
    "TTFT p99": 2.0,
    "TPOT p50": 1.3,
    "burst TTFT p50": 1.2,
    "burst TTFT p99": 2.0,
    "burst TPOT p50": 1.3,
    "offline": 0.85,
}
"""The most of each ratio, but for `offline`: the least."""

AT_LEAST = {"offline"}


def interactive(dice: random.Random) -> InferenceRequest:
    """Return one request of a user's."""
    prompt = [dice.randrange(32_000) for _ in range(dice.randint(100, 300))]
    return InferenceRequest(prompt_tokens=prompt, max_tokens=dice.randint(50, 150), ignore_eos=True)


def offline(number: int) -> InferenceRequest:
    """Return one line of a batch: 64-192 tokens in, 128-384 out."""
    dice = random.Random(number)
    prompt = [dice.randrange(32_000) for _ in range(dice.randint(64, 192))]
    return InferenceRequest(
        prompt_tokens=prompt,
        max_tokens=dice.randint(128, 384),
        ignore_eos=True,
        priority=RequestPriority.BATCH,
        timeout=86_400,
    )


# --- loads ----------------------------------------------------------------------------------------------------------


async def closed_loop(config: Config, rows: int, make: object, stop: asyncio.Event) -> None:
    """Keep `rows` requests in flight until told to stop; then cancel what is left."""
    numbers = iter(range(1 << 60))

    async def one(client: AsyncClient) -> None:
        while True:
            job = await client.submit(make(next(numbers)))  # type: ignore[operator]
            try:
                (await job.result()).unwrap()
            except asyncio.CancelledError:
                await job.cancel()
                raise

    async with AsyncClient(config=config) as client:
        tasks = [asyncio.create_task(one(client)) for _ in range(rows)]
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_batch(config: Config) -> None:
    """Be the process that runs a batch, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await closed_loop(config, IN_FLIGHT, offline, stop)


@contextmanager
def batch(config: Config, seconds: float) -> Iterator[None]:
    """Run a batch for the time of a block, which begins once it has run for so many seconds."""
    settings = {"STOKER_REDIS_URL": str(config.redis_url), "STOKER_QUEUE": config.queue}
    process = subprocess.Popen([sys.executable, __file__, "--run-batch"], env=os.environ | settings)
    try:
        time.sleep(seconds)
        assert process.poll() is None, "the batch ended"
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        until_empty(config)


def until_empty(config: Config) -> None:
    """Wait until workers hold nothing."""
    store = Store(config)
    while True:
        known = store.read(views.queue_view(store.keys, depth=1)).workers
        if all(not one.held_rows for one in store.read(views.queue_view(store.keys, depth=1, known=known)).workers):
            break
        time.sleep(0.1)
    store.close()


async def open_loop(config: Config, rate: float, seconds: float, seed: int) -> list[InferenceResponse]:
    """Send requests at random times, `rate` a second on average; gives their responses."""
    dice, began = random.Random(seed), time.monotonic()

    async def ask(client: AsyncClient, request: InferenceRequest, at_s: float) -> InferenceResponse:
        await asyncio.sleep(began + at_s - time.monotonic())
        return await (await client.submit(request)).result()

    async with AsyncClient(config=config) as client:
        at_s, asked = 0.0, []
        while (at_s := at_s + dice.expovariate(rate)) < seconds:
            asked.append(asyncio.create_task(ask(client, interactive(dice), at_s)))
        return [response.unwrap() for response in await asyncio.gather(*asked)]


async def burst(config: Config, requests: int, seed: int) -> list[InferenceResponse]:
    """Send requests in one call."""
    dice = random.Random(seed)
    async with AsyncClient(config=config) as client:
        jobs = await client.submit_many([interactive(dice) for _ in range(requests)])
        return [(await job.result()).unwrap() for job in jobs]  # type: ignore[union-attr]


async def saturated(config: Config, seconds: float) -> float:
    """Return the tokens a second of interactive requests of which more wait than fit."""
    dice, stop = random.Random(0), asyncio.Event()
    load = asyncio.create_task(closed_loop(config, 2 * ROWS, lambda _: interactive(dice), stop))
    await asyncio.sleep(seconds / 2)
    before = await asyncio.to_thread(generated, config)
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(generated, config)
    stop.set()
    await load
    until_empty(config)
    return (after[0] - before[0]) / (after[1] - before[1])


# --- figures --------------------------------------------------------------------------------------------------------


def generated(config: Config) -> tuple[int, float]:
    """Return how many tokens the worker made, by its next heartbeat, and when that was."""
    store = Store(config)

    def told() -> int:
        return store.read(lookups.workers(store.keys))[0].figures.get("generation_tokens", 0)

    before = told()
    while (now := told()) == before:
        time.sleep(0.005)
    store.close()
    return now, time.monotonic()


def preempted(config: Config) -> int:
    """Return how often requests were preempted."""
    store = Store(config)
    found = store.read(reads.counts(store.keys)).get("preempted", 0)
    store.close()
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def latencies(name: str, responses: Sequence[InferenceResponse]) -> dict[str, float]:
    """Return a round's figures of interactive requests, in ms."""
    ttft = [response.timings.ttft_ms for response in responses]
    tpot = [
        (response.timings.e2e_ms - response.timings.ttft_ms) / (response.usage.completion_tokens - 1)
        for response in responses
    ]
    return {
        f"{name}, TTFT p50": percentile(ttft, 0.5),
        f"{name}, TTFT p99": percentile(ttft, 0.99),
        f"{name}, TPOT p50": percentile(tpot, 0.5),
    }


class Rig:
    """One stack, and the loads that are measured on it."""

    def __init__(self, config: Config, options: argparse.Namespace) -> None:
        self.config = config
        self.options = options
        self.rate = 0.0

    def alone(self, seed: int) -> dict[str, float]:
        """Measure interactive requests with nothing beside them."""
        responses = asyncio.run(open_loop(self.config, self.rate, self.options.seconds, seed))
        made = sum(response.usage.completion_tokens for response in responses)
        return latencies("alone", responses) | {"interactive tokens/s": made / self.options.seconds}

    def beside(self, seed: int) -> dict[str, float]:
        """Measure them beside a batch, and the batch."""
        with batch(self.config, self.options.warm_up):
            moved, (before, began) = preempted(self.config), generated(self.config)
            responses = asyncio.run(open_loop(self.config, self.rate, self.options.seconds, seed))
            after, ended = generated(self.config)
            moved = preempted(self.config) - moved
        made = after - before - sum(response.usage.completion_tokens for response in responses)
        return latencies("beside", responses) | {
            "offline beside, tokens/s": made / (ended - began),
            "preempted": moved,
        }

    def full(self, _: int) -> dict[str, float]:
        """Measure what the worker can do of interactive requests."""
        return {"interactive saturated, tokens/s": asyncio.run(saturated(self.config, self.options.seconds / 2))}

    def burst_alone(self, seed: int) -> dict[str, float]:
        """Measure a burst on an idle worker."""
        return latencies("burst alone", asyncio.run(burst(self.config, self.options.burst, seed)))

    def burst_beside(self, seed: int) -> dict[str, float]:
        """Measure it after a time in which only a batch ran, and the batch in the second half of that time."""
        with batch(self.config, self.options.idle / 2):
            before, began = generated(self.config)
            time.sleep(self.options.idle / 2)
            after, ended = generated(self.config)
            responses = asyncio.run(burst(self.config, self.options.burst, seed))
        return latencies("burst beside", responses) | {"offline alone, tokens/s": (after - before) / (ended - began)}


def measured(rig: Rig, idle: Rig, rounds: int) -> Rounds:
    """Measure all in each round, every other one backwards."""
    parts = [rig.alone, rig.beside, rig.full, idle.burst_alone, idle.burst_beside]
    found: Rounds = []
    for number in range(rounds):
        figures: dict[str, float] = {}
        for part in parts[:: -1 if number % 2 else 1]:
            figures |= part(number)
        found.append(dict(sorted(figures.items())))
        print(json.dumps({name: round(value, 1) for name, value in found[-1].items()}), flush=True)
    return found


def ratios(one: dict[str, float]) -> dict[str, float]:
    """Return a round's ratios."""
    share = one["interactive tokens/s"] / one["interactive saturated, tokens/s"]
    left_over = one["offline alone, tokens/s"] * (1 - share)
    found = {"offline": one["offline beside, tokens/s"] / left_over}
    for name in BARS:
        if name not in found:
            kind, figure = ("burst ", name.removeprefix("burst ")) if name.startswith("burst") else ("", name)
            found[name] = one[f"{kind}beside, {figure}"] / one[f"{kind}alone, {figure}"]
    return found


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--warm-up", type=float, default=6, help="seconds that a batch runs before it counts")
    parser.add_argument("--load", type=float, default=0.4, help="of the rate that saturates the worker")
    parser.add_argument("--burst", type=int, default=16, help="requests")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds before a burst")
    parser.add_argument("--slower", type=float, default=3, help="steps take so many times as long as on an H100")
    parser.add_argument("--run-batch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_batch:
        asyncio.run(run_batch(Config()))
        return
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder, start(folder) as server:
        profile = Path(folder) / "profile.json"
        profile.write_text(json.dumps({name: options.slower * cost for name, cost in PROFILE.items()}))
        worker = ["--engine", "sim", "--model", "sim", "--profile", str(profile), "--max-num-seqs", str(ROWS)]
        shorter = {"STOKER_RESERVE_IDLE_S": str(Config().reserve_idle_s * options.idle / IDLE_S)}
        with serving(server.url, "steady", worker) as steady, serving(server.url, "idle", worker, shorter) as idle:
            rig = Rig(steady, options)
            full = rig.full(0)["interactive saturated, tokens/s"]
            rig.rate = options.load * full / 100  # an answer has 100 tokens on average
            rounds = measured(rig, Rig(idle, options), options.rounds)
    found = [ratios(one) for one in rounds]
    bars = [
        Bar(name, statistics.median(one[name] for one in found), bar, at_most=name not in AT_LEAST)
        for name, bar in BARS.items()
    ]
    save("batch_beside", rounds, bars, "figures")
    verdicts(bars)


if __name__ == "__main__":
    main()
