"""One scheduler leads, the others stand by."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis

from stoker import Config, ConfigError
from stoker.store.connection import AsyncStore
from stoker.store.keys import Keys
from stoker_scheduler.leader import Leadership


@pytest.fixture
def config(redis_url: str) -> Config:
    return Config(redis_url=redis_url)


@pytest_asyncio.fixture
async def store(config: Config) -> AsyncIterator[AsyncStore]:
    store = AsyncStore(config)
    yield store
    await store.close()


@pytest.fixture
def keys(config: Config) -> Keys:
    return Keys(config.queue)


async def test_the_first_leads_and_the_second_stands_by(store: AsyncStore, config: Config) -> None:
    first, second = Leadership(store, config), Leadership(store, config)
    await first.tick()
    await second.tick()
    assert (first.leads.is_set(), second.leads.is_set()) == (True, False)
    assert second.token == ""


async def test_a_standby_takes_over_at_once_when_the_leader_resigns(store: AsyncStore, config: Config) -> None:
    first, second = Leadership(store, config), Leadership(store, config)
    await first.tick()
    before = first.token
    await first.resign()
    await second.tick()
    assert second.leads.is_set()
    assert int(second.token.split(":")[0]) == int(before.split(":")[0]) + 1


async def test_a_leader_renews_its_token_and_numbers_its_dispatches(store: AsyncStore, config: Config) -> None:
    leader = Leadership(store, config)
    await leader.tick()
    token = leader.token
    await leader.tick()
    assert leader.token == token
    assert [leader.dispatch("w:1-a", []).args[1] for _ in range(3)] == [1, 2, 3]


async def test_a_deposed_leader_comes_back_under_another_nonce(
    store: AsyncStore, config: Config, redis_url: str, keys: Keys
) -> None:
    leader = Leadership(store, config)
    await leader.tick()
    before = leader.token
    with redis.Redis.from_url(redis_url) as client:
        client.hset(keys.leader, "token", "9:other:nonce")
    await leader.tick()
    assert not leader.leads.is_set()
    with redis.Redis.from_url(redis_url) as client:
        client.hset(keys.leader, "until", "0")
    await leader.tick()
    assert leader.leads.is_set()
    assert leader.token.split(":")[1:] != before.split(":")[1:]


async def test_another_history_is_noticed_before_anything_is_led(
    store: AsyncStore, config: Config, redis_url: str, keys: Keys
) -> None:
    leader = Leadership(store, config)
    await leader.tick()
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.set(keys.generation, "another")
    await leader.tick()
    assert not leader.leads.is_set()
    await leader.tick()
    assert leader.leads.is_set()


async def test_another_heartbeat_is_refused_with_both_numbers(
    store: AsyncStore, config: Config, redis_url: str, keys: Keys
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(keys.prefix + "h", "250000")
    with pytest.raises(ConfigError, match="250, got 1000"):
        await Leadership(store, config).tick()
