"""docs/metrics.md lists what is exported, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric

from helpers import wait_until
from scraping import scrape, total
from stack_processes import Stack
from stoker import Config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "metrics.md").read_text()
UNITS = {"seconds": "seconds", "bytes": "bytes", "ratio": "ratio", "tokens": "tokens", "requests": "requests"}
EVERY, LEADER, WORKER = "every scheduler", "leader", "worker"


@dataclass(frozen=True)
class Row:
    """A line of the table, as words."""

    name: str
    type: str
    unit: str
    labels: frozenset[str]
    sources: frozenset[str]
    question: str


def words(cell: str) -> frozenset[str]:
    return frozenset(word.strip() for word in cell.split(",") if word.strip())


def row(line: str) -> Row:
    name, kind, unit, labels, sources, question, _ = (cell.strip() for cell in line.strip("|").split("|"))
    return Row(name.strip("`"), kind, unit, words(labels), words(sources), question)


ROWS = [row(line) for line in TEXT.splitlines() if line.startswith("| `stoker_")]


def shown(family: Metric) -> tuple[str, str, frozenset[str]]:
    """Name, type and labels as the document writes them."""
    labels = {label for sample in family.samples for label in sample.labels} - {"le"}
    return family.name + ("_total" if family.type == "counter" else ""), family.type, frozenset(labels)


def exported(stack: Stack) -> dict[str, dict[str, tuple[str, frozenset[str]]]]:
    """What each kind of process exports: name -> type and labels."""
    stack.scheduler("first")
    leading = stack.metrics_url("first")
    wait_until(lambda: total(scrape(leading), "stoker_leader") == 1, 20, poll=0.1)
    stack.scheduler("second")
    standby = stack.metrics_url("second")
    wait_until(lambda: total(scrape(standby), "stoker_script_seconds_count"), 20, poll=0.1)
    stack.worker("worker")
    working = stack.metrics_url("worker")
    wait_until(lambda: total(scrape(working), "stoker_heartbeat_age_seconds") is not None, 20, poll=0.1)
    wait_until(lambda: total(scrape(leading), "stoker_worker_state") == 1, 20, poll=0.1)
    pages = {LEADER: scrape(leading), EVERY: scrape(standby), WORKER: scrape(working)}
    return {
        source: {name: (kind, labels) for name, kind, labels in map(shown, families.values())}
        for source, families in pages.items()
    }


def test_the_table_lists_what_is_exported_with_type_labels_and_source(exporting_stack: Stack) -> None:
    pages = exported(exporting_stack)
    found = {name: {source for source, page in pages.items() if name in page} for name in set().union(*pages.values())}
    # What a standby exports, every scheduler does.
    sources = {name: at - {LEADER} if EVERY in at else at for name, at in found.items()}
    kinds = {name: {page[name][0] for page in pages.values() if name in page} for name in found}
    labels = {name: set().union(*(page[name][1] for page in pages.values() if name in page)) for name in found}
    assert {row.name: row.sources for row in ROWS} == sources
    assert {row.name: {row.type} for row in ROWS} == kinds
    assert {row.name: row.labels for row in ROWS} == labels


def test_every_metric_is_listed_once_asks_a_question_and_has_the_unit_of_its_name() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) > 40
    for row in ROWS:
        assert "?" in row.question, row
        word = row.name.removesuffix("_total").rpartition("_")[2]
        assert row.unit == UNITS.get(word, row.unit), row


def test_no_series_may_carry_an_id_or_a_tenant() -> None:
    bounded = {"model", "priority", "worker", "outcome", "state", "cause", "script"}
    assert set().union(*(row.labels for row in ROWS)) == bounded


def test_every_metric_in_the_alert_rules_is_in_the_table() -> None:
    rules = (ROOT / "ops" / "prometheus" / "stoker.rules.yml").read_text()
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bstoker_\w+", rules)}
    assert used - {row.name for row in ROWS} == set()


def test_every_alert_has_a_reason_a_runbook_and_a_test() -> None:
    folder = ROOT / "ops" / "prometheus"
    rules, tests = (folder / "stoker.rules.yml").read_text(), (folder / "stoker.rules.test.yml").read_text()
    blocks = re.split(r"\n\n", rules.partition("rules:\n")[2])
    names = [re.findall(r"- alert: (\w+)", block) for block in blocks]
    assert all(len(name) == 1 for name in names)
    for block, (name,) in zip(blocks, names, strict=True):
        assert block.lstrip().startswith("# "), name
        assert "\n          summary: " in block, name
        assert "\n          runbook: " in block, name
        assert f'alertname="{name}"' in tests, name


def test_ports_of_the_document_and_of_the_scrape_configuration_are_the_defaults() -> None:
    folder = ROOT / "ops" / "prometheus"
    base = Config.model_fields["metrics_port"].default
    assert f"127.0.0.1:{base}" in (folder / "prometheus.yml").read_text()
    assert f"127.0.0.1:{base + 1}" in (folder / "workers.yml").read_text()
    assert f"port {base} (`STOKER_METRICS_PORT`)" in TEXT
