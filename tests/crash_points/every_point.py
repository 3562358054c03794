"""Runs the scenario once per point and end: python tests/crash_points/every_point.py [--jobs N] [--only WORDS].

Prints a line for each, and keeps the folder of what failed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from crash_points.scenario import Point, Scenario
from stoker_ops.embedded import start

ENDS = ("exit", "stop")


def live_once(point: Point | None) -> tuple[list[str], str, float]:
    """Live a scenario with a Redis of its own; gives the points noted, what went wrong, and the seconds it took."""
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="stoker-c-", dir="/tmp"))
    problem, noted = "", []
    with start(folder / "redis", extra_args=("--appendonly", "no")) as server:
        try:
            Scenario(server.url, folder, point).run()
        except Exception as error:
            problem = f"{type(error).__name__}: {error} (see {folder})"
    if not point:
        noted = sorted(file.name for file in (folder / "points").iterdir() if file.name.endswith(("before", "after")))
    if not problem:
        shutil.rmtree(folder, ignore_errors=True)
    return [name for name in noted if not name.startswith(".")], problem, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="run only the points whose name contains this")
    parser.add_argument("--end", choices=ENDS, action="append", help="how a process ends there; default: both")
    options = parser.parse_args()
    names, problem, took_s = live_once(None)
    if problem:
        say(f"the scenario fails without any fault: {problem}")
        return 1
    say(f"{len(names)} points in a life of {took_s:.1f} s")
    points = [Point(name, end) for name in names for end in options.end or ENDS if options.only in name]
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for point, (_, problem, took_s) in zip(points, pool.map(live_once, points), strict=True):
            failed += bool(problem)
            say(f"{point.name:44} {point.end:4} {took_s:6.1f} s  {problem or 'ok'}")
    say(f"crash-points: {len(points)} points, {failed} failed {'failed' if failed else 'ok'}")
    return 1 if failed else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
