"""Asks one peer, from its own environment, and prints how many answers came in how many seconds.

    python drive.py rq_peer 1.0

A peer's module has `ask(prompts)`, which gives the answers in order; or `asking()`, an async context manager that gives
such a coroutine function. Needs nothing but the peer's packages.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

PROMPT_TOKENS = 128
MAX_TOKENS = 16
VOCABULARY = 32_000
ANSWER = list(range(31_000, 31_000 + MAX_TOKENS))
FIRST = 50
LEAST, MOST = 300, 30_000

Prompts = list[list[int]]
Answers = list[list[int]]
Course = Generator[Prompts, Answers, tuple[int, float]]


def answer(prompt: list[int], max_tokens: int) -> list[int]:
    """Be the model of all peers: it does nothing."""
    return ANSWER[:max_tokens]


def prompts(n: int) -> Prompts:
    """Return n prompts of random token ids."""
    ids = random.Random(n).choices(range(VOCABULARY), k=n * PROMPT_TOKENS)
    return [ids[i : i + PROMPT_TOKENS] for i in range(0, len(ids), PROMPT_TOKENS)]


def check(asked: Prompts, got: Answers) -> None:
    """Raise unless there is an answer of `MAX_TOKENS` token ids for each prompt."""
    assert len(got) == len(asked), (len(got), len(asked))
    for tokens in got:
        assert len(tokens) == MAX_TOKENS, tokens
        assert all(0 <= token < 65_536 for token in tokens), tokens


def requests_for(seconds: float, rate: float) -> int:
    """Return how many requests take about so long at this rate a second, within what is reasonable."""
    return max(LEAST, min(MOST, int(seconds * rate)))


def course(seconds: float) -> Course:
    """Give the prompts to ask next, hear their answers; returns how many of the last were answered in how long."""
    check(first := prompts(1), (yield first))
    n, took = FIRST, 0.0
    # Each tells how many the next one takes: the rates of the first ones are those of cold processes.
    for share in (0.0, 0.3, 1.0):
        if share:
            n = requests_for(share * seconds, n / took)
        asked = prompts(n)
        began = time.perf_counter()
        got = yield asked
        took = time.perf_counter() - began
        check(asked, got)
    return n, took


def drive(ask: Callable[[Prompts], Answers], seconds: float) -> tuple[int, float]:
    """Run the course with a function."""
    steps = course(seconds)
    asked = next(steps)
    while True:
        try:
            asked = steps.send(ask(asked))
        except StopIteration as end:
            return end.value


async def drive_async(
    asking: Callable[[], AbstractAsyncContextManager[Callable[[Prompts], Awaitable[Answers]]]], seconds: float
) -> tuple[int, float]:
    """Run the course with a coroutine function."""
    steps = course(seconds)
    asked = next(steps)
    async with asking() as ask:
        while True:
            try:
                asked = steps.send(await ask(asked))
            except StopIteration as end:
                return end.value


async def at_once(fn: Callable[[Any], Awaitable[Any]], items: Sequence[Any], concurrent: int) -> list[Any]:
    """Call for each item, so many at a time; returns the results in order."""
    results: list[Any] = [None] * len(items)
    places = iter(range(len(items)))

    async def take() -> None:
        for place in places:
            results[place] = await fn(items[place])

    await asyncio.gather(*(take() for _ in range(concurrent)))
    return results


def main() -> None:
    """Measure, and print one line of JSON."""
    peer, seconds = importlib.import_module(sys.argv[1]), float(sys.argv[2])
    if hasattr(peer, "asking"):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            n, took = runner.run(drive_async(peer.asking, seconds))
    else:
        n, took = drive(peer.ask, seconds)
    print(json.dumps({"requests": n, "seconds": took}), flush=True)


if __name__ == "__main__":
    main()
