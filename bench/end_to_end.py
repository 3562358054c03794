"""Tokens a second of the whole stack against the bare engine in one process, on one load.

    python bench/end_to_end.py --requests 32 --rows 16 --rounds 5

The load is that of `bench/engine.py`: random prompts of 16-400 tokens, 8-256 tokens of answer, the demo model in
float32 on one torch thread. The stack is an embedded Redis, a scheduler, a worker, and a client that streams every
answer; its requests all come at once. Both run once in each round, in alternating order, and what counts is the median
over the rounds of the stack's rate over the bare engine's in the same round. The ids must be the same from both.

Also says how much of a round the worker's engine was busy, and what its steps took against the bare engine's: what is
lost between steps is the queue's, what steps take longer is other threads and processes on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from engine import Answers, engine, make_load
from processes import serving
from serving import DEMO_ENGINE, demo_vocabulary, limits, streamed

from stoker import AsyncClient, Client, Config
from stoker_ops.embedded import start
from stoker_workers.engine import Admitted, Engine, Tokens, Work

BAR = 0.95


@dataclass(frozen=True, slots=True)
class Run:
    """What one pass over the load took: seconds in all and in steps, and how many steps."""

    answers: Answers
    seconds: float
    busy_s: float
    steps: int


def bare(made: Engine, load: list[Work]) -> Run:
    """Run the load in this process, admitting whatever fits before each step."""
    waiting, answers = list(reversed(load)), {work.id: [] for work in load}
    steps, busy_s, began = 0, 0.0, time.perf_counter()
    while waiting or made.resident():
        while waiting and isinstance(made.admit(waiting[-1]), Admitted):
            waiting.pop()
        before = time.perf_counter()
        events = made.step()
        busy_s += time.perf_counter() - before
        steps += 1
        for event in events:
            if isinstance(event, Tokens):
                answers[event.id] += event.token_ids
    return Run(answers, time.perf_counter() - began, busy_s, steps)


def whole(config: Config, load: list[Work]) -> Run:
    """Run the load through the stack, and read every stream."""

    async def run() -> tuple[Answers, float]:
        async with AsyncClient(config=config) as client:
            began = time.perf_counter()
            outcomes = await asyncio.gather(*(streamed(client, work) for work in load))
            seconds = time.perf_counter() - began
        return {work.id: ids for work, (ids, _) in zip(load, outcomes, strict=True)}, seconds

    before = figures(config)
    answers, seconds = asyncio.run(run())
    while (after := figures(config))["finished"] < before["finished"] + len(load):
        time.sleep(0.1)  # it tells with its next heartbeat
    busy_s = (after["busy_us"] - before["busy_us"]) / 1e6
    return Run(answers, seconds, busy_s, after["steps"] - before["steps"])


def figures(config: Config) -> dict[str, int]:
    """Return the counters of the only worker, once it told any."""
    with Client(config=config) as client:
        while not (found := client.workers()[0].figures):
            time.sleep(0.1)
    return found


def report(rounds: list[dict[str, Run]], tokens: int) -> None:
    """Print the table and the verdict."""
    print(f"{'':14}{'tokens/s':>10}{'slowest':>10}{'fastest':>10}{'busy':>8}{'steps':>8}{'ms/step':>9}")
    for name in rounds[0]:
        runs = [one[name] for one in rounds]
        rates = [tokens / run.seconds for run in runs]
        busy = statistics.median(run.busy_s / run.seconds for run in runs)
        steps = statistics.median(run.steps for run in runs)
        step_ms = statistics.median(1000 * run.busy_s / run.steps for run in runs)
        spread = f"{statistics.median(rates):10,.0f}{min(rates):10,.0f}{max(rates):10,.0f}"
        print(f"{name:14}{spread}{busy:8.1%}{steps:8,.0f}{step_ms:9.2f}")
    ratio = statistics.median(one["bare engine"].seconds / one["stack"].seconds for one in rounds)
    print(f"stack: {ratio:.2f} (bar {BAR:.2f}) {'ok' if ratio >= BAR else 'short'}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = engine("torch", options.rows)
    load = make_load(options.requests, demo_vocabulary())
    worker = [*DEMO_ENGINE, *limits(options.rows)]
    with (
        tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder,
        start(folder) as server,
        serving(server.url, "demo", worker) as config,
    ):
        contestants: dict[str, Callable[[], Run]] = {
            "bare engine": lambda: bare(made, load),
            "stack": lambda: whole(config, load),
        }
        expected = {name: run() for name, run in contestants.items()}["bare engine"].answers  # a round for nothing
        rounds = []
        for number in range(options.rounds):
            order = list(contestants)[:: 1 if number % 2 else -1]
            runs = {name: contestants[name]() for name in order}
            assert all(run.answers == expected for run in runs.values()), "the ids differ"
            rounds.append({name: runs[name] for name in contestants})
    report(rounds, sum(work.max_tokens for work in load))


if __name__ == "__main__":
    main()
