"""`stoker stats` and `stoker queue`: a queue as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stoker.command import EXIT_FAILED, fail, print_json, queue_options

if TYPE_CHECKING:
    from stoker.config import Config


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@queue_options
def stats(config: Config, as_json: bool) -> None:
    """Print what waits and runs, how long requests took, and the workers.

    \b
    Examples:  stoker stats
               stoker stats --json
    """
    from stoker.client import Client

    with Client(config=config) as client:
        figures = client.stats()
    if as_json:
        print_json(figures)
        return
    from stoker.figures import latency_table, outcome_table, waiting_table, worker_table, workers_title
    from stoker.table import print_tables

    workers = [worker_table(workers_title(figures), figures)] if figures["workers"] else []
    print_tables(waiting_table(figures), outcome_table(figures), latency_table(figures), *workers)


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


@queue.command("set-shards")
@click.argument("number", type=int)
@queue_options
def set_shards(config: Config, number: int) -> None:
    """Give a queue another number of shards.

    Refused while it has workers, or requests that have not ended. Stop its
    clients first: one that goes on with the old number submits to shards that
    nobody serves. What ended before, and dead letters, can be found with the
    old number only.

    \b
    Example:  stoker queue set-shards 3
    """
    from stoker.config import load_config
    from stoker.shard_number import set_number

    load_config(shards=number, shard=0)
    before = set_number(config, number)
    click.echo(f"queue {config.queue} has {number} shard{'s' if number != 1 else ''}; it had {before}")


def _card_line(model: dict[str, Any] | None) -> str:
    if model is None:
        return "none yet: the first worker decides"
    return f"{model['name']} ({model['dtype']}, {model['mode']}, context {model['context']}, {model['identity'][:12]})"
