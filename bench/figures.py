"""What the benches that compare share: alternating rounds, the line with the verdict, and the JSON beside the table."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

Rounds = list[dict[str, float]]


def alternating(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Rounds:
    """Run all contestants once for nothing, then once a round, every other round backwards."""
    for run in contestants.values():
        run()
    found: Rounds = []
    for number in range(rounds):
        order = list(contestants)[:: 1 if number % 2 else -1]
        rates = {name: contestants[name]() for name in order}
        found.append({name: rates[name] for name in contestants})
    return found


def table(rounds: Rounds) -> None:
    """Print the median, slowest and fastest rate of each contestant."""
    print(f"{'requests a second':28}{'median':>10}{'slowest':>10}{'fastest':>10}")
    for name in rounds[0]:
        rates = [one[name] for one in rounds]
        print(f"{name:28}{statistics.median(rates):10,.0f}{min(rates):10,.0f}{max(rates):10,.0f}")


def ratio(rounds: Rounds, one: str, other: str) -> float:
    """Return the median over the rounds of one rate over another's of the same round."""
    return statistics.median(found[one] / found[other] for found in rounds)


def verdicts(bars: Sequence[tuple[str, float, float]]) -> None:
    """Print a line for each (name, ratio, bar)."""
    for name, found, bar in bars:
        print(f"{name}: {found:.2f} (bar {bar:.2f}) {'ok' if found >= bar else 'short'}")


def save(name: str, rounds: Rounds, bars: Sequence[tuple[str, float, float]], called: str = "requests_per_s") -> None:
    """Write all rounds (`called` so) and ratios to `results/<name>.json`, with the date and the machine."""
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        called: rounds,
        "ratios": {bar: {"ratio": round(value, 3), "bar": limit} for bar, value, limit in bars},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
