"""`stoker stats` and `stoker queue`: a queue as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stoker.command import EXIT_FAILED, fail, print_json, queue_options

if TYPE_CHECKING:
    from rich.table import Table

    from stoker.config import Config
    from stoker.stats import Stats


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@queue_options
def stats(config: Config, as_json: bool) -> None:
    """Print what waits and runs, how long requests took, and the workers.

    \b
    Examples:  stoker stats
               stoker stats --json
    """
    from rich.console import Console

    from stoker.client import Client

    with Client(config=config) as client:
        figures = client.stats()
    if as_json:
        print_json(figures)
        return
    console = Console()
    for table in (_waiting_table, _outcome_table, _latency_table, _worker_table):
        console.print(table(figures))


@click.group()
def queue() -> None:
    """Look at the queue's model, or change it.

    \b
    Examples:  stoker queue show
               stoker queue set-model
    """


@queue.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def show(config: Config, as_json: bool) -> None:
    """Print the queue's model card, its leader and what waits.

    \b
    Example:  stoker queue show
    """
    from stoker.client import Client

    with Client(config=config) as client:
        figures = client.stats()
    model, waiting = figures["model"], figures["queue"]["waiting"]
    facts = {
        "queue": config.queue,
        "model": model,
        "leader": figures["leader"],
        "workers": len(figures["workers"]),
        "waiting": waiting,
        "dead_letters": figures["queue"]["dead_letters"],
    }
    if as_json:
        print_json(facts)
        return
    shown = {**facts, "model": _card_line(model), "leader": figures["leader"] or "none: no scheduler runs"}
    shown["waiting"] = ", ".join(f"{name} {number}" for name, number in waiting.items())
    for name, value in shown.items():
        click.echo(f"{name.replace('_', ' '):<13} {value}")


@queue.command("set-model")
@queue_options
def set_model(config: Config) -> None:
    """Let a queue serve another model: the next worker to register decides which.

    Refused while workers of the old model are registered.

    \b
    Example:  stoker queue set-model
    """
    from stoker.client import Client
    from stoker.errors import ModelMismatch

    with Client(config=config) as client:
        try:
            client.forget_model()
        except ModelMismatch as error:
            fail(str(error), EXIT_FAILED)
    click.echo("the next worker to register decides the model")


def _card_line(model: dict[str, Any] | None) -> str:
    if model is None:
        return "none yet: the first worker decides"
    return f"{model['name']} ({model['dtype']}, {model['mode']}, context {model['context']}, {model['identity'][:12]})"


def _waiting_table(figures: Stats) -> Table:
    queue = figures["queue"]
    return _number_table(f"waiting in queue {queue['name']}", {**queue["waiting"], "delayed": queue["delayed"]})


def _outcome_table(figures: Stats) -> Table:
    ended = {name: figures["counts"][name] for name in ("succeeded", "failed", "expired", "cancelled")}
    return _number_table("requests", {"running": figures["queue"]["running"], **ended})


def _number_table(title: str, columns: dict[str, int]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*(f"{number:,}" for number in columns.values()))
    return table


def _latency_table(figures: Stats) -> Table:
    from rich.table import Table

    table = Table(title="latency in ms", title_justify="left")
    for name in ("", "p50", "p95", "p99", "mean"):
        table.add_column(name, justify="right" if name else "left")
    for metric, label in (("queue", "queue time"), ("ttft", "time to first token"), ("e2e", "end to end")):
        latency = figures["latency_ms"][metric]
        values = (latency["p50"], latency["p95"], latency["p99"], latency["avg"])
        table.add_row(label, *("-" if value is None else f"{value:,.1f}" for value in values))
    return table


def _worker_table(figures: Stats) -> Table:
    from rich.table import Table

    table = Table(title="workers", title_justify="left")
    for name in ("name", "state", "rows", "tokens held", "tokens/s", "heartbeat"):
        table.add_column(name, justify="left" if name in ("name", "state") else "right")
    for worker in figures["workers"]:
        state = "drained" if worker["drained"] else worker["state"]
        rows, tokens = f"{worker['held_rows']}/{worker['rows']}", f"{worker['held_tokens']:,}/{worker['capacity']:,}"
        table.add_row(
            worker["worker"], state, rows, tokens, f"{worker['rate']:,.0f}", f"{worker['beat_age_s']:.1f} s ago"
        )
    return table
