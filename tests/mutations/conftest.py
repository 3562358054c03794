"""The queues of the protocol's tests, for the checks that must find the planted bugs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.conftest import bare as bare
from protocol.conftest import make_bare as make_bare
from protocol.conftest import make_queue as make_queue
from protocol.conftest import q as q
from stoker import Config
from stoker.request import InferenceRequest
from stoker.store import codec, scripts
from stoker.store.connection import Store

INC = "w:1-x"


@pytest.fixture
def config(redis_url: str) -> Config:
    """Settings with a history."""
    return Config(redis_url=redis_url, heartbeat_ms=200, block_ms=20, events=True, metrics=False)


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    """A queue with one request, a leader and a worker."""
    store = Store(config)
    request = InferenceRequest(prompt_tokens=[1, 2, 3], max_tokens=4)
    item = codec.encode(request, request_id="r", nonce="n", reply="c", config=config)
    store.run(scripts.submit("g", 10**9, [item]))
    registration = scripts.Registration(
        inc=INC,
        worker="w",
        number=1,
        identity="m",
        card=b"\x80",
        capacity=100,
        rows=8,
        budget=64,
        mode="continuous",
        cache="paged",
    )
    store.run(scripts.register(registration, "g", config))
    yield store
    store.close()
