"""What a service's process does without stays out of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stoker import Config
from stoker.store import scripts
from stoker.store.connection import Store

CODE = """
import atexit, sys
atexit.register(lambda: print("rich" in sys.modules, "structlog" in sys.modules))
from stoker.cli import main
main()
"""


def printed(code: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment)
    return run.stdout


@pytest.mark.parametrize("command", [["scheduler"], ["worker", "--model", "sim"]], ids=["scheduler", "worker"])
def test_a_service_imports_no_rich(redis_url: str, command: list[str]) -> None:
    other = Config(redis_url=redis_url, heartbeat_ms=500)
    Store(other).run(scripts.lead("node:nonce", "", "random", other))  # so that it ends by itself
    assert printed(CODE, *command, STOKER_REDIS_URL=redis_url, STOKER_METRICS="false") == "False True\n"


def test_rich_can_be_imported_afterwards() -> None:
    code = "from stoker.light import leave_rich_out; leave_rich_out(); import rich.pretty as p; print(p.pretty_repr(1))"
    assert printed(code) == "1\n"
