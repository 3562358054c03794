"""A pool to await: a connection that rests is handed out at once, a closed one made anew; nobody is left waiting."""

from __future__ import annotations

import asyncio

import redis

from stoker import Config
from stoker.store.connection import AsyncStore, Read

ID = Read([("CLIENT", "ID")], lambda reply: reply[0])


async def test_a_connection_that_rests_is_used_again(redis_url: str) -> None:
    store = AsyncStore(Config(redis_url=redis_url))
    assert await store.read(ID) == await store.read(ID)
    await store.close()


async def test_a_connection_that_was_closed_meanwhile_is_made_anew_and_nobody_hears_of_it(redis_url: str) -> None:
    store = AsyncStore(Config(redis_url=redis_url))
    first = await store.read(ID)
    (connection,) = store._redis.connection_pool._available_connections
    with redis.Redis.from_url(redis_url) as client:
        client.client_kill_filter(_id=first)
    async with asyncio.timeout(30):
        assert await connection._reader.read() == b""
    assert await store.read(ID) != first
    await store.close()


async def test_who_waits_for_the_only_connection_gets_it_in_turn(redis_url: str) -> None:
    store = AsyncStore(Config(redis_url=f"{redis_url}&max_connections=1"))
    async with asyncio.timeout(30):
        replies = await asyncio.gather(*(store.read(ID) for _ in range(20)))
    assert len(set(replies)) == 1
    pool = store._redis.connection_pool
    assert len(pool._available_connections) == 1
    assert not pool._in_use_connections
    await store.close()
