"""Which shard a worker serves that was not told one: the one with the fewest workers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from stoker.config import Config
from stoker.errors import RedisUnavailable
from stoker.every import Outage
from stoker.store import lookups, scripts
from stoker.store.agreement import refuse_other
from stoker.store.connection import AsyncStore

log = structlog.get_logger()

RETRY_S = 0.2
LOOK_BEATS = 2
"""For so many heartbeats it is watched who beats."""


async def with_shard(config: Config) -> Config:
    """Return the settings of one shard: that which they name, else of the one with the fewest workers.

    Waits for a Redis that is down. Raises `ConfigError` where the queue has another number of shards.
    """
    outage = Outage()
    while config.spread:
        try:
            shard = await _choose(config)
        except RedisUnavailable as error:
            outage.lost("start", error)
            await asyncio.sleep(RETRY_S)
        else:
            outage.back("start")
            log.info("shard chosen", shard=shard, shards=config.shards)
            config = config.of(shard)
    return config


def alive(before: Mapping[str, float], now: Mapping[str, float]) -> int:
    """Return how many workers beat between two looks: who was killed is registered for a while longer."""
    return sum(beat > before.get(inc, 0.0) for inc, beat in now.items())


def fewest(workers: Sequence[int], ticket: int) -> int:
    """Return the shard with the fewest workers; those who look together have tickets that differ by one."""
    least = [shard for shard, number in enumerate(workers) if number == min(workers)]
    return least[ticket % len(least)]


async def _choose(config: Config) -> int:
    stores = [AsyncStore(part) for part in config.each()]
    try:
        before = [await store.read(lookups.beats(store.keys)) for store in stores]
        await asyncio.sleep(LOOK_BEATS * config.heartbeat_ms / 1000)
        now = [await store.read(lookups.beats(store.keys)) for store in stores]
        agreed = await stores[0].run(scripts.agree(config.shards, tickets=1))
        refuse_other(config, agreed.shards)
        return fewest([alive(*looks) for looks in zip(before, now, strict=True)], agreed.ticket)
    finally:
        for store in stores:
            await store.close()
