"""Runs the benches of the queue one after the other, and writes docs/BENCHMARKS.md of what all benches left behind.

    python bench/benchmarks.py                        # about an hour
    python bench/benchmarks.py --only latency memory
    python bench/benchmarks.py --write                # the page alone, out of bench/results/

What each bar is about, and why it is short where it is, stands in `bench/bars.toml`: a new run does not change it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import RESULTS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "BENCHMARKS.md"
ALL = ("throughput", "latency", "depth", "memory", "stream", "peers", "idle", "steps")

HEAD = """\
# Benchmarks

<!-- Written by `make bench-all` out of bench/results/ and bench/bars.toml: change those. -->

Every figure is a ratio (or a figure with the unit that its row names) of one run, the median of its rounds; what is
compared took turns in that run, on one machine that clients, scheduler, workers and Redis share. Redis writes its AOF
every second, for Stoker and for all that it is compared with. `make bench-check` holds a fresh run against these.
"""


def about() -> Mapping[str, Mapping[str, Any]]:
    """Return what is known of each bar: `what` it is, the `reason` why it is short, how much `noise` it has."""
    return tomllib.loads((Path(__file__).parent / "bars.toml").read_text())


def command(name: str) -> str:
    """Return what to type to run a bench: its target, where it has one."""
    targets = (ROOT / "Makefile").read_text()
    return f"make bench-{name}" if f"\nbench-{name}:" in targets else f"python bench/{name}.py"


def run(names: Sequence[str], folder: Path) -> list[str]:
    """Run benches, which save to `folder`; returns those that failed."""
    failed = []
    for name in names:
        print(f"--- {command(name)}", flush=True)
        program = Path(__file__).parent / f"{name}.py"
        ended = subprocess.run([sys.executable, program], env=os.environ | {"BENCH_RESULTS": str(folder)}, check=False)
        failed += [name] if ended.returncode else []
    return failed


def page(results: Mapping[str, Mapping[str, Any]], bars: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page as Markdown: a section for each bench that has bars."""
    parts = [HEAD]
    for name, found in sorted(results.items(), key=lambda result: _place(result[0])):
        if "ratios" in found:
            parts.append("\n".join(_section(name, found, bars)))
    return "\n".join(parts).rstrip() + "\n"


def _place(name: str) -> tuple[int, str]:
    return (ALL.index(name) if name in ALL else len(ALL), name)


def _section(name: str, found: Mapping[str, Any], bars: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"`{found.get('command') or command(name)}`, {found['date']}, {found['machine']}.\n"
    yield "| Bar | What | Figure | Bar | |"
    yield "|---|---|---|---|---|"
    short = []
    for bar, one in found["ratios"].items():
        known, at_most = bars.get(bar, {}), one.get("at_most", False)
        met = one["ratio"] <= one["bar"] if at_most else one["ratio"] >= one["bar"]
        limit = f"{'<=' if at_most else '>='} {one['bar']:g}"
        yield f"| {bar} | {known.get('what', '')} | {one['ratio']:.2f} | {limit} | {'ok' if met else 'short'} |"
        short += [] if met else [f"- {bar} is short: {known.get('reason', 'why is not known yet.')}"]
    yield ""
    yield from short
    if short:
        yield ""


def written() -> str:
    """Return the page for what lies in bench/results/ now."""
    results = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    return page(results, about())


def main() -> None:
    """Run, and write the page; ends with 1 where a bench failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--write", action="store_true", help="run nothing")
    options = parser.parse_args()
    failed = [] if options.write else run(options.only, RESULTS)
    PAGE.write_text(written())
    for name in failed:
        print(f"{name} failed: the page has its figures of before")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
