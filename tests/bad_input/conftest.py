"""Fixtures of the tests of bad input: clients, the command line, and one stack for all that reaches its worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from stack_processes import HEARTBEAT_MS, Stack, lasting_stack
from stoker import AsyncClient, Client, Config
from stoker.cli import main
from stoker_ops.embedded import ServerBinary

Cli = Callable[..., Result]


@pytest.fixture
def config(redis_url: str) -> Config:
    """Settings that make waiting short."""
    return Config(redis_url=redis_url, heartbeat_ms=HEARTBEAT_MS, retry_timeout_s=1)


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
def cli(redis_url: str) -> Cli:
    """Runs `stoker` with these arguments."""

    def run(*arguments: str, answer: bytes | None = None, **environment: str | None) -> Result:
        settings = {"STOKER_REDIS_URL": redis_url, "STOKER_HEARTBEAT_MS": str(HEARTBEAT_MS), "COLUMNS": "200"}
        return CliRunner().invoke(main, arguments, input=answer, env=settings | environment)

    return run


@pytest.fixture(scope="module")
def served(server_binary: ServerBinary) -> Iterator[Stack]:
    """A scheduler and a real worker, the same for all tests of a module: it must survive them all."""
    with lasting_stack(server_binary) as stack:
        stack.scheduler()
        stack.worker("one", "--profile", "zero", "--kv-cache-tokens", "1000")
        yield stack
