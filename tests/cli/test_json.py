"""What `--json` prints, held against docs/json.schema.json; and the page that is written out of it."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from cli.conftest import Cli
from stack_processes import Stack
from stoker.cli import main

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA: dict[str, Any] = json.loads((DOCS / "json.schema.json").read_text())
STOKER = (sys.executable, "-c", "from stoker.cli import main; main()")
SIM = ("--model", "sim", "--profile", "zero", "--workers", "1")


def commands_with_json(group: click.Group, *path: str) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands_with_json(command, *path, name)
        elif any("--json" in option.opts for option in command.params):
            yield " ".join((*path, name))


def check(command: str, output: str) -> Any:
    """Hold an output against the schema of its command; returns it."""
    value = json.loads(output)
    shape = {"$defs": SCHEMA["$defs"], **SCHEMA["properties"][command]}
    validator = jsonschema.Draft202012Validator(shape)
    problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
    assert not problems, problems
    return value


def test_the_schema_is_one_and_has_every_command_that_prints_json() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == set(commands_with_json(main))


def test_what_requests_and_queues_print_has_the_documented_form(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one", "--profile", "zero")
    check("submit", cli("submit", "hello", "--json", "--id", "a", "--tenant", "acme", "--max-tokens", "2").stdout)
    check("submit", cli("submit", "hello", "--json", "--no-wait", "--max-tokens", "2").stdout)
    check("status", cli("status", "a", "--json").stdout)
    check("result", cli("result", "a", "--json").stdout)
    check("cancel", cli("cancel", "a", "b", "--json").stdout)
    check("explain", cli("explain", "a", "--json").stdout)
    for command in ("stats", "workers", "queue show", "queue preview"):
        assert check(command, cli(*command.split(), "--json").stdout)
    for line in cli("top", "--json", "--count", "2", "--interval", "0.1").stdout.splitlines():
        assert check("top", line)["error"] is None
    assert check("drain", cli("drain", "one", "--json").stdout) == {"worker": "one", "drained": True, "held": 0}
    undone = check("drain", cli("drain", "one", "--undo", "--json").stdout)
    assert undone == {"worker": "one", "drained": False, "held": 0}
    check("doctor", cli("doctor", "--no-torch", "--json").stdout)
    check("config show", cli("config", "show", "--json").stdout)


def test_what_is_printed_of_an_empty_queue_has_the_documented_form(cli: Cli) -> None:
    for command in ("stats", "workers", "queue show", "queue preview", "dead list", "batch list"):
        check(command, cli(*command.split(), "--json").stdout)
    check("status", cli("status", "nobody", "--json").stdout)
    check("top", cli("top", "--json", "--count", "1").stdout)
    away = cli("top", "--json", "--count", "1", url="unix:///nowhere/redis.sock")
    assert check("top", away.stdout)["error"]


def test_what_dead_letters_print_has_the_documented_form(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one", model="stack_models:Echo")
    failed = cli("submit", "bad", "--json", "--id", "a", "--tenant", "acme")
    assert failed.exit_code == 1
    assert check("submit", failed.stdout)["status"] == "failed"
    [letter] = check("dead list", cli("dead", "list", "--json").stdout)
    assert letter["id"] == "a"
    check("dead show", cli("dead", "show", "a", "--json").stdout)
    assert check("explain", cli("explain", "a", "--json").stdout)["reason"] == letter["reason"]
    retried = check("dead retry", cli("dead", "retry", "a", "nobody", "--json").stdout)
    assert [entry["new_id"] is None for entry in retried] == [False, True]
    assert check("dead purge", cli("dead", "purge", "--all", "--yes", "--json").stdout)["purged"] <= 1


def test_what_batches_print_has_the_documented_form(
    stack: Stack, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_STATE", str(tmp_path / "state"))
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hello", "max_tokens": 2}\noops\n')
    stack.scheduler()
    stack.worker("one", "--profile", "zero")
    queued = check("batch submit", cli("batch", "submit", str(source), "--id", "a", "--json").stdout)
    assert queued["output"] == str(tmp_path / "in.output.jsonl")
    assert check("batch status", cli("batch", "status", "a", "--json").stdout)["state"] == "queued"
    stack.batch_worker()
    again = cli("batch", "submit", str(source), "--output", str(tmp_path / "out"), "--wait", "--json")
    ended = check("batch submit", again.stdout)
    assert (ended["state"], ended["errors"], ended["workers"]) == ("completed", {"invalid_json": 1}, {"one": 1})
    assert [batch["id"] for batch in check("batch list", cli("batch", "list", "--json").stdout)] == [ended["id"], "a"]
    assert check("batch estimate", cli("batch", "estimate", str(source), "--json").stdout)["failed"] == 1


@pytest.mark.usefixtures("unmeasured")
def test_what_up_and_demo_print_has_the_documented_form(short_tmp: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "STOKER_REDIS_URL"}
    environment |= {"STOKER_STATE": str(short_tmp / "s"), "TMPDIR": str(short_tmp)}
    with subprocess.Popen([*STOKER, "up", *SIM, "--json"], stdout=subprocess.PIPE, env=environment, text=True) as up:
        assert up.stdout is not None
        ready = check("up", up.stdout.readline())
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 130
    assert ready["redis_url"] == f"unix://{short_tmp}/s/redis.sock?db=0"
    assert ready["workers"] == ["w0"]
    prompts = short_tmp / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello", "max_tokens": 3}\n')
    command = [*STOKER, "demo", *SIM, "--json", "--prompts", str(prompts)]
    demo = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=120, check=True)
    assert check("demo", demo.stdout)["requests"] == 2


def test_a_field_that_the_schema_does_not_know_is_refused(cli: Cli) -> None:
    value = json.loads(cli("queue", "show", "--json").stdout)
    with pytest.raises(AssertionError, match="brand_new"):
        check("queue show", json.dumps(value | {"brand_new": 1}))
    del value["leader"]
    with pytest.raises(AssertionError, match="leader"):
        check("queue show", json.dumps(value))


def test_the_page_is_the_one_that_the_schema_gives() -> None:
    spec = importlib.util.spec_from_file_location("write_json", DOCS / "write_json.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert (DOCS / "json.md").read_text() == writer.page(SCHEMA), "run: python docs/write_json.py"
    other = copy.deepcopy(SCHEMA)
    other["properties"]["status"]["properties"]["id"]["description"] = "something else"
    assert writer.page(other) != writer.page(SCHEMA)
