"""A Redis that cannot hold a queue: schedulers, workers and `up` refuse to start on it, one line a problem."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from helpers import wait_until
from redis_in_between import rewritten
from stoker.errors import ConfigError
from stoker.store.requirements import evicts, refuse_unfit, too_old
from stoker_ops.embedded import EmbeddedRedis, ServerBinary, start

COMMANDS = {
    "scheduler": ["scheduler"],
    "worker": ["worker", "--model", "sim", "--profile", "zero"],
    "up": ["up", "--model", "sim", "--workers", "1"],
}
commands = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
EVICTS = "stoker: maxmemory-policy is {}: a full Redis would throw requests away; fix: CONFIG SET maxmemory-policy"


@pytest.fixture
def own(server_binary: ServerBinary, short_tmp: Path) -> Iterator[EmbeddedRedis]:
    """A server of this test."""
    with start(short_tmp / "r", server=server_binary) as server:
        yield server


@pytest.fixture
def settings(own: EmbeddedRedis) -> Iterator[redis.Redis]:
    """The server of this test, for changing its settings."""
    with redis.Redis.from_url(own.url, decode_responses=True) as server:
        yield server


@contextmanager
def stoker(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs, and is ended if it does not end."""
    run = [sys.executable, "-c", "from stoker.cli import main; main()", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(run, env=os.environ | environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def refusal(*arguments: str, **environment: str) -> list[str]:
    """The lines with which a command refuses to start."""
    with stoker(*arguments, **environment) as process:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2, said
    return [line for line in said.splitlines() if line.startswith("stoker: ")]


@commands
def test_a_redis_that_evicts_is_refused_with_the_fix(
    own: EmbeddedRedis, settings: redis.Redis, command: list[str]
) -> None:
    settings.config_set("maxmemory-policy", "volatile-lru")
    [line] = refusal(*command, STOKER_REDIS_URL=own.url)
    assert line.startswith(EVICTS.format("volatile-lru"))
    assert settings.keys() == []


@commands
@pytest.mark.usefixtures("unmeasured")
def test_where_config_is_forbidden_info_tells(own: EmbeddedRedis, settings: redis.Redis, command: list[str]) -> None:
    settings.config_set("maxmemory-policy", "allkeys-lru")
    rules: dict[str, Any] = {"enabled": True, "passwords": ["+pw"], "keys": ["*"], "channels": ["*"]}
    settings.acl_setuser("limited", commands=["+@all", "-config"], **rules)
    [line] = refusal(*command, STOKER_REDIS_URL=own.url.replace("unix://", "unix://limited:pw@"))
    assert line.startswith(EVICTS.format("allkeys-lru"))


@commands
@pytest.mark.usefixtures("unmeasured")
def test_an_old_redis_is_refused(
    own: EmbeddedRedis, settings: redis.Redis, short_tmp: Path, command: list[str]
) -> None:
    """No server older than 6.2 can be installed here, so the version is changed on the wire."""
    version = settings.info("server")["redis_version"]
    old = version.replace(version[:3], "5.9", 1)
    words = [f"redis_version:{number}\r\n".encode() for number in (version, old)]
    with rewritten(own.socket_path, short_tmp / "old.sock", *words) as url:
        [line] = refusal(*command, STOKER_REDIS_URL=url)
    assert line == f"stoker: Redis {old} is too old; fix: use Redis 6.2 or newer, or Valkey"


@commands
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"STOKER_BLOCK_MS": "1000", "STOKER_SOCKET_TIMEOUT_S": "1"},
            ["STOKER_BLOCK_MS: must be under socket_timeout_s"],
        ),
        ({"STOKER_HEARTBEAT": "5"}, ["STOKER_HEARTBEAT: unknown setting; did you mean STOKER_HEARTBEAT_MS?"]),
        (
            {"STOKER_HEARTBEAT": "5", "STOKER_GROUP": "0"},
            ["STOKER_HEARTBEAT: unknown", "STOKER_GROUP: Input should be"],
        ),
    ],
    ids=["a block over the timeout", "an unknown key", "both"],
)
def test_settings_that_cannot_work_are_refused(command: list[str], given: dict[str, str], said: list[str]) -> None:
    lines = refusal(*command, STOKER_REDIS_URL="unix:///nowhere/redis.sock", **given)
    assert len(lines) == len(said)
    assert all(line.startswith(f"stoker: {words}") for line, words in zip(lines, said, strict=True))


@commands
@pytest.mark.usefixtures("unmeasured")
def test_what_is_in_the_file_is_refused_too(short_tmp: Path, command: list[str]) -> None:
    (short_tmp / "stoker.toml").write_text('redis_url = "unix:///nowhere/redis.sock"\nheartbeat = 5\n')
    [line] = refusal(*command, STOKER_CONFIG=str(short_tmp / "stoker.toml"))
    assert line == f"stoker: {short_tmp / 'stoker.toml'}: heartbeat: unknown setting; did you mean heartbeat_ms?"


@pytest.mark.parametrize("command", [COMMANDS["scheduler"], COMMANDS["worker"]], ids=["scheduler", "worker"])
def test_while_redis_is_down_they_wait_and_look_once_it_is_there(
    server_binary: ServerBinary, short_tmp: Path, command: list[str]
) -> None:
    url = f"unix://{short_tmp / 'r' / 'redis.sock'}?db=0"
    with stoker(*command, STOKER_REDIS_URL=url) as process:
        assert process.stderr
        while "redis unavailable" not in (line := process.stderr.readline()):
            assert line, "it ended"
        with start(short_tmp / "r", server=server_binary, extra_args=("--maxmemory-policy", "allkeys-lru")):
            _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert EVICTS.format("allkeys-lru") in said


@pytest.mark.parametrize("command", [COMMANDS["scheduler"], COMMANDS["worker"]], ids=["scheduler", "worker"])
def test_a_stop_while_redis_is_down_is_heard(short_tmp: Path, command: list[str]) -> None:
    with stoker(*command, STOKER_REDIS_URL=f"unix://{short_tmp / 'none.sock'}") as process:
        assert process.stderr
        while "redis unavailable" not in (line := process.stderr.readline()):
            assert line, "it ended"
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: process.poll() is not None, 60)
        assert process.returncode == 0


def test_every_problem_has_a_line() -> None:
    info = {"redis_version": "6.0.16", "maxmemory_policy": "allkeys-lfu"}
    with pytest.raises(ConfigError) as caught:
        refuse_unfit(info)
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        "Redis 6.0.16 is too old",
        "maxmemory-policy is allkeys-lfu: a full Redis would throw requests away",
    ]


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "8.2.3", "10.0.0"])
def test_what_is_new_enough_is_taken(version: str) -> None:
    assert too_old({"redis_version": version}) is None


def test_what_redis_does_not_tell_is_no_problem() -> None:
    refuse_unfit(None)
    assert evicts({"redis_version": "7.0.15"}) is None
