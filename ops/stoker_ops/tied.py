"""A command that cannot outlive its starter: `python -P -m stoker_ops.tied PARENT COMMAND ARGUMENTS...`.

PARENT is the starter's process id, COMMAND is `scheduler`, `worker` or `batch-worker`. Should the starter end in
whatever way, kill -9 included, this process is killed: by the kernel where that can be asked for, else by a thread that
looks at its parent.
Killed, not told to end: a worker that drains could live on for long, and what it held is given to others anyway.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

PARENT_CHECK_S = 0.5
_PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Make this process end with `parent`, which must be its parent; ends it now if that is gone already."""
    if not _ask_the_kernel():
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()
    # Looked at afterwards: a parent that ends from now on is noticed, one that ended before is seen here.
    if os.getppid() != parent:
        _end()


def _ask_the_kernel() -> bool:
    """Ask to be killed when the parent's thread that started us ends; whether the kernel will. Linux only."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _command(name: str) -> click.Command:
    if name == "scheduler":
        from stoker_scheduler.cli import scheduler

        return scheduler
    if name == "batch-worker":
        from stoker.commands.batch import batch_worker

        return batch_worker
    from stoker_workers.cli import worker

    return worker


def main() -> None:
    """Tie this process to its parent, then run the command."""
    parent, name, *arguments = sys.argv[1:]
    tie(int(parent))
    _command(name).main(arguments, prog_name=f"stoker {name}")


if __name__ == "__main__":
    main()
