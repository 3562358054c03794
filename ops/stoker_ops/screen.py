"""What a demo shows: on a terminal a live view, elsewhere a line every few seconds; at the end a table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from stoker.request import Chunk, InferenceResponse, Restarted

if TYPE_CHECKING:
    from stoker_ops.demo import Report

LINE_EVERY_S = 3.0
_REFRESH_HZ = 12
_PLACEHOLDER = "(no answer yet)"


class Screen:
    """Shows a demo as lines of text."""

    def __init__(self, console: Console) -> None:
        """Write to `console`."""
        self._console = console
        self._total = 0
        self._done = 0
        self._failed = 0
        self._tokens = 0
        self._started = 0.0
        self._told_at = 0.0
        self._prompt = ""
        self._answer = ""

    def say(self, line: str) -> None:
        """Show one line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def live(self, total: int) -> Iterator[None]:
        """Show how `total` requests are served meanwhile."""
        self._total = total
        self._started = self._told_at = time.monotonic()
        yield
        self.say(self.status())
        self.say(f"asked meanwhile, ahead of all others: {self._prompt}\n{self._answer.strip()}")

    def asked(self, prompt: str) -> None:
        """Note what the streamed answer answers."""
        self._prompt = prompt

    def piece(self, chunk: Chunk) -> None:
        """Show a piece of the streamed answer."""
        self._answer = chunk.text if isinstance(chunk, Restarted) else self._answer + chunk.text

    def finished(self, response: InferenceResponse) -> None:
        """Count a response."""
        self._done += 1
        self._failed += response.error is not None
        self._tokens += response.usage.completion_tokens
        self._update()

    def _update(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= LINE_EVERY_S:
            self._told_at = now
            self.say(self.status())

    def status(self) -> str:
        """Return in a line how far it is."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        failed = f", {self._failed} failed" if self._failed else ""
        rate = f"{self._tokens:,} tokens, {self._tokens / seconds:,.0f} tokens/s"
        return f"{self._done} of {self._total} requests{failed}, {rate}"

    def table(self, report: Report) -> None:
        """Show the figures."""
        self._console.print(report_table(report))
        for reason in report.reasons:
            self.say(f"failed: {reason}")


class LiveScreen(Screen):
    """Shows a demo as a view that changes in place: the streamed answer as it grows, and a bar."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`, a terminal."""
        super().__init__(console)
        self._progress = Progress(
            TextColumn("serving"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tokens]:,} tokens, {task.fields[rate]:,.0f} tokens/s"),
            TimeElapsedColumn(),
        )
        self._task = self._progress.add_task("serving", start=False, total=None, tokens=0, rate=0.0)
        self._live = Live(console=console, refresh_per_second=_REFRESH_HZ, get_renderable=self._view)

    @contextlib.contextmanager
    def live(self, total: int) -> Iterator[None]:
        """Draw, and leave the last picture."""
        self._total, self._started = total, time.monotonic()
        self._progress.update(self._task, total=total)
        self._progress.start_task(self._task)
        with self._live:
            yield

    def _update(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-3)
        self._progress.update(self._task, completed=self._done, tokens=self._tokens, rate=self._tokens / seconds)

    def _view(self) -> Group:
        # Plain text, never markup: a model may well write square brackets.
        title = Text(f"asked meanwhile, ahead of all others: {self._prompt}")
        return Group(Panel(Text(self._answer.strip() or _PLACEHOLDER), title=title, title_align="left"), self._progress)


class SilentScreen(Screen):
    """Shows nothing: the figures follow as JSON."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def table(self, report: Report) -> None:
        """Show nothing."""


def make_screen(*, quiet: bool = False) -> Screen:
    """Return what suits where standard output goes."""
    console = Console()
    if quiet:
        return SilentScreen(console)
    return LiveScreen(console) if console.is_terminal else Screen(console)


def report_table(report: Report) -> Table:
    """Return the figures as a table."""
    table = Table(title=f"{report.model}: {report.requests} requests in {report.seconds:.1f} s", title_justify="left")
    for name in ("", "p50", "p95", "p99"):
        table.add_column(name, justify="right" if name else "left")
    for name, times in (
        ("queue time", report.queue_ms),
        ("first token (TTFT)", report.ttft_ms),
        ("end to end", report.e2e_ms),
    ):
        table.add_row(name, *map(_milliseconds, times.values()))
    table.add_section()
    table.add_row("requests", f"{report.succeeded} ok", f"{report.failed} failed", f"{report.requests_per_s:,.1f}/s")
    table.add_row("tokens", f"{report.tokens:,}", "", f"{report.tokens_per_s:,.0f}/s")
    table.add_row("batch fill", _percent(report.batch_fill), "", "")
    table.add_section()
    for worker in report.workers:
        rows = f"{worker.mean_rows:.1f} of {worker.rows} rows" if worker.mean_rows is not None else ""
        table.add_row(worker.name, f"{worker.requests} requests", _percent(worker.share), rows)
    return table


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
