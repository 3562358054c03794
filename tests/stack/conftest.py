"""A real stack for each test: a Redis of the test process, schedulers and workers as processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack_processes import Stack
from stoker import Client


@pytest.fixture
def stack(redis_url: str, short_tmp: Path) -> Iterator[Stack]:
    """Nothing runs yet but Redis."""
    stack = Stack(redis_url, short_tmp)
    try:
        yield stack
    finally:
        stack.end()


@pytest.fixture
def exporting_stack(redis_url: str, short_tmp: Path) -> Iterator[Stack]:
    """One whose processes export metrics, on any free ports."""
    stack = Stack(redis_url, short_tmp, metrics=True)
    try:
        yield stack
    finally:
        stack.end()


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """A client of the stack's queue."""
    with contextlib.closing(stack.client()) as client:
        yield client
