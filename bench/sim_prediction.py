"""Times to first token and per output token of the demo model, against those that the sim engine predicts.

    python bench/sim_prediction.py --requests 64 --clients 8 --rounds 5

Starts a whole stack with the demo model on one torch thread. Each round takes the samples of `stoker profile`, runs
the load of `bench/engine.py`, and takes the samples again, so that a machine that becomes slower does so for both. The
profile fitted to them goes to a stack with `--engine sim --profile FILE`, which answers the same load. `--clients`
requests run at a time, every answer is streamed, and the times are those that Redis notes: accepted to first token, and
first token to settled over the tokens after the first. A client pauses between two requests, up to some steps: else
every request would arrive as long after a step's end as the way from one answer to the next request takes, and a
millisecond of difference there could cost it a whole step more.

What counts is the sim's median over the model's, in the median of the rounds; of the two figures the one that is
further from 1. The last line says how far.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from engine import make_load
from processes import serving
from serving import DEMO_ENGINE, demo_vocabulary, limits, streamed

from stoker import AsyncClient, Client, Config
from stoker_ops.embedded import start
from stoker_workers.cost_fit import Sample, fit
from stoker_workers.engine import Work
from stoker_workers.engines.sim import Profile
from stoker_workers.profiling import Profiler

BAR = 0.15
FIGURES = ("TTFT", "TPOT")
PAUSE_S = 0.05


def samples(config: Config) -> list[Sample]:
    """Return what bursts of each size add to the counters of a queue's only worker."""
    with Client(config=config) as client:
        return Profiler(client, None).under_load(1, lambda done, total: None)


def medians(config: Config, load: list[Work], clients: int) -> dict[str, float]:
    """Run the load, so many requests at a time; gives the median TTFT and TPOT in ms."""
    ttft, tpot = [], []
    numbers = random.Random(1)

    async def one(client: AsyncClient, works: Iterator[Work]) -> None:
        for work in works:
            await asyncio.sleep(numbers.uniform(0, PAUSE_S))
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


def predicted(url: str, profile: Profile, rows: int, load: list[Work], clients: int) -> dict[str, float]:
    """Return what a worker with this profile makes of the load."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(dataclasses.asdict(profile), file)
        file.flush()
        with serving(url, "sim", ["--engine", "sim", "--profile", file.name, *limits(rows)]) as config:
            return medians(config, load, clients)


def report(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> None:
    """Print the table and the verdict."""
    print("p50, ms, model and sim" + "".join(f"{f'round {number}':>16}" for number in range(1, len(rounds) + 1)))
    worst = 0.0
    for figure in FIGURES:
        pairs = [(model[figure], sim[figure]) for model, sim in rounds]
        ratio = statistics.median(sim / model for model, sim in pairs)
        worst = max(worst, abs(ratio - 1))
        print(f"{figure:22}" + "".join(f"{model:8.2f}{sim:8.2f}" for model, sim in pairs) + f"   ratio {ratio:.2f}")
    print(f"prediction: {worst:.2f} (bar {BAR:.2f}) {'ok' if worst <= BAR else 'short'}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = make_load(options.requests, demo_vocabulary())
    rounds = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sb", dir="/tmp"))
        server = stack.enter_context(start(Path(folder) / "redis"))
        config = stack.enter_context(serving(server.url, "model", [*DEMO_ENGINE, *limits(options.rows)]))
        for _ in range(options.rounds):
            before = samples(config)
            model = medians(config, load, options.clients)
            found = fit([*before, *samples(config)])
            print(
                "profile:",
                ", ".join(f"{name} {value:.4g}" for name, value in dataclasses.asdict(found.profile).items()),
                flush=True,
            )
            rounds.append((model, predicted(server.url, found.profile, options.rows, load, options.clients)))
    report(rounds)


if __name__ == "__main__":
    main()
