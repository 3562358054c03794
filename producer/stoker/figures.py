"""The tables of a queue's figures, for every command that shows some. Pure: figures in, tables out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from stoker.stats import WELL, Latency, Stats
from stoker.table import Column, FittedTable, compact, milliseconds, span

METRIC_NAMES = {"queue": "queue time", "ttft": "time to first token", "e2e": "end to end"}
STATE_STYLES = {"live": "green", "draining": "yellow", "drained": "yellow", "stopping": "yellow"}

WORKER_COLUMNS = (
    Column("name", fold=True),
    Column("state"),
    Column("model", drop=4, fold=True),
    Column("mode", drop=3),
    Column("rows", number=True),
    Column("tokens held", number=True),
    Column("tokens/s", number=True),
    Column("busy", number=True, drop=1),
    Column("heartbeat", number=True),
    Column("faults", number=True),
)
CLASS_COLUMNS = (
    Column("class"),
    Column("waiting", number=True),
    Column("oldest", number=True),
    Column("queue\np50", number=True),
    Column("queue\np99", number=True),
    Column("ttft\np50", number=True),
    Column("ttft\np99", number=True),
    Column("e2e\np50", number=True),
    Column("e2e\np99", number=True),
)


def model_line(model: Mapping[str, Any] | None) -> str:
    """Return a model's card in a few words."""
    return f"{model['name']} ({model['dtype']}, {model['mode']})" if model else "none yet"


def workers_title(figures: Stats) -> str:
    """Return what stands above a table of workers."""
    return f"workers of queue {figures['queue']['name']}, model {model_line(figures['model'])}"


def worker_order(worker: Mapping[str, Any]) -> tuple[bool, list[tuple[bool, int, str]]]:
    """Return a key that sorts those in trouble first, then by name, w2 before w10."""
    parts = re.findall(r"\d+|\D+", worker["worker"])
    return worker["state"] in WELL, [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _rows(worker: Mapping[str, Any]) -> str:
    """Return the rows in use of those there are, and what is held ahead."""
    ahead = max(0, worker["held_rows"] - worker["rows"])
    return f"{worker['held_rows'] - ahead}/{worker['rows']}" + (f"+{ahead}" if ahead else "")


def worker_table(title: str, figures: Stats, busy: Mapping[str, float] | None = None) -> FittedTable:
    """Return the workers, those in trouble first. `busy`: the share of its time that each incarnation computed."""
    columns: Sequence[Column] = WORKER_COLUMNS
    rows: list[Sequence[str | Text]] = []
    for worker in sorted(figures["workers"], key=worker_order):
        share = (busy or {}).get(worker["inc"])
        rows.append(
            (
                worker["worker"],
                _state(worker),
                figures["model"]["name"] if figures["model"] else "-",
                worker["mode"],
                _rows(worker),
                f"{compact(worker['held_tokens'])}/{compact(worker['capacity'])}",
                compact(worker["rate"]),
                "-" if share is None else f"{share:.0%}",
                f"{worker['beat_age_s']:.1f} s ago"
                if worker["beat_age_s"] < 100
                else f"{span(worker['beat_age_s'])} ago",
                Text(str(worker["faults"]), "red" if worker["faults"] else ""),
            )
        )
    if busy is None:
        at = [column.name for column in columns].index("busy")
        columns = (*columns[:at], *columns[at + 1 :])
        rows = [(*row[:at], *row[at + 1 :]) for row in rows]
    if any("shard" in worker for worker in figures["workers"]):
        columns = (*columns, Column("shard", number=True))
        served = [str(worker.get("shard", "-")) for worker in sorted(figures["workers"], key=worker_order)]
        rows = [(*row, shard) for row, shard in zip(rows, served, strict=True)]
    return FittedTable(title, columns, rows)


def _state(worker: Mapping[str, Any]) -> Text:
    if worker["circuit"] != "closed":
        return Text(f"{worker['state']}, circuit {worker['circuit']}", "bold red")
    return Text(worker["state"], STATE_STYLES.get(worker["state"], "bold red"))


def waiting_table(figures: Stats) -> FittedTable:
    """Return how many requests wait in each class."""
    queue = figures["queue"]
    numbers = {**queue["waiting"], "suspect": queue["suspect"], "delayed": queue["delayed"]}
    return _number_table(f"waiting in queue {queue['name']}", numbers)


def outcome_table(figures: Stats) -> FittedTable:
    """Return how many requests run, and how those that ended did."""
    ended = {name: figures["counts"][name] for name in ("succeeded", "failed", "expired", "cancelled")}
    return _number_table(
        "requests", {"running": figures["queue"]["running"], **ended, "dead letters": figures["queue"]["dead_letters"]}
    )


def _number_table(title: str, numbers: Mapping[str, int]) -> FittedTable:
    columns = [Column(name, number=True) for name in numbers]
    return FittedTable(title, columns, [[f"{number:,}" for number in numbers.values()]])


def latency_table(figures: Stats) -> FittedTable:
    """Return how long requests took since the queue began."""
    columns = [Column("latency"), *(Column(name, number=True) for name in ("p50", "p95", "p99", "mean"))]
    rows = []
    for metric, label in METRIC_NAMES.items():
        latency = figures["latency_ms"][metric]
        values = (latency["p50"], latency["p95"], latency["p99"], latency["avg"])
        rows.append([label, *map(milliseconds, values)])
    return FittedTable("", columns, rows)


def class_table(
    title: str,
    waiting: Mapping[str, int],
    oldest_s: Mapping[str, float | None],
    latency_ms: Mapping[str, Mapping[str, Latency]],
) -> FittedTable:
    """Return a line per class, the best first: what waits, since when, and how long others took lately.

    A class that `waiting` does not have, as the sum of all, shows its latencies alone.
    """
    rows: list[Sequence[str | Text]] = []
    for name, latency in latency_ms.items():
        number, age_s = waiting.get(name), oldest_s.get(name)
        times = [milliseconds(latency[metric][share]) for metric in METRIC_NAMES for share in ("p50", "p99")]
        waits = "" if number is None else Text(compact(number), "bold" if number else "dim")
        rows.append([name, waits, "" if number is None else "-" if age_s is None else span(age_s), *times])
    return FittedTable(title, CLASS_COLUMNS, rows)
