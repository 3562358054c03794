"""Which shard a worker serves that was not told one: the one with the fewest workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from stoker.config import Config
from stoker.errors import RedisUnavailable
from stoker.every import Outage
from stoker.store import lookups, scripts
from stoker.store.agreement import refuse_other
from stoker.store.connection import AsyncStore

log = structlog.get_logger()

RETRY_S = 0.2


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


def fewest(workers: Sequence[int], ticket: int) -> int:
    """Return the shard with the fewest workers; those who look together have tickets that differ by one."""
    least = [shard for shard, number in enumerate(workers) if number == min(workers)]
    return least[ticket % len(least)]


async def _choose(config: Config) -> int:
    stores = [AsyncStore(config.of(shard)) for shard in range(config.shards)]
    try:
        agreed = await stores[0].run(scripts.agree(config.shards, tickets=1))
        refuse_other(config, agreed.shards)
        return fewest([await store.read(lookups.worker_count(store.keys)) for store in stores], agreed.ticket)
    finally:
        for store in stores:
            await store.close()
