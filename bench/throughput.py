"""Requests a second from the SDK to the result, in bulk and one by one, beside the floor of the same run.

    python bench/throughput.py --requests 20000 --rounds 5

A request is 128 token ids in and 16 out; the engine takes no time and gives whole answers, as the floor's worker does
(`--profile zero`: in as many steps as there are tokens). Stoker and the floor (`bench/floor.py`) each run with one
worker and with two, on a Redis of their own with AOF everysec, in alternating order. `one by one` submits and awaits
each request by itself, 1,000 at a time from asyncio; `submit` fills a queue that has no workers. `events` writes the
history of all transitions besides. Redis' processor time is that of its process during `map`, AOF and replies included.
Fewer requests measure the start too: from asyncio a thousand tasks begin before anything is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable

import psutil
import redis
from figures import Bar, Rounds, alternating, ratio, save, table, verdicts
from fleet import MAX_TOKENS, PROMPT_TOKENS, fleet
from floor import floor

from stoker import AsyncClient, Client, Config, InferenceResponse, StokerError
from stoker_ops.embedded import start

FLOOR_BAR, EVENTS_BAR = 0.6, 0.5
REDIS_BAR, REDIS_EVENTS_BAR = 1.7, 2.1
SUBMIT_BAR = 50_000
CONCURRENT = 1000
LIMITS = ("--max-num-seqs", "1024", "--max-num-batched-tokens", "131072")
"""Rows for two groups, so that one is dispatched while the other runs; the floor holds as many as come."""

EVENTS = "bulk, 1w, events"

Run = Callable[[], float]


def check(response: InferenceResponse) -> None:
    """Raise for anything but a whole answer."""
    assert response.token_ids is not None, response.error
    assert len(response.token_ids) == MAX_TOKENS


def bulk(client: Client, prompts: list[list[int]]) -> float:
    """Return the rate of `map`."""
    began = time.perf_counter()
    for response in client.map(prompts):
        check(response)
    return len(prompts) / (time.perf_counter() - began)


def one_by_one(client: Client, prompts: list[list[int]]) -> float:
    """Return the rate of submits that are each answered before all results are waited for."""
    began = time.perf_counter()
    jobs = [client.submit(prompt) for prompt in prompts]
    for job in jobs:
        check(job.result(timeout=60))
    return len(prompts) / (time.perf_counter() - began)


async def async_bulk(url: str, prompts: list[list[int]]) -> float:
    """Return the rate of the awaited `map`."""
    async with AsyncClient(url) as client:
        began = time.perf_counter()
        async for response in client.map(prompts):
            check(response)
        return len(prompts) / (time.perf_counter() - began)


async def async_one_by_one(url: str, prompts: list[list[int]]) -> float:
    """Return the rate of `CONCURRENT` tasks that each submit a request, await its result, and take the next."""
    left = iter(prompts)

    async def ask(client: AsyncClient) -> None:
        for prompt in left:
            check(await (await client.submit(prompt)).result())

    async with AsyncClient(url) as client:
        began = time.perf_counter()
        await asyncio.gather(*(ask(client) for _ in range(CONCURRENT)))
        return len(prompts) / (time.perf_counter() - began)


def submit_alone(client: Client, prompts: list[list[int]]) -> float:
    """Return the rate of `submit_many` into a queue that nobody works on."""
    began = time.perf_counter()
    jobs = client.submit_many(prompts)
    seconds = time.perf_counter() - began
    assert not any(isinstance(job, StokerError) for job in jobs)
    return len(prompts) / seconds


class Meter:
    """Redis' processor time a request, of each run that it is put around."""

    def __init__(self) -> None:
        self._us: defaultdict[str, list[float]] = defaultdict(list)

    def around(self, name: str, url: str, n: int, run: Run) -> Run:
        """Return `run`, of n requests, noting what the Redis at `url` took meanwhile."""
        with redis.Redis.from_url(url) as client:
            process = psutil.Process(client.info("server")["process_id"])

        def measured() -> float:
            before = sum(process.cpu_times()[:2])
            rate = run()
            self._us[name].append((sum(process.cpu_times()[:2]) - before) / n * 1e6)
            return rate

        return measured

    def add_to(self, rounds: Rounds) -> None:
        """Add the microseconds to the rounds; runs before these were for warming up."""
        for name, found in self._us.items():
            for one, us in zip(rounds, found[-len(rounds) :], strict=True):
                one[f"{name}, Redis us"] = us


def contestants(stay: contextlib.ExitStack, prompts: list[list[int]], profile: str, meter: Meter) -> dict[str, Run]:
    """Start all that is measured, for as long as `stay` is open."""
    found: dict[str, Run] = {}
    n = len(prompts)
    for workers in (1, 2):
        producer = stay.enter_context(floor(workers))
        url = stay.enter_context(fleet(workers, *LIMITS, profile=profile)).url
        client = stay.enter_context(Client(url))
        check(client.submit(prompts[0]).result(timeout=60))
        found[f"floor, {workers}w"] = lambda producer=producer: producer.run(n)
        found[f"bulk, {workers}w"] = lambda client=client: bulk(client, prompts)
        for name, address in ((f"floor, {workers}w", producer.url), (f"bulk, {workers}w", url)):
            found[name] = meter.around(name, address, n, found[name])
        if workers == 1:
            found["one by one, 1w"] = lambda client=client: one_by_one(client, prompts)
            found["async bulk, 1w"] = lambda url=url: asyncio.run(async_bulk(url, prompts))
            found["async one by one, 1w"] = lambda url=url: asyncio.run(async_one_by_one(url, prompts))
    events = stay.enter_context(fleet(1, *LIMITS, profile=profile, events=True)).url
    noted = stay.enter_context(Client(events))
    found[EVENTS] = meter.around(EVENTS, events, n, lambda: bulk(noted, prompts))
    folder = stay.enter_context(tempfile.TemporaryDirectory(prefix="sb", dir="/tmp"))
    server = stay.enter_context(start(folder))
    waiting = stay.enter_context(Client(config=Config(redis_url=server.url, max_waiting=100 * n)))
    found["submit"] = lambda: submit_alone(waiting, prompts)
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", choices=["instant", "zero"], default="instant")
    options = parser.parse_args()
    prompts = [[(i * 31 + j) % 32_000 for j in range(PROMPT_TOKENS)] for i in range(options.requests)]
    meter = Meter()
    with contextlib.ExitStack() as stay:
        rounds = alternating(contestants(stay, prompts, options.profile, meter), options.rounds)
    meter.add_to(rounds)
    table(rounds)
    submit_rate = ratio([one | {"bar": SUBMIT_BAR} for one in rounds], "submit", "bar")

    def redis_us(name: str) -> float:
        return ratio(rounds, f"{name}, Redis us", "floor, 1w, Redis us")

    bars = [
        Bar("floor-1w", ratio(rounds, "bulk, 1w", "floor, 1w"), FLOOR_BAR),
        Bar("floor-2w", ratio(rounds, "bulk, 2w", "floor, 2w"), FLOOR_BAR),
        Bar("floor-1w-events", ratio(rounds, EVENTS, "floor, 1w"), EVENTS_BAR),
        Bar("redis-cpu", redis_us("bulk, 1w"), REDIS_BAR, at_most=True),
        Bar("redis-cpu-events", redis_us(EVENTS), REDIS_EVENTS_BAR, at_most=True),
        Bar("async-one-by-one", ratio(rounds, "async one by one, 1w", "async bulk, 1w"), 0.7),
        Bar("submit", submit_rate, 1.0),
    ]
    save("throughput", rounds, bars)
    verdicts(bars)


if __name__ == "__main__":
    main()
