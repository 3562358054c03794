"""A queue's figures as Prometheus families. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from stoker.buckets import EDGES, cumulated
from stoker.config import Config
from stoker.stats import OUTCOMES, assemble
from stoker.store.lookups import Overview
from stoker.store.records import CLASSES, WorkerRecord
from stoker_scheduler.queue_reader import Reading

FIRST_EDGE_S = 0.001

HISTOGRAMS = {
    "queue": ("stoker_request_queue_time_seconds", "Accepted to begun on a worker, of requests that succeeded."),
    "ttft": ("stoker_time_to_first_token_seconds", "Accepted to the first token, of requests that succeeded."),
    "e2e": ("stoker_e2e_request_latency_seconds", "Accepted to settled, of requests that succeeded."),
}
"""The histograms that the scripts keep: their metric, and what it is called outside."""

COUNTERS = {
    "submitted": ("stoker_requests_submitted", "Requests accepted."),
    "retries": ("stoker_request_retries", "Failures after which a request was queued again."),
    "preempted": ("stoker_request_preemptions", "Times that a request was handed back to make room for a better one."),
    "fenced": ("stoker_results_fenced", "Results that came too late to count, and were dropped by Redis."),
    "prompt_tokens": ("stoker_prompt_tokens", "Prompt tokens of requests that succeeded."),
    "generation_tokens": ("stoker_generation_tokens", "Generated tokens of requests that succeeded."),
}
"""The running totals that the scripts keep, but for the outcomes, which are one family."""

WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerRecord], float]], ...] = (
    (
        "stoker_worker_heartbeat_age_seconds",
        "Since its last heartbeat, by the clock of Redis.",
        lambda r: r.beat_age_us / 1e6,
    ),
    ("stoker_worker_tokens_held", "Tokens reserved for what it holds.", lambda r: r.held_tokens),
    ("stoker_worker_tokens_limit", "Tokens that it can hold.", lambda r: r.capacity),
    ("stoker_worker_credit_tokens", "Tokens that it may still be given.", lambda r: max(0, r.capacity - r.held_tokens)),
    ("stoker_worker_tokens_per_second", "Tokens a second of its busy time, smoothed; 0: unknown.", lambda r: r.rate),
)
"""What the queue knows of a registered worker."""

SERVING, DRAINED, LEAVING = "serving", "drained", "leaving"
STATES = (SERVING, DRAINED, LEAVING, "superseded", "dead", "lost")
"""What a registered worker may be: the life of its record, and while that is live whether it takes work."""


def state_of(record: WorkerRecord) -> str:
    """Return one of `STATES`."""
    if record.state != "live":
        return record.state
    if not record.accepting:
        return LEAVING
    return DRAINED if record.drained else SERVING


def queue_families(reading: Reading, config: Config) -> Iterator[Metric]:
    """Give what a whole queue counts, labelled with the name of its model (empty before its first worker)."""
    model = model_of(reading.overview)
    yield from _waiting(reading, model)
    yield from _now(reading, config, model)
    yield from _totals(reading.overview.counts, model)
    for metric, (name, text) in HISTOGRAMS.items():
        yield _histogram(reading.overview.histograms, metric, name, text, model)


def model_of(overview: Overview) -> str:
    """Return the name of the queue's model, empty before its first worker."""
    return str(overview.card.fields.get("name", "")) if overview.card else ""


def _waiting(reading: Reading, model: str) -> Iterator[Metric]:
    requests = GaugeMetricFamily(
        "stoker_num_requests_waiting", "Requests that wait for a worker.", labels=("model", "priority")
    )
    tokens = GaugeMetricFamily(
        "stoker_num_tokens_waiting",
        "Prompt tokens and max_tokens of what waits; of long queues estimated from a random sample.",
        labels=("model", "priority"),
    )
    age = GaugeMetricFamily(
        "stoker_oldest_request_waiting_seconds",
        "How long the oldest waiting request has been waiting since its acceptance.",
        labels=("model", "priority"),
    )
    now_us = reading.overview.now_us
    for name in CLASSES:
        number = reading.overview.lanes[name]
        requests.add_metric((model, name), number)
        tokens.add_metric((model, name), number * reading.backlog.mean_tokens[name])
        age.add_metric((model, name), max(0, now_us - reading.oldest_us.get(name, now_us)) / 1e6)
    yield from (requests, tokens, age)


def _now(reading: Reading, config: Config, model: str) -> Iterator[Metric]:
    queue = assemble(config.queue, reading.overview, reading.workers, config.lease_us / 1e6)["queue"]
    for name, text, number in (
        ("stoker_num_requests_running", "Requests with workers, handed over or begun.", queue["running"]),
        ("stoker_num_requests_delayed", "Requests that wait for their retry.", queue["delayed"]),
        ("stoker_num_requests_suspect", "Requests that wait to run alone after a crash.", queue["suspect"]),
        ("stoker_num_requests_waiting_limit", "How many requests may wait (max_waiting).", config.max_waiting),
        ("stoker_waiting_bytes", "Encoded size of what waits.", queue["waiting_bytes"]),
        ("stoker_num_dead_letters", "Failed requests that are kept.", queue["dead_letters"]),
    ):
        family = GaugeMetricFamily(name, text, labels=("model",))
        family.add_metric((model,), number)
        yield family


def _totals(counts: Mapping[str, int], model: str) -> Iterator[Metric]:
    for field, (name, text) in COUNTERS.items():
        family = CounterMetricFamily(name, text, labels=("model",))
        family.add_metric((model,), counts.get(field, 0))
        yield family
    ended = CounterMetricFamily("stoker_requests_finished", "Requests that ended.", labels=("model", "outcome"))
    for outcome in OUTCOMES:
        ended.add_metric((model, outcome), counts.get(outcome, 0))
    yield ended


def _histogram(fields: Mapping[str, int], metric: str, name: str, text: str, model: str) -> HistogramMetricFamily:
    """Two buckets of the scripts, which go up by the root of two, are one here."""
    family = HistogramMetricFamily(name, text, labels=("model", "priority"))
    buckets: dict[str, list[int]] = {priority: [0] * (EDGES + 1) for priority in CLASSES}
    sums: defaultdict[str, int] = defaultdict(int)
    for field, number in fields.items():
        kind, priority, bucket = field.split(":")
        if kind != metric or priority not in buckets:
            continue
        if bucket == "sum":
            sums[priority] = number
        else:
            buckets[priority][min((int(bucket) + 1) // 2, EDGES)] += number
    for priority, counts in buckets.items():
        family.add_metric((model, priority), cumulated(FIRST_EDGE_S, counts), sums[priority] / 1e6)
    return family


def worker_families(workers: Sequence[WorkerRecord]) -> Iterator[Metric]:
    """Give what the queue knows of its workers; of one that was restarted the youngest incarnation."""
    youngest = {record.worker: record for record in sorted(workers, key=_number)}
    state = GaugeMetricFamily(
        "stoker_worker_state", "1 for the state that a registered worker is in.", labels=("worker", "state")
    )
    for name, record in youngest.items():
        for one in STATES:
            state.add_metric((name, one), one == state_of(record))
    yield state
    for metric, text, value in WORKER_GAUGES:
        family = GaugeMetricFamily(metric, text, labels=("worker",))
        for name, record in youngest.items():
            family.add_metric((name,), value(record))
        yield family


def _number(record: WorkerRecord) -> int:
    return int(record.inc.rpartition(":")[2].partition("-")[0])
