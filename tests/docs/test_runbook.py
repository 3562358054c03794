"""Commands of the runbook that its snippets do not run are run by tests of the command line."""

from __future__ import annotations

import re
from pathlib import Path

from docs.snippets import find_snippets

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "ops" / "RUNBOOK.md"
COMMAND = re.compile(r"\bstoker ([a-z][a-z-]*)(?: ([a-z][a-z-]+))?")
GROUPS = ("batch", "dead", "queue")
TESTS = "\n".join(path.read_text() for folder in ("cli", "stack") for path in (ROOT / "tests" / folder).glob("*.py"))


def commands(text: str) -> set[tuple[str, ...]]:
    """The commands that a text names, each with that of its group."""
    return {(name, under) if name in GROUPS else (name,) for name, under in COMMAND.findall(text)}


def test_every_command_of_the_runbook_is_run() -> None:
    run = "\n".join(snippet.code for snippet in find_snippets(ROOT, PAGE) if snippet.reason is None)
    named = commands("\n".join(re.findall(r"`(stoker [^`]+)`", PAGE.read_text()))) | commands(
        "\n".join(snippet.code for snippet in find_snippets(ROOT, PAGE))
    )
    assert len(named) > 12
    for command in named - commands(run):
        words = ", ".join(f'"{word}"' for word in command)
        assert words in TESTS or f"{command[0].replace('-', '_')}(" in TESTS, command
