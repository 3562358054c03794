"""How whatever runs a stack is told to end: by signals, and by the end of its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from signal import SIGINT, SIGTERM
from typing import cast

from stoker_ops.local import LocalStack

PARENT_CHECK_S = 0.5


class Interrupt:
    """Cancels a task at the first reason to end; hurries the stack at those that follow, and once it stops anyway."""

    def __init__(self, stack: LocalStack, task: asyncio.Task[object]) -> None:
        self.reason: object = None
        self._stack = stack
        self._task = task

    def __call__(self, reason: object) -> None:
        """End the task for `reason`, a signal or anything else."""
        if self.reason is None and not self._stack.stopping:
            self.reason = reason
            self._task.cancel()
        else:
            self._stack.hurry()


@contextlib.contextmanager
def interruptible(stack: LocalStack) -> Iterator[Interrupt]:
    """Make SIGINT and SIGTERM interrupt the current task."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    interrupt = Interrupt(stack, cast("asyncio.Task[object]", task))
    for number in (SIGINT, SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield interrupt
    finally:
        for number in (SIGINT, SIGTERM):
            loop.remove_signal_handler(number)


async def parent_ends(parent: int | None = None) -> None:
    """Return when our parent is another one than `parent`, by default than now: it ended, perhaps by kill -9."""
    parent = parent or os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110  # no event comes
        await asyncio.sleep(PARENT_CHECK_S)
