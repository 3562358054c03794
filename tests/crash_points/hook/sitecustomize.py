"""Puts crash points into every Python process started with this folder on its path; no production code knows.

A point is `<role> <what> <before or after>`. CRASH_POINT_FOLDER switches them on. The link `armed` in that folder says
`<round>|<point>|<end>|<nth>`: the nth time that a process passes the point it ends there (exit: by os._exit) or stands
still (stop: by SIGSTOP), once a round; `fired-<round>` then holds its process id. Without the link each point that is
passed is noted by a file of its name.

The sim engine gets two faults: a request `flaky...` fails once, and one whose id begins with `poison` kills its
process.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("CRASH_POINT_FOLDER", "")
EXIT = 77


def role() -> str:
    """Return which part of a stack this process is, as its command line says."""
    words = sys.orig_argv
    if "stoker_workers.process" in words:
        return "child"
    return next(
        (role for word, role in (("worker", "supervisor"), ("scheduler", "scheduler")) if word in words),
        "client" if any(word.endswith("one_client.py") for word in words) else "",
    )


class Points:
    """The points of this process."""

    def __init__(self, folder: Path) -> None:
        self.role = role()
        self.folder = folder
        self.armed = ""
        self.left = 0
        self.noted: set[str] = set()

    def passed(self, what: str, when: str) -> None:
        """Be at a point."""
        name = f"{self.role} {what} {when}"
        try:
            armed = str((self.folder / "armed").readlink())
        except FileNotFoundError:
            self.note(name)
            return
        count, wanted, end, nth = armed.split("|")
        if armed != self.armed:
            self.armed, self.left = armed, int(nth)
        if name != wanted:
            return
        self.left -= 1
        if self.left <= 0 and self.claim(f"fired-{count}"):
            if end == "exit":
                os._exit(EXIT)
            os.kill(os.getpid(), signal.SIGSTOP)

    def note(self, name: str) -> None:
        if name not in self.noted:
            self.noted.add(name)
            self.claim(name)

    def claim(self, name: str) -> bool:
        """Make a file of the folder with this process's id; gives whether nobody else had."""
        made = self.folder / f".{os.getpid()}-{threading.get_ident()}"
        made.write_text(str(os.getpid()))
        try:
            os.link(made, self.folder / name)
        except FileExistsError:
            return False
        finally:
            made.unlink()
        return True

    def around(self, owner: Any, method: str, name: Callable[..., str]) -> None:
        """Put a point before and one after a method; `name` makes its name of the arguments behind self."""
        function = getattr(owner, method)

        @functools.wraps(function)
        def call(itself: Any, *args: Any, **more: Any) -> Any:
            what = name(*args)
            self.passed(what, "before")
            answer = function(itself, *args, **more)
            self.passed(what, "after")
            return answer

        @functools.wraps(function)
        async def call_async(itself: Any, *args: Any, **more: Any) -> Any:
            what = name(*args)
            self.passed(what, "before")
            answer = await function(itself, *args, **more)
            self.passed(what, "after")
            return answer

        setattr(owner, method, call_async if function.__code__.co_flags & 0x80 else call)


def name_of(call: Any) -> str:
    """Return the name of a script, or of a read by the function that reads its reply."""
    if hasattr(call, "script"):
        return str(call.script)
    parse = getattr(call.parse, "func", call.parse)
    return "read-" + parse.__qualname__.partition(".")[0].removeprefix("_parse_")


def install(points: Points) -> None:
    """Put points around every call of Redis, and around what a supervisor and its child do to each other."""
    from stoker.store.connection import AsyncStore, Store

    for store in (Store, AsyncStore):
        points.around(store, "run", name_of)
        points.around(store, "read", name_of)
    if points.role == "supervisor":
        from stoker_workers.child import Child

        points.around(Child, "start", lambda: "spawn")
        points.around(Child, "tell", lambda message: f"tell-{type(message).__name__}")
        points.around(Child, "end", lambda: "end-child")
    if points.role == "child":
        from stoker_workers.board import Board
        from stoker_workers.engines.sim import SimEngine

        points.around(Board, "begin_step", lambda *_: "begin-step")
        points.around(Board, "end_step", lambda: "end-step")
        points.around(Board, "publish", lambda: "publish-counters")
        plant_faults(SimEngine, points)
        points.around(SimEngine, "admit", lambda _: "admit")
        points.around(SimEngine, "step", lambda: "step")
        points.around(SimEngine, "cancel", lambda _: "cancel-row")
        tell_of_news(points)


def tell_of_news(points: Points) -> None:
    """Put a point before each word of the child to its supervisor: behind it is the next point, whatever that is."""
    from stoker_workers import messages

    to_line = messages.to_line

    def line(message: messages.Message) -> bytes:
        points.passed(f"news-{type(message).__name__}", "before")
        return to_line(message)

    messages.to_line = line


def plant_faults(engine: Any, points: Points) -> None:
    """Let `poison` kill and `flaky` fail once."""
    from stoker_workers.engine import Failed

    step = engine.step

    def faulty(self: Any) -> list[Any]:
        for request_id in self.resident():
            if request_id.startswith("poison"):
                os.abort()
            if request_id.startswith("flaky") and points.claim(f"failed-{request_id}"):
                self.cancel(request_id)
                return [Failed(request_id, "a fault of the test")]
        return list(step(self))

    engine.step = faulty


if FOLDER and role():
    install(Points(Path(FOLDER)))
