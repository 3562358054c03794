"""A real stack for each test: a Redis of the test process, schedulers and workers as processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack_processes import Stack, is_measured, lasting_stack
from stoker import Client
from stoker_ops.embedded import ServerBinary


@pytest.fixture
def stack(redis_url: str, short_tmp: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Nothing runs yet but Redis."""
    stack = Stack(redis_url, short_tmp, measured=is_measured(request))
    try:
        yield stack
    finally:
        stack.end()


@pytest.fixture(scope="module")
def shared_stack(server_binary: ServerBinary) -> Iterator[Stack]:
    """One for all tests of a module; nothing runs yet. Loading a model takes seconds."""
    with lasting_stack(server_binary) as stack:
        yield stack


@pytest.fixture
def exporting_stack(redis_url: str, short_tmp: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """One whose processes export metrics, on any free ports."""
    stack = Stack(redis_url, short_tmp, metrics=True, measured=is_measured(request))
    try:
        yield stack
    finally:
        stack.end()


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """A client of the stack's queue."""
    with contextlib.closing(stack.client()) as client:
        yield client
