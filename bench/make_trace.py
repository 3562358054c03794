"""Writes a synthetic trace with the columns of the Azure LLM inference traces.

    python bench/make_trace.py --requests 1000 --seed 1 --output bench/data/trace.csv

Nothing of a real trace is in it: gaps, prompts and answers are drawn from a gamma and two log-normal distributions with
about the means and spreads that are published for conversations (5.5 requests/s, 1,155 tokens in, 211 out).
"""

from __future__ import annotations

import argparse
import csv
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
PER_S = 5.5
BURSTINESS = 1.2
"""The variance of the gaps over that of a Poisson process."""


def rows(requests: int, seed: int) -> list[tuple[str, int, int]]:
    """Return time, prompt and answer of each request."""
    rng = random.Random(seed)
    at, found = BEGIN, []
    for _ in range(requests):
        at += timedelta(seconds=rng.gammavariate(1 / BURSTINESS, BURSTINESS / PER_S))
        prompt = min(14_000, 1 + int(rng.lognormvariate(6.55, 1.0)))
        answer = min(1500, 1 + int(rng.lognormvariate(4.85, 1.0)))
        found.append((f"{at:%Y-%m-%d %H:%M:%S.%f}", prompt, answer))
    return found


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
        writer.writerows(rows(options.requests, options.seed))


if __name__ == "__main__":
    main()
