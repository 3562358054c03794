"""A tiny process between a starter and its Redis server: whatever happens to the starter, the server is stopped.

Run by path and isolated: `python -I _guard.py PARENT LOCK_FD SOCKET STOP_S EPHEMERAL SERVER...`, where STOP_S is how
long the server may take to end before it is killed, and EPHEMERAL a word or nothing. It imports little, to start fast.
It ends when

- its standard input reports EOF (the starter died) or a byte (the starter asks), or its parent changes (the starter
  died, but something it forked still holds the pipe), or SIGTERM arrives: the server is stopped and reaped;
- the server ends by itself: the guard ends with status 1, for the starter to see.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

# How often the parent is looked at; every other reason to stop wakes the guard at once.
_PARENT_CHECK_S = 0.5
_PR_SET_PDEATHSIG = 1


class _Signals:
    """Turns SIGTERM and SIGCHLD into a readable file descriptor, so that one select waits for everything."""

    def __init__(self) -> None:
        self.stop = False
        self.wakeup, write_end = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # a handler, or the wake-up is not written
        # Ctrl-C belongs to the starter, which then says what happens to the server.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_term(self, _number: int, _frame: FrameType | None) -> None:
        self.stop = True

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.wakeup, 4096)


def _die_with_parent() -> None:  # pragma: no cover - runs in the child that becomes the server, and ends with it
    """Make the kernel end the server should this guard itself be killed. Linux only; elsewhere nothing does.

    Runs between fork and exec, which is safe here: the guard has one thread, and it lives as long as the guard.
    """
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _start(command: list[str], lock_fd: int) -> subprocess.Popen[bytes]:
    # The server inherits the lock: the directory stays taken until the last process that can write to it is gone.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=(lock_fd,),
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def _wait(server: subprocess.Popen[bytes], parent: int, signals: _Signals) -> bool:
    """Return True when the server shall be stopped, False when it ended by itself."""
    while not signals.stop:
        if server.poll() is not None:
            return False
        if os.getppid() != parent:
            return True
        readable, _, _ = select.select([0, signals.wakeup], [], [], _PARENT_CHECK_S)
        signals.drain()
        if 0 in readable:
            return True
    return True


def _stop(server: subprocess.Popen[bytes], socket: Path, stop_s: float) -> None:
    # Without its socket nobody joins a server that is about to end.
    socket.unlink(missing_ok=True)
    server.terminate()
    server.send_signal(signal.SIGCONT)  # a stopped process would not see the signal
    try:
        server.wait(stop_s)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main() -> int:
    """Run the server until one of the reasons above; return the status to end with."""
    parent, lock_fd, socket, stop_s, ephemeral, *command = sys.argv[1:]
    signals = _Signals()
    server = _start(command, int(lock_fd))
    if not _wait(server, int(parent), signals):
        return 1
    _stop(server, Path(socket), float(stop_s))
    if ephemeral:
        shutil.rmtree(Path(socket).parent, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
