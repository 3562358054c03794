"""What the command line refuses: one line that names the field, its limit and what was given; no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from bad_input.conftest import Cli
from stoker import Client

LONG = "x" * 129
NAMED = r"must match [A-Za-z0-9._~-]{1,128}"

BAD = [
    # what, the arguments, what is said
    ("no prompt", ["submit"], ["TEXT"]),
    ("an empty prompt", ["submit", ""], ["prompt: must be a non-empty string, got ''"]),
    ("a lone surrogate", ["submit", "\udcff"], ["prompt: must be valid Unicode"]),
    ("two prompts", ["submit", "x", "--file", __file__], ["TEXT", "--file"]),
    ("no file", ["submit", "--file", "/nowhere"], ["--file", "/nowhere"]),
    ("a folder", ["submit", "--file", "/tmp"], ["--file", "/tmp", "directory"]),
    ("a file without an end", ["submit", "--file", "/dev/zero"], ["prompt: must have at most payload_bytes (1048576)"]),
    ("an empty file", ["submit", "--file", "/dev/null"], ["prompt: must be a non-empty string"]),
    ("no tokens", ["submit", "x", "--max-tokens", "0"], ["max_tokens: must be an integer from 1", "got 0"]),
    ("a float for an int", ["submit", "x", "--max-tokens", "1.5"], ["--max-tokens", "'1.5'"]),
    (
        "too many tokens",
        ["submit", "x", "--max-tokens", "1" * 30],
        ["max_tokens: must be an integer", "got 111"],
    ),
    ("words for a number", ["submit", "x", "--max-tokens", "many"], ["--max-tokens", "'many'"]),
    ("no time to live", ["submit", "x", "--timeout", "0"], ["timeout: must be a finite number over 0, got 0.0"]),
    ("a negative time to live", ["submit", "x", "--timeout", "-1"], ["timeout", "got -1.0"]),
    ("an infinite time to live", ["submit", "x", "--timeout", "inf"], ["timeout", "got inf"]),
    ("a time to live that is no number", ["submit", "x", "--timeout", "nan"], ["timeout", "got nan"]),
    ("a time to live over the maximum", ["submit", "x", "--timeout", "1e9"], ["max_age_s (86400 s)", "1000000000.0"]),
    ("a temperature that is no number", ["submit", "x", "--temperature", "nan"], ["temperature", "got nan"]),
    ("an infinite temperature", ["submit", "x", "--temperature", "inf"], ["temperature", "got inf"]),
    ("top_p of 0", ["submit", "x", "--top-p", "0"], ["top_p: must be a finite number over 0 and at most 1, got 0.0"]),
    ("top_k of 0", ["submit", "x", "--top-k", "0"], ["top_k: must be an integer from 1", "got 0"]),
    ("a negative seed", ["submit", "x", "--seed", "-1"], ["seed: must be an integer from 0", "got -1"]),
    ("an empty stop", ["submit", "x", "--stop", ""], ["stop: must be a non-empty string"]),
    ("a long stop", ["submit", "x", "--stop", "y" * 300], ["stop: a stop string has at most 256 characters"]),
    ("too many stops", ["submit", "x", *["--stop", "y"] * 17], ["stop: must be a string or a list of 1 to 16"]),
    ("no such class", ["submit", "x", "--priority", "urgent"], ["--priority", "'urgent'", "'critical', 'high'"]),
    ("a number for a class", ["submit", "x", "--priority", "nan"], ["--priority", "'nan'"]),
    ("an id with a blank", ["submit", "x", "--id", "a b"], [f"request_id: {NAMED}, got 'a b'"]),
    ("a long id", ["submit", "x", "--id", LONG], [f"request_id: {NAMED}, got 'xxx", "(131 characters)"]),
    ("a tenant with a bar", ["submit", "x", "--tenant", "a|b"], [f"tenant: {NAMED}, got 'a|b'"]),
    ("more than one answer", ["submit", "x", "--n", "2"], ["No such option", "--n"]),
    ("a status of no id", ["status", "a:b"], [f"request_id: {NAMED}, got 'a:b'"]),
    ("a result of no id", ["result", ""], [f"request_id: {NAMED}, got ''"]),
    ("a cancel of no id", ["cancel", "fine", "a b"], [f"request_id: {NAMED}, got 'a b'"]),
    ("a queue with a blank", ["submit", "x", "--queue", "a b"], [f"queue: {NAMED}, got 'a b'"]),
    (
        "no Redis scheme",
        ["submit", "x", "--redis", "http://h"],
        ["redis_url: must begin with one of redis://", "'http://h'"],
    ),
    ("a port in words", ["submit", "x", "--redis", "redis://h:p/0"], ["redis_url: its port", "'redis://h:p/0'"]),
    ("a database in words", ["status", "x", "--redis", "redis://h?db=x"], ["redis_url: ", "'redis://h?db=x'"]),
    ("an unknown option in a URL", ["status", "x", "--redis", "redis://h?a=1"], ["redis_url: ", "'redis://h?a=1'"]),
    ("a password in argv", ["submit", "x", "--redis", "redis://u:p@h/0"], ["STOKER_REDIS_URL"]),
    ("one in the query", ["submit", "x", "--redis", "redis://h/0?password=p"], ["STOKER_REDIS_URL"]),
]


@pytest.mark.parametrize(("arguments", "said"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_a_usage_error_that_names_the_field(
    cli: Cli, client: Client, arguments: list[str], said: list[str]
) -> None:
    refused = cli(*arguments)
    assert refused.exit_code == 2, refused.output
    for words in said:
        assert words in refused.stderr
    assert "Traceback" not in refused.output
    assert refused.stdout == ""
    assert client.stats()["counts"]["submitted"] == 0


def test_what_is_no_text_is_refused_with_its_place(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"fine\xff\xfe\x00")
    for refused in (
        cli("submit", "--file", str(tmp_path / "binary"), "--no-wait"),
        cli("submit", "-", "--no-wait", answer=b"fine\xff\xfe\x00"),
    ):
        assert refused.exit_code == 2
        assert refused.stderr == "stoker: prompt: must be UTF-8 text, got 'byte 4: ff'\n"


def test_a_file_over_the_limit_is_refused_with_both_numbers(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 5000)
    refused = cli("submit", "--file", str(tmp_path / "large"), STOKER_PAYLOAD_BYTES="4096")
    assert refused.exit_code == 2
    assert "prompt: must have at most payload_bytes (4096) bytes, got '4097 or more'" in refused.stderr


def test_the_same_id_with_another_payload_is_a_conflict(cli: Cli) -> None:
    assert cli("submit", "one", "--id", "a", "--no-wait").exit_code == 0
    conflict = cli("submit", "two", "--id", "a", "--no-wait")
    assert conflict.exit_code == 1
    assert "request id 'a' is taken by a request with other content" in conflict.stderr


def test_a_full_queue_exits_with_4_and_says_why(cli: Cli) -> None:
    assert cli("submit", "one", "--no-wait", STOKER_MAX_WAITING="1").exit_code == 0
    full = cli("submit", "two", "--no-wait", STOKER_MAX_WAITING="1")
    assert full.exit_code == 4
    assert "queue 'default' is full; no worker is alive" in full.stderr
    assert "(max_waiting: at most 1, got 2)" in full.stderr


@pytest.mark.parametrize("wait", ["-1", "0", "nan"])
def test_waiting_for_no_time_exits_with_4(cli: Cli, wait: str) -> None:
    waited = cli("submit", "x", "--no-stream", "--wait-timeout", wait)
    assert (waited.exit_code, "Traceback" in waited.output) == (4, False)


def test_a_limit_larger_than_redis_can_count_to_is_no_limit(cli: Cli) -> None:
    assert cli("dead", "list", "--limit", "9" * 20).exit_code == 0
