"""Holds the ratios of a fresh run against the committed ones, and fails where one is worse by more than noise.

    python bench/check.py                                   # runs the benches of `make bench-all`, which takes long
    python bench/check.py --only latency memory
    python bench/check.py bench/results/*.json              # what was measured before, against the last commit

Committed is what git has of `bench/results/` at HEAD. A ratio may be worse by a quarter (identical runs on a machine
with little else to do differ by 10 to 20 %), or by the `noise` that `bench/bars.toml` gives it. A ratio that is gone
fails too. Ratios of another machine say little: its name is printed where it differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ALL, about, run

ROOT = Path(__file__).parent.parent
NOISE = 0.25
BAD = ("worse", "gone")

Found = Mapping[str, Any]
"""What a bench saved."""


class Finding(NamedTuple):
    """A ratio before and now, and what to call that."""

    name: str
    before: float | None
    now: float | None
    word: str


def compare(committed: Found, fresh: Found, noise: Mapping[str, float]) -> list[Finding]:
    """Return what became of each ratio; `noise` is the share that is nothing, where it is not a quarter."""
    before, now = committed["ratios"], fresh["ratios"]
    findings = []
    for name in [*before, *(name for name in now if name not in before)]:
        then, here = before.get(name), now.get(name)
        word = "new" if then is None else "gone" if here is None else ""
        if then and here:
            word = judged(then["ratio"], here["ratio"], noise.get(name, NOISE), at_most=here.get("at_most", False))
        findings.append(Finding(name, then and then["ratio"], here and here["ratio"], word))
    return findings


def judged(before: float, now: float, noise: float, *, at_most: bool) -> str:
    """Return `worse` or `better` where the ratios differ by more than this share, else `same`."""
    if at_most:
        before, now = now, before
    if now * (1 + noise) < before:
        return "worse"
    return "better" if before * (1 + noise) < now else "same"


def committed(name: str) -> Found | None:
    """Return what git has of a bench at HEAD, None where it has nothing."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:bench/results/{name}.json"],  # noqa: S607  # the developer's own git
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    return json.loads(shown.stdout) if shown.returncode == 0 else None


def report(name: str, before: Found | None, fresh: Found) -> bool:
    """Print how a bench compares; gives whether nothing is bad."""
    if before is None or "ratios" not in before or "ratios" not in fresh:
        print(f"{name}: nothing to compare with")
        return True
    if before["machine"] != fresh["machine"]:
        print(f"{name}: committed on another machine: {before['machine']}; this one: {fresh['machine']}")
    noise = {bar: known["noise"] for bar, known in about().items() if "noise" in known}
    findings = compare(before, fresh, noise)
    for finding in findings:
        then, now = ("-" if value is None else f"{value:.3f}" for value in (finding.before, finding.now))
        print(f"{finding.name:32}{then:>12}{now:>12}  {finding.word}")
    return not any(finding.word in BAD for finding in findings)


def main() -> None:
    """Measure or read, compare and print; ends with 1 where something is worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="JSON of earlier runs; by default the benches are run")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder:
        failed = [] if options.files else run(options.only, Path(folder))
        files = options.files or sorted(Path(folder).glob("*.json"))
        fresh = {file.stem: json.loads(file.read_text()) for file in files}
    print(f"{'':32}{'committed':>12}{'now':>12}")
    good = all([report(name, committed(name), found) for name, found in fresh.items()])
    for name in failed:
        print(f"{name}: failed")
    print("bench-check: ok" if good and not failed else "bench-check: worse")
    sys.exit(not good or bool(failed))


if __name__ == "__main__":
    main()
