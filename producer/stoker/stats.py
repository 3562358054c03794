"""A queue's figures: percentiles out of its histograms, and all of them put together. Pure."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from stoker.store.lookups import Overview
from stoker.store.records import CLASSES, SUSPECT, WorkerRecord
from stoker.store.scripts import RATE_WINDOW_US

OUTCOMES = ("succeeded", "failed", "expired", "cancelled")
METRICS = ("queue", "ttft", "e2e")
WELL = ("live", "draining", "drained", "stopping")
"""The states of workers that are there; see `worker_state`."""

PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


class Latency(TypedDict):
    """Milliseconds of one metric, None before the first observation; percentiles are right within a factor of 1.41."""

    count: int
    avg: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class QueueFigures(TypedDict):
    """What is in the queue now. `running` is with workers, handed over or begun; `suspect` waits apart."""

    name: str
    waiting: dict[str, int]
    suspect: int
    delayed: int
    running: int
    waiting_bytes: int
    dead_letters: int


class Rates(TypedDict):
    """Requests settled a second over the last 5 s or more, and tokens a second as the workers report them."""

    requests_per_second: float
    tokens_per_second: float


class Stats(TypedDict):
    """All figures of one queue. `counts` are running totals; `tenants` has those of each tenant."""

    queue: QueueFigures
    counts: dict[str, int]
    tenants: dict[str, dict[str, int]]
    latency_ms: dict[str, Latency]
    latency_ms_by_class: dict[str, dict[str, Latency]]
    rates: Rates
    workers: list[dict[str, Any]]
    leader: str | None
    model: dict[str, Any] | None
    generation: str | None


def bucket_ms(bucket: int) -> float:
    """Return the upper edge of a histogram bucket: 1, 1.41, 2, 2.83, 4 ... ms."""
    return float(2 ** (bucket / 2))


def percentile(buckets: Mapping[int, int], share: float) -> float | None:
    """Return the time in ms that `share` of the observations stay under, spread evenly within their bucket."""
    total = sum(buckets.values())
    if not total:
        return None
    rank, below = share * total, 0
    for bucket in sorted(buckets):
        inside = buckets[bucket]
        if below + inside >= rank:
            low, high = bucket_ms(bucket - 1) if bucket else 0.0, bucket_ms(bucket)
            return low + (high - low) * (rank - below) / inside
        below += inside
    return bucket_ms(max(buckets))


def latencies(histograms: Mapping[str, int], classes: Sequence[str] = CLASSES) -> dict[str, Latency]:
    """Return each metric over `classes`, from the fields `<metric>:<class>:<bucket>` and `<metric>:<class>:sum`."""
    buckets: dict[str, defaultdict[int, int]] = {metric: defaultdict(int) for metric in METRICS}
    sums_us: defaultdict[str, int] = defaultdict(int)
    for field, number in histograms.items():
        metric, priority, bucket = field.split(":")
        if metric not in buckets or priority not in classes:
            continue
        if bucket == "sum":
            sums_us[metric] += number
        else:
            buckets[metric][int(bucket)] += number
    return {metric: _latency(buckets[metric], sums_us[metric]) for metric in METRICS}


def _latency(buckets: Mapping[int, int], sum_us: int) -> Latency:
    count = sum(buckets.values())
    p50, p95, p99 = (percentile(buckets, share) for share in PERCENTILES.values())
    return Latency(count=count, avg=sum_us / count / 1000 if count else None, p50=p50, p95=p95, p99=p99)


def requests_per_second(rates: Mapping[str, float], now_us: int) -> float:
    """Return the drain rate: of the last full window, or of the time since it where that is over or was the first."""
    if "since" not in rates:
        return 0.0
    age_us = max(now_us - rates["since"], 1.0)
    drain = rates.get("drain", 0.0)
    if drain and age_us <= RATE_WINDOW_US:
        return drain
    return rates.get("settled", 0.0) * 1e6 / max(age_us, 1e6)


def assemble(queue: str, view: Overview, workers: Sequence[WorkerRecord], lease_s: float) -> Stats:
    """Return the figures of a queue; a worker that nobody heard of for `lease_s` seconds is `silent`."""
    totals = {name: view.counts.get(name, 0) for name in ("submitted", *OUTCOMES)}
    totals |= {name: number for name, number in view.counts.items() if ":" not in name and "waiting" not in name}
    ended = sum(totals[name] for name in OUTCOMES)
    return Stats(
        queue=QueueFigures(
            name=queue,
            waiting={name: view.lanes[name] for name in CLASSES},
            suspect=view.lanes[SUSPECT],
            delayed=view.delayed,
            running=max(0, totals["submitted"] - ended - view.counts.get("waiting", 0)),
            waiting_bytes=view.counts.get("waiting_bytes", 0),
            dead_letters=view.dead,
        ),
        counts=totals,
        tenants=_tenants(view.counts),
        latency_ms=latencies(view.histograms),
        latency_ms_by_class={name: latencies(view.histograms, (name,)) for name in CLASSES},
        rates=Rates(
            requests_per_second=requests_per_second(view.rates, view.now_us),
            tokens_per_second=sum(record.rate for record in workers if record.state == "live"),
        ),
        workers=[_worker(record, lease_s, view.circuits) for record in workers],
        leader=view.leader if view.leader_until_us > view.now_us else None,
        model={"identity": view.card.identity, **view.card.fields} if view.card else None,
        generation=view.generation,
    )


def _tenants(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    tenants: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name, number in counts.items():
        field, _, tenant = name.partition(":")
        if tenant:
            tenants[tenant][field] = number
    return dict(tenants)


def worker_state(record: WorkerRecord, lease_s: float) -> str:
    """Return how a worker is in one word.

    `live`; `draining`, or `drained` once it holds nothing; `stopping` when it takes no new work by itself, as it ends
    or the server of its model is away (its record has one bit for both); `silent` for longer than its lease; or what
    Redis has of one that ended and whose work is not taken back yet.
    """
    if record.state != "live":
        return record.state
    if record.beat_age_us > lease_s * 1e6:
        return "silent"
    if record.drained:
        return "draining" if record.held_rows else "drained"
    return "live" if record.accepting else "stopping"


def _worker(record: WorkerRecord, lease_s: float, circuits: Mapping[str, str]) -> dict[str, Any]:
    figures = dataclasses.asdict(record)
    for name in ("batch_rows", "batch_tokens"):  # only a scheduler looks at each row that a worker holds
        del figures[name]
    figures |= {"beat_age_s": figures.pop("beat_age_us") / 1e6, "available": record.available}
    circuit = circuits.get(record.worker, "closed") if record.state == "live" else "closed"
    return figures | {"state": worker_state(record, lease_s), "circuit": circuit}
