"""Fixtures of the clients' tests: clients of a real Redis, a worker whose answers tests know, and a fake Redis."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import fakeredis
import pytest
import pytest_asyncio

from helpers import wait_until
from sdk.fleet import Fleet
from stoker.async_client import AsyncClient
from stoker.client import Client
from stoker.config import Config
from stoker.store.connection import Store


@pytest.fixture
def config(redis_url: str) -> Config:
    """Settings that make heartbeats and retries short."""
    return Config(redis_url=redis_url, heartbeat_ms=100, backoff_min_ms=1, backoff_max_ms=1)


@pytest.fixture
def fleet(config: Config) -> Iterator[Fleet]:
    """A scheduler and a worker that run."""
    with Fleet(config) as fleet:
        yield fleet


@pytest.fixture
def client(config: Config) -> Iterator[Client]:
    """A client of the server of this test process."""
    with Client(config=config) as client:
        yield client


@pytest_asyncio.fixture
async def aclient(config: Config) -> AsyncIterator[AsyncClient]:
    """An awaited client of the server of this test process."""
    async with AsyncClient(config=config) as client:
        yield client


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeServer:
    """A Redis inside this process, which every client of the test uses. `connected = False` takes it down."""
    server = fakeredis.FakeServer()

    def store(config: Config, *, block_s: float = 0.0) -> Store:
        redis = fakeredis.FakeRedis(server=server, protocol=3, legacy_responses=False)
        return Store(config, block_s=block_s, client=redis)

    monkeypatch.setattr("stoker._link.Store", store)
    return server


@pytest.fixture
def fake_client(fake: fakeredis.FakeServer) -> Iterator[Client]:
    """A client of the fake Redis."""
    with Client(config=Config(redis_url="redis://fake", retry_timeout_s=0.2)) as client:
        yield client


@pytest.fixture(autouse=True)
def no_stray_threads() -> Iterator[None]:
    """Fail a test whose clients leave threads behind."""
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before, what="no threads are left")
