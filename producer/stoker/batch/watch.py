"""A batch as it goes on: one line every few seconds, or a live picture on a terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from stoker.batch.status import BatchStatus

if TYPE_CHECKING:
    from rich.console import Group

    from stoker.batch.sdk import Batch

LINE_S = 5.0
LIVE_S = 0.5
MEASURED_S = 20.0
RATIO = 100.0


class Rates:
    """How fast a batch goes, from how it stood some seconds ago."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._seen: deque[tuple[float, int, int]] = deque()

    def saw(self, status: BatchStatus) -> None:
        """Take in how the batch stands."""
        if self._seen and status.done < self._seen[-1][1]:
            self._seen.clear()  # another round began
        self._seen.append((status.now, status.done, status.tokens))
        while len(self._seen) > 2 and status.now - self._seen[0][0] > MEASURED_S:
            self._seen.popleft()

    def _per_s(self, what: int) -> float:
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return 0.0
        return (self._seen[-1][what] - self._seen[0][what]) / (self._seen[-1][0] - self._seen[0][0])

    @property
    def lines_per_s(self) -> float:
        """Lines a second."""
        return self._per_s(1)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of prompts and answers a second."""
        return self._per_s(2)

    def left_s(self, status: BatchStatus) -> float | None:
        """Return the seconds that the rest takes at this rate, None while there is none."""
        return (status.total - status.done) / self.lines_per_s if self.lines_per_s else None


def summary(status: BatchStatus) -> str:
    """Return one line about a batch."""
    share = f" ({RATIO * status.done / status.total:.0f} %)" if status.total else ""
    words = [f"{status.id}: {status.state}, {status.done:,} of {status.total or '?'} lines{share}"]
    words += [f"{status.failed:,} failed"] if status.failed else []
    words += [f"round {status.round + 1}"] if status.round else []
    words += [status.why] if status.why else []
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Return a time for people: 45 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (129_600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def watch_lines(handle: Batch, tell: Callable[[str], object]) -> BatchStatus:
    """Tell a line every few seconds until the batch is over or paused; gives how it ended."""
    rates, told = Rates(), 0.0
    while True:
        status = handle.status()
        rates.saw(status)
        over = _still(status)
        if over or time.monotonic() - told >= LINE_S:
            told = time.monotonic()
            tell(summary(status) + _speed(status, rates))
        if over:
            return status
        time.sleep(LIVE_S)


def watch_live(handle: Batch) -> BatchStatus:
    """Draw the batch on the terminal until it is over or paused; gives how it ended."""
    from rich.console import Console
    from rich.live import Live

    rates = Rates()
    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        while True:
            status = handle.status()
            rates.saw(status)
            live.update(_picture(status, rates), refresh=True)
            if _still(status):
                return status
            time.sleep(LIVE_S)


def _still(status: BatchStatus) -> bool:
    return status.over or status.state == "paused"


def _speed(status: BatchStatus, rates: Rates) -> str:
    if _still(status) or not rates.lines_per_s:
        return ""
    left = rates.left_s(status)
    rest = f", {duration(left)} left" if left is not None else ""
    return f", {rates.lines_per_s:,.0f} lines/s, {rates.tokens_per_s:,.0f} tokens/s{rest}"


def _picture(status: BatchStatus, rates: Rates) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[Text | ProgressBar | Table] = [Text(summary(status) + _speed(status, rates))]
    parts.append(ProgressBar(total=max(1, status.total), completed=status.done, width=60))
    for title, counts in (("worker", status.workers), ("error", status.errors)):
        if counts:
            table = Table(title, "lines", "share", box=None)
            whole = sum(counts.values())
            for name, count in sorted(counts.items()):
                table.add_row(name, f"{count:,}", f"{RATIO * count / whole:.0f} %")
            parts.append(table)
    return Group(*parts)
