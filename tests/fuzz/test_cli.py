"""Option values of any kind: an exit code that is documented, never a traceback."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from hypothesis import strategies as st

from fuzz.cases import fuzz, words
from stoker.cli import main
from stoker_ops.embedded import EmbeddedRedis

SUBMIT = (
    "--max-tokens",
    "--priority",
    "--timeout",
    "--temperature",
    "--top-p",
    "--top-k",
    "--seed",
    "--stop",
    "--tenant",
)
OPTIONS = {
    ("submit", "TEXT", "--no-wait"): (*SUBMIT, "--tenant", "--id", "--file", "--wait-timeout", "--redis", "--queue"),
    ("status", "TEXT"): ("--redis", "--queue"),
    ("result", "TEXT"): ("--queue",),
    ("cancel", "TEXT"): ("--queue",),
    ("dead", "list"): ("--tenant", "--reason", "--older-than", "--limit", "--queue"),
    ("dead", "show", "TEXT"): ("--queue",),
    ("dead", "retry", "TEXT"): ("--queue",),
    ("drain", "TEXT"): ("--queue",),
    ("queue", "show"): ("--queue",),
}
DOCUMENTED = {0, 1, 2, 3, 4}


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """A command with any values, as an operating system can pass them."""
    values = words.filter(lambda text: "\0" not in text)
    command = draw(st.sampled_from(sorted(OPTIONS)))
    line = [draw(values) if word == "TEXT" else word for word in command]
    for option in draw(st.lists(st.sampled_from(OPTIONS[command]), max_size=3)):
        line += [option, draw(values)]
    return line


@pytest.fixture(scope="session")
def runner(redis_server: EmbeddedRedis) -> CliRunner:
    """Runs commands on the server of this test process, without patience for those that are not there."""
    patience = {"STOKER_RETRY_TIMEOUT_S": "0", "STOKER_CONNECT_TIMEOUT_S": "0.2", "STOKER_SOCKET_TIMEOUT_S": "2"}
    return CliRunner(env={"STOKER_REDIS_URL": redis_server.url, **patience})


@fuzz(1, line=commands())
def test_any_option_value_ends_with_a_documented_code_and_no_traceback(runner: CliRunner, line: list[str]) -> None:
    ended = runner.invoke(main, line)
    assert ended.exit_code in DOCUMENTED
    assert ended.exception is None or isinstance(ended.exception, SystemExit), repr(ended.exception)
    assert "Traceback" not in ended.output
