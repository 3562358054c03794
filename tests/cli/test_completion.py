"""Shell completion, by the protocol that the scripts of `stoker completion` speak."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cli.conftest import Cli
from sdk.fleet import Fleet
from stack_processes import Stack
from stoker import Client


def offered(cli: Cli, *words: str, **environment: str) -> list[str]:
    """What is offered for the last of the words."""
    line = " ".join(("stoker", *words))
    asked = {"_STOKER_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    shown = cli(**asked, **environment)
    assert shown.exit_code == 0, shown.output
    assert shown.stderr == ""
    return [entry.partition(",")[2] for entry in shown.stdout.splitlines() if entry]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_the_program(cli: Cli, shell: str) -> None:
    script = cli("completion", shell)
    assert script.exit_code == 0
    assert f"_STOKER_COMPLETE={shell}_complete" in script.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script.stdout, text=True, check=True, timeout=30)


def test_commands_and_options_are_completed(cli: Cli) -> None:
    assert offered(cli, "dea") == ["dead"]
    assert offered(cli, "dead", "re") == ["retry"]
    assert offered(cli, "top", "--int") == ["--interval"]
    assert offered(cli, "submit", "--priority", "h") == ["high"]


def test_drain_is_offered_the_workers_of_the_queue(stack: Stack, cli: Cli) -> None:
    stack.worker("gpu0", "--profile", "zero")
    stack.worker("gpu1", "--profile", "zero")
    assert offered(cli, "drain", "g") == ["gpu0", "gpu1"]
    assert offered(cli, "drain", "gpu1") == ["gpu1"]
    assert offered(cli, "drain", "--queue", "other", "g") == []


def test_dead_letters_are_offered_by_their_ids(client: Client, fleet: Fleet, cli: Cli) -> None:
    for request_id in ("a1", "a2", "b1"):
        client.submit(request_id=request_id, prompt="x", metadata={"do": "fail"}).response(timeout=30)
    assert offered(cli, "dead", "show", "a") == ["a1", "a2"]
    assert offered(cli, "dead", "purge", "a1", "b") == ["b1"]


def test_batches_are_offered_by_their_ids(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n")
    for batch_id in ("a1", "a2", "b1"):
        output = str(tmp_path / f"{batch_id}.jsonl")
        assert cli("batch", "submit", str(tmp_path / "in.txt"), "--id", batch_id, "--output", output).exit_code == 0
    for command in ("status", "watch", "cancel", "pause", "resume", "retry", "results", "errors"):
        assert offered(cli, "batch", command, "a") == ["a1", "a2"]


def test_queues_are_offered_by_their_names(cli: Cli) -> None:
    for queue in ("chat", "chores"):
        assert cli("submit", "x", "--no-wait", "--queue", queue).exit_code == 0
    assert offered(cli, "stats", "--queue", "ch") == ["chat", "chores"]


def test_nothing_is_offered_and_nothing_said_where_redis_is_away_or_the_settings_are_wrong(cli: Cli) -> None:
    assert offered(cli, "drain", "g", STOKER_REDIS_URL="unix:///nowhere/redis.sock") == []
    assert offered(cli, "drain", "g", STOKER_GROUP="many") == []
