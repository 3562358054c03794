"""How durable an acceptance is: on the disk of Redis, or in its replicas, and what is said where it is not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from helpers import wait_until
from sdk.fleet import Fleet
from stoker import AsyncClient, Client, Config, DurabilityNotReached, InvalidRequest, Job
from stoker.store.durability import Durability
from stoker_ops.embedded import EmbeddedRedis, ServerBinary, start

ALWAYS = ("--appendfsync", "always")
WAIT_S = 0.2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config_of(server: EmbeddedRedis, wait_s: float = WAIT_S) -> Config:
    return Config(redis_url=server.url, heartbeat_ms=100, durability_timeout_s=wait_s)


def submit(client: Client, level: str, request_id: str = "a") -> Job:
    return client.submit(prompt="hi", request_id=request_id, durability=level)


def missed(client: Client, level: str, request_id: str = "a") -> Job:
    """The accepted job of a submit whose level is not reached."""
    with pytest.raises(DurabilityNotReached, match=f"request '{request_id}' was accepted .* not '{level}'") as caught:
        submit(client, level, request_id)
    return caught.value.job


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["disk", "replicated", "replicated:0", "replicated:100", "replicated:-1", 1, None])
def test_a_level_that_is_none_is_refused_with_the_levels_there_are(fake_client: Client, level: object) -> None:
    with pytest.raises(InvalidRequest, match=r"durability: must be 'memory', 'fsync' or 'replicated:n'.*, got"):
        fake_client.submit(prompt="hi", durability=level)  # type: ignore[arg-type]  # as a user may
    with pytest.raises(InvalidRequest, match="durability"):
        fake_client.submit_many(["hi"], durability=level)  # type: ignore[arg-type]


def test_without_a_level_it_is_in_memory_and_a_job_by_its_id_does_not_know(client: Client) -> None:
    assert client.submit(prompt="hi", request_id="a").durability == "memory"
    with Client(config=client.config) as other:
        assert other.job("a").durability is None


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, "fsync"),
        ({"appendonly": "no"}, "memory"),
        ({"appendfsync": "everysec"}, "memory"),
        ({"no-appendfsync-on-rewrite": "yes"}, "memory"),
    ],
)
def test_an_old_redis_syncs_every_write_only_by_its_settings(settings: dict[str, str], level: str) -> None:
    told = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"} | settings
    reply = {name.encode(): value.encode() for name, value in told.items()}
    assert Durability.parse("fsync").reached([None, reply]) == level
    assert Durability.parse("fsync").reached([None, None]) == "memory"


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_redis_that_syncs_always_has_it_on_its_disk(short_tmp: Path, server_binary: ServerBinary) -> None:
    with (
        start(short_tmp / "r", server=server_binary, extra_args=ALWAYS) as server,
        Client(config=config_of(server)) as client,
    ):
        assert submit(client, "fsync").durability == "fsync"
        assert [job.durability for job in client.submit_many(["x"] * 3, durability="fsync")] == ["fsync"] * 3

        async def awaited() -> str | None:
            async with AsyncClient(config=client.config) as other:
                return (await other.submit(prompt="hi", durability="fsync")).durability

        assert asyncio.run(awaited()) == "fsync"


def test_what_is_not_on_the_disk_in_time_was_accepted_and_is_answered(redis_url: str, config: Config) -> None:
    # This server keeps nothing.
    with Client(config=config) as client:
        job = missed(client, "fsync")
        assert (job.durability, job.status()) == ("memory", "queued")
        many = client.submit_many(["x", "y"], durability="fsync")
        assert [type(error) for error in many] == [DurabilityNotReached] * 2
        with Fleet(config):
            assert job.result(timeout=5).text == "HI "
            assert sorted(response.text for response in client.as_completed(many, timeout=5)) == ["X ", "Y "]


def test_an_awaited_submit_says_so_too(config: Config) -> None:
    async def awaited() -> tuple[str, list[str]]:
        async with AsyncClient(config=config) as client:
            with pytest.raises(DurabilityNotReached) as caught:
                await client.submit(prompt="hi", durability="fsync")
            many = await client.submit_many(["x"], durability="fsync")
            return await caught.value.job.status(), [r.text async for r in client.as_completed(many, timeout=5)]

    with Fleet(config) as fleet:
        fleet.open.clear()

        async def opened() -> tuple[str, list[str]]:
            task = asyncio.create_task(awaited())
            await asyncio.to_thread(wait_until, lambda: fleet.most_waiting == 2)
            fleet.open.set()
            return await task

        status, texts = asyncio.run(opened())
    assert texts == ["X "]
    assert status in ("queued", "dispatched", "running", "succeeded")


def test_a_redis_that_can_be_waited_for_syncs_within_its_second(short_tmp: Path, newest_server: ServerBinary) -> None:
    with (
        start(short_tmp / "r", server=newest_server) as server,
        Client(config=config_of(server, wait_s=5)) as client,
    ):
        assert submit(client, "fsync").durability == "fsync"


def test_a_repeated_submit_waits_for_what_the_first_one_wrote(short_tmp: Path, newest_server: ServerBinary) -> None:
    # Never synced: no WAITAOF can be answered but by one that waits for nothing.
    with (
        start(short_tmp / "r", server=newest_server, extra_args=("--appendfsync", "no")) as server,
        Client(config=config_of(server)) as first,
        Client(config=config_of(server)) as second,
    ):
        submit(first, "memory")
        assert missed(second, "fsync").durability == "memory"
        with redis.Redis.from_url(server.url) as admin:
            admin.config_set("appendfsync", "always")
        synced = submit(second, "fsync")
        assert synced.durability == "fsync"
        # Who asks for less later takes nothing from it while somebody holds it.
        assert submit(second, "memory").durability == "fsync"


# --- replicas ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def master(short_tmp: Path, server_binary: ServerBinary) -> Iterator[EmbeddedRedis]:
    """A server whose replica is ready; its directory's `r` is the replica's."""
    quick = ("--repl-diskless-sync-delay", "0")
    with (
        start(short_tmp / "m", server=server_binary, extra_args=("--bind", "127.0.0.1", *quick)) as master,
        redis.Redis.from_url(master.url, decode_responses=True) as admin,
    ):
        admin.config_set("port", port := free_port())
        follow = ("--replicaof", "127.0.0.1", str(port), *quick)
        with start(short_tmp / "r", server=server_binary, extra_args=follow):
            wait_until(lambda: admin.info("replication").get("slave0", {}).get("state") == "online", 20)
            yield master


def test_replicas_that_have_it_are_counted(master: EmbeddedRedis) -> None:
    with Client(config=config_of(master)) as client:
        assert submit(client, "replicated:1").durability == "replicated:1"
        assert missed(client, "replicated:2").durability == "replicated:1"
        assert [job.durability for job in client.submit_many(["x"], durability="replicated:1")] == ["replicated:1"]


def test_a_replica_that_stands_still_has_nothing(master: EmbeddedRedis, short_tmp: Path) -> None:
    with (
        redis.Redis(unix_socket_path=str(short_tmp / "r" / "redis.sock")) as replica,
        Client(config=config_of(master)) as client,
    ):
        pid = replica.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            assert missed(client, "replicated:1").durability == "memory"
        finally:
            os.kill(pid, signal.SIGCONT)
        # The same request again: it is there already, and the replica catches up.
        again = Client(config=config_of(master, wait_s=5))
        assert submit(again, "replicated:1").durability == "replicated:1"
        again.close()
