"""Where Redis is: one server, the master that Sentinels name, a node of a cluster; and the redis-py client for it."""

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
from redis.retry import Retry

from stoker.config import Config
from stoker.errors import ConfigError
from stoker.store import cluster, pools
from stoker.store.keys import Keys

POOL = 64
BLOCK_GRACE_S = 5.0

SERVER_SCHEMES = ("redis://", "rediss://", "unix://")
SENTINEL_SCHEMES = ("redis+sentinel://", "rediss+sentinel://")
SENTINEL_PORT = 26_379
CLUSTER_SCHEMES = ("redis+cluster://", "rediss+cluster://")
CLUSTER_PORT = 6379
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SECRETS = ("username=", "password=", "sentinel_username=", "sentinel_password=")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a URL with several hosts has; without any host where one of them is none."""

    encrypted: bool
    hosts: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None
    path: str
    query: dict[str, str]

    @classmethod
    def of(cls, url: str, port: int) -> _Parts:
        parts = urlsplit(url)
        user, _, hosts = parts.netloc.rpartition("@")
        username, _, password = user.partition(":")
        addresses = [re.fullmatch(r"(\[[^]]+\]|[^:]+)(?::(\d+))?", host) for host in hosts.split(",")]
        found = tuple((address[1].strip("[]"), int(address[2] or port)) for address in addresses if address)
        return cls(
            encrypted=parts.scheme.startswith("rediss"),
            hosts=found if len(found) == len(addresses) else (),
            username=unquote(username) or None,
            password=unquote(password) or None,
            path=parts.path.removeprefix("/"),
            query={name: values[-1] for name, values in parse_qs(parts.query).items()},
        )

    @property
    def tls_options(self) -> tuple[str, ...]:
        return _TLS_OPTIONS if self.encrypted else ()

    @property
    def tls(self) -> dict[str, str]:
        return {name: self.query[name] for name in self.tls_options if name in self.query}


def _cluster_options(url: str, key: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a connection to the node that has `key`.

    The URL's form is `redis+cluster://[user:password@]host:port,host:port`, of some nodes: they know the others. Raises
    `ConfigError` for another one. With `rediss+cluster://` all are reached by TLS, and the query may have
    `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile`.
    """
    parts = _Parts.of(url, CLUSTER_PORT)
    if parts.path or not parts.hosts or set(parts.query) - {*parts.tls_options}:
        form = "redis+cluster://[user:password@]host:port,host:port"
        raise ConfigError(f"redis_url: must have the form {form}, got {redact(url)!r}")
    login = {"username": parts.username, "password": parts.password, **parts.tls}
    return options | login | {"nodes": cluster.Nodes(parts.hosts, key)}


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
        parts = _Parts.of(url, SENTINEL_PORT)
        service, _, db = parts.path.partition("/")
        known = {*_SENTINEL_OPTIONS, *parts.tls_options}
        if not service or not re.fullmatch(r"\d*", db) or not parts.hosts or set(parts.query) - known:
            form = "redis+sentinel://host:port,host:port/SERVICE/DB[?sentinel_password=...]"
            raise ConfigError(f"redis_url: must have the form {form}, got {redact(url)!r}")
        query = parts.query
        return cls(
            hosts=parts.hosts,
            service=unquote(service),
            db=int(db or 0),
            username=parts.username,
            password=parts.password,
            sentinel={name.removeprefix("sentinel_"): query[name] for name in _SENTINEL_OPTIONS if name in query},
            tls={"ssl": parts.encrypted, **parts.tls},
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
    elif url.startswith(CLUSTER_SCHEMES):
        _cluster_options(url, "", {})
    elif not url.startswith(SERVER_SCHEMES):
        schemes = ", ".join((*SERVER_SCHEMES, SENTINEL_SCHEMES[0], CLUSTER_SCHEMES[0]))
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
    if url.startswith(CLUSTER_SCHEMES):
        kind = cluster.TlsConnection if url.startswith("rediss") else cluster.PlainConnection
        options = _cluster_options(url, Keys(config.tag).generation, options)
        pool = redis.BlockingConnectionPool(connection_class=kind, **options)  # type: ignore[no-untyped-call]  # theirs
        return redis.Redis.from_pool(pool)
    return redis.Redis.from_pool(_pool(redis.BlockingConnectionPool, url, options))


def async_client(config: Config) -> redis.asyncio.Redis:
    """Return a client to await; it connects lazily, and waits for replies without end: who calls it sets a deadline.

    A deadline of redis-py costs a task for each send before Python 3.12, and a timer for each reply.
    """
    url = checked_url(config)
    if url.startswith(SENTINEL_SCHEMES):
        address = SentinelAddress.parse(url)
        sentinel = redis.asyncio.sentinel.Sentinel(**address.options(config, 0.0, socket_timeout=None))  # type: ignore[no-untyped-call]
        client = cast(
            "redis.asyncio.Redis", sentinel.master_for(address.service, connection_pool_class=pools.SentinelPool)
        )
        return client
    options = redis_options(config) | {"socket_timeout": None}
    if url.startswith(CLUSTER_SCHEMES):
        kind = cluster.AsyncTlsConnection if url.startswith("rediss") else cluster.AsyncPlainConnection
        options = _cluster_options(url, Keys(config.tag).generation, options)
        pool: Any = pools.Pool(connection_class=kind, **options)
    else:
        pool = _pool(pools.Pool, url, options)
    return redis.asyncio.Redis.from_pool(pool)


def _pool(kind: Any, url: str, options: dict[str, Any]) -> Any:
    """Return a pool of this kind; raises `ConfigError` for a URL with a port, a database or an option that is none."""
    try:
        pool = kind.from_url(url, **options)
        # Made, not connected: else an unknown option in the URL would be found by the first command.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):  # whose words may have a piece of the password
        raise ConfigError(f"redis_url: its port, its database or an option is none, got {redact(url)!r}") from None
    return pool
