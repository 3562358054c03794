"""What is raised where a connection closes under a call, whichever event loop it runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from stoker.config import Config
from stoker.errors import RedisUnavailable
from stoker.store.connection import AsyncStore

STORE = Config(redis_url="redis://127.0.0.1:1/0")


async def write_to_what_is_closed() -> list[Any]:
    """Write to a transport that is closed, as a connection's is whose server went away."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.close()
    await writer.wait_closed()
    writer.writelines([b"PING\r\n"])
    await writer.drain()
    return []


async def fail() -> list[Any]:
    raise RuntimeError("a mistake of ours")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_connection_that_is_closed_under_a_call_is_an_outage(run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    with pytest.raises(RedisUnavailable):
        run(AsyncStore(STORE)._guard("read", write_to_what_is_closed))


def test_other_errors_are_no_outage() -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        asyncio.run(AsyncStore(STORE)._guard("read", fail))
