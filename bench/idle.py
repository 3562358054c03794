"""What a stack costs that has nothing to do: CPU of all its processes, and memory of each.

    python bench/idle.py --seconds 60

Starts Redis (AOF everysec), a scheduler and two workers of the sim engine, lets them serve a request and come to rest,
and compares their CPU times before and after. A worker is two processes: its supervisor, and its engine's. Memory is
the resident set of each process but Redis; none of them imports torch.
"""

from __future__ import annotations

import argparse
import time

from figures import Bar, save, table, verdicts
from fleet import Fleet, fleet

from stoker import Client

REST_S = 5.0
CORE_BAR = 1.0
MEMORY_BAR = 60.0
MB = 1e6


def cpu_percent(stack: Fleet, seconds: float) -> dict[str, float]:
    """Return the percent of a core that each process takes while nothing is asked of it."""
    before = stack.cpu_s()
    began = time.perf_counter()
    time.sleep(seconds)
    passed, after = time.perf_counter() - began, stack.cpu_s()
    return {name: 100 * (after[name] - before[name]) / passed for name in before}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with fleet(2) as stack:
        with Client(stack.url) as client:
            client.submit("one").result(timeout=60)
        time.sleep(REST_S)
        cpu = cpu_percent(stack, options.seconds)
        memory = {name: process.memory_info().rss / MB for name, process in stack.processes().items()}
    table([cpu | {"in all": sum(cpu.values())}], "percent of a core")
    table([memory], "MB resident")
    bars = [
        Bar("idle-cpu", sum(cpu.values()), CORE_BAR, at_most=True),
        Bar("idle-memory", max(size for name, size in memory.items() if name != "redis"), MEMORY_BAR, at_most=True),
    ]
    save("idle", [cpu], bars, "percent_of_a_core")
    verdicts(bars)


if __name__ == "__main__":
    main()
