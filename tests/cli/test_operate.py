"""`stoker workers`, `drain`, `dead` and `config`: what operators do."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from cli.conftest import Cli
from helpers import wait_until
from sdk.fleet import Fleet
from stack_processes import HEARTBEAT_MS, Stack
from stoker import Client, Config
from stoker.store import scripts, views
from stoker.store.connection import Store

# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_shows_each_with_what_it_runs_and_holds(stack: Stack, cli: Cli) -> None:
    stack.worker("one", "--max-num-seqs", "7", "--kv-cache-tokens", "1000")
    [worker] = json.loads(cli("workers", "--json").output)
    expected = {"worker": "one", "state": "live", "model": "sim", "mode": "continuous", "rows": 7, "capacity": 1000}
    assert expected.items() <= worker.items()
    assert (worker["held_rows"], worker["held_tokens"], worker["faults"]) == (0, 0, 0)
    assert 0 <= worker["beat_age_s"] < 5
    shown = cli("workers")
    assert shown.exit_code == 0
    for word in ("one", "live", "sim", "continuous", "0/7", "0/1,000", "s ago"):
        assert word in shown.output


def test_without_workers_it_says_how_to_start_one(cli: Cli) -> None:
    assert cli("workers").output == "no workers are registered (start one: stoker worker)\n"
    assert json.loads(cli("workers", "--json").output) == []


def test_a_stopped_worker_is_silent_and_live_again_afterwards(stack: Stack, cli: Cli) -> None:
    """Without a scheduler, which would take it off the list."""
    process = stack.worker("one")
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: states(cli) == {"one": "silent"}, 30)
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: states(cli) == {"one": "live"}, 30)


def states(cli: Cli) -> dict[str, str]:
    return {worker["worker"]: worker["state"] for worker in json.loads(cli("workers", "--json").output)}


# --- drain ------------------------------------------------------------------------------------------------------------


def test_a_drained_worker_gets_no_work_until_that_is_undone(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one")
    assert cli("drain", "one").output == "one is sent no more work\n"
    assert states(cli) == {"one": "drained"}
    with stack.client() as client:
        job = client.submit(prompt_tokens=[1], max_tokens=2)
        until = time.monotonic() + stack.beats(3)
        wait_until(lambda: time.monotonic() > until, 10)
        assert job.status() == "queued"
        assert cli("drain", "one", "--undo").output == "one is sent work again\n"
        assert job.result(timeout=30).worker == "one"


def test_drain_waits_until_the_worker_holds_nothing(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one")
    with stack.client() as client:
        job = client.submit(prompt_tokens=[1], max_tokens=100)
        wait_until(lambda: job.status() == "running", 30)
        assert cli("drain", "one", "--wait").output == "one holds nothing and is sent no more work\n"
        assert job.status() == "succeeded"


def test_drain_gives_up_after_its_timeout_with_4_and_the_worker_stays_drained(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one")
    with stack.client() as client:
        job = client.submit(prompt_tokens=[1], max_tokens=100_000)
        wait_until(lambda: job.status() == "running", 30)
        gave_up = cli("drain", "one", "--wait", "--timeout", "0.2")
        assert gave_up.exit_code == 4
        assert gave_up.stderr == "stoker: one still holds 1 request(s) after 0.2 s; it stays drained\n"
        assert states(cli) == {"one": "draining"}
        job.cancel()
        assert cli("drain", "one", "--wait").exit_code == 0


def test_drain_does_not_wait_for_a_worker_that_somebody_resumed(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one")
    with stack.client() as client:
        job = client.submit(prompt_tokens=[1], max_tokens=100_000)
        wait_until(lambda: job.status() == "running", 30)

        def resume() -> None:
            wait_until(lambda: client.workers()[0].drained, 30)
            client.drain("one", False)

        somebody = threading.Thread(target=resume)
        somebody.start()
        waited = cli("drain", "one", "--wait")
        somebody.join()
        assert waited.exit_code == 1
        assert "sent work again" in waited.stderr


def test_draining_nobody_is_an_error(cli: Cli) -> None:
    nobody = cli("drain", "nobody")
    assert nobody.exit_code == 1
    assert "no live worker is named nobody" in nobody.stderr


@pytest.mark.parametrize(
    "arguments", [("one", "--undo", "--wait"), ("one", "--timeout", "3"), ("one:1",), ()], ids=" ".join
)
def test_drain_refuses_what_makes_no_sense(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli("drain", *arguments).exit_code == 2


# --- dead letters -----------------------------------------------------------------------------------------------------


def bury(client: Client, request_id: str, **fields: Any) -> str:
    """Let a request fail for good, with the reason `error`."""
    job = client.submit(request_id=request_id, prompt="hello world", metadata={"do": "fail"}, **fields)
    assert job.response(timeout=30).status == "failed"
    return request_id


def bury_unschedulable(client: Client, fleet: Fleet, request_id: str) -> str:
    """Let a request fail as one that no worker could hold."""
    fleet.open.clear()
    job = client.submit(request_id=request_id, prompt="hello")
    store = Store(fleet.config)
    view = store.read(views.queue_view(store.keys, depth=10))
    [waiting] = [entry for entries in view.lanes.values() for entry in entries]
    store.run(scripts.refuse(fleet.token, waiting))
    store.close()
    fleet.open.set()
    assert job.response(timeout=30).status == "failed"
    return request_id


def age_letter(client: Client, request_id: str, seconds: float) -> None:
    """Let a letter be older: its time is its first field."""
    server = redis.Redis.from_url(client.config.redis_url)
    key = f"stoker:{{default}}:dead:{request_id}"
    at, _, rest = server.get(key).partition(b"|")
    server.set(key, b"%d|%s" % (int(at) - int(seconds * 1e6), rest), keepttl=True)
    server.close()


def listed(cli: Cli, *options: str) -> list[str]:
    shown = cli("dead", "list", "--json", *options)
    assert shown.exit_code == 0, shown.output
    return [letter["id"] for letter in json.loads(shown.output)]


def test_dead_list_shows_the_newest_first_and_filters(client: Client, fleet: Fleet, cli: Cli) -> None:
    for request_id, tenant in (("a", "acme"), ("b", None), ("c", "acme")):
        bury(client, request_id, tenant=tenant)
    bury_unschedulable(client, fleet, "d")
    age_letter(client, "c", 3 * 3600)
    assert listed(cli) == ["d", "c", "b", "a"]
    assert listed(cli, "--limit", "2") == ["d", "c"]
    assert listed(cli, "--reason", "unschedulable") == ["d"]
    assert listed(cli, "--tenant", "acme") == ["c", "a"]
    assert listed(cli, "--tenant", "acme", "--limit", "1") == ["c"]
    assert listed(cli, "--older-than", "2h") == ["c"]
    assert listed(cli, "--older-than", "2h", "--reason", "unschedulable") == []
    table = cli("dead", "list").output
    for word in ("unschedulable", "error", "acme", "3 h ago"):
        assert word in table
    assert cli("dead", "list", "--tenant", "nobody").output == "no dead letters that the filters leave\n"


def test_a_time_span_without_a_unit_is_refused(cli: Cli) -> None:
    refused = cli("dead", "list", "--older-than", "2")
    assert refused.exit_code == 2
    assert "write 90s, 15m, 2h or 7d" in refused.stderr


def test_dead_show_prints_why_it_failed_and_what_was_asked(client: Client, cli: Cli) -> None:
    bury(client, "a", tenant="acme", max_tokens=5)
    shown = cli("dead", "show", "a")
    assert shown.exit_code == 0
    for line in ("reason         error", "attempts       1", "tenant         acme", "prompt         hello world"):
        assert line in shown.output
    assert re.search(r"^history +w: ", shown.output, re.MULTILINE)
    letter = json.loads(cli("dead", "show", "a", "--json").output)
    assert (letter["id"], letter["reason"], letter["failures"]) == ("a", "error", 1)
    assert letter["request"]["prompt"] == "hello world"
    assert letter["request"]["max_tokens"] == 5


def test_dead_show_cuts_a_long_prompt_but_not_in_json(client: Client, cli: Cli) -> None:
    prompt = "word " * 1000
    client.submit(request_id="a", prompt=prompt, metadata={"do": "fail"}).response(timeout=30)
    assert "4,500 more characters" in cli("dead", "show", "a").output
    assert json.loads(cli("dead", "show", "a", "--json").output)["request"]["prompt"] == prompt


def test_dead_show_of_no_letter_fails(cli: Cli) -> None:
    missing = cli("dead", "show", "a")
    assert missing.exit_code == 1
    assert missing.stderr == "stoker: no dead letter a\n"


def test_retry_submits_again_under_a_new_id_linked_to_the_old(client: Client, fleet: Fleet, cli: Cli) -> None:
    bury(client, "a")
    fleet.open.clear()
    retried = cli("dead", "retry", "a")
    assert retried.exit_code == 0
    old, _, new = retried.output.strip().partition(" -> ")
    assert old == "a"
    assert client.job(new).status() == "queued"
    with redis.Redis.from_url(fleet.config.redis_url) as server:
        header = server.get(f"stoker:{{default}}:payload:{new}")[16:].split(b"|")
    assert header[11] == b"a"
    assert listed(cli) == []


def test_retry_of_what_is_no_letter_fails_but_the_others_are_retried(client: Client, cli: Cli) -> None:
    bury(client, "a")
    retried = cli("dead", "retry", "nothing", "a", "--json")
    assert retried.exit_code == 1
    nothing, a = json.loads(retried.output)
    assert nothing == {"id": "nothing", "new_id": None}
    assert a["id"] == "a"
    assert client.job(a["new_id"]).response(timeout=30).status == "failed"
    assert cli("dead", "retry", "nothing").output == "nothing: no such dead letter\n"


def test_all_asks_first_and_no_changes_nothing(client: Client, cli: Cli) -> None:
    bury(client, "a")
    bury(client, "b")
    for command in ("retry", "purge"):
        refused = cli("dead", command, "--all", answer="n\n")
        assert refused.exit_code == 1
        assert "2 dead letters" in refused.stderr
        assert "nothing was changed" in refused.stderr
        assert listed(cli) == ["b", "a"]
    purged = cli("dead", "purge", "--all", answer="y\n")
    assert purged.exit_code == 0
    assert purged.stdout == "2 purged\n"
    assert listed(cli) == []


def test_retry_all_with_a_filter_takes_only_those(client: Client, fleet: Fleet, cli: Cli) -> None:
    bury(client, "a")
    bury_unschedulable(client, fleet, "b")
    retried = json.loads(cli("dead", "retry", "--all", "--reason", "unschedulable", "--yes", "--json").output)
    assert [entry["id"] for entry in retried] == ["b"]
    assert client.job(retried[0]["new_id"]).result(timeout=30).text == "HELLO "
    assert listed(cli) == ["a"]


def test_purge_by_age_and_by_id(client: Client, cli: Cli) -> None:
    for request_id in "abc":
        bury(client, request_id)
    age_letter(client, "a", 3 * 86_400)
    assert cli("dead", "purge", "--all", "--older-than", "2d", "--yes").output == "1 purged\n"
    assert listed(cli) == ["c", "b"]
    assert json.loads(cli("dead", "purge", "b", "b", "--json").output) == {"purged": 1}
    missing = cli("dead", "purge", "c", "never-was")
    assert missing.exit_code == 1
    assert missing.stdout == "1 purged\n"
    assert "1 of the ids are no dead letters" in missing.stderr


@pytest.mark.parametrize("command", ["retry", "purge"])
@pytest.mark.parametrize("arguments", [(), ("a", "--all"), ("a", "--reason", "error")], ids=str)
def test_ids_and_all_exclude_each_other(cli: Cli, command: str, arguments: tuple[str, ...]) -> None:
    assert cli("dead", command, *arguments).exit_code == 2


# --- config -----------------------------------------------------------------------------------------------------------


def test_config_show_tells_value_unit_meaning_and_source_of_each_setting(cli: Cli) -> None:
    settings = json.loads(cli("config", "show", "--json").output)
    assert list(settings) == list(Config.model_fields)
    assert settings["heartbeat_ms"] == {
        "value": HEARTBEAT_MS,
        "unit": "ms",
        "source": "environment",
        "variable": "STOKER_HEARTBEAT_MS",
        "meaning": "H: how often a worker beats; the same for a queue",
    }
    assert (settings["block_ms"]["value"], settings["block_ms"]["source"]) == (1000, "default")
    assert {facts["unit"] for facts in settings.values()} == {"", "ms", "s", "bytes"}
    assert all(facts["meaning"] for facts in settings.values())
    table = cli("config", "show").output
    assert re.search(rf"heartbeat_ms +{HEARTBEAT_MS} +ms +environment", table)
    assert re.search(r"W\[normal\]: how long later", table)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:secret@host:6379/0", "redis://host:6379/0"),
        ("rediss://:secret@host/0", "rediss://host/0"),
        ("redis://host/0?password=secret&username=me&db=1", "redis://host/0?db=1"),
    ],
)
def test_config_show_leaves_passwords_out(cli: Cli, url: str, shown: str) -> None:
    settings = json.loads(cli("config", "show", "--json", url=url).output)
    assert settings["redis_url"]["value"] == shown
    assert "secret" not in cli("config", "show", url=url).output


def test_config_show_needs_no_redis_and_names_the_stack_that_runs_here(cli: Cli, tmp_path: Path) -> None:
    def shown() -> dict[str, Any]:
        result = cli("config", "show", "--json", STOKER_REDIS_URL=None, STOKER_STATE=str(tmp_path))
        return json.loads(result.output)["redis_url"]

    assert (shown()["value"], shown()["source"]) == (None, "default")
    (tmp_path / "redis.sock").touch()
    assert (shown()["value"], shown()["source"]) == (f"unix://{tmp_path}/redis.sock?db=0", "local stack")


def test_config_show_prints_every_problem_in_a_line_of_its_own(cli: Cli) -> None:
    refused = cli("config", "show", STOKER_HEARTBEAT="7", STOKER_GROUP="0", STOKER_MAX_ATTEMPTS="many")
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 3
    assert "did you mean STOKER_HEARTBEAT_MS?" in refused.stderr
