"""Fixtures of the protocol's tests: queues with a clock that stands still, on every server found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from protocol.rig import START, A, H, MakeQueue, Queue, T


@pytest.fixture
def make_bare(redis_url: str) -> Iterator[MakeQueue]:
    """Make a queue in an empty Redis, with settings of its own, that nobody leads or works for."""
    made: list[Queue] = []

    def make(**settings: Any) -> Queue:
        made.append(Queue(redis_url, **settings))
        return made[-1]

    yield make
    for queue in made:
        queue.store.close()
        queue.redis.close()


@pytest.fixture
def make_queue(make_bare: MakeQueue) -> MakeQueue:
    """Make a queue, with settings of its own, that has a leader, no grace any more, and the worker `A`."""

    def make(**settings: Any) -> Queue:
        queue = make_bare(**settings)
        queue.lead()
        queue.tick(4 * H)
        assert queue.now > START + T
        queue.register(A)
        return queue

    return make


@pytest.fixture
def bare(make_bare: MakeQueue) -> Queue:
    """A queue in an empty Redis that nobody leads or works for."""
    return make_bare()


@pytest.fixture
def q(make_queue: MakeQueue) -> Queue:
    """A queue with a leader, no grace any more, and the worker `A`."""
    return make_queue()
