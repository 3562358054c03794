"""How many requests a second go through `client.map`, with engines that take no time.

    python bench/map_throughput.py --requests 10000 --workers 2

Starts its own Redis (AOF everysec), scheduler and workers; prints one line a round, the median, and every key left
without a TTL.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import redis
from fleet import MAX_TOKENS, PROMPT_TOKENS, fleet

from stoker import Client, InferenceRequest


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
    with fleet(options.workers) as found, Client(found.url) as client:
        client.submit(prompt_tokens=[1]).result(timeout=60)
        rates = [one_round(client, options.requests) for _ in range(options.rounds)]
        left = keys_without_ttl(found.url)
    if options.json:
        print(json.dumps({"requests_per_s": rates, "median": statistics.median(rates), "keys_without_ttl": left}))
        return
    for rate in rates:
        print(f"{rate:10,.0f} requests/s")
    print(f"{statistics.median(rates):10,.0f} requests/s, median of {len(rates)} rounds")
    print("keys without a TTL:", *left, sep="\n  ")


if __name__ == "__main__":
    main()
