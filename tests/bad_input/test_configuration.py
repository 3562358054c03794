"""Settings that cannot work, from each place where they can be set: one line a problem, under the name used there."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from bad_input.conftest import Cli
from stoker import config_file
from stoker.config import LEASE_BEATS, Config, load_config, origins
from stoker.errors import ConfigError

BAD = [
    # what, the setting, its value in the environment and in a file, what is said
    ("a heartbeat that is too short", "heartbeat_ms", "10", "10", "greater than or equal to 20, got "),
    ("a heartbeat that is too long", "heartbeat_ms", "60001", "60001", "less than or equal to 60000, got "),
    (
        "words for a number",
        "max_waiting",
        "many",
        '"many"',
        "unable to parse string as an integer, got ",
    ),
    ("a float for an int", "payload_bytes", "4096.5", "4096.5", "integer"),
    ("nothing may wait", "max_waiting", "0", "0", "greater than or equal to 1, got "),
    ("a negative time", "result_ttl_s", "-1", "-1", "greater than or equal to 1, got "),
    ("NaN", "result_ttl_s", "nan", "nan", "finite number, got "),
    ("infinity", "retry_timeout_s", "inf", "inf", "finite number, got "),
    ("longer than Redis can keep", "dead_ttl_s", "1e12", "1e12", "must be at most 315360000, got "),
    ("more than a script can count", "events_len", "9" * 20, "9" * 18, "must be at most 1125899906842624, got "),
    ("a share over 1", "critical_share", "1.5", "1.5", "less than or equal to 1, got "),
    ("a block that is too long", "block_ms", "2001", "2001", "less than or equal to 2000, got "),
    ("a block over the timeout", "socket_timeout_s", "0.5", "0.5", ""),
    ("a queue with a colon", "queue", "a:b", '"a:b"', "must match [A-Za-z0-9._~-]{1,128}, got 'a:b'"),
    ("an empty queue", "queue", "", '""', "must match [A-Za-z0-9._~-]{1,128}, got ''"),
    ("delays upside down", "backoff_min_ms", "40000", "40000", "must be at most backoff_max_ms (30000), got 40000"),
    ("windows upside down", "window_normal_s", "700", "700", "must be at most window_low_s (600.0), got 700.0"),
    ("words for a switch", "events", "perhaps", '"perhaps"', "valid boolean, unable to interpret input, got 'perhaps'"),
]
rows = pytest.mark.parametrize(
    ("name", "environment", "file", "said"), [row[1:] for row in BAD], ids=[r[0] for r in BAD]
)
BLOCK = "block_ms: must be under socket_timeout_s (0.5 s), got 1000"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that STOKER_CONFIG names; not there yet."""
    monkeypatch.setenv("STOKER_CONFIG", str(tmp_path / "stoker.toml"))
    return tmp_path / "stoker.toml"


@rows
def test_a_bad_variable_is_refused_by_its_name(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, environment: str, file: str, said: str
) -> None:
    variable = f"STOKER_{name.upper()}"
    refused = cli("stats", **{variable: environment})
    assert refused.exit_code == 2
    [line] = refused.stderr.splitlines()
    assert (line.startswith(f"stoker: {variable}: ") and said in line) or BLOCK in line
    monkeypatch.setenv(variable, environment)
    with pytest.raises(ConfigError):
        Config()


@rows
def test_a_bad_value_in_the_file_is_refused_by_the_file_and_its_key(
    settings: Path, cli: Cli, name: str, environment: str, file: str, said: str
) -> None:
    settings.write_text(f"{name} = {file}\n")
    # Nothing else may set it, or the file's value would not count.
    refused = cli("stats", STOKER_HEARTBEAT_MS=None)
    assert refused.exit_code == 2
    [line] = refused.stderr.splitlines()
    assert (line.startswith(f"stoker: {settings}: {name}: ") and said in line) or BLOCK in line


@rows
def test_a_bad_argument_is_refused_by_its_name(name: str, environment: str, file: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**{name: environment})  # type: ignore[arg-type]  # that it is wrong is the point
    [line] = str(caught.value).splitlines()
    assert (line.startswith(f"{name}: ") and said in line) or line == BLOCK


@pytest.mark.parametrize("value", [True, 1.5, math.inf, [], {}, b"\xff", None])
def test_a_number_is_nothing_else(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^max_attempts: "):
        Config(max_attempts=value)  # type: ignore[arg-type]  # that it is wrong is the point


def test_every_problem_has_a_line_of_its_own(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.write_text("hartbeat_ms = 5\nmax_attempts = true\n")
    monkeypatch.setenv("STOKER_RESULT_TTL_S", "nan")
    monkeypatch.setenv("STOKER_QEUE", "a")
    with pytest.raises(ConfigError) as caught:
        load_config(block_ms=5000)
    lines = [
        "STOKER_QEUE: unknown setting; did you mean STOKER_QUEUE?",
        f"{settings}: hartbeat_ms: unknown setting; did you mean heartbeat_ms?",
        f"{settings}: max_attempts: must not be true or false, got True",
        "STOKER_RESULT_TTL_S: Input should be a finite number, got 'nan'",
        "block_ms: Input should be less than or equal to 2000, got 5000",
    ]
    assert sorted(str(caught.value).splitlines()) == sorted(lines)


def test_an_argument_wins_over_the_environment_that_over_the_file_and_that_over_the_default(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text('queue = "file"\nheartbeat_ms = 300\nmax_attempts = 7\n')
    monkeypatch.setenv("STOKER_QUEUE", "environment")
    monkeypatch.setenv("STOKER_HEARTBEAT_MS", "400")
    config = load_config(queue="argument")
    assert (config.queue, config.heartbeat_ms, config.max_attempts, config.max_losses) == ("argument", 400, 7, 10)
    assert {name: origins().get(name) for name in ("heartbeat_ms", "max_attempts", "max_losses")} == {
        "heartbeat_ms": "environment",
        "max_attempts": str(settings),
        "max_losses": None,
    }


def test_config_show_names_where_each_value_came_from(settings: Path, cli: Cli) -> None:
    settings.write_text("max_attempts = 7\n")
    rows = json.loads(cli("config", "show", "--json").stdout)
    assert (rows["max_attempts"]["value"], rows["max_attempts"]["source"]) == (7, str(settings))
    assert rows["heartbeat_ms"]["source"] == "environment"
    assert rows["max_losses"]["source"] == "default"
    assert str(settings) in cli("config", "show", COLUMNS="400").stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"queue = ", "is no TOML file (Invalid value (at end of document))"),
        (b"\xff\xfe", "is no TOML file ('utf-8' codec"),
        (b"a = " + b"[" * 100_000, "is no TOML file ("),
        (b"# \n" * 500_000, "must have at most 1048576 bytes"),
        (b'[redis]\nurl = "redis://h/0"\n', "redis: unknown setting; did you mean redis_url?"),
        (b'redis_url = "http://h"\n', "redis_url: must begin with one of redis://"),
    ],
    ids=["half a line", "no UTF-8", "a bomb", "too large", "a table", "no Redis"],
)
def test_a_file_that_is_none_is_refused_by_its_path(settings: Path, cli: Cli, content: bytes, said: str) -> None:
    settings.write_bytes(content)
    refused = cli("stats", STOKER_REDIS_URL=None)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.output


@pytest.mark.parametrize("name", ["/nowhere/stoker.toml", "/tmp"])
def test_a_file_that_is_not_there_is_no_empty_one(cli: Cli, name: str) -> None:
    refused = cli("stats", STOKER_CONFIG=name)
    assert refused.exit_code == 2
    assert f"stoker: STOKER_CONFIG: {name} cannot be read (" in refused.stderr


def test_an_empty_variable_names_no_file(cli: Cli) -> None:
    assert cli("stats", STOKER_CONFIG="").exit_code == 0


def test_a_password_that_everybody_can_read_is_warned_about(settings: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings.write_text('redis_url = "redis://:secret@h/0"\n')
    said = []
    for mode in (0o600, 0o640, 0o644):
        settings.chmod(mode)
        config_file._warn_exposed.cache_clear()
        with caplog.at_level(logging.WARNING, "stoker"):
            assert load_config().redis_url == "redis://:secret@h/0"
        said.append([record.getMessage() for record in caplog.records])
        caplog.clear()
    assert said[:2] == [[], []]
    [warning] = said[2]
    assert f"chmod o-r {settings}" in warning
    assert "secret" not in warning


def test_a_whole_set_of_settings_is_what_it_is_whatever_the_file_says(settings: Path) -> None:
    settings.write_text("heartbeat_ms = 300\n")
    config = Config(queue="q")
    settings.write_text("heartbeat_ms = no\n")
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_lease_is_never_shorter_than_two_heartbeats() -> None:
    # It is no setting of its own, so that nobody can set it shorter.
    assert LEASE_BEATS > 2
    assert not [name for name in Config.model_fields if "lease" in name]
    for heartbeat_ms in (20, 60_000):
        assert Config(heartbeat_ms=heartbeat_ms).lease_us >= 2 * heartbeat_ms * 1000
