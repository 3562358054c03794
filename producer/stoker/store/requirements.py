"""What a Redis must be to hold a queue. Schedulers, workers and `stoker up` refuse to start on another one, or with
another number of shards than the queue has.

A client does not ask: on such a Redis nothing serves what it submits, and INFO would cost each one a round trip.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stoker.errors import ConfigError, RedisUnavailable
from stoker.every import Outage, pause
from stoker.store import inspections
from stoker.store.agreement import agree_async
from stoker.store.connection import AsyncStore

OLDEST = (6, 2)
RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a Redis cannot hold a queue, and what puts it right."""

    what: str
    fix: str


def version_name(info: Mapping[str, str]) -> str:
    """Return the server's name and version."""
    # Valkey calls itself a Redis of the version that it is compatible with, and tells its own apart.
    said = info.get("redis_version", "")
    return f"Valkey {info['valkey_version']} (as Redis {said})" if "valkey_version" in info else f"Redis {said}"


def too_old(info: Mapping[str, str]) -> Unfit | None:
    """Scripts need the commands of Redis 6.2."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", info.get("redis_version", ""))[:3])
    return Unfit(f"{version_name(info)} is too old", "use Redis 6.2 or newer, or Valkey") if numbers < OLDEST else None


def evicts(info: Mapping[str, str]) -> Unfit | None:
    """A Redis that evicts throws away requests, silently. INFO tells, also where CONFIG is forbidden."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return Unfit(
        f"maxmemory-policy is {policy}: a full Redis would throw requests away",
        "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
    )


def refuse_unfit(info: Mapping[str, str] | None) -> None:
    """Raise `ConfigError`, one line a problem. What Redis does not tell (an ACL forbids INFO) is no problem."""
    found = [check(info) for check in (too_old, evicts)] if info is not None else []
    lines = [f"{problem.what}; fix: {problem.fix}" for problem in found if problem]
    if lines:
        raise ConfigError("\n".join(lines))


async def check_server(store: AsyncStore, stop: asyncio.Event, outage: Outage) -> None:
    """Wait until Redis answers, or `stop` is set; raises `ConfigError` where it cannot hold this queue."""
    while not stop.is_set():
        try:
            info = await store.read(inspections.info())
            await agree_async(store, patiently=False, claim=True)
        except RedisUnavailable as error:
            outage.lost("start", error)
            await pause(RETRY_S, stop)
        else:
            outage.back("start")
            return refuse_unfit(info)
