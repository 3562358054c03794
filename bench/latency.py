"""How long one request takes from submit to result: alone, beside the floor's, and in an open loop.

    python bench/latency.py --requests 300 --rounds 5

A request is 128 token ids in and 16 out; one worker, whose engine takes no time and gives whole answers, as the floor's
does. `one outstanding` asks for the next when it has the last, as the floor's producer (`bench/floor.py`) does with its
three hops. The open loop sends at random moments (exponential gaps), at a share of the rate that `map` reached in the
same run; a request that has to wait for the client is late by that too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack

from figures import Bar, Rounds, ratio, save, table, verdicts
from fleet import MAX_TOKENS, PROMPT_TOKENS, fleet
from floor import Producer, floor

from stoker import AsyncClient, Client

LIMITS = ("--max-num-seqs", "256", "--max-num-batched-tokens", "65536")
FLOOR_BAR = 1.3
TAIL_BAR = 3.0
LOADED_BAR = 10.0
LOADS = (10, 50, 80)
PROMPT = [(31 * j) % 32_000 for j in range(PROMPT_TOKENS)]


def percentile(times: Sequence[float], percent: int) -> float:
    """Return a percentile in ms of times in seconds."""
    return 1000 * statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


def of_floor(producer: Producer, requests: int) -> list[float]:
    """Return seconds of requests through the floor, one after the other."""
    return [1 / producer.run(1) for _ in range(requests)]


def alone(client: Client, requests: int) -> list[float]:
    """Return seconds of requests through a stack, one after the other."""
    times = []
    for _ in range(requests):
        began = time.perf_counter()
        answer = client.submit(PROMPT, max_tokens=MAX_TOKENS).result(timeout=60)
        times.append(time.perf_counter() - began)
        assert answer.token_ids is not None
    return times


async def open_loop(url: str, rate: float, requests: int, max_tokens: int = MAX_TOKENS) -> list[float]:
    """Return seconds from the moment at which each request was due, so many a second, to its result."""
    gaps, times = random.Random(1), []

    async def ask(client: AsyncClient, due: float) -> None:
        await (await client.submit(PROMPT, max_tokens=max_tokens)).result(timeout=60)
        times.append(time.perf_counter() - due)

    async with AsyncClient(url) as client, asyncio.TaskGroup() as asked:
        due = time.perf_counter()
        for _ in range(requests):
            due += gaps.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.create_task(ask(client, due))
    return times


def capacity(client: Client, requests: int) -> float:
    """Return the requests a second of `map`."""
    began = time.perf_counter()
    for response in client.map([PROMPT] * requests, max_tokens=MAX_TOKENS):
        assert response.error is None, response.error
    return requests / (time.perf_counter() - began)


def one_round(producer: Producer, client: Client, url: str, requests: int) -> dict[str, float]:
    """Return p50 and p99 in ms of each way."""
    rate = capacity(client, 10 * requests)
    found = {"floor": of_floor(producer, requests), "one outstanding": alone(client, requests)}
    found |= {f"open loop, {load} %": asyncio.run(open_loop(url, rate * load / 100, 3 * requests)) for load in LOADS}
    return {f"{name}, p{percent}": percentile(times, percent) for name, times in found.items() for percent in (50, 99)}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds: Rounds = []
    with ExitStack() as stay:
        producer = stay.enter_context(floor(1))
        stack = stay.enter_context(fleet(1, *LIMITS, profile="instant"))
        client = stay.enter_context(Client(stack.url))
        for _ in range(options.rounds + 1):
            rounds.append(one_round(producer, client, stack.url, options.requests))
    del rounds[0]  # the first costs extra
    table(rounds, "ms from submit to result")
    bars = [
        Bar("latency-floor", ratio(rounds, "one outstanding, p50", "floor, p50"), FLOOR_BAR, at_most=True),
        Bar("latency-tail", ratio(rounds, "one outstanding, p99", "one outstanding, p50"), TAIL_BAR, at_most=True),
        Bar("latency-50", ratio(rounds, "open loop, 50 %, p99", "open loop, 50 %, p50"), LOADED_BAR, at_most=True),
    ]
    save("latency", rounds, bars, "ms")
    verdicts(bars)


if __name__ == "__main__":
    main()
