"""Running calls and reads against Redis, blocking or awaited; the one place where its errors become ours.

redis-py's own retries are off: they send a command again that may have run. Here only scripts and reads are repeated,
which do the same once or twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from hiredis import pack_command
from redis import exceptions

from stoker.config import Config
from stoker.errors import RedisUnavailable
from stoker.store.address import async_client, redact, reply_timeout_s, sync_client
from stoker.store.keys import Keys
from stoker.store.scripts import Call, load_scripts

T = TypeVar("T")
Command = tuple[str | bytes | int | float, ...]

REFUSALS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY ")
"""How Redis says that it cannot do it now; on 6.2 an error inside a script is plain text with one of these in it."""

REFUSING = (
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
)
"""The same from Redis 7, where redis-py takes the word off the text and makes a type of it."""


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """Commands that change nothing, sent together, whose replies `parse` makes a value of.

    `what` says in errors what was tried. Where Redis refuses one past the first `required` (all, if None), its reply is
    None: an ACL may forbid INFO.
    """

    commands: Sequence[Command]
    parse: Callable[[list[Any]], T]
    what: str = "read"
    required: int | None = None


class Unreachable(RedisUnavailable):
    """Redis did not answer, still loads its data, or is no master any more: the call is worth repeating."""


def demoted(error: Exception) -> bool:
    """Return whether a server refuses because it is a replica: after a failover another one is the master.

    In a cluster the keys may have moved to another node, or be about to. UNBLOCKED is what a blocking read hears in the
    moment when it happens.
    """
    moved = (exceptions.ReadOnlyError, exceptions.AskError, exceptions.TryAgainError)
    return isinstance(error, moved) or re.search("READONLY|UNBLOCKED", str(error)) is not None


def cut_off(error: Exception) -> bool:
    """Return whether all connections to this server are of no use any more, not just the one that failed.

    A server at its limit of clients, or one that loads its data, goes on serving the connections that it has.
    """
    if isinstance(error, exceptions.BusyLoadingError) or "max number of clients" in str(error):
        return False
    return demoted(error) or isinstance(error, exceptions.ConnectionError | OSError)


def new_id() -> str:
    """Return 16 random hex digits: a nonce, a client's name, a generation."""
    return os.urandom(8).hex()


class _Base:
    """What both stores share: the scripts, the keys, and the meaning of errors."""

    timed: Callable[[str, float], object] | None = None
    """Set: hears of each script that was answered, and after how many seconds."""

    def __init__(self, config: Config, *, clock: str | None = None) -> None:
        self.config = config
        self.keys = Keys(config.tag)
        self._scripts = load_scripts(config, clock)
        self._since: float | None = None

    def _evalsha(self, call: Call[Any]) -> Command:
        return ("EVALSHA", self._scripts[call.script].sha, 1, self.keys.prefix, *call.args)

    def _eval(self, call: Call[Any]) -> Command:
        return ("EVAL", self._scripts[call.script].source, 1, self.keys.prefix, *call.args)

    def _ours(self, error: Exception, what: str) -> Exception:
        """Return the error of this package that `error` means while doing `what`."""
        text = str(error)
        where = redact(self.config.redis_url or "")
        if isinstance(error, exceptions.AuthenticationError) or re.search("NOAUTH|WRONGPASS|NOPERM", text):
            return RedisUnavailable(f"{what}: Redis at {where} refuses the credentials ({text[:200]})")
        if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
            self._since = self._since or time.monotonic()
            gone = time.monotonic() - self._since
            return Unreachable(
                f"{what}: Redis at {where} does not answer since {gone:.1f} s ({text or type(error).__name__})"
            )
        if isinstance(error, exceptions.AskError | exceptions.TryAgainError):
            fix = "" if "+cluster:" in where else "; a URL with redis+cluster:// finds it"
            return Unreachable(f"{what}: the queue lies on another node of the cluster than {where} ({text[:99]}){fix}")
        if demoted(error):
            return Unreachable(f"{what}: Redis at {where} is no master now ({text[:200]})")
        if isinstance(error, REFUSING) or any(word in text for word in REFUSALS):
            return RedisUnavailable(f"{what}: Redis at {where} refuses for now ({text[:200]})")
        return error


class Store(_Base):
    """One queue in one Redis, blocking. May be shared by threads."""

    def __init__(self, config: Config, *, block_s: float = 0.0, clock: str | None = None, client: Any = None) -> None:
        """Connect lazily; `block_s` is how long reads may block; `client` replaces the redis-py client in tests."""
        super().__init__(config, clock=clock)
        self._redis = client or sync_client(config, block_s)

    def run(self, call: Call[T]) -> T:
        """Make the call; raises `RedisUnavailable`."""
        started = time.monotonic()
        reply = self._guard(call.script, lambda: self._call(call))
        if self.timed:
            self.timed(call.script, time.monotonic() - started)
        return call.parse(reply)

    def read(self, read: Read[T]) -> T:
        """Read; raises `RedisUnavailable`."""
        return read.parse(self._guard(read.what, lambda: self._commands(read)))

    def run_patiently(self, call: Call[T]) -> T:
        """Make the call, again for `retry_timeout_s` while Redis does not answer; raises `RedisUnavailable`."""
        return self._patiently(lambda: self.run(call))

    def read_patiently(self, read: Read[T]) -> T:
        """Read, again while Redis does not answer, for at most `retry_timeout_s`; raises `RedisUnavailable`."""
        return self._patiently(lambda: self.read(read))

    def post(self, call: Call[T]) -> Posted[T]:
        """Send the call now, and read its reply later; nothing may follow it (`then`)."""
        return Posted(self, call)

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()

    def _patiently(self, once: Callable[[], T]) -> T:
        try:
            return once()
        except Unreachable as error:
            last = error
        for pause in _pauses(self.config):
            time.sleep(pause)
            try:
                return once()
            except Unreachable as error:
                last = error
        raise last

    def _call(self, call: Call[Any]) -> list[Any]:
        try:
            return self._send(self._evalsha(call), call)
        except exceptions.NoScriptError:
            return self._send(self._eval(call), call)

    def _send(self, command: Command, call: Call[Any]) -> list[Any]:
        if call.then is None:
            return cast("list[Any]", _reply(self._exchange([command])))
        return self._commands(_together(command, call))

    def _commands(self, read: Read[Any]) -> list[Any]:
        return _replies(read, self._exchange(read.commands))

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands together, and return their replies or errors.

        On a connection of the pool, without what redis-py does around each command: that takes several times as long.
        """
        pool, replies = self._redis.connection_pool, []
        connection = pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            for name, *_ in commands:
                try:
                    replies.append(self._redis.parse_response(connection, name))
                except exceptions.ResponseError as error:
                    replies.append(error)
        except BaseException:
            connection.disconnect()  # what is still to come must not be taken for the reply to something else
            raise
        finally:
            pool.release(connection)
        return replies

    def _guard(self, what: str, attempt: Callable[[], list[Any]]) -> list[Any]:
        try:
            reply = attempt()
        except (exceptions.RedisError, OSError) as error:
            if cut_off(error):
                # Else each idle one would fail a later call. Who is the master is looked up when one is made.
                self._redis.connection_pool.disconnect(inuse_connections=False)
            raise self._ours(error, what) from error
        self._since = None
        return reply


class Posted(Generic[T]):
    """A call that is under way while its caller does something else."""

    def __init__(self, store: Store, call: Call[T]) -> None:
        """Send the call, if Redis answers now."""
        self.call = call
        self._store = store
        self._pool = store._redis.connection_pool
        self._connection: Any = None
        with contextlib.suppress(exceptions.RedisError, OSError):
            self._connection = self._pool.get_connection()
        if self._connection:
            self._guard(lambda: self._connection.send_command(*store._evalsha(call)))

    def reply(self, *, patiently: bool) -> T:
        """Return what `run` or `run_patiently` gives, or raise what it raises: the call is made again if it failed."""
        reply: Any = self._guard(lambda: self._connection.read_response()) if self._connection else None
        if not self._connection:
            return self._store.run_patiently(self.call) if patiently else self._store.run(self.call)
        self._pool.release(self._connection)
        self._connection = None
        return self.call.parse(reply if self.call.then is None else [reply])

    def drop(self) -> None:
        """Give up a call whose reply nobody wants: nobody else may read it."""
        if self._connection:
            self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None

    def _guard(self, attempt: Callable[[], Any]) -> Any:
        try:
            return attempt()
        except BaseException as error:
            self.drop()
            if not isinstance(error, exceptions.RedisError | OSError):
                raise


class AsyncStore(_Base):
    """One queue in one Redis, awaited. Belongs to the event loop that first uses it."""

    def __init__(self, config: Config, *, block_s: float = 0.0, clock: str | None = None, client: Any = None) -> None:
        """Connect lazily; `block_s` is how long reads may block; `client` replaces the redis-py client in tests."""
        super().__init__(config, clock=clock)
        self._redis = client or async_client(config)
        self._shapes: dict[Any, Callable[..., Any]] = dict(self._redis.response_callbacks)
        self._timeout_s = reply_timeout_s(config, block_s)

    async def run(self, call: Call[T]) -> T:
        """Make the call; raises `RedisUnavailable`."""
        started = time.monotonic()
        reply = await self._guard(call.script, lambda: self._call(call))
        if self.timed:
            self.timed(call.script, time.monotonic() - started)
        return call.parse(reply)

    async def read(self, read: Read[T]) -> T:
        """Read; raises `RedisUnavailable`."""
        return read.parse(await self._guard(read.what, lambda: self._commands(read)))

    async def run_patiently(self, call: Call[T]) -> T:
        """Make the call, again for `retry_timeout_s` while Redis does not answer; raises `RedisUnavailable`."""
        return await self._patiently(lambda: self.run(call))

    async def read_patiently(self, read: Read[T]) -> T:
        """Read, again while Redis does not answer, for at most `retry_timeout_s`; raises `RedisUnavailable`."""
        return await self._patiently(lambda: self.read(read))

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _patiently(self, once: Callable[[], Awaitable[T]]) -> T:
        try:
            return await once()
        except Unreachable as error:
            last = error
        for pause in _pauses(self.config):
            await asyncio.sleep(pause)
            try:
                return await once()
            except Unreachable as error:
                last = error
        raise last

    async def _call(self, call: Call[Any]) -> list[Any]:
        try:
            return await self._send(self._evalsha(call), call)
        except exceptions.NoScriptError:
            return await self._send(self._eval(call), call)

    async def _send(self, command: Command, call: Call[Any]) -> list[Any]:
        if call.then is None:
            return cast("list[Any]", _reply(await self._exchange([command])))
        return await self._commands(_together(command, call))

    async def _commands(self, read: Read[Any]) -> list[Any]:
        return _replies(read, await self._exchange(read.commands))

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands together, as `Store` does; one deadline for all of it.

        Packed and read without what redis-py does around each of them: for a look at the queue that took as long again.
        """
        pool, replies = self._redis.connection_pool, []
        async with asyncio.timeout(self._timeout_s):
            connection = await pool.get_connection()
            try:
                await connection.send_packed_command(list(map(_pack, commands)))
                for name, *_ in commands:
                    try:
                        reply = await connection.read_response()
                    except exceptions.ResponseError as error:
                        reply = error
                    else:
                        shape = self._shapes.get(str(name))
                        reply = shape(reply) if shape else reply
                    replies.append(reply)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            finally:
                await pool.release(connection)
        return replies

    async def _guard(self, what: str, attempt: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        try:
            reply = await attempt()
        except (exceptions.RedisError, OSError, RuntimeError) as failure:
            error = _of_redis(failure)
            if cut_off(error):
                await self._redis.connection_pool.disconnect(inuse_connections=False)
            raise self._ours(error, what) from failure
        self._since = None
        return reply


_pack = cast("Callable[[Command], bytes]", pack_command)  # whose stub knows tuples of one


def _of_redis(failure: exceptions.RedisError | OSError | RuntimeError) -> exceptions.RedisError | OSError:
    """Return what went wrong with Redis; raises what did not.

    Where a connection was closed meanwhile, asyncio's own loop raises an `OSError`, and uvloop a `RuntimeError`.
    """
    if not isinstance(failure, RuntimeError):
        return failure
    if not str(failure).startswith("unable to perform operation on <"):
        raise failure
    return exceptions.ConnectionError(str(failure))


def _together(command: Command, call: Call[Any]) -> Read[Any]:
    """A script and what is sent behind it, whose refusal is not the script's."""
    return Read([command, *map(tuple, call.then or ())], call.parse, required=1)


def _reply(replies: list[Any]) -> Any:
    """The reply to the only command; raises it where it is an error."""
    (reply,) = replies
    if isinstance(reply, Exception):
        raise reply
    return reply


def _replies(read: Read[Any], replies: list[Any]) -> list[Any]:
    for reply in replies[: read.required]:
        if isinstance(reply, Exception):
            raise reply
    return [None if isinstance(reply, Exception) else reply for reply in replies]


def _pauses(config: Config) -> Iterator[float]:
    """Give the pauses between repeated calls: doubling to 1 s, each cut at random, until `retry_timeout_s` is over."""
    deadline, pause = time.monotonic() + config.retry_timeout_s, 0.05
    while (left := deadline - time.monotonic()) > 0:
        # Clients that lost the same server must not come back in step.
        yield min(left, pause * (0.5 + os.urandom(1)[0] / 510))
        pause = min(2 * pause, 1.0)
