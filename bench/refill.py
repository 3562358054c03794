"""Continuous batches against static ones, with the `torch` engine and the demo model, on lengths of conversations.

    python bench/refill.py --trace azure2023_conv.csv --rows 64

The trace is a CSV with the columns ContextTokens and GeneratedTokens. All requests wait from the start, and an engine
takes them in order:

- continuous: a row that ends makes room for the next request.
- static: the next requests come in when all rows have ended; rows leave as they end.
- to the longest: as static, but every row goes on until the longest answer of its batch is whole.

Prints tokens of the trace's answers a second of processor time, with one torch thread.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from figures import Bar, Rounds, alternating, ratio, save, table, verdicts
from reservation import Lengths, lengths_of

from stoker_workers.engine import Admitted, Engine, Tokens, Work
from stoker_workers.engines import make_engine

BAR = 1.3
LONGEST = 2048
BUDGET = 2048


def works(lengths: Sequence[Lengths]) -> list[Work]:
    """Return the requests, in their order."""
    numbers = random.Random(1)
    return [
        Work(
            id=str(place),
            batch="bench",
            prompt=[numbers.randrange(3, 1000) for _ in range(prompt)],
            max_tokens=answer,
            ignore_eos=True,
        )
        for place, (prompt, answer) in enumerate(lengths)
    ]


def to_longest(batch: Sequence[Work]) -> list[Work]:
    """Return a batch whose answers are all as long as its longest."""
    longest = max(work.max_tokens for work in batch)
    return [
        Work(id=work.id, batch=work.batch, prompt=work.prompt, max_tokens=longest, ignore_eos=True) for work in batch
    ]


def run(engine: Engine, batches: Sequence[Sequence[Work]]) -> float:
    """Run one batch after the other, each when that before has ended; returns the processor seconds that it took."""
    began, made = time.process_time(), 0
    for batch in batches:
        waiting = deque(batch)
        while waiting or engine.resident():
            while waiting and isinstance(engine.admit(waiting[0]), Admitted):
                waiting.popleft()
            for event in engine.step():
                made += len(event.token_ids) if isinstance(event, Tokens) else 0
    spent = time.process_time() - began
    assert made == sum(work.max_tokens for batch in batches for work in batch), "an answer is not whole"
    return spent


def measure(lengths: Sequence[Lengths], rows: int, rounds: int) -> Rounds:
    """Return tokens a second of each way, round by round."""
    engine = make_engine(
        "demo",
        engine="torch",
        device="cpu",
        dtype="float32",
        max_num_seqs=rows,
        max_num_batched_tokens=BUDGET,
        kv_cache_tokens=rows * LONGEST,
    )
    engine.load()
    engine.warm_up()
    load = works(lengths)
    closed = [load[start : start + rows] for start in range(0, len(load), rows)]
    tokens = sum(answer for _, answer in lengths)
    ways = {"continuous": [load], "static": closed, "to the longest": [to_longest(batch) for batch in closed]}
    return alternating(
        {name: lambda batches=batches: tokens / run(engine, batches) for name, batches in ways.items()}, rounds
    )


def main() -> None:
    """Measure, print, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=900)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = measure(lengths_of(options.trace, options.requests, options.max_tokens), options.rows, options.rounds)
    table(rounds, "tokens a second")
    longest = ratio(rounds, "continuous", "to the longest")
    print(f"continuous over static to the longest: {longest:.2f}")
    bars = [Bar("refill", ratio(rounds, "continuous", "static"), BAR)]
    save("refill", rounds, bars, "tokens_per_s")
    verdicts(bars)


if __name__ == "__main__":
    main()
