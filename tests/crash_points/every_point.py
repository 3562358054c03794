"""Lets a process of a small stack end, and stand still, at every point of every role; prints a line for each.

PYTHONPATH=tests python -m crash_points.every_point [--jobs N] [--only WORDS] [--end exit|stop]

Keeps the folder, with all logs, of a stack on which something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

from crash_points.scenario import Point, Scenario
from stoker.store.scripts import script_names
from stoker_ops.embedded import start

ENDS = ("exit", "stop")
OPERATORS = {"drain", "set_model", "retry_dead", "purge_dead", "set_tenant"}
OF_SHARDS = {"agree"}
SCRIPTS = [name for name in script_names() if name not in OPERATORS | OF_SHARDS and "_batch" not in name]
"""What clients, schedulers and workers of a queue of one shard call: all of it must be a point."""


@contextlib.contextmanager
def scenario() -> Iterator[Scenario]:
    """A stack on a Redis of its own."""
    folder = Path(tempfile.mkdtemp(prefix="stoker-p-", dir="/tmp"))
    with start(folder / "redis", extra_args=("--appendonly", "no")) as server:
        stack = Scenario(server.url, folder)
        try:
            yield stack
        finally:
            stack.end()
    if not stack.failed:
        shutil.rmtree(folder, ignore_errors=True)


def all_points() -> list[str]:
    """Live once without a fault; gives the points that were passed, which must be those of all scripts."""
    with scenario() as stack:
        stack.run()
        files = [file.name for file in (stack.folder / "points").iterdir()]
        stack.leave()
    names = sorted(name for name in files if name.endswith((" before", " after")))
    untouched = [script for script in SCRIPTS if not any(f" {script} before" in name for name in names)]
    assert not untouched, f"the scenario does not call {', '.join(untouched)}"
    return names


def live(points: SimpleQueue[Point], failed: list[Point]) -> None:
    """Take points one after the other, on one stack until something fails there, then on a new one."""
    while point := take(points):
        with scenario() as stack:
            while point and attempt(stack, point, failed):
                point = take(points)
            if not point:
                stack.leave()


def take(points: SimpleQueue[Point]) -> Point | None:
    """Return the next point, None when there is none."""
    try:
        return points.get_nowait()
    except Empty:
        return None


def attempt(stack: Scenario, point: Point, failed: list[Point]) -> bool:
    """Run one point, and say how it went; gives whether it went well."""
    started, problem = time.monotonic(), ""
    try:
        stack.run(point)
    except AssertionError as error:
        problem = f"{error} (see {stack.folder})"
        failed.append(point)
        stack.failed = True
    say(f"{point.name:36} {point.end:4} {time.monotonic() - started:6.1f} s  {problem or 'ok'}")
    return not problem


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="run only the points whose name contains this")
    parser.add_argument("--end", choices=ENDS, action="append", help="how a process ends there; default: both")
    options = parser.parse_args()
    names = all_points()
    chosen = [Point(name, end) for name in names for end in options.end or ENDS if options.only in name]
    say(f"{len(names)} points; {len(chosen)} to run")
    points: SimpleQueue[Point] = SimpleQueue()
    for point in chosen:
        points.put(point)
    failed: list[Point] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(live, points, failed) for _ in range(options.jobs)]:
            done.result()
    say(f"crash-points: {len(chosen)} points, {len(failed)} failed {'short' if failed else 'ok'}")
    return 1 if failed else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
