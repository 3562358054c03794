"""The client of the model servers: 128 connections that are kept, msgpack or JSON as the server takes it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from drive import MAX_TOKENS, Answers, Prompts, at_once

CONNECTIONS = 128
READY_S = 60
URL = os.environ["PEER_URL"] + os.environ["PEER_PATH"]


@asynccontextmanager
async def asking() -> AsyncIterator[Callable[[Prompts], Awaitable[Answers]]]:
    """Connect for the time of a block, as soon as the server listens."""
    if os.environ["PEER_CODEC"] == "msgpack":
        import msgpack

        encode, decode = msgpack.packb, msgpack.unpackb
    else:
        encode, decode = (lambda value: json.dumps(value).encode()), json.loads
    headers = {"content-type": f"application/{os.environ['PEER_CODEC']}"}
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=40)) as session:

        async def one(prompt: list[int]) -> list[int]:
            body = encode({"prompt": prompt, "max_tokens": MAX_TOKENS})
            async with session.post(URL, data=body, headers=headers) as response:
                content = await response.read()
                assert response.status == 200, (response.status, content[:200])
                return decode(content)["tokens"]

        async def ask(prompts: Prompts) -> Answers:
            return await at_once(one, prompts, CONNECTIONS)

        async with asyncio.timeout(READY_S):
            while not await answers(one):  # noqa: ASYNC110  # another process: there is no event
                await asyncio.sleep(0.1)
        yield ask


async def answers(one: Callable[[list[int]], Awaitable[list[int]]]) -> bool:
    """Return whether the server is there yet."""
    try:
        await one([1])
    except (aiohttp.ClientError, AssertionError):
        return False
    return True
