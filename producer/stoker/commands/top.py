"""`stoker top`: a queue as it lives, until q or Ctrl-C."""

from __future__ import annotations

import itertools
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import click

from stoker.command import EXIT_UNREACHABLE, fail, queue_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from stoker.config import Config
    from stoker.watch import View

LONGEST_LOOK_S = 2.0
"""The deadline of each call: who presses q, or looks for a sign of Redis, should not wait longer."""

REDRAW_S = 0.5


@click.command()
@click.option("--interval", "interval_s", type=click.FloatRange(0.1), default=2.0, show_default=True, metavar="S")
@click.option("--count", type=click.IntRange(1), help="End after so many looks; exits with 3 if the last one failed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line for each look.")
@queue_options
def top(config: Config, interval_s: float, count: int | None, as_json: bool) -> None:
    """Watch a queue: what waits in each class, how long requests take, what the workers do.

    Shows one screen on a terminal, until q; elsewhere tables, one look after the other. A Redis that goes away is
    waited for.

    \b
    Examples:  stoker top
               stoker top --interval 5
               stoker top --json --count 1
    """
    error = (_print_lines if as_json else _draw)(config, interval_s, count)
    if count is not None and error is not None:
        fail(error, EXIT_UNREACHABLE)


Found = tuple["View | None", "str | None"]
"""What a look found, or why it failed."""


def _looks(config: Config, interval_s: float, count: int | None, wait: Callable[[float], object]) -> Iterator[Found]:
    """Look each interval, `count` times; ends early when `wait`, which lets seconds pass, returns something true."""
    from stoker.errors import RedisUnavailable
    from stoker.store.agreement import agree
    from stoker.store.connection import Store
    from stoker.watch import Watch, take_look

    deadlines = {name: min(LONGEST_LOOK_S, getattr(config, name)) for name in ("connect_timeout_s", "socket_timeout_s")}
    stores, watch = [Store(part.model_copy(update=deadlines)) for part in config.each()], Watch(config)
    agreed = False
    try:
        for number in itertools.count(1):
            began = time.monotonic()
            try:
                if not agreed:
                    agree(stores[0], patiently=False)
                    agreed = True
                found: Found = watch.add(take_look(stores)), None
            except RedisUnavailable as error:
                found = None, str(error)
            yield found
            if number == count or wait(max(0.0, began + interval_s - time.monotonic())):
                return
    finally:
        for store in stores:
            store.close()


def _print_lines(config: Config, interval_s: float, count: int | None) -> str | None:
    """Print a line of JSON for each look; returns why the last one failed."""
    error = None
    for view, error in _looks(config, interval_s, count, time.sleep):
        known: dict[str, Any] = {} if view is None else {**view.stats, "oldest_s": view.oldest_s, "recent": view.recent}
        click.echo(json.dumps({"at_s": time.time(), "error": error, **known}, default=str))
    return error


def _draw(config: Config, interval_s: float, count: int | None) -> str | None:
    """Draw each look on standard output; returns why the last one failed."""
    from stoker.dashboard import Dashboard
    from stoker.table import make_console, show

    console = make_console()
    if console.is_terminal and not console.is_dumb_terminal:
        return _draw_live(console, config, interval_s, count)
    error = None
    for view, error in _looks(config, interval_s, count, time.sleep):
        show(console, Dashboard(config.queue, view, error))
        console.print()
    return error


def _draw_live(console: Console, config: Config, interval_s: float, count: int | None) -> str | None:
    """Draw on one screen until q; with a `count` the last picture stays."""
    from rich.live import Live

    from stoker.dashboard import Dashboard
    from stoker.keyboard import Keyboard

    keyboard = Keyboard()
    # Ended by a signal, it leaves the terminal as it was.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    latest: View | None = None
    error, seen_at = None, time.monotonic()
    with keyboard.listening(), Live(console=console, screen=count is None, auto_refresh=False) as live:

        def wait(seconds: float) -> bool:
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                if "q" in keyboard.pressed(min(left, REDRAW_S)).lower():
                    return True
                live.refresh()  # the terminal may have another size now
            return False

        live.update(Dashboard(config.queue, None, fits=True), refresh=True)
        for view, error in _looks(config, interval_s, count, wait):
            if view is not None:
                latest, seen_at = view, time.monotonic()
            hint = f"every {interval_s:g} s, q ends"
            shown = Dashboard(config.queue, latest, error, time.monotonic() - seen_at, hint, fits=True)
            live.update(shown, refresh=True)
    return error
