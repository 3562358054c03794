"""`stoker queue preview`: the next batches, without forming them. Imports only click at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stoker.command import print_json, queue_options

if TYPE_CHECKING:
    from stoker.config import Config
    from stoker_ops.look_ahead import LookAhead
    from stoker_scheduler.preview import Planned

SHOWN_IDS = 4


@click.group()
def queue() -> None:
    """What joins the group of this name."""


@queue.command()
@click.option("--batches", "most", type=click.IntRange(1, 100), default=8, show_default=True, help="Plan so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def preview(config: Config, most: int, as_json: bool) -> None:
    """Print the next batches without forming them.

    The scheduler's own policy, on what waits now: what fits into free rows at once, then in which order the rest goes
    as workers finish what they hold. Changes nothing.

    \b
    Examples:  stoker queue preview
               stoker queue preview --batches 2 --json
    """
    from stoker.store.agreement import looking
    from stoker_ops.look_ahead import look_ahead

    with looking(config) as store:
        found = _told(look_ahead(store, config, most=most), config)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _told(seen: LookAhead, config: Config) -> dict[str, Any]:
    from stoker.store.records import class_of, tenant_of

    served = seen.queue.shares.served()
    shown = {lane: number for lane, number in sorted(served.items()) if seen.view.lanes.get(lane)}
    return {
        "queue": config.queue,
        "at_s": seen.view.now_us / 1e6,
        "waiting": seen.waiting,
        "suspects": len(seen.preview.suspects.requests),
        "too_large": len(seen.preview.order.unholdable),
        "circuits": dict(seen.overview.circuits),
        "shares": [
            {
                "priority": class_of(lane),
                "tenant": tenant_of(lane) or None,
                "weight": seen.queue.shares.weight(lane),
                "served": number,
            }
            for lane, number in shown.items()
        ],
        "batches": [_batch(planned) for planned in seen.preview.batches],
    }


def _batch(planned: Planned) -> dict[str, Any]:
    from stoker.store.records import class_of, tenant_of

    batch = planned.batch
    return {
        "when": "now" if planned.now else "later",
        "worker": planned.worker,
        "tokens": sum(batch.costs),
        "fill": batch.fill,
        "efficiency": batch.efficiency,
        "requests": [
            {
                "id": request.id,
                "priority": class_of(request.lane),
                "tenant": tenant_of(request.lane) or None,
                "tokens": cost,
                "score_s": request.score / 1e6,
            }
            for request, cost in zip(batch.requests, batch.costs, strict=True)
        ],
    }


def _print(found: dict[str, Any]) -> None:
    from stoker.table import Column, FittedTable, print_tables

    tables = []
    if found["batches"]:
        columns = [Column("when"), Column("worker", fold=True), Column("requests", number=True)]
        columns += [
            Column("tokens", number=True),
            Column("fill", number=True, drop=1),
            Column("in this order", fold=True),
        ]
        rows = [
            (
                *(batch["when"], batch["worker"], str(len(batch["requests"])), f"{batch['tokens']:,}"),
                *(f"{batch['fill']:.2f}", _ids(batch["requests"])),
            )
            for batch in found["batches"]
        ]
        tables.append(FittedTable(f"next of {found['waiting']:,} that wait", columns, rows))
    if found["shares"]:
        columns = [
            Column("class"),
            Column("tenant", fold=True),
            Column("weight", number=True),
            Column("served", number=True),
        ]
        lines = [
            (one["priority"], one["tenant"] or "-", f"{one['weight']:g}", f"{one['served']:,.0f}")
            for one in found["shares"]
        ]
        tables.append(FittedTable("tenants that wait; served is in tokens over weight", columns, lines))
    if tables:
        print_tables(*tables)
    else:
        click.echo(f"{found['waiting']:,} wait, and no worker could take any" if found["waiting"] else "nothing waits")


def _ids(requests: list[dict[str, Any]]) -> str:
    shown = " ".join(one["id"] for one in requests[:SHOWN_IDS])
    return shown + (f" and {len(requests) - SHOWN_IDS} more" if len(requests) > SHOWN_IDS else "")
