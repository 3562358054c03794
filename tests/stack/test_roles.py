"""A whole stack whose processes connect as the users of ops/redis, and what each of these users is denied."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from redis.exceptions import NoPermissionError

from redis_roles import SUPERUSER, Guarded, has_selectors, start_with_roles
from scraping import scrape, total
from stack_processes import Stack
from stoker import Client, InferenceRequest
from stoker.cli import main
from stoker.errors import RedisUnavailable
from stoker_ops.embedded import ServerBinary

pytestmark = pytest.mark.servers("newest")

ROLES = ("producer", "scheduler", "worker", "batch", "reader", "admin")
PREFIX = "stoker:{default}:"
DENIED = {
    "producer": [
        f"ZADD {PREFIX}beats 1 x",
        f"HSET {PREFIX}leader token mine",
        f"HSET {PREFIX}inc x y",
        f"GET {PREFIX}payload:a",
        f"GET {PREFIX}dead:a",
        f"XREADGROUP GROUP workers child STREAMS {PREFIX}stream:w:1-x >",
        f"DEL {PREFIX}work:w:1-x",
        f"SET {PREFIX}card mine",
    ],
    "scheduler": [
        f"XREADGROUP GROUP workers child STREAMS {PREFIX}stream:w:1-x >",
        f"MSET {PREFIX}payload:a mine",
        f"LPOP {PREFIX}reply:c",
        f"XRANGE {PREFIX}tokens:a:n - +",
        f"GET {PREFIX}result:a",
        f"SET {PREFIX}card mine",
    ],
    "worker": [
        f"HSET {PREFIX}leader token mine",
        f"INCR {PREFIX}epoch",
        f"ZRANGE {PREFIX}lane:normal 0 -1",
        f"MSET {PREFIX}payload:a mine",
        f"LPOP {PREFIX}reply:c",
        f"GET {PREFIX}result:a",
        f"GET {PREFIX}dead:a",
    ],
    "batch": [f"HSET {PREFIX}leader token mine", f"SET {PREFIX}card mine", f"GET {PREFIX}dead:a", "KEYS *"],
    "reader": [
        f"GET {PREFIX}payload:a",
        f"GETRANGE {PREFIX}payload:a 0 -1",
        f"GET {PREFIX}result:a",
        f"GET {PREFIX}dead:a",
        f"XRANGE {PREFIX}tokens:a:n - +",
        f"DEL {PREFIX}card",
        "EVAL return{1} 0",
        f"EVAL return{{1}} 1 {PREFIX}",
        "SCAN 0",
    ],
    "admin": [
        f"HSET {PREFIX}leader token mine",
        f"XREADGROUP GROUP workers child STREAMS {PREFIX}stream:w:1-x >",
        "ACL SETUSER evil on nopass",
        "CONFIG SET requirepass x",
        "FLUSHALL",
    ],
}
"""What each role could use to harm the others, on servers that tell keys apart."""

DENIED_TO_ALL = [
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "CONFIG SET dir /tmp",
    "SHUTDOWN",
    "ACL LIST",
    "ACL SETUSER evil on nopass",
    "SCRIPT FLUSH",
    "MONITOR",
    "REPLICAOF h 1",
    "CLIENT KILL TYPE normal",
    "SLAVEOF NO ONE",
    "SAVE",
    "PUBLISH x y",
    "GET another",
    "SET another value",
]
"""What nobody may, on any server."""


SHRUGGED_OFF = {("stoker-batch", "client"), ("stoker-reader", "scan"), ("stoker-reader", "config")}


@pytest.fixture
def server(server_binary: ServerBinary, short_tmp: Path) -> Iterator[Guarded]:
    with start_with_roles(server_binary, short_tmp) as server:
        yield server


@pytest.fixture
def stack(server: Guarded, short_tmp: Path) -> Iterator[Stack]:
    stack = Stack(server.url("producer"), short_tmp, server.url(SUPERUSER), metrics=True, measured=True)
    try:
        yield stack
    finally:
        stack.end()


def be(stack: Stack, server: Guarded, role: str) -> None:
    """Let the processes that are started next connect as a role."""
    stack.environment["STOKER_REDIS_URL"] = server.url(role)


def stoker(server: Guarded, role: str, *arguments: str) -> str:
    """Run a command as a role; give what it printed."""
    settings = {"STOKER_REDIS_URL": server.url(role), "STOKER_HEARTBEAT_MS": "200"}
    done = CliRunner().invoke(main, arguments, env=settings, prog_name="stoker")
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_a_whole_stack_runs_as_the_users_of_the_roles_and_none_asks_for_more(
    stack: Stack, server: Guarded, short_tmp: Path
) -> None:
    be(stack, server, "scheduler")
    stack.scheduler()
    be(stack, server, "worker")
    first = stack.worker("first", "--max-num-seqs", "8")
    with stack.client() as client:
        asked = [InferenceRequest(prompt_tokens=[i + 1], max_tokens=40) for i in range(24)]
        jobs = client.submit_many(asked)
        assert "".join(part.text for part in client.submit(prompt="hi", max_tokens=8, stream=True).stream())
        client.submit(prompt="hi", max_tokens=4000).cancel()
        os.kill(stack.child_of(first), signal.SIGKILL)
        assert [len(job.result(timeout=60).token_ids) for job in jobs] == [40] * 24
        assert client.submit(prompt="ho", max_tokens=4, timeout=30).result(timeout=30).text
        assert client.submit(prompt="ho", max_tokens=4).status() != "unknown"
    operate(stack, server)
    run_a_batch(stack, server, short_tmp)
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    refused = {(entry["username"], entry["object"].partition("|")[0]) for entry in stack.redis.acl_log()}
    # What is none of a reader's business it is not shown, and RQ asks in vain who else is connected.
    assert refused - SHRUGGED_OFF == set()


def operate(stack: Stack, server: Guarded) -> None:
    """What an operator does, and one who only may look."""
    for role in ("reader", "admin"):
        assert "first" in stoker(server, role, "workers")
        assert "succeeded" in stoker(server, role, "stats")
        assert "leader" in stoker(server, role, "queue", "show")
        assert "first" in stoker(server, role, "top", "--json", "--count", "1")
        assert "persistence" in stoker(server, role, "doctor")
    for command in ("dead list", "drain first --wait --timeout 30", "drain first --undo", "dead purge --all --yes"):
        stoker(server, "admin", *command.split())
    assert total(scrape(stack.metrics_url("scheduler")), "stoker_redis_up") == 1


def run_a_batch(stack: Stack, server: Guarded, folder: Path) -> None:
    lines = [{"custom_id": f"l{i}", "prompt": f"line {i}", "max_tokens": 4} for i in range(8)]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    be(stack, server, "batch")
    worker = stack.batch_worker()
    with Client(server.url("batch")) as client:
        batch = client.batches.create(folder / "in.jsonl", output=folder / "out.jsonl")
        assert batch.wait(timeout=60).state == "completed"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert len((folder / "out.jsonl").read_text().splitlines()) == 8


def test_no_password_stands_in_the_arguments_or_the_log_of_a_process(stack: Stack, server: Guarded) -> None:
    be(stack, server, "scheduler")
    scheduler = stack.scheduler()
    be(stack, server, "worker")
    worker = stack.worker("w")
    secrets = [server.passwords[role] for role in ("scheduler", "worker")]
    for pid in (scheduler.pid, worker.pid, stack.child_of(worker)):
        arguments = Path(f"/proc/{pid}/cmdline").read_text()
        assert not any(password in arguments for password in secrets)
    logged = stack.log("scheduler") + stack.log("w")
    assert not any(password in logged for password in secrets)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_denied_what_it_does_not_need(server: Guarded, server_binary: ServerBinary, role: str) -> None:
    own = DENIED[role] if has_selectors(server_binary) else []
    with redis.Redis.from_url(server.url(role)) as client:
        for command in DENIED_TO_ALL + own:
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split())


@pytest.mark.parametrize("role", ["producer", "scheduler", "worker", "batch", "admin"])
def test_a_script_may_no_more_than_its_caller(server: Guarded, server_binary: ServerBinary, role: str) -> None:
    own = DENIED[role] if has_selectors(server_binary) else []
    with redis.Redis.from_url(server.url(role)) as client:
        for command in [*DENIED_TO_ALL, *own]:
            with pytest.raises(redis.ResponseError):
                client.eval("return redis.call(unpack(ARGV))", 1, PREFIX, *command.split())


def test_nobody_comes_in_as_default_or_with_a_wrong_password(server: Guarded) -> None:
    with redis.Redis.from_url(server.server.url) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    wrong = server.url("producer").replace(server.passwords["producer"], "wrong")
    with Client(wrong) as client, pytest.raises(RedisUnavailable, match="refuses the credentials") as error:
        client.submit(prompt="hi")
    assert "wrong" not in str(error.value).replace("WRONGPASS", "")
