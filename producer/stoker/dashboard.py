"""The one screen of `stoker top`, drawn for the size that the terminal has at that moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from stoker.figures import class_table, model_line, worker_table
from stoker.stats import WELL, Latency, Stats
from stoker.table import FittedTable, compact, span
from stoker.watch import View

FEWEST_WORKERS = 3
WORKER_HEADS = 2
"""Lines above the rows of workers: a title and the names of the columns."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What is known of a queue. `error`: why the last look failed; the figures are `age_s` seconds old then.

    `hint` stands at the end of the first line. `fits`: as many workers as the terminal has lines for, else all.
    """

    queue: str
    view: View | None
    error: str | None = None
    age_s: float = 0.0
    hint: str = ""
    fits: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it for the width of `console`."""
        above: list[RenderableType] = [self._banner()] if self.error is not None else []
        if self.view is None:
            yield from above or [Text(f"looking at queue {self.queue} ...")]
            return
        stats = self.view.stats
        above += [self._head(stats), _leader(stats), _totals(stats), _lately(self.view), Text()]
        classes = _classes(self.view)
        left = None if not self.fits else console.size.height - WORKER_HEADS - _lines(console, options, above)
        if left is not None and left < _height(classes) + FEWEST_WORKERS:
            classes = _busy_only(classes)
        yield from above
        yield classes.fit(options.max_width)
        yield Text()
        room = None if left is None else max(FEWEST_WORKERS, left - _height(classes))
        yield _workers(self.view, options.max_width, room)

    def _banner(self) -> Text:
        old = f" - figures of {span(self.age_s)} ago, trying again" if self.view else " - trying again"
        return Text(f"{self.error}{old}", "bold white on red", overflow="fold")

    def _head(self, stats: Stats) -> Text:
        line = Text(overflow="fold").append(f"queue {self.queue}", "bold").append(f"  {model_line(stats['model'])}")
        return line.append(f"  {self.hint}", "dim") if self.hint else line


def _lines(console: Console, options: ConsoleOptions, parts: Sequence[RenderableType]) -> int:
    return len(console.render_lines(Group(*parts), options.update(height=None)))


def _height(classes: FittedTable) -> int:
    """Return how many lines the classes take: a title, two of heads, the rows, an empty one."""
    return len(classes.rows) + 4


def _busy_only(classes: FittedTable) -> FittedTable:
    """Leave out the classes in which nothing waits and nothing ended."""
    idle = {"0", "-", ""}
    rows = [row for row in classes.rows[:-1] if not {str(cell) for cell in row[1:]} <= idle]
    return FittedTable(classes.title, classes.columns, [*rows, classes.rows[-1]])


def _lately(view: View) -> Text:
    recent = view.recent
    if recent is None:
        return Text("rates come with the next look", "dim")
    rates = (
        f"{recent['requests_per_second']:,.1f} requests/s",
        f"tokens/s: {compact(recent['prompt_tokens_per_second'])} in",
        f"{compact(recent['generation_tokens_per_second'])} out",
    )
    line = Text(f"last {recent['rates_s']:.0f} s: {', '.join(rates)}", overflow="fold")
    bad = [f"{number:,} {name}" for name, number in recent["outcomes"].items() if number and name != "succeeded"]
    return line.append(f", {', '.join(bad)}", "red") if bad else line


def _classes(view: View) -> FittedTable:
    recent = view.recent
    source = view.stats if recent is None else recent
    when = "since the queue began" if recent is None else f"of the last {recent['latencies_s']:.0f} s"
    latency: dict[str, Mapping[str, Latency]] = {**source["latency_ms_by_class"], "all": source["latency_ms"]}
    return class_table(f"what waits, and times {when}", view.stats["queue"]["waiting"], view.oldest_s, latency)


def _workers(view: View, width: int, room: int | None) -> Group | Text:
    """Return the workers, at most `room` of them."""
    figures = view.stats
    known = len(figures["workers"])
    if not known:
        return Text("no workers are registered (start one: stoker worker)", "bold red")
    ill = sum(worker["state"] not in WELL for worker in figures["workers"])
    title = f"{known} worker{'s' if known != 1 else ''}" + (f", {ill} in trouble" if ill else "")
    table = worker_table(title, figures, view.recent["busy"] if view.recent else {})
    if room is None or known <= room:
        return table.fit(width)
    shown = FittedTable(title, table.columns, table.rows[: room - 1])
    return Group(shown.fit(width), Text(f"and {known - room + 1} more: stoker workers", "dim"))


def _leader(stats: Stats) -> Text:
    if stats["leader"]:
        return Text(f"leader {stats['leader']}", overflow="fold")
    return Text(
        "no scheduler leads, so nothing is handed out (start one: stoker scheduler)", "bold red", overflow="fold"
    )


def _totals(stats: Stats) -> Text:
    queue = stats["queue"]
    numbers = {
        "waiting": sum(queue["waiting"].values()),
        "running": queue["running"],
        "delayed": queue["delayed"],
        "suspect": queue["suspect"],
        "dead letters": queue["dead_letters"],
        "succeeded": stats["counts"]["succeeded"],
    }
    return Text("  ".join(f"{compact(number)} {name}" for name, number in numbers.items()), overflow="fold")
