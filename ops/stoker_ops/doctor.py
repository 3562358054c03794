"""`stoker doctor`: is everything as it should be, and if not, what puts it right. Imports only click at the top."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from stoker.command import EXIT_FAILED, print_json, queue_options

if TYPE_CHECKING:
    from stoker.config import Config
    from stoker_ops.checks import Verdict
    from stoker_ops.facts import Facts

COLORS = {"ok": "green", "problem": "red", "hidden": "yellow"}


@click.command()
@click.option("--torch/--no-torch", "ask_torch", default=True, help="Ask torch for its devices; takes seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def doctor(config: Config, ask_torch: bool, as_json: bool) -> None:
    """Look for what is wrong with Redis, the queue and this machine, and say how to put it right.

    Changes nothing. Exits with 1 if it found something, with 3 where Redis cannot be reached.

    \b
    Examples:  stoker doctor
               stoker doctor --no-torch --json
    """
    from stoker_ops.checks import examine
    from stoker_ops.facts import read_facts

    facts = read_facts(config, ask_torch=ask_torch)
    lines = [_line(name, verdict) for name, verdict in examine(facts).items()]
    problems = sum(line["state"] == "problem" for line in lines)
    if as_json:
        print_json({"healthy": not problems, "checks": lines, "latency_ms": _latency(facts)})
    else:
        _print(lines)
        click.echo(f"{problems} problem{'s' if problems != 1 else ''} found" if problems else "all is well")
    if problems:
        sys.exit(EXIT_FAILED)


def _line(name: str, verdict: Verdict) -> dict[str, Any]:
    from stoker_ops.checks import Finding

    if isinstance(verdict, Finding):
        return {"name": name, "state": "problem", "what": verdict.what, "fix": verdict.fix}
    return {"name": name, "state": "ok" if verdict.seen else "hidden", "what": verdict.what, "fix": None}


def _latency(facts: Facts) -> dict[str, Any]:
    measured = facts.latency
    return {"p50": measured.percentile(0.5), "p99": measured.percentile(0.99), "histogram": measured.histogram()}


def _print(lines: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    from stoker.table import Column, FittedTable, print_tables

    rows: list[tuple[str | Text, ...]] = []
    for line in lines:
        rows.append((Text(line["state"], COLORS[line["state"]]), line["name"], line["what"]))
        if line["fix"]:
            rows.append(("", "", Text("fix:", "bold").append(f" {line['fix']}", "not bold")))
    print_tables(FittedTable("", (Column(""), Column(""), Column("", fold=True)), rows))
