"""`stoker workers` and `stoker drain`: the workers of a queue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from stoker import completion
from stoker.command import EXIT_FAILED, EXIT_TIMEOUT, fail, print_json, queue_options

if TYPE_CHECKING:
    from stoker.client import Client
    from stoker.config import Config

POLL_S = 0.1


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of each as JSON.")
@queue_options
def workers(config: Config, as_json: bool) -> None:
    """Print the workers: what each runs, how full it is, and when it was heard of last.

    A state of `silent` means no sign of life for longer than its lease: a scheduler takes its work back.

    \b
    Examples:  stoker workers
               stoker workers --json
    """
    from stoker.client import Client

    with Client(config=config) as client:
        figures = client.stats()
    if as_json:
        model = figures["model"]["name"] if figures["model"] else None
        print_json([worker | {"model": model} for worker in figures["workers"]])
    elif figures["workers"]:
        from stoker.figures import worker_table, workers_title
        from stoker.table import print_tables

        print_tables(worker_table(workers_title(figures), figures))
    else:
        click.echo("no workers are registered (start one: stoker worker)")


@click.command()
@click.argument("name", shell_complete=completion.workers)
@click.option("--wait", is_flag=True, help="Wait until the worker holds nothing.")
@click.option("--undo", is_flag=True, help="Send it work again.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), metavar="S", help="Most seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def drain(config: Config, name: str, wait: bool, undo: bool, timeout_s: float | None, as_json: bool) -> None:
    """Send a worker no more work; what it has, it finishes.

    It holds until the worker is started anew. With --wait the worker can be stopped afterwards without any loss of
    work; exits with 4 if it still holds some after --timeout seconds.

    \b
    Examples:  stoker drain gpu0 --wait --timeout 300
               stoker drain gpu0 --undo
    """
    from stoker.client import Client
    from stoker.config import check_name

    if undo and wait:
        raise click.UsageError("--wait goes with draining, not with --undo")
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout is how long to --wait")
    check_name("worker", name)
    with Client(config=config) as client:
        if not client.drain(name, not undo):
            fail(f"no live worker is named {name}; `stoker workers` lists them", EXIT_FAILED)
        if wait:
            _wait_until_empty(client, name, timeout_s)
        if as_json:
            print_json({"worker": name, "drained": not undo, "held": _held(client, name)})
            return
    if undo:
        click.echo(f"{name} is sent work again")
    else:
        click.echo(f"{name} holds nothing and is sent no more work" if wait else f"{name} is sent no more work")


def _held(client: Client, name: str) -> int:
    return sum(record.held_rows for record in client.workers() if record.worker == name)


def _wait_until_empty(client: Client, name: str, timeout_s: float | None) -> None:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        records = [record for record in client.workers() if record.worker == name]
        # A drain is of one start of the worker: its next one is sent work, and would be waited for without an end.
        if any(record.state == "live" and not record.drained for record in records):
            fail(f"{name} is sent work again: it was resumed, or started anew", EXIT_FAILED)
        held = sum(record.held_rows for record in records)
        if not held:
            return
        if deadline is not None and time.monotonic() > deadline:
            fail(f"{name} still holds {held} request(s) after {timeout_s:g} s; it stays drained", EXIT_TIMEOUT)
        time.sleep(POLL_S)
