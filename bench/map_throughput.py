"""How many requests a second go through `client.map`, with engines that take no time.

    python bench/map_throughput.py --requests 10000 --workers 2

Starts its own Redis (AOF everysec), scheduler and workers; prints one line a round, the median, and every key left
without a TTL.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from stoker import Client, InferenceRequest
from stoker_ops.embedded import start

PROMPT_TOKENS = 128
MAX_TOKENS = 16


@contextmanager
def stack(workers: int, *limits: str) -> Iterator[str]:
    """Run a stack for the time of a block, its workers with `limits`; gives the URL of its Redis."""
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder, start(folder) as server:
        environment = os.environ | {"STOKER_REDIS_URL": server.url}
        command = [sys.executable, "-c", "from stoker.cli import main; main()"]
        options = ["--model", "sim", "--profile", "zero", "--log-level", "error", *limits]
        processes = [subprocess.Popen([*command, "scheduler", "--log-level", "error"], env=environment)]
        for index in range(workers):
            processes.append(subprocess.Popen([*command, "worker", "--name", f"w{index}", *options], env=environment))
        try:
            yield server.url
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(30)


def requests(n: int) -> Iterator[InferenceRequest]:
    """Give n requests of 128 token ids each, 16 asked for."""
    for i in range(n):
        tokens = [(i * 31 + j) % 32_000 for j in range(PROMPT_TOKENS)]
        yield InferenceRequest(prompt_tokens=tokens, max_tokens=MAX_TOKENS)


def one_round(client: Client, n: int) -> float:
    """Return the requests a second of one pass; every answer is checked."""
    began = time.perf_counter()
    answered = 0
    for response in client.map(requests(n)):
        assert response.error is None, response.error
        assert response.token_ids is not None
        assert len(response.token_ids) == MAX_TOKENS
        answered += 1
    assert answered == n
    return n / (time.perf_counter() - began)


def keys_without_ttl(url: str) -> list[str]:
    """Return every key that will not go by itself."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return sorted(key for key in client.scan_iter("*") if client.ttl(key) == -1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with stack(options.workers) as url, Client(url) as client:
        client.submit(prompt_tokens=[1]).result(timeout=60)
        rates = [one_round(client, options.requests) for _ in range(options.rounds)]
        left = keys_without_ttl(url)
    if options.json:
        print(json.dumps({"requests_per_s": rates, "median": statistics.median(rates), "keys_without_ttl": left}))
        return
    for rate in rates:
        print(f"{rate:10,.0f} requests/s")
    print(f"{statistics.median(rates):10,.0f} requests/s, median of {len(rates)} rounds")
    print("keys without a TTL:", *left, sep="\n  ")


if __name__ == "__main__":
    main()
