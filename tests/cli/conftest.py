"""Fixtures of the command line's tests: the command in this process, against a Redis of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sdk.fleet import Fleet
from stack_processes import HEARTBEAT_MS, Stack, is_measured, lasting_stack
from stoker import Client, Config
from stoker.cli import main
from stoker_ops.embedded import ServerBinary

Cli = Callable[..., Result]


@pytest.fixture
def cli(redis_url: str) -> Cli:
    """Runs `stoker` with these arguments, on the server of this test process unless another `url` is given."""

    def run(*arguments: str, url: str = redis_url, answer: str | None = None, **environment: str | None) -> Result:
        settings = {"STOKER_REDIS_URL": url, "STOKER_HEARTBEAT_MS": str(HEARTBEAT_MS), "COLUMNS": "200"}
        return CliRunner().invoke(main, arguments, input=answer, env=settings | environment, prog_name="stoker")

    return run


@pytest.fixture
def stack(redis_url: str, short_tmp: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Nothing runs yet but Redis."""
    stack = Stack(redis_url, short_tmp, measured=is_measured(request))
    try:
        yield stack
    finally:
        stack.end()


@pytest.fixture(scope="module")
def served(server_binary: ServerBinary) -> Iterator[Stack]:
    """A scheduler and a worker, the same for all tests of a module, with a Redis of its own."""
    with lasting_stack(server_binary) as stack:
        stack.scheduler()
        stack.worker("one", "--profile", "zero")
        yield stack


@pytest.fixture
def served_cli(served: Stack, cli: Cli) -> Cli:
    """Runs `stoker` with these arguments on that stack."""
    return functools.partial(cli, url=served.url)


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    """A scheduler and a worker that fail what they are told to."""
    with Fleet(Config(redis_url=redis_url, heartbeat_ms=HEARTBEAT_MS)) as fleet:
        yield fleet


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    """A client of the fleet."""
    with Client(config=fleet.config) as client:
        yield client
