"""How long other tenants wait while one of them floods the queue with 100 times their traffic.

    python bench/tenants.py --rounds 4 --seconds 24

A real scheduler, a real worker with the `sim` engine (32 rows, 25 ms a step, answers of 20 to 80 tokens: about 24
requests a second), an embedded Redis, one client process. Four tenants submit a request every two seconds each, at
times drawn at random. In every other half of a round a fifth one submits 50 a second beside them, twice what the worker
can do. What counts is the 99th percentile, from the submit to the answer, of the four tenants' requests: with the flood
over alone, the median over the rounds; requests and times are the same in both halves of a round. The flood's own is
printed for comparison; `--unnamed` leaves the tenants' names away, as if there were none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from figures import Bar, save, verdicts
from processes import serving

from stoker import AsyncClient, AsyncJob, Client, Config, InferenceRequest
from stoker_ops.embedded import start

BAR = 1.5
CALM = ("one", "two", "three", "four")
CALM_PER_S = 0.5
FLOOD_PER_S = 50.0
PROMPT, ROWS = 100, 32
ANSWERS = (20, 80)
PROFILE = {"base_ms": 25.0, "prefill_ms": 0.005, "row_ms": 0.02, "resident_ms": 0.0}

Sample = dict[str, list[float]]


def arrivals(rng: random.Random, per_s: float, seconds: float) -> list[float]:
    """Return the times of a Poisson process."""
    times, at = [], rng.expovariate(per_s)
    while at < seconds:
        times.append(at)
        at += rng.expovariate(per_s)
    return times


async def half(config: Config, seconds: float, *, flood: bool, named: bool, seed: int) -> Sample:
    """Return how long requests took, in seconds: of the four tenants, and of the flood as far as it got."""
    rng = random.Random(seed)
    plan = [(at, name, rng.randint(*ANSWERS)) for name in CALM for at in arrivals(rng, CALM_PER_S, seconds)]
    if flood:
        plan += [(at, "flood", rng.randint(*ANSWERS)) for at in arrivals(rng, FLOOD_PER_S, seconds)]
    took: Sample = {"calm": [], "flood": []}
    jobs: list[AsyncJob] = []

    async def one(client: AsyncClient, at: float, name: str, answer: int) -> None:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        since = time.perf_counter()
        request = InferenceRequest(prompt_tokens=[1] * PROMPT, max_tokens=answer, tenant=name if named else None)
        job = await client.submit(request)
        jobs.append(job)
        await job.result()
        took["flood" if name == "flood" else "calm"].append(time.perf_counter() - since)

    async with AsyncClient(config=config) as client:
        began = time.perf_counter()
        tasks = {name: [] for name in (*CALM, "flood")}
        for at, name, answer in plan:
            tasks[name].append(asyncio.create_task(one(client, at, name, answer)))
        await asyncio.gather(*(task for name in CALM for task in tasks[name]))
        for task in tasks["flood"]:
            task.cancel()
        await asyncio.gather(*tasks["flood"], return_exceptions=True)
        await asyncio.gather(*(job.cancel() for job in jobs))
    return took


def idle(config: Config) -> None:
    """Wait until the worker holds nothing more of the half before."""
    with Client(config=config) as client:
        while any(worker.held_rows for worker in client.workers()):
            time.sleep(0.1)


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile by the nearest rank."""
    return sorted(values)[max(0, -(-99 * len(values) // 100) - 1)]


def rounds_of(options: argparse.Namespace, config: Config) -> list[dict[str, Sample]]:
    """Run both halves of each round, in alternating order."""
    found = []
    for number in range(options.rounds):
        halves = {}
        for flood in (False, True) if number % 2 else (True, False):
            seed = options.seed + number
            run = half(config, options.seconds, flood=flood, named=not options.unnamed, seed=seed)
            idle(config)
            halves["flooded" if flood else "alone"] = asyncio.run(run)
        found.append(halves)
        each = {name: f"{1000 * p99(one['calm']):.0f} ms" for name, one in halves.items()}
        print(f"round {number + 1}: p99 alone {each['alone']}, flooded {each['flooded']}", flush=True)
    return found


def report(found: list[dict[str, Sample]], options: argparse.Namespace) -> None:
    """Print the percentiles and the verdict, and keep them."""
    calm = {name: [s for one in found for s in one[name]["calm"]] for name in ("alone", "flooded")}
    flood = [s for one in found for s in one["flooded"]["flood"]]
    for name, values in (*calm.items(), ("the flood", flood)):
        if values:
            middle = sorted(values)[len(values) // 2]
            print(f"{name:10} {len(values):5} answered, p50 {1000 * middle:6.0f} ms, p99 {1000 * p99(values):6.0f} ms")
    ratio = statistics.median(p99(one["flooded"]["calm"]) / p99(one["alone"]["calm"]) for one in found)
    bar = Bar("tenants", ratio, BAR, at_most=True)
    if not options.unnamed:
        p99_ms = [{name: round(1000 * p99(half["calm"]), 1) for name, half in one.items()} for one in found]
        all_ms = {name: round(1000 * p99(values), 1) for name, values in calm.items()}
        save("tenants", p99_ms, [bar], "p99_ms", {"seconds": options.seconds, "all_p99_ms": all_ms})
    verdicts([bar])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=24.0, help="of a half of a round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unnamed", action="store_true", help="without names: what there would be without fairness")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder, start(folder) as server:
        profile = Path(folder) / "profile.json"
        profile.write_text(json.dumps(PROFILE))
        sizes = ["--max-num-seqs", str(ROWS), "--kv-cache-tokens", str(ROWS * (PROMPT + ANSWERS[1]))]
        with serving(server.url, "tenants", ["--model", "sim", "--profile", str(profile), *sizes]) as config:
            report(rounds_of(options, config), options)


if __name__ == "__main__":
    main()
