"""What the ties of both clients to Redis share: their settings, how often they look, and whether Redis answers."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator

from stoker._outstanding import Pending
from stoker.config import Config, check_name, load_config
from stoker.errors import RedisUnavailable
from stoker.store.address import checked_url

log = logging.getLogger("stoker")

SWEEP_S = 1.0
"""How long a lost wake-up goes unnoticed."""

TROUBLE_S = 1.0
"""The longest pause between two tries to read wake-ups from a Redis that is away."""

POLL_S = 0.25
"""The longest pause between two looks at a request that no wake-up comes for."""


def client_config(redis_url: str | None, queue: str | None, config: Config | None) -> Config:
    """Return a client's settings: `config`, else the environment's, with the other two on top.

    Where nothing names a Redis it is that of the stack that runs here. Raises `ConfigError`, and `InvalidRequest` for a
    queue's name that no key may have.
    """
    if queue is not None:
        check_name("queue", queue)
    if config is None:
        config = load_config(redis_url=redis_url, queue=queue)
    elif redis_url is not None or queue is not None:
        config = load_config(
            **config.model_dump() | {"redis_url": redis_url or config.redis_url, "queue": queue or config.queue}
        )
    if not config.redis_url:
        from stoker.command import local_url

        config = config.model_copy(update={"redis_url": local_url(config)})
    checked_url(config)
    return config


def seconds_left(deadline: float | None) -> float | None:
    """Return the time until a deadline, 0 when it is over, None for no deadline."""
    # No lock takes more than TIMEOUT_MAX (292 years), and somebody may well ask for math.inf.
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)


def poll_pauses() -> Iterator[float]:
    """Give the pauses between two looks at a request that no wake-up comes for."""
    return itertools.chain((min(POLL_S, 0.005 * 2**i) for i in range(6)), itertools.repeat(POLL_S))


class Contact:
    """Since when Redis does not answer, so that who waits without a limit does not wait in vain."""

    def __init__(self, config: Config) -> None:
        """Assume that Redis answers."""
        self._patience_s = config.retry_timeout_s
        self._lock = threading.Lock()
        self._failure: tuple[float, RedisUnavailable] | None = None

    def good(self) -> None:
        """Redis answered."""
        with self._lock:
            failure, self._failure = self._failure, None
        if failure:
            log.info("Redis is back after %.1f s", time.monotonic() - failure[0])

    def bad(self, error: RedisUnavailable) -> None:
        """Redis did not answer, or refused."""
        with self._lock:
            failure = self._failure
            self._failure = (failure[0] if failure else time.monotonic(), error)
        if failure is None:
            log.warning("Redis is lost, trying again: %s", error)

    @property
    def error(self) -> RedisUnavailable | None:
        """The last error, None while Redis answers."""
        return self._failure[1] if self._failure else None

    @property
    def lost(self) -> RedisUnavailable | None:
        """The last error, once Redis is away for longer than a call is repeated."""
        failure = self._failure
        return failure[1] if failure and time.monotonic() - failure[0] >= self._patience_s else None


def stream_block_ms(most_ms: int, pending: Pending, nonce: str, left_s: float | None) -> int:
    """Return how long to wait for tokens, 0 for not at all: what has ended lies there whole, or is gone."""
    if pending.response is not None or not nonce:
        return 0
    return min(most_ms, most_ms if left_s is None else int(left_s * 1000))
