"""Bytes of Redis that a waiting request takes beyond its payload.

    python bench/memory.py --waiting 300000

Submits so many requests of 128 token ids to a queue that nobody works on, without and with a deadline, each into a
Redis of its own, and compares `used_memory` before and after. The payload is what the queue counts as waiting bytes:
the encoded request.
"""

from __future__ import annotations

import argparse
import tempfile

import redis
from figures import Bar, save, table, verdicts
from fleet import MAX_TOKENS, PROMPT_TOKENS

from stoker import Client, Config, InferenceRequest, StokerError
from stoker_ops.embedded import start

GROUP = 10_000
DAY_S = 86_400.0
BARS = {"without a deadline": 350.0, "with a deadline": 450.0}


def beyond_payload(waiting: int, timeout: float | None) -> dict[str, float]:
    """Return bytes a request: in all, of its payload, and the rest."""
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder, start(folder) as server:
        config = Config(redis_url=server.url, max_waiting=waiting)
        with Client(config=config) as client, redis.Redis.from_url(server.url) as raw:
            before = raw.info("memory")["used_memory"]
            for start_at in range(0, waiting, GROUP):
                jobs = client.submit_many(
                    InferenceRequest(
                        prompt_tokens=[(i * 31 + j) % 32_000 for j in range(PROMPT_TOKENS)],
                        max_tokens=MAX_TOKENS,
                        timeout=timeout,
                    )
                    for i in range(start_at, min(start_at + GROUP, waiting))
                )
                assert not any(isinstance(job, StokerError) for job in jobs)
            used = raw.info("memory")["used_memory"] - before
            payload = client.stats()["queue"]["waiting_bytes"]
    return {"in all": used / waiting, "payload": payload / waiting, "beyond": (used - payload) / waiting}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=300_000)
    options = parser.parse_args()
    found, bars = {}, []
    for name, limit in BARS.items():
        sizes = beyond_payload(options.waiting, DAY_S if name == "with a deadline" else None)
        found |= {f"{part}, {name}": size for part, size in sizes.items()}
        bars.append(Bar(f"memory {name}", sizes["beyond"], limit, at_most=True))
    table([found], "bytes a waiting request")
    save("memory", [found], bars, "bytes")
    verdicts(bars)


if __name__ == "__main__":
    main()
