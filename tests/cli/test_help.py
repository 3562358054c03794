"""Every command says what it does and shows how it is called."""

from __future__ import annotations

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
    assert rest.strip()[0].isupper(), "a sentence follows the usage"
    _, found, examples = rest.partition("Example")
    assert found, rest
    assert f"stoker {' '.join(words)}" in examples.partition("Options:")[0]


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["frobnicate"]).exit_code == 2
