"""Where Redis is: one server, or the master that Sentinels name; and the redis-py client for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry

from stoker.config import Config
from stoker.errors import ConfigError

POOL = 64
BLOCK_GRACE_S = 5.0

SERVER_SCHEMES = ("redis://", "rediss://", "unix://")
SENTINEL_SCHEMES = ("redis+sentinel://", "rediss+sentinel://")
SENTINEL_PORT = 26_379
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SECRETS = ("username=", "password=", "sentinel_username=", "sentinel_password=")


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """`redis+sentinel://[user:password@]host:port,host:port/SERVICE[/DB][?sentinel_password=...]`.

    User and password are those of the Redis servers; the Sentinels' own stand in the query. With `rediss+sentinel://`
    the servers are reached by TLS, and the query may have `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile`.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    db: int
    username: str | None
    password: str | None
    sentinel: dict[str, str]
    tls: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> SentinelAddress:
        """Return the address in `url`; raises `ConfigError` with the form it must have."""
        parts = urlsplit(url)
        user, _, hosts = parts.netloc.rpartition("@")
        username, _, password = user.partition(":")
        service, _, db = parts.path.removeprefix("/").partition("/")
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        encrypted = parts.scheme.startswith("rediss")
        known = {*_SENTINEL_OPTIONS, *(_TLS_OPTIONS if encrypted else ())}
        addresses = [re.fullmatch(r"(\[[^]]+\]|[^:]+)(?::(\d+))?", host) for host in hosts.split(",")]
        if not service or not re.fullmatch(r"\d*", db) or not all(addresses) or set(query) - known:
            form = "redis+sentinel://host:port,host:port/SERVICE/DB[?sentinel_password=...]"
            raise ConfigError(f"redis_url: must have the form {form}, got {redact(url)!r}")
        return cls(
            hosts=tuple((found[1].strip("[]"), int(found[2] or SENTINEL_PORT)) for found in addresses if found),
            service=unquote(service),
            db=int(db or 0),
            username=unquote(username) or None,
            password=unquote(password) or None,
            sentinel={name.removeprefix("sentinel_"): query[name] for name in _SENTINEL_OPTIONS if name in query},
            tls={"ssl": encrypted, **{name: query[name] for name in _TLS_OPTIONS if name in query}},
        )

    def options(self, config: Config, block_s: float, **changed: Any) -> dict[str, Any]:
        """Return the options of both kinds of redis-py's `Sentinel`, and of its pool."""
        own = redis_options(config, block_s=block_s) | changed
        # A pool of Sentinel's refuses at its limit instead of waiting; that reads as a server that does not answer.
        del own["timeout"]
        asking = {
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": config.connect_timeout_s,
            "socket_timeout": config.connect_timeout_s,
        }
        login = {"db": self.db, "username": self.username, "password": self.password, **self.tls}
        return {"sentinels": list(self.hosts), "sentinel_kwargs": asking | self.sentinel, **own, **login}


def reply_timeout_s(config: Config, block_s: float) -> float:
    """Return the deadline of a reply, of a connection that blocks for `block_s`."""
    return block_s + BLOCK_GRACE_S if block_s else config.socket_timeout_s


def redis_options(config: Config, *, block_s: float = 0.0) -> dict[str, Any]:
    """Return the options of every connection; one that blocks for `block_s` gets that much longer for its reply."""
    return {
        "protocol": 3,
        "legacy_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": config.connect_timeout_s,
        "socket_timeout": reply_timeout_s(config, block_s),
        "max_connections": POOL,
        "timeout": config.socket_timeout_s,
        # Nobody reads it, and a user who may not send it would fill the log of what was denied.
        "driver_info": None,
    }


def checked_url(config: Config) -> str:
    """Return the URL to connect to; raises `ConfigError` when there is none or it cannot be one."""
    url = config.redis_url
    if not url:
        raise ConfigError("no Redis: start a stack here with `stoker up`, or set STOKER_REDIS_URL")
    if url.startswith(SENTINEL_SCHEMES):
        SentinelAddress.parse(url)
    elif not url.startswith(SERVER_SCHEMES):
        schemes = ", ".join((*SERVER_SCHEMES, SENTINEL_SCHEMES[0]))
        raise ConfigError(f"redis_url: must begin with one of {schemes}, got {redact(url)!r}")
    return url


def redact(url: str) -> str:
    """Return the URL without its user and password, wherever they stand in it."""
    scheme, _, rest = url.partition("://")
    plain, _, query = rest.rpartition("@")[2].partition("?")
    kept = "&".join(part for part in query.split("&") if part and not part.startswith(_SECRETS))
    return f"{scheme}://{plain}" + (f"?{kept}" if kept else "")


def sync_client(config: Config, block_s: float, **changed: Any) -> redis.Redis:
    """Return a client that blocks; it connects lazily. `changed` go before the options of every connection."""
    url = checked_url(config)
    if url.startswith(SENTINEL_SCHEMES):
        address = SentinelAddress.parse(url)
        sentinel = redis.sentinel.Sentinel(**address.options(config, block_s, **changed))  # type: ignore[no-untyped-call]
        return cast("redis.Redis", sentinel.master_for(address.service))  # type: ignore[no-untyped-call]  # theirs
    options = redis_options(config, block_s=block_s) | changed
    return redis.Redis.from_pool(_pool(redis.BlockingConnectionPool, url, options))


def async_client(config: Config) -> redis.asyncio.Redis:
    """Return a client to await; it connects lazily, and waits for replies without end: who calls it sets a deadline.

    A deadline of redis-py costs a task for each send before Python 3.12, and a timer for each reply.
    """
    url = checked_url(config)
    if url.startswith(SENTINEL_SCHEMES):
        address = SentinelAddress.parse(url)
        sentinel = redis.asyncio.sentinel.Sentinel(**address.options(config, 0.0, socket_timeout=None))  # type: ignore[no-untyped-call]
        client = cast("redis.asyncio.Redis", sentinel.master_for(address.service))
        _pack_in_c(client.connection_pool)
        return client
    options = redis_options(config) | {"socket_timeout": None}
    pool = _pool(redis.asyncio.BlockingConnectionPool, url, options)
    _pack_in_c(pool)
    return redis.asyncio.Redis.from_pool(pool)


class _PacksInC:
    """A connection to await whose commands are packed by hiredis, as redis-py does for those that block alone.

    What redis-py does here takes as long as all else of a call with the arguments of hundreds of requests.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return a command as it goes over the wire."""
        return cast("list[bytes]", _SERIALIZER.pack(*args))


_SERIALIZER = HiredisRespSerializer()


def _pack_in_c(pool: Any) -> None:
    pool.connection_class = type(pool.connection_class.__name__, (_PacksInC, pool.connection_class), {})


def _pool(kind: Any, url: str, options: dict[str, Any]) -> Any:
    """Return a pool of this kind; raises `ConfigError` for a URL with a port, a database or an option that is none."""
    try:
        pool = kind.from_url(url, **options)
        # Made, not connected: else an unknown option in the URL would be found by the first command.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):  # whose words may have a piece of the password
        raise ConfigError(f"redis_url: its port, its database or an option is none, got {redact(url)!r}") from None
    return pool
