"""The classic targets: two workers at 20 ms a step, an open loop at 70 % of capacity, and all of it.

    python bench/steps.py --seconds 10 --rounds 3

Requests of 128 token ids and one token of answer, on sim engines whose step takes 20 ms, with 4 rows. Capacity is what
the engines can do: workers x rows / 20 ms. Saturated, a worker's busy share is the time in steps that its heartbeats
report over the time that passed; scaling is the rate of four workers over four times that of one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from figures import Bar, Rounds, save, table, verdicts
from fleet import Fleet, fleet
from latency import PROMPT, open_loop, percentile

from stoker import Client

STEP_MS = 20
ROWS = 4
SHARE = 0.7
WORKERS = 2
RATE_BAR = 200.0
P50_BAR, P99_BAR = 100.0, 300.0
BUSY_BAR = SCALING_BAR = 0.95
BEATS_S = 1.5


@contextmanager
def stepping(workers: int) -> Iterator[Fleet]:
    """Run a stack whose every step takes `STEP_MS`."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as profile:
        json.dump({"base_ms": STEP_MS, "prefill_ms": 0, "row_ms": 0, "resident_ms": 0}, profile)
        profile.flush()
        with fleet(workers, "--max-num-seqs", str(ROWS), profile=profile.name) as stack:
            yield stack


def capacity(workers: int) -> float:
    """Return the requests a second that the engines can do."""
    return workers * ROWS * 1000 / STEP_MS


def saturated(workers: int, seconds: float) -> dict[str, float]:
    """Return requests a second, and the share of the time that the workers were in steps, while enough waits."""
    count = int(capacity(workers) * seconds)
    with stepping(workers) as stack, Client(stack.url) as client:
        _ = [response.token_ids for response in client.map([PROMPT] * 4 * ROWS * workers, max_tokens=1)]
        time.sleep(BEATS_S)  # so that the heartbeats have it all
        before, began = _busy_s(client), time.perf_counter()
        for response in client.map([PROMPT] * count, max_tokens=1):
            assert response.error is None, response.error
        passed = time.perf_counter() - began
        time.sleep(BEATS_S)
        return {"rate": count / passed, "busy": (_busy_s(client) - before) / workers / passed}


def _busy_s(client: Client) -> float:
    return sum(worker.figures["busy_us"] for worker in client.workers()) / 1e6


def one_round(seconds: float) -> dict[str, float]:
    """Measure everything once."""
    found = {}
    with stepping(WORKERS) as stack:
        rate = SHARE * capacity(WORKERS)
        asyncio.run(open_loop(stack.url, rate, 50, max_tokens=1))
        began = time.perf_counter()
        times = asyncio.run(open_loop(stack.url, rate, int(rate * seconds), max_tokens=1))
        found["requests a second"] = len(times) / (time.perf_counter() - began)
        found |= {f"p{percent}, ms": percentile(times, percent) for percent in (50, 99)}
    rates = {}
    for workers in (1, 2, 4):
        saturation = saturated(workers, seconds)
        rates[workers] = found[f"saturated, {workers}w"] = saturation["rate"]
        if workers == WORKERS:
            found["busy share"] = saturation["busy"]
    found["scaling to 4"] = rates[4] / rates[1] / 4
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds: Rounds = [one_round(options.seconds) for _ in range(options.rounds)]
    table(rounds, "")

    def found(name: str) -> float:
        return statistics.median(one[name] for one in rounds)

    bars = [
        Bar("steps-rate", found("requests a second"), RATE_BAR),
        Bar("steps-p50", found("p50, ms"), P50_BAR, at_most=True),
        Bar("steps-p99", found("p99, ms"), P99_BAR, at_most=True),
        Bar("steps-busy", found("busy share"), BUSY_BAR),
        Bar("steps-scaling", found("scaling to 4"), SCALING_BAR),
    ]
    save("steps", rounds, bars, "figures")
    verdicts(bars)


if __name__ == "__main__":
    main()
