"""Every command says what it does and shows how it is called."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from stoker.cli import main


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of each command below a group, and of each group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = [*commands(main)]


def test_all_packages_join_the_command() -> None:
    assert {("submit",), ("scheduler",), ("worker",), ("up",), ("doctor",), ("dead", "retry")} <= {*COMMANDS}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_says_what_a_command_does_and_has_an_example_that_names_it(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*words, "--help"])
    assert shown.exit_code == 0
    usage, _, rest = shown.output.partition("\n\n")
    assert usage.startswith("Usage:")
    assert max(map(len, shown.output.splitlines())) <= 80, "a terminal of the usual width folds none of it"
    assert rest.strip()[0].isupper(), "a sentence follows the usage"
    _, found, examples = rest.partition("Example")
    assert found, rest
    assert f"stoker {' '.join(words)}" in examples.partition("Options:")[0]


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["frobnicate"]).exit_code == 2


IMPORT_NOTHING_HEAVY = """
import json, sys
from click.testing import CliRunner
from stoker.cli import main

heavy = {"asyncio", "redis", "pydantic", "rich", "torch", "transformers", "structlog", "prometheus_client"}
loaded = {}
for words in json.load(sys.stdin):
    assert CliRunner().invoke(main, [*words, "--help"]).exit_code == 0, words
    if found := heavy & {name.partition(".")[0] for name in sys.modules}:
        loaded[" ".join(words)] = sorted(found)
        break
print(json.dumps(loaded))
"""


def test_the_help_of_every_command_imports_nothing_that_takes_time() -> None:
    asked = json.dumps([[], *COMMANDS])
    command = [sys.executable, "-c", IMPORT_NOTHING_HEAVY]
    run = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(run.stdout) == {}
