"""The units of ops/systemd: systemd accepts them, our commands accept their arguments, and stopping may drain."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from stoker import Config
from stoker.cli import main

UNITS = sorted((Path(__file__).parents[2] / "ops/systemd").glob("*.service"))
BACK_OFF = ("RestartSteps", "RestartMaxDelaySec")
OURS = "/opt/stoker/bin/stoker"


def settings(unit: Path) -> list[tuple[str, str]]:
    lines = (line.partition("=") for line in unit.read_text().splitlines() if re.match(r"\w+=", line))
    return [(name, value) for name, _, value in lines]


def setting(unit: Path, name: str) -> str:
    [value] = [value for found, value in settings(unit) if found == name]
    return value


def test_there_is_a_unit_for_each_part() -> None:
    names = ["stoker-redis.service", "stoker-scheduler.service", "stoker-worker@.service"]
    assert [unit.name for unit in UNITS] == names


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say_about_it(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    for other in UNITS:
        # Programs are looked for, and ours may be installed nowhere here.
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", other.read_text(), flags=re.MULTILINE)
        (tmp_path / other.name.replace("@.", "@0.")).write_text(text)
    version = int(subprocess.run([analyze, "--version"], capture_output=True, text=True, check=True).stdout.split()[1])
    command = [analyze, "verify", "--man=no", str(tmp_path / unit.name.replace("@.", "@0."))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"LC_ALL": "C"})
    said = [line for line in run.stderr.splitlines() if str(tmp_path) in line]
    unknown = [f"Unknown key '{name}'" for name in BACK_OFF if version < 254]
    # Newer ones write "key name".
    said = [line for line in said if not any(word in line.replace("key name", "key") for word in unknown)]
    assert not said
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("unit", [unit for unit in UNITS if "redis" not in unit.name], ids=lambda unit: unit.name)
def test_its_command_takes_its_arguments_and_its_secrets_come_from_a_file(unit: Path) -> None:
    program, name, *arguments = shlex.split(setting(unit, "ExecStart"))
    assert program == OURS
    command = main.get_command(click.Context(main), name)
    assert command is not None
    command.make_context(name, [word for word in arguments if not word.startswith("$")])
    assert "--redis" not in arguments
    assert "/etc/stoker/stoker.env" in [value for found, value in settings(unit) if found == "EnvironmentFile"]
    # Settings of ours that nobody knows end every command.
    ours = re.findall(r"Environment=STOKER_(\w+)", unit.read_text())
    assert {name.lower() for name in ours} <= set(Config.model_fields)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_is_hardened_and_comes_back(unit: Path) -> None:
    expected = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "Restart": "always"}
    assert {name: setting(unit, name) for name in expected} == expected
    assert setting(unit, "User") == "stoker"
    assert int(setting(unit, "RestartMaxDelaySec")) > int(setting(unit, "RestartSec"))


def test_a_worker_has_more_time_to_stop_than_to_drain() -> None:
    worker = UNITS[2]
    assert int(setting(worker, "TimeoutStopSec")) >= Config().drain_timeout_s + 30
    assert setting(worker, "KillSignal") == "SIGTERM"
