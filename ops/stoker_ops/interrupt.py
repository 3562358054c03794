"""How whatever runs a stack is told to end: by signals, and by the end of its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterator
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from stoker_ops.local import LocalStack

PARENT_CHECK_S = 0.5
CANCEL_AGAIN_S = 1.0
"""After how long a task that goes on is cancelled again. Before Python 3.12, `asyncio.wait_for` loses a cancellation
that comes when its result does, and every command of the Redis client goes through one."""


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
            self._cancel()
        else:
            self._stack.hurry()

    def _cancel(self) -> None:
        if not self._stack.stopping and not self._task.done():
            self._task.cancel()
            asyncio.get_running_loop().call_later(CANCEL_AGAIN_S, self._cancel)


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended, however they do."""
    waiting: Collection[asyncio.Task[Any]] = tasks
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, or it would be complained about


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
