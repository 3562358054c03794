"""A Redis client for a library that speaks Redis itself, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from stoker.config import Config
from stoker.errors import ConfigError, RedisUnavailable
from stoker.store.address import redact, sync_client

ForeignClient = redis.Redis
"""The client that a library is given; named here, for nothing outside the store imports redis."""

RETRIES = 20
LONGEST_PAUSE_S = 1.0


def batch_client(config: Config, *, patient: bool = False) -> redis.Redis:
    """Return a client of its own for RQ, which changes the pool it is given.

    A `patient` one repeats commands for some 15 s while Redis is away, so that RQ's worker does not end over it. Then
    RQ may have a command run twice: a job that is queued twice finds the lease taken and ends.
    """
    retry = Retry(ExponentialBackoff(cap=LONGEST_PAUSE_S, base=0.05), RETRIES if patient else 0)
    return sync_client(_own(config), 0.0, protocol=3, legacy_responses=True, retry=retry)


def _own(config: Config) -> Config:
    """Return settings whose Redis is that of batch files."""
    return config.model_copy(update={"redis_url": config.batch_redis_url or config.redis_url})


def _where(config: Config) -> str:
    return redact(_own(config).redis_url or "")


def check_no_cluster(config: Config, client: redis.Redis) -> None:
    """Raise `ConfigError` on a Redis that is part of a cluster: RQ's keys cannot lie on one node there."""
    with translated(config, "look at the Redis of batch files"):
        info: Any = client.info("cluster")
    if info.get("cluster_enabled"):
        raise ConfigError(
            f"batch files need a Redis that is no cluster, and {_where(config)} is one; "
            "name another with STOKER_BATCH_REDIS_URL"
        )


@contextmanager
def translated(config: Config, what: str) -> Iterator[None]:
    """Raise `RedisUnavailable` for errors of the connection in a block that lets a library use Redis."""
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        raise RedisUnavailable(f"{what}: Redis at {_where(config)}: {error}") from error
