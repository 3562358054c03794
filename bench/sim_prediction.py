"""Times to first token and per output token of the demo model, against those that the sim engine predicts.

    python bench/sim_prediction.py --requests 64 --clients 8 --rounds 5

Starts a whole stack with the demo model on one torch thread, fits its profile as `stoker profile` does, and starts a
second stack on the same Redis with `--engine sim --profile FILE`. Then both answer the load of `bench/engine.py` in
alternating order, each `--clients` requests at a time and every answer streamed, and the times are those that Redis
notes: accepted to first token, and first token to settled over the tokens after the first.

Each round gives the sim's median over the model's; what counts is the median over the rounds, of the two figures the
one that is further from 1. The last line says how far.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from engine import make_load
from serving import DEMO_ENGINE, demo_vocabulary, limits, serving, streamed

from stoker import AsyncClient, Client, Config
from stoker_ops.embedded import start
from stoker_workers.cost_fit import Fit
from stoker_workers.engine import Work
from stoker_workers.profiling import Profiler

BAR = 0.15
FIGURES = ("TTFT", "TPOT")


def profile(config: Config, rounds: int) -> Fit:
    """Fit the only worker of a queue."""
    with Client(config=config) as client:
        return Profiler(client, None).under_load(rounds, lambda done, total: None)


def medians(config: Config, load: list[Work], clients: int) -> dict[str, float]:
    """Run the load, so many requests at a time; gives the median TTFT and TPOT in ms."""
    ttft, tpot = [], []

    async def one(client: AsyncClient, works: Iterator[Work]) -> None:
        for work in works:
            ids, response = await streamed(client, work)
            assert len(ids) == work.max_tokens
            times = response.timings
            assert times.ttft_ms is not None
            assert times.e2e_ms is not None
            ttft.append(times.ttft_ms)
            tpot.append((times.e2e_ms - times.ttft_ms) / (len(ids) - 1))

    async def run() -> None:
        works = iter(load)
        async with AsyncClient(config=config) as client:
            await asyncio.gather(*(one(client, works) for _ in range(clients)))

    asyncio.run(run())
    return dict(zip(FIGURES, (statistics.median(ttft), statistics.median(tpot)), strict=True))


def report(rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print the table and the verdict."""
    print(f"{'p50, ms':10}{'model':>10}{'sim':>10}{'ratio':>8}{'least':>8}{'most':>8}")
    worst = 0.0
    for figure in FIGURES:
        model, sim = ([one[name][figure] for one in rounds] for name in ("model", "sim"))
        ratios = [predicted / real for predicted, real in zip(sim, model, strict=True)]
        ratio = statistics.median(ratios)
        worst = max(worst, abs(ratio - 1))
        times = f"{statistics.median(model):10.2f}{statistics.median(sim):10.2f}"
        print(f"{figure:10}{times}{ratio:8.2f}{min(ratios):8.2f}{max(ratios):8.2f}")
    print(f"prediction: {worst:.2f} (bar {BAR:.2f}) {'ok' if worst <= BAR else 'short'}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile-rounds", type=int, default=2)
    options = parser.parse_args()
    load = make_load(options.requests, demo_vocabulary())
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sb", dir="/tmp"))
        server = stack.enter_context(start(Path(folder) / "redis"))
        model = stack.enter_context(serving(server.url, "model", [*DEMO_ENGINE, *limits(options.rows)]))
        fit = profile(model, options.profile_rounds)
        costs = dataclasses.asdict(fit.profile)
        print("profile:", ", ".join(f"{name} {value:.4g}" for name, value in costs.items()))
        print(f"off by {fit.median_error:.1%} in the median of {fit.samples} samples, {fit.largest_error:.1%} at most")
        file = Path(folder) / "profile.json"
        file.write_text(json.dumps(costs))
        worker = ["--engine", "sim", "--profile", str(file), *limits(options.rows)]
        sim = stack.enter_context(serving(server.url, "sim", worker))
        rounds = []
        for number in range(options.rounds):
            order = [("model", model), ("sim", sim)][:: 1 if number % 2 else -1]
            rounds.append({name: medians(config, load, options.clients) for name, config in order})
    report(rounds)


if __name__ == "__main__":
    main()
