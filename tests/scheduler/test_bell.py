"""A scheduler hears the bell, or looks by itself in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import redis

from helpers import wait_until
from stoker import Config, RedisUnavailable
from stoker.store.keys import Keys
from stoker_scheduler.bell import Bell

LONG_S = 30.0
RINGS = Keys("default").bell


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest_asyncio.fixture
async def bell(redis_url: str) -> AsyncIterator[Bell]:
    bell = Bell(Config(redis_url=redis_url, block_ms=2000))
    yield bell
    await bell.close()


def listeners(server: redis.Redis) -> int:
    return server.info("clients")["blocked_clients"]


async def test_a_short_wait_ends_before_the_read_of_redis_does(bell: Bell, server: redis.Redis) -> None:
    await bell.wait(0.05)
    assert listeners(server) == 1


async def test_a_bell_that_rings_between_two_waits_ends_the_second(bell: Bell, server: redis.Redis) -> None:
    await bell.wait(0.05)
    server.rpush(RINGS, "1")
    async with asyncio.timeout(LONG_S):
        await bell.wait(2 * LONG_S)
    assert server.llen(RINGS) == 0


async def test_who_left_takes_no_ring_from_who_leads(bell: Bell, server: redis.Redis) -> None:
    await bell.wait(0.05)
    await bell.leave()
    wait_until(lambda: listeners(server) == 0)
    server.rpush(RINGS, "1")
    assert server.llen(RINGS) == 1


async def test_what_went_wrong_while_nobody_waited_is_said_to_who_waits_next(bell: Bell, server: redis.Redis) -> None:
    await bell.wait(0.05)
    server.client_unblock(next(c["id"] for c in server.client_list() if "b" in c["flags"]), error=True)
    wait_until(lambda: listeners(server) == 0)
    with pytest.raises(RedisUnavailable, match="UNBLOCKED"):
        await bell.wait(LONG_S)
