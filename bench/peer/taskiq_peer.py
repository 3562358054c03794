"""taskiq with a Redis stream, asked for results every 2 ms."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from drive import MAX_TOKENS, Answers, Prompts, answer, at_once
from taskiq.serializers import MSGPackSerializer, ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

CONCURRENT = 50
URL = os.environ["PEER_URL"]
results = RedisAsyncResultBackend(URL, result_ex_time=300, serializer=MSGPackSerializer())
broker = RedisStreamBroker(url=URL).with_result_backend(results).with_serializer(ORJSONSerializer())


@broker.task(task_name="model")
async def model(prompt: list[int], max_tokens: int) -> list[int]:
    """Be the task."""
    return answer(prompt, max_tokens)


@asynccontextmanager
async def asking() -> AsyncIterator[Callable[[Prompts], Awaitable[Answers]]]:
    """Connect for the time of a block."""
    await broker.startup()

    async def send(prompt: list[int]) -> Any:
        return await model.kiq(prompt, MAX_TOKENS)

    async def receive(task: Any) -> list[int]:
        return (await task.wait_result(check_interval=0.002, timeout=60)).return_value

    async def ask(prompts: Prompts) -> Answers:
        return await at_once(receive, await at_once(send, prompts, CONCURRENT), CONCURRENT)

    yield ask
    await broker.shutdown()
