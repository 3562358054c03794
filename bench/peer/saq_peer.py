"""SAQ with 100 jobs at a time, asked for results every 50 ms."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from drive import MAX_TOKENS, Answers, Prompts, answer
from saq import Queue

CHUNK = 1000
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
queue = Queue.from_url(os.environ["PEER_URL"])


async def model(_context: dict[str, Any], *, prompt: list[int], max_tokens: int) -> list[int]:
    """Be the task."""
    return answer(prompt, max_tokens)


settings = {"queue": queue, "functions": [model], "concurrency": 100}


@asynccontextmanager
async def asking() -> AsyncIterator[Callable[[Prompts], Awaitable[Answers]]]:
    """Connect for the time of a block."""
    await queue.connect()

    async def ask(prompts: Prompts) -> Answers:
        answers: Answers = []
        jobs = [{"prompt": prompt, "max_tokens": MAX_TOKENS} for prompt in prompts]
        for place in range(0, len(jobs), CHUNK):
            answers += await queue.map("model", jobs[place : place + CHUNK], timeout=60, ttl=300, poll_interval=0.05)
        return answers

    yield ask
    await queue.disconnect()
