"""How much CPU `stoker --help` takes, as a multiple of an interpreter that does nothing.

    python bench/help_time.py --rounds 9

A ratio, so that a slow or busy machine says the same; rounds alternate between the two, and the medians are compared.
The last line says whether it is within the bar; exits with 1 where it is not.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

BARE = (sys.executable, "-c", "pass")
HELP = (sys.executable, "-c", "from stoker.cli import main; main(prog_name='stoker')", "--help")
BAR = 20.0
"""A bare interpreter takes 12 to 15 ms of CPU on a machine of 2024, so this is 0.24 to 0.3 s."""


def cpu_s(command: tuple[str, ...]) -> float:
    """Return the CPU time of one run, user and system, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("--rounds: at least 5, for a median that means something")
    cpu_s(HELP)  # a warm disk
    rounds = [(cpu_s(BARE), cpu_s(HELP)) for _ in range(options.rounds)]
    for bare, shown in rounds:
        print(f"bare {bare * 1000:6.0f} ms   stoker --help {shown * 1000:6.0f} ms")
    bare, shown = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = shown / bare
    print(f"medians: bare {bare * 1000:.0f} ms, stoker --help {shown * 1000:.0f} ms of CPU")
    print(f"help: {ratio:.1f} (bar {BAR:.1f}) {'ok' if ratio <= BAR else 'short'}")
    sys.exit(ratio > BAR)


if __name__ == "__main__":
    main()
