"""What tests of every part share: waiting with a deadline, and looking for processes left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

# The environment variable by which `short_tmp` marks every process that a test starts.
MARK = "PYTEST_PROCESS_MARK"


def wait_until(predicate: Callable[[], T], timeout: float = 5.0, *, what: str = "", poll: float = 0.01) -> T:
    """Call `predicate` until it returns something true, and return that. Fail after `timeout` seconds.

    `what` ends the sentence "not within 5 s: ...". An exception of the predicate is the test's own. What took long
    already is asked more rarely than every `poll` seconds, for asking takes time from what is waited for.
    """
    begun = time.monotonic()
    while True:
        # Asked before the deadline is looked at, so that a slow machine gets at least one honest answer.
        if value := predicate():
            return value
        waited = time.monotonic() - begun
        if waited > timeout:
            pytest.fail(f"not within {timeout:g} s: {what or getattr(predicate, '__name__', predicate)}", pytrace=True)
        time.sleep(max(poll, min(0.05, waited / 20)))


def process_is_gone(pid: int) -> bool:
    """Whether a process ended. A zombie has: only its parent has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def marked_processes(mark: str) -> dict[int, str]:
    """Return the living processes, other than this one, whose command line or environment contains `mark`.

    Both are looked at, because a Redis overwrites its environment with its title, which has its socket's path.
    Linux only; elsewhere nothing is found.
    """
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        try:
            command = (entry / "cmdline").read_bytes()
            marked = mark.encode() in command + b"\0" + (entry / "environ").read_bytes()
        except OSError:  # it ended meanwhile, or belongs to another user
            continue
        if marked and pid != os.getpid() and not process_is_gone(pid):
            found[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def assert_no_stray_processes(mark: str, timeout: float = 5.0) -> None:
    """Fail if processes with this mark are still there after `timeout` seconds. The mark may be a directory's path."""
    deadline = time.monotonic() + timeout
    while strays := marked_processes(mark):
        if time.monotonic() > deadline:
            lines = "\n".join(f"  {pid}: {command}" for pid, command in sorted(strays.items()))
            pytest.fail(f"processes left behind {timeout:g} s after the test:\n{lines}")
        time.sleep(0.02)
