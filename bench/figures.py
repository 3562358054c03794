"""What the benches that compare share: alternating rounds, the line with the verdict, and the JSON beside the table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

from stoker_ops.embedded import find_server

RESULTS = Path(os.environ.get("BENCH_RESULTS", Path(__file__).parent / "results"))

Rounds = list[dict[str, float]]


def alternating(contestants: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True) -> Rounds:
    """Run all contestants once a round, every other round backwards; before that once for nothing (`warm_up`)."""
    for run in contestants.values() if warm_up else ():
        run()
    found: Rounds = []
    for number in range(rounds):
        order = list(contestants)[:: 1 if number % 2 else -1]
        rates = {name: contestants[name]() for name in order}
        found.append({name: rates[name] for name in contestants})
    return found


def table(rounds: Rounds, unit: str = "requests a second") -> None:
    """Print the median, smallest and largest figure of each contestant."""
    print(f"{unit:28}{'median':>10}{'least':>10}{'most':>10}")
    for name in rounds[0]:
        found = [one[name] for one in rounds]
        shown = "".join(f"{value:10,.{0 if value >= 100 else 2}f}" for value in (median(found), min(found), max(found)))
        print(f"{name:28}{shown}")


def ratio(rounds: Rounds, one: str, other: str) -> float:
    """Return the median over the rounds of one figure over another of the same round."""
    return median(found[one] / found[other] for found in rounds)


class Bar(NamedTuple):
    """What was found, and what it should be at least, or at most."""

    name: str
    found: float
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.found <= self.limit if self.at_most else self.found >= self.limit


def verdicts(bars: Sequence[Bar]) -> None:
    """Print a line for each."""
    for bar in bars:
        print(f"{bar.name}: {bar.found:.2f} (bar {bar.limit:.2f}) {'ok' if bar.met else 'short'}")


def machine() -> dict[str, str]:
    """Return the date and what ran here. The server counts: Redis 7 takes more memory a key than 6.2."""
    server = find_server()
    name = f"{server.product} {'.'.join(map(str, server.version))}" if server else "no Redis"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {name}",
    }


def save(
    name: str,
    rounds: Rounds,
    bars: Sequence[Bar],
    unit: str = "requests_per_s",
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Write all rounds and ratios to `results/<name>.json`, with the date, the machine, and what more is to be said."""
    _write(name, {**machine(), **more, unit: rounds, "ratios": _ratios(bars)})


def update(name: str, bars: Sequence[Bar], command: str) -> None:
    """Write these ratios to `results/<name>.json`, beside those that other parts of `command` left there before."""
    file = RESULTS / f"{name}.json"
    before = json.loads(file.read_text())["ratios"] if file.exists() else {}
    _write(name, {**machine(), "command": command, "ratios": before | _ratios(bars)})


def _ratios(bars: Sequence[Bar]) -> dict[str, dict[str, object]]:
    return {
        bar.name: {"ratio": round(bar.found, 3), "bar": bar.limit, "ok": bar.met, "at_most": bar.at_most}
        for bar in bars
    }


def _write(name: str, found: Mapping[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
