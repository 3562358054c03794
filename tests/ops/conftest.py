"""Fixtures of whole stacks: Python programs that are run, and a folder for temporary files that must be left empty."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import wait_until


@pytest.fixture(autouse=True)
def any_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are exported on any free port: the usual ones may be in use, by a stack or by another test."""
    monkeypatch.setenv("STOKER_METRICS_PORT", "0")


@pytest.fixture
def temp(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; a test that leaves one fails."""
    folder = short_tmp / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    # The guard of a Redis whose starter was killed takes a moment.
    wait_until(lambda: not list(folder.iterdir()), 10, what=f"{folder} is empty")


@pytest.fixture
def python(short_tmp: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Runs Python with these arguments and pipes, unless told otherwise; kills it at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | options
        started.append(subprocess.Popen([sys.executable, *arguments], text=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            pipe.close()
