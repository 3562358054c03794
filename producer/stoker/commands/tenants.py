"""`stoker tenants`: what is set for the tenants of a queue, and what they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stoker.command import print_json, queue_options

if TYPE_CHECKING:
    from stoker.client import Client
    from stoker.config import Config

LIMITS = ("max_waiting", "max_tokens", "max_bytes")

F = TypeVar("F", bound=Callable[..., Any])
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def tenants() -> None:
    """Look at the tenants of a queue, or change what is set for them.

    Tenants of a class share its tokens by their weights while more than one has requests waiting.

    \b
    Examples:  stoker tenants set acme --weight 4
               stoker tenants list
    """


@tenants.command("list")
@as_json
@queue_options
def list_tenants(config: Config, as_json: bool) -> None:
    """Print all tenants that have settings or counts.

    \b
    Example:  stoker tenants list
    """
    from stoker.client import Client

    with Client(config=config) as client:
        found = _all(client)
    if as_json:
        print_json(list(found.values()))
    elif found:
        _print(found.values())
    else:
        click.echo("no tenants: no request named one (stoker submit --tenant NAME), and nothing is set for any")


@tenants.command()
@click.argument("name")
@as_json
@queue_options
def show(config: Config, name: str, as_json: bool) -> None:
    """Print one tenant.

    \b
    Example:  stoker tenants show acme
    """
    from stoker.client import Client
    from stoker.config import check_name

    check_name("tenant", name)
    with Client(config=config) as client:
        _shown(client, name, as_json)


@tenants.command("set")
@click.argument("name")
@click.option("--weight", type=float, metavar="W", help="Its share beside the other tenants of a class: 0.001 to 1000.")
@click.option("--max-waiting", type=int, metavar="N", help="Requests of it that may wait.")
@click.option("--max-tokens", type=int, metavar="N", help="Tokens of it (prompt and max_tokens) that may wait.")
@click.option("--max-bytes", type=int, metavar="N", help="Bytes of its waiting requests and kept results.")
@as_json
@queue_options
def set_tenant(config: Config, name: str, as_json: bool, **values: float | None) -> None:
    """Set something for a tenant. It counts at once, the weight for what waits already too.

    \b
    Examples:  stoker tenants set acme --weight 4
               stoker tenants set acme --max-waiting 10000
    """
    from stoker.client import Client

    with Client(config=config) as client:
        client.set_tenant(name, **{setting: value for setting, value in values.items() if value is not None})
        _shown(client, name, as_json)


@tenants.command()
@click.argument("name")
@as_json
@queue_options
def unset(config: Config, name: str, as_json: bool) -> None:
    """Let a tenant be like one for which nothing was ever set.

    \b
    Example:  stoker tenants unset acme
    """
    from stoker.client import Client
    from stoker.tenants import SETTINGS

    with Client(config=config) as client:
        client.set_tenant(name, **dict.fromkeys(SETTINGS))
        _shown(client, name, as_json)


def _all(client: Client) -> dict[str, dict[str, Any]]:
    """Return all tenants by name, sorted."""
    values, counts = client.tenants(), client.stats()["tenants"]
    return {
        name: {
            "tenant": name,
            "weight": values.get(name, {}).get("weight", 1.0),
            **{limit: values.get(name, {}).get(limit) for limit in LIMITS},
            "set": sorted(values.get(name, {})),
            "counts": counts.get(name, {}),
        }
        for name in sorted({*values, *counts})
    }


def _shown(client: Client, name: str, as_json: bool) -> None:
    nothing: dict[str, Any] = {"tenant": name, "weight": 1.0, **dict.fromkeys(LIMITS), "set": [], "counts": {}}
    found = _all(client).get(name, nothing)
    if as_json:
        print_json(found)
    else:
        _print([found])


def _print(found: Any) -> None:
    from stoker.table import Column, FittedTable, print_tables

    counts = ("waiting", "submitted", "succeeded", "failed", "expired", "cancelled")
    columns = [Column("tenant", fold=True), Column("weight", number=True)]
    columns += [Column(name.replace("_", " "), number=True) for name in LIMITS]
    columns += [Column(name, number=True, drop=number) for number, name in enumerate(counts)]
    rows = [
        (
            one["tenant"],
            f"{one['weight']:g}",
            *("-" if one[name] is None else f"{one[name]:,.0f}" for name in LIMITS),
            *(f"{one['counts'].get(name, 0):,}" for name in counts),
        )
        for one in found
    ]
    print_tables(FittedTable("tenants", columns, rows))
