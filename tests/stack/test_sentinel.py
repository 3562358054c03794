"""A Redis with a replica and a Sentinel: the master dies, and everybody goes on with the other one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from helpers import wait_until
from ports import free_port
from stack_processes import Stack
from stoker import AsyncClient, Client, ConfigError, InferenceRequest
from stoker_ops.embedded import ServerBinary, start

SERVICE = "stoker-main"
SENTINEL_CONF = """port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor {service} 127.0.0.1 {master} 1
sentinel down-after-milliseconds {service} 500
sentinel failover-timeout {service} 3000
"""


@contextlib.contextmanager
def sentinel_of(server: ServerBinary, directory: Path, master: int) -> Iterator[int]:
    """Run a Sentinel that watches the master at a port; gives its own."""
    port, conf = free_port(), directory / "sentinel.conf"
    conf.write_text(SENTINEL_CONF.format(port=port, directory=directory, master=master, service=SERVICE))
    process = subprocess.Popen([server.path, conf, "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait(10)


@dataclass(frozen=True)
class Watched:
    """The URL of a service, that of its replica alone, and its master's process."""

    url: str
    replica_url: str
    master: int


@pytest.fixture
def watched(server_binary: ServerBinary, short_tmp: Path) -> Iterator[Watched]:
    """A master, a replica and a Sentinel."""
    ports = free_port(), free_port()
    listen = ("--bind", "127.0.0.1", "--protected-mode", "no", "--port")
    first = (*listen, str(ports[0]))
    second = (*listen, str(ports[1]), "--replicaof", "127.0.0.1", str(ports[0]), "--repl-diskless-sync-delay", "0")
    with (
        start(short_tmp / "m", ephemeral=True, server=server_binary, extra_args=first) as master,
        start(short_tmp / "r", ephemeral=True, server=server_binary, extra_args=second) as other,
        sentinel_of(server_binary, short_tmp, ports[0]) as port,
        redis.Redis.from_url(other.url, decode_responses=True) as replica,
        redis.Redis(port=port, decode_responses=True) as sentinel,
        redis.Redis.from_url(master.url, decode_responses=True) as client,
    ):
        wait_until(lambda: replica.info("replication")["master_link_status"] == "up", 20)
        wait_until(lambda: knows_a_replica(sentinel), 20)
        yield Watched(f"redis+sentinel://127.0.0.1:{port}/{SERVICE}/0", other.url, client.info("server")["process_id"])


def knows_a_replica(sentinel: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):  # it still starts
        return len(sentinel.sentinel_slaves(SERVICE)) == 1
    return False


def test_a_master_that_dies_is_replaced_and_every_request_is_answered(watched: Watched, short_tmp: Path) -> None:
    stack = Stack(watched.url, short_tmp, watched.replica_url)
    try:
        with stack.client() as client:
            stack.scheduler()
            stack.worker("worker", "--max-num-seqs", "4", wait=False)
            jobs = client.submit_many([InferenceRequest(prompt_tokens=[i + 1], max_tokens=100) for i in range(16)])
            jobs[0].result(timeout=60)
            os.kill(watched.master, signal.SIGKILL)
            assert [len(job.result(timeout=60).token_ids) for job in jobs] == [100] * 16
            assert client.submit(prompt_tokens=[1], max_tokens=4).result(timeout=30).text
            assert asyncio.run(answer_of_an_async_client(stack)) == 4
    finally:
        stack.end()


async def answer_of_an_async_client(stack: Stack) -> int:
    async with AsyncClient(config=stack.config) as client:
        job = await client.submit(prompt_tokens=[1], max_tokens=4)
        return len((await job.result(timeout=30)).token_ids)


@pytest.mark.parametrize(
    "url", ["redis+sentinel://h:1", "redis+sentinel://h:x/main", "redis+sentinel://:pw@h/main?a=b"]
)
def test_a_sentinel_url_of_another_form_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(
        ConfigError, match=r"must have the form redis\+sentinel://host:port,host:port/SERVICE/DB"
    ) as error:
        Client(url)
    assert "pw" not in str(error.value)
