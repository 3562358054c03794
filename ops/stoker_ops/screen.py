"""What a demo shows: on a terminal a live view, elsewhere a line every few seconds; at the end a table."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from stoker.request import Chunk, InferenceResponse, Restarted
from stoker.table import Column, FittedTable, make_console, milliseconds, show

if TYPE_CHECKING:
    from stoker_ops.demo import Report

LINE_EVERY_S = 3.0
_REFRESH_HZ = 12
_PANEL_WIDTH = 100
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
    def starting(self, line: str) -> Iterator[None]:
        """Show that what `line` says is going on."""
        self.say(line)
        yield

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
        for table in report_tables(report):
            self.say("")
            show(self._console, table.fit(self._console.width))
        self.say(f"\n{totals_line(report)}")
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
    def starting(self, line: str) -> Iterator[None]:
        """Draw the seconds beside the line; nothing of it stays."""
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=self._console, transient=True) as progress:
            progress.add_task(line, total=None)
            yield

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
        answer = Text(re.sub(r"\n\s*\n", "\n", self._answer.strip()) or _PLACEHOLDER)
        width = min(self._console.width, _PANEL_WIDTH)
        return Group(Panel(answer, title=title, title_align="left", width=width), self._progress)


class SilentScreen(Screen):
    """Shows nothing: the figures follow as JSON."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def table(self, report: Report) -> None:
        """Show nothing."""


def make_screen(*, quiet: bool = False) -> Screen:
    """Return what suits where standard output goes."""
    console = make_console()
    if quiet:
        return SilentScreen(console)
    return LiveScreen(console) if console.is_terminal else Screen(console)


def report_tables(report: Report) -> tuple[FittedTable, FittedTable]:
    """Return the figures as tables: how long requests took, and what each worker did."""
    latency = FittedTable(
        f"{report.model}: {report.requests} requests in {report.seconds:.1f} s",
        [Column("latency"), *(Column(name, number=True) for name in ("p50", "p95", "p99"))],
        [
            [name, *map(milliseconds, times.values())]
            for name, times in (
                ("queue time", report.queue_ms),
                ("first token (TTFT)", report.ttft_ms),
                ("end to end", report.e2e_ms),
            )
        ],
    )
    workers = FittedTable(
        "",
        [Column("worker", fold=True), *(Column(name, number=True) for name in ("requests", "share", "tokens", "rows"))],
        [
            [
                *(worker.name, f"{worker.requests:,}", _percent(worker.share), f"{worker.tokens:,}"),
                f"{worker.mean_rows:.1f} of {worker.rows}" if worker.mean_rows is not None else "-",
            ]
            for worker in report.workers
        ],
    )
    return latency, workers


def totals_line(report: Report) -> str:
    """Return what came of all requests together."""
    return (
        f"{report.succeeded} ok, {report.failed} failed, {report.requests_per_s:,.1f} requests/s; "
        f"{report.tokens:,} tokens, {report.tokens_per_s:,.0f} tokens/s; batch fill {_percent(report.batch_fill)}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
