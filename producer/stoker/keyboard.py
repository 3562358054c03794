"""Single keys from a terminal, while something else is on it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator


class Keyboard:
    """Standard input; where it is no terminal, nobody presses anything."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Get keys at once and unseen instead of whole lines; Ctrl-C goes on meaning what it does."""
        if self._fd is None:
            yield
            return
        before = termios.tcgetattr(self._fd)
        try:
            tty.setcbreak(self._fd)
            yield
        finally:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    def pressed(self, timeout_s: float) -> str:
        """Return what was pressed within `timeout_s` seconds, as soon as something is; empty for nothing."""
        if self._fd is None:
            time.sleep(timeout_s)
            return ""
        ready, _, _ = select.select([self._fd], [], [], timeout_s)
        if not ready:
            return ""
        keys = os.read(self._fd, 64)
        if not keys:  # the terminal is gone
            self._fd = None
        return keys.decode(errors="replace")
