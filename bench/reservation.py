"""Full reservation against expected lengths with preemption, on lengths of conversations.

    python bench/reservation.py --trace azure2023_conv.csv --model sim
    python bench/reservation.py --trace azure2023_conv.csv --model demo --requests 64 --kv-cache-tokens 8192
    python bench/reservation.py --trace azure2023_conv.csv --tenants

The trace is a CSV with the columns ContextTokens and GeneratedTokens. Every client asks for `--max-tokens` and gets
what the trace says, as when a model ends its answers itself. All requests wait from the start; an engine takes them in
order. Expected are the 80th percentile of the trace's answers (`p80`), or max_tokens (`full`). With `--tenants` the
requests are of two tenants, one with the shorter half of the answers and one with the longer half, and `by tenant`
expects of each the 80th percentile of its own.

Prints tokens of answers a second, how much of the cache all tokens fill, and when answers were whole, by the time that
the sim's profile says or by the processor time of a real model.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections import deque
from pathlib import Path

from stoker_workers.engine import Admitted, Engine, Tokens, Work
from stoker_workers.engines import make_engine
from stoker_workers.engines import sim as sim_engine

Lengths = tuple[int, int]


def run(
    engine: Engine, lengths: list[Lengths], max_tokens: int, expected: list[int | None], kv_cache_tokens: int
) -> dict[str, float]:
    """Run all requests through the engine, with room kept for what is `expected` of each; returns what was counted."""
    numbers = random.Random(1)
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    sim_engine.time.sleep = sleep  # type: ignore[assignment]  # the sim's time is counted instead of spent
    ends = {str(i): answer for i, (_, answer) in enumerate(lengths)}
    waiting = deque(
        Work(
            id=str(i),
            batch="b",
            prompt=[numbers.randrange(10, 1000) for _ in range(prompt)],
            max_tokens=max_tokens,
            ignore_eos=True,
            expected=expected[i],
        )
        for i, (prompt, _) in enumerate(lengths)
    )
    steps = rows = tokens = cached = 0
    held = {work.id: len(work.prompt) for work in waiting}
    ended_s: list[float] = []
    started = time.process_time()
    while waiting or engine.resident():
        while waiting and isinstance(engine.admit(waiting[0]), Admitted):
            waiting.popleft()
        rows += len(engine.resident())
        cached += sum(held[name] for name in engine.resident())
        steps += 1
        for event in engine.step():
            if isinstance(event, Tokens):
                tokens += 1
                held[event.id] += 1
                ends[event.id] -= 1
                if not ends[event.id]:
                    engine.cancel(event.id)
                    ended_s.append(slept or time.process_time() - started)
    seconds = slept or time.process_time() - started
    preempted = engine.preemptions  # type: ignore[attr-defined]  # of the engines that preempt
    return {
        "tokens/s": tokens / seconds,
        "rows a step": rows / steps,
        "% of the cache filled": 100 * cached / steps / kv_cache_tokens,
        "steps": steps,
        "preempted": preempted,
        "p50 s": quantile(ended_s, 0.5),
        "p99 s": quantile(ended_s, 0.99),
    }


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of them is not above."""
    return sorted(values)[int(share * (len(values) - 1))]


def p80_of(answers: list[int]) -> int:
    """Return the 80th percentile."""
    return sorted(answers)[int(0.8 * len(answers))]


def halves(answers: list[int]) -> tuple[set[int], set[int]]:
    """Return which of the answers are the shorter half, and which the longer."""
    order = sorted(range(len(answers)), key=answers.__getitem__)
    return set(order[: len(order) // 2]), set(order[len(order) // 2 :])


def lengths_of(trace: Path, requests: int, max_tokens: int) -> list[Lengths]:
    """Return the prompts and answers of some requests of a trace that fit into 2,048 tokens, in tokens."""
    with trace.open() as file:
        lengths = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
    lengths = [(p, a) for p, a in lengths if a <= max_tokens and p + max_tokens <= 2048]
    return random.Random(1).sample(lengths, requests)


def main() -> None:
    """Print one line for each way to reserve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--model", default="sim", help="sim, demo, or a folder")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=900)
    parser.add_argument("--kv-cache-tokens", type=int, default=32_768)
    parser.add_argument("--tenants", action="store_true", help="two tenants, with the shorter and the longer answers")
    options = parser.parse_args()
    lengths = lengths_of(options.trace, options.requests, options.max_tokens)
    answers = [answer for _, answer in lengths]
    ways: dict[str, list[int | None]] = {"full": [None] * len(answers), "p80": [p80_of(answers)] * len(answers)}
    if options.tenants:
        brief, long = halves(answers)
        of_brief, of_long = p80_of([answers[i] for i in brief]), p80_of([answers[i] for i in long])
        ways["by tenant"] = [of_brief if i in brief else of_long for i in range(len(answers))]
    for name, expected in ways.items():
        engine = make_engine(options.model, device="cpu", kv_cache_tokens=options.kv_cache_tokens)
        engine.load()
        figures = run(engine, lengths, options.max_tokens, expected, options.kv_cache_tokens)
        shown = "  ".join(f"{name} {value:,.1f}" for name, value in figures.items())
        told = "/".join(map(str, sorted({one or options.max_tokens for one in expected})))
        print(f"{name} expects {told}: {shown}", flush=True)


if __name__ == "__main__":
    main()
