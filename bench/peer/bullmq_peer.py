"""BullMQ's Python package with 50 jobs at a time; as a program, its worker."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from bullmq import Queue, QueueEvents, Worker
from drive import MAX_TOKENS, Answers, Prompts, answer

CHUNK = 500
KEEP = {"removeOnComplete": {"age": 300}}
CONNECTION = {"connection": os.environ["PEER_URL"]}


async def work(job: Any, _token: str) -> list[int]:
    """Be the task."""
    return answer(job.data["prompt"], job.data["max_tokens"])


async def serve() -> None:
    """Work until killed."""
    worker = Worker("peer", work, CONNECTION | KEEP | {"concurrency": 50})
    await asyncio.Event().wait()
    await worker.close()


@asynccontextmanager
async def asking() -> AsyncIterator[Callable[[Prompts], Awaitable[Answers]]]:
    """Connect for the time of a block, and hear of results."""
    queue, events = Queue("peer", CONNECTION), QueueEvents("peer", CONNECTION | {"lastEventId": "0"})
    results: dict[str, list[int]] = {}
    news = asyncio.Event()

    def completed(event: dict[str, Any], *_: Any) -> None:
        results[event["jobId"]] = event["returnvalue"]
        news.set()

    async def ask(prompts: Prompts) -> Answers:
        jobs: list[Any] = []
        for place in range(0, len(prompts), CHUNK):
            data = [{"prompt": prompt, "max_tokens": MAX_TOKENS} for prompt in prompts[place : place + CHUNK]]
            jobs += await queue.addBulk([{"name": "model", "data": one, "opts": KEEP} for one in data])
        while len(results) < len(jobs):
            news.clear()
            await asyncio.wait_for(news.wait(), 60)
        return [results.pop(job.id) for job in jobs]

    events.on("completed", completed)
    await asyncio.sleep(0.2)
    yield ask


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve())
