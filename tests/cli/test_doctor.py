"""`stoker doctor`: what it finds, on real servers and stacks; and the checks themselves, on facts made up here."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

import stoker_scheduler
from cli.conftest import Cli
from helpers import wait_until
from redis_in_between import rewritten
from stack_processes import HEARTBEAT_MS, Stack
from stoker import Client, Config
from stoker.store.inspections import Server, is_ours
from stoker.store.records import Waiting, WorkerRecord
from stoker_ops import checks
from stoker_ops.checks import CHECKS, Finding, Fine, examine
from stoker_ops.embedded import EmbeddedRedis, ServerBinary, start
from stoker_ops.facts import Facts, KeysSeen, Latency, Oldest, Torch

SECOND_US = 1_000_000


def states(cli: Cli, *options: str, **settings: Any) -> dict[str, str]:
    """The state of each check: ok, problem or hidden."""
    return {line["name"]: line["state"] for line in lines(cli, *options, **settings)}


def problems(cli: Cli, **settings: Any) -> dict[str, str]:
    """What was found, by the name of the check. A machine that is busy with other tests may well be slow."""
    found = {line["name"]: line["what"] for line in lines(cli, **settings) if line["state"] == "problem"}
    found.pop("latency", None)
    return found


def lines(cli: Cli, *options: str, **settings: Any) -> list[dict[str, Any]]:
    result = cli("doctor", "--json", *(options or ("--no-torch",)), **settings)
    report = json.loads(result.stdout)
    assert result.exit_code == (0 if report["healthy"] else 1)
    assert report["healthy"] == all(line["state"] != "problem" for line in report["checks"])
    assert all(line["fix"] for line in report["checks"] if line["state"] == "problem")
    return report["checks"]


@pytest.fixture
def own(server_binary: ServerBinary, short_tmp: Path) -> Iterator[EmbeddedRedis]:
    """A server of this test, with the settings that Stoker gives its own; they may be changed."""
    with start(short_tmp / "r", server=server_binary) as server:
        yield server


@pytest.fixture
def settings(own: EmbeddedRedis) -> Iterator[redis.Redis]:
    """The server of this test, for changing its settings."""
    with redis.Redis.from_url(own.url, decode_responses=True) as server:
        yield server


# --- on real servers and stacks ---------------------------------------------------------------------------------------


def test_a_healthy_stack_gets_a_line_for_each_check_and_exit_code_0(
    own: EmbeddedRedis, short_tmp: Path, cli: Cli
) -> None:
    stack = Stack(own.url, short_tmp)
    try:
        stack.scheduler()
        stack.worker("one")

        def healthy() -> str:
            result = cli("doctor", "--no-torch", url=own.url)
            return result.output if result.exit_code == 0 else ""

        shown = wait_until(healthy, 60).splitlines()
        assert [line.split()[1] for line in shown[:-1]] == list(CHECKS)
        assert {line.split()[0] for line in shown[:-1] if "torch" not in line} == {"ok"}
        assert "append-only file, synced everysec" in shown[2]
        assert shown[-1] == "all is well"
    finally:
        stack.end()


def test_it_changes_nothing(redis_url: str, cli: Cli) -> None:
    cli("doctor", "--no-torch")
    with redis.Redis.from_url(redis_url) as server:
        assert server.keys() == []


def test_a_redis_that_is_not_there_is_exit_code_3(cli: Cli) -> None:
    away = cli("doctor", "--no-torch", url="unix:///nowhere/redis.sock")
    assert away.exit_code == 3
    assert "does not answer" in away.stderr


def test_a_server_that_evicts_is_found_with_its_fix(own: EmbeddedRedis, settings: redis.Redis, cli: Cli) -> None:
    settings.config_set("maxmemory-policy", "allkeys-lru")
    assert "allkeys-lru" in problems(cli, url=own.url)["eviction"]
    shown = cli("doctor", "--no-torch", url=own.url)
    assert shown.exit_code == 1
    assert "fix: CONFIG SET maxmemory-policy noeviction" in shown.output
    assert re.search(r"^\d problems found$", shown.output, re.MULTILINE)
    settings.config_set("maxmemory-policy", "noeviction")
    assert "eviction" not in problems(cli, url=own.url)


def test_a_server_without_an_append_only_file_is_found(own: EmbeddedRedis, settings: redis.Redis, cli: Cli) -> None:
    assert "persistence" not in problems(cli, url=own.url)
    settings.config_set("appendfsync", "no")
    assert "whenever the system likes" in problems(cli, url=own.url)["persistence"]
    settings.config_set("appendonly", "no")
    assert "append-only file is off" in problems(cli, url=own.url)["persistence"]


def test_an_old_server_is_found(own: EmbeddedRedis, settings: redis.Redis, short_tmp: Path, cli: Cli) -> None:
    """No server older than 6.2 can be installed here, so the version is changed on the wire."""
    version = settings.info("server")["redis_version"]
    old = version.replace(version[:3], "5.9", 1)
    words = [f"redis_version:{number}\r\n".encode() for number in (version, old)]
    with rewritten(own.socket_path, short_tmp / "old.sock", *words) as url:
        assert problems(cli, url=url)["version"] == f"Redis {old} is too old"
    assert "version" not in problems(cli, url=own.url)


def test_a_clock_that_is_5_minutes_off_is_found(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "clock" not in problems(cli)
    for seconds, word in ((300, "behind"), (-300, "ahead of")):
        here = time.time
        monkeypatch.setattr("stoker_ops.facts.time.time", lambda here=here, seconds=seconds: here() + seconds)
        found = problems(cli)["clock"]
        monkeypatch.undo()
        assert re.match(rf"Redis is (299|300|301)\.\d s {word} this machine", found)


def test_a_full_memory_is_found(own: EmbeddedRedis, settings: redis.Redis, cli: Cli) -> None:
    assert "memory" not in problems(cli, url=own.url)
    settings.config_set("maxmemory", int(settings.info("memory")["used_memory"] * 1.1))
    assert "soon refuses what is submitted" in problems(cli, url=own.url)["memory"]


def test_what_an_acl_forbids_to_look_at_is_said_and_no_failure(
    own: EmbeddedRedis, settings: redis.Redis, cli: Cli
) -> None:
    settings.acl_setuser(
        "limited",
        enabled=True,
        passwords=["+pw"],
        keys=["*"],
        channels=["*"],
        commands=["+@all", "-info", "-config", "-scan"],
    )
    url = own.url.replace("unix://", "unix://limited:pw@")
    seen = states(cli, url=url)
    hidden = {name for name, state in seen.items() if state == "hidden"}
    assert hidden == {"version", "role", "persistence", "eviction", "memory", "keys", "torch"}
    assert "not allowed to look: this Redis user may not use INFO" in cli("doctor", "--no-torch", url=url).output


def test_no_scheduler_and_no_workers_are_found(cli: Cli) -> None:
    found = problems(cli)
    assert found["leader"] == "no scheduler leads this queue: nothing is handed to workers"
    assert found["workers"] == "no workers are registered"
    assert "waiting" not in found


def test_a_stopped_worker_is_found_while_it_is_registered(stack: Stack, cli: Cli) -> None:
    process = stack.worker("one")
    wait_until(lambda: "silence" not in problems(cli), 30)
    process.send_signal(signal.SIGSTOP)
    found = wait_until(lambda: problems(cli).get("silence"), 30)
    assert found == "silent for more than 2 heartbeats: one"


def test_a_stopped_worker_is_found_after_its_work_was_taken_back_until_it_is_there_again(
    stack: Stack, cli: Cli
) -> None:
    stack.scheduler()
    process = stack.worker("one")
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "lost within the last hour" in problems(cli).get("silence", ""), 30)
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: not {"silence", "workers"} & {*problems(cli)}, 60)


def test_a_request_that_waits_without_a_scheduler_is_named_with_the_reason(cli: Cli, redis_url: str) -> None:
    with Client(config=Config(redis_url=redis_url, heartbeat_ms=HEARTBEAT_MS)) as client:
        client.submit(request_id="young", prompt_tokens=[1], priority="critical")
        client.submit(request_id="younger", prompt_tokens=[1])
    found = problems(cli)["waiting"]
    assert re.fullmatch(r"2 wait; the oldest is young \(critical\), \d+\.\d s: no scheduler leads", found)


def test_other_settings_than_the_queue_has_are_found(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    wait_until(lambda: "leader" not in problems(cli), 30)
    assert "heartbeat" not in problems(cli)
    found = problems(cli, STOKER_HEARTBEAT_MS="1000")["heartbeat"]
    assert f"1000 here, but the queue runs with {HEARTBEAT_MS}" in found


def test_a_foreign_key_under_the_prefix_is_found_and_only_there(redis_url: str, cli: Cli) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.set("somebody:else", 1)
        server.set("stoker:{another}:cache", 1)
        assert "keys" not in problems(cli)
        server.set("stoker:{default}:cache", 1)
        server.set("stoker:{default}:lane:urgent", 1)
    assert "prefix: cache, lane:urgent" in problems(cli)["keys"]


def test_what_lies_behind_the_bound_is_not_called_looked_at(
    redis_url: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker_ops.facts.MOST_PAGES", 2)
    monkeypatch.setattr("stoker_ops.facts.KEYS_A_PAGE", 10)
    with redis.Redis.from_url(redis_url) as server:
        server.mset({f"stoker:{{default}}:result:{number}": 1 for number in range(500)})
    [line] = [line for line in lines(cli) if line["name"] == "keys"]
    seen = re.fullmatch(r"(\d+) keys, all of them the queue's \(others not seen\)", line["what"])
    assert seen
    assert 0 < int(seen[1]) < 100


@pytest.mark.torch
@pytest.mark.slow
def test_torch_is_asked_in_a_process_of_its_own(cli: Cli) -> None:
    torch = pytest.importorskip("torch")
    [line] = [line for line in lines(cli, "--torch") if line["name"] == "torch"]
    assert f"torch {torch.__version__.partition('+')[0]}" in line["what"]


# --- the checks, on facts made up -------------------------------------------------------------------------------------

INFO = {
    "redis_version": "7.2.4",
    "role": "master",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "maxmemory_policy": "noeviction",
    "used_memory": "1000",
    "maxmemory": "0",
    "total_system_memory": "1000000",
}
WORKER = WorkerRecord(
    inc="one:1-ab",
    worker="one",
    rows=4,
    capacity=1000,
    budget=100,
    mode="continuous",
    cache="paged",
    beat_age_us=SECOND_US // 2,
)
WELL = Facts(
    config=Config(redis_url="redis://host"),
    server=Server(INFO, "everysec"),
    latency=Latency([0.1] * 100),
    redis_ahead_s=0.01,
    keys=KeysSeen(looked_at=10, complete=True, strangers=(), lost=()),
    heartbeat_us=SECOND_US,
    leader="1:node:ab",
    workers=[WORKER],
    quarantine=None,
    oldest=None,
    torch=Torch("2.9.0", "12.8", ["an H100"], has_gpu=True),
    versions={"python": "3.11.7", "redis": "8.0.1"},
)


def with_info(**changes: str) -> Facts:
    return replace(WELL, server=Server(INFO | changes, "everysec"))


def waits(seconds: float, *, cost: int = 10, lane: str = "normal", exact: bool = True) -> Oldest:
    request = Waiting("r", lane, f"r:{cost - 1}:1:x", 0.0, cost - 1, 1, exact)
    return Oldest(request, seconds, 1)


def test_nothing_is_found_where_all_is_well() -> None:
    assert {type(verdict) for verdict in examine(WELL).values()} == {Fine}
    assert all(verdict.what for verdict in examine(WELL).values())


FULL = replace(WORKER, held_rows=4)
DRAINED = replace(WORKER, drained=True)
SILENT = replace(WORKER, beat_age_us=3 * SECOND_US)
CASES = {
    "an old server": ("version", with_info(redis_version="6.0.16"), "Redis 6.0.16 is too old"),
    "a replica": ("role", with_info(role="slave", master_host="h", master_port="1"), "refuses writes"),
    "a disk that is full": ("persistence", with_info(aof_last_write_status="err"), "could not be written"),
    "a machine that is full": ("memory", with_info(used_memory="900000"), "may soon be killed"),
    "a far server": ("latency", replace(WELL, latency=Latency([20.0] * 100)), "Redis is far"),
    "a server that stalls": ("latency", replace(WELL, latency=Latency([0.1] * 95 + [300.0] * 5)), "Redis stalls"),
    "a clock ahead": ("clock", replace(WELL, redis_ahead_s=300.0), "300.0 s ahead of this machine"),
    "a clock behind": ("clock", replace(WELL, redis_ahead_s=-300.0), "300.0 s behind this machine"),
    "another heartbeat": ("heartbeat", replace(WELL, heartbeat_us=200_000), "the queue runs with 200"),
    "no leader": ("leader", replace(WELL, leader=None), "no scheduler"),
    "no workers": ("workers", replace(WELL, workers=[]), "no workers"),
    "only dead workers": ("workers", replace(WELL, workers=[replace(WORKER, state="dead")]), "no workers"),
    "all drained": ("workers", replace(WELL, workers=[DRAINED]), "all workers are drained: one"),
    "a silent worker": ("silence", replace(WELL, workers=[WORKER, SILENT]), "silent for more than 2"),
    "many lost": (
        "silence",
        replace(WELL, keys=KeysSeen(10, True, (), [f"w{n}" for n in range(7)])),
        "w0, w1, w2, w3, w4 and 2 more",
    ),
    "waits, no workers": ("waiting", replace(WELL, workers=[SILENT], oldest=waits(5)), "there are no workers"),
    "waits, drained": ("waiting", replace(WELL, workers=[DRAINED], oldest=waits(5)), "drained or stopping"),
    "too large": ("waiting", replace(WELL, oldest=waits(5, cost=2000)), "needs 2,000 tokens, and the largest"),
    "waits in vain": ("waiting", replace(WELL, oldest=waits(5)), "not handed over, though one has room"),
    "waits too long": ("waiting", replace(WELL, workers=[FULL], oldest=waits(61)), "no worker has had room"),
    "a suspect, idle": ("waiting", replace(WELL, oldest=waits(5, lane="suspect")), "though one has room"),
    "a broken torch": ("torch", replace(WELL, torch=Torch("2.9.0", error="no libcudart")), "no libcudart"),
    "a GPU unseen": ("torch", replace(WELL, torch=Torch("2.9.0", None, [], has_gpu=True)), "finds no GPU"),
    "an old client": ("versions", replace(WELL, versions={"redis": "5.2.1"}), "client is too old"),
}


@pytest.mark.parametrize(("name", "facts", "words"), CASES.values(), ids=CASES.keys())
def test_it_finds(name: str, facts: Facts, words: str) -> None:
    found = CHECKS[name](facts)
    assert isinstance(found, Finding)
    assert words in found.what
    assert found.fix


BUSY = replace(WORKER, held_tokens=995, held_rows=1)
FINE = {
    "an old server that is new enough": ("version", with_info(redis_version="6.2.0"), "Redis 6.2.0"),
    "valkey": ("version", with_info(valkey_version="8.0.1"), "Valkey 8.0.1 (as Redis 7.2.4)"),
    "who may not use CONFIG": ("persistence", replace(WELL, server=Server(INFO, None)), "not allowed to look"),
    "half a minute of clock": ("clock", replace(WELL, redis_ahead_s=-30.0), "behind"),
    "a new queue": ("heartbeat", replace(WELL, heartbeat_us=None), "the queue has none yet"),
    "one of two drained": ("workers", replace(WELL, workers=[WORKER, DRAINED]), "1 of them drained"),
    "just submitted": ("waiting", replace(WELL, oldest=waits(0.1)), "about to be handed over"),
    "kept from offline work": ("waiting", replace(WELL, oldest=waits(30, lane="batch")), "the reserve: what is free"),
    "no row is free": ("waiting", replace(WELL, workers=[FULL], oldest=waits(30)), "until a worker has room"),
    "no token is free": ("waiting", replace(WELL, workers=[BUSY], oldest=waits(30)), "until a worker has room"),
    "a patient class": ("waiting", replace(WELL, workers=[FULL], oldest=waits(900, lane="batch")), "until a worker"),
    "an estimate": (
        "waiting",
        replace(WELL, workers=[FULL], oldest=waits(5, cost=2000, exact=False)),
        "until a worker has room",
    ),
    "a suspect beside others": (
        "waiting",
        replace(WELL, workers=[BUSY], oldest=waits(5, lane="suspect")),
        "until a worker",
    ),
    "a quarantine": ("waiting", replace(WELL, quarantine="one:1-ab", oldest=waits(5)), "until a worker has room"),
    "no torch": ("torch", replace(WELL, torch=Torch(None, has_gpu=True)), "not installed"),
    "no GPU": ("torch", replace(WELL, torch=Torch("2.9.0")), "torch 2.9.0 (for CPUs): no GPU on this machine"),
}


@pytest.mark.parametrize(("name", "facts", "words"), FINE.values(), ids=FINE.keys())
def test_it_accepts(name: str, facts: Facts, words: str) -> None:
    verdict = CHECKS[name](facts)
    assert isinstance(verdict, Fine)
    assert words in verdict.what


def test_the_histogram_counts_each_ping_once() -> None:
    measured = Latency(sorted([0.05, 0.1, 0.15, 3.0, 999.0]))
    assert measured.histogram() == {"0.1": 2, "0.2": 1, "5": 1, "inf": 1}
    assert (measured.percentile(0.5), measured.percentile(0.99)) == (0.15, 999.0)


def test_sizes_are_in_units_that_people_read() -> None:
    assert [checks._size(number) for number in (5, 2048, 3 * 1024**3)] == ["5.0 B", "2.0 KiB", "3.0 GiB"]


def test_ours_are_the_keys_in_the_protocols_table_and_no_others() -> None:
    text = (Path(stoker_scheduler.__file__).parent / "PROTOCOL.md").read_text()
    table = text.partition("## Keys")[2].partition("## ")[0]
    parts = {
        "<id>": "a-1",
        "<inc>": "gpu0:12-ab3f",
        "<class>": "normal",
        "<tenant>": "acme.eu",
        "<nonce>": "ab3f",
        "<client>": "ab3f",
        "<name>": "out-1",
        "<slice>": "27200000",
    }
    names = re.findall(r"^\| `([^`]+)` \| (\w+)", table, re.MULTILINE)
    assert len(names) > 25
    for name, kind in names:
        for part, value in parts.items():
            name = name.replace(part, value)
        assert is_ours(name) == (kind != "none"), name
    for stranger in ("", "lanes", "lane:", "lane:urgent", "payload", "payload:", "payload:a:b", "work:gpu0", "inc:a"):
        assert not is_ours(stranger), stranger
