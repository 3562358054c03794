"""What goes to several shards, and what is known of all of them, as one queue's. Pure."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from stoker.config import Config
from stoker.errors import RedisUnavailable
from stoker.shards import shard_of
from stoker.stats import Stats, assemble, requests_per_second
from stoker.store.lookups import DeadLetter, Overview
from stoker.store.records import WorkerRecord

T = TypeVar("T")


def by_shard(ids: Sequence[str | None], shards: int, turn: int) -> list[int]:
    """Return the shard of each request; one without an id gets one that belongs where it is its turn."""
    return [(turn + i) % shards if found is None else shard_of(found, shards) for i, found in enumerate(ids)]


def parts_of(ids: Sequence[str | None], shards: int, turn: int) -> dict[int, list[int]]:
    """Return which of some requests go to each shard that gets any, by their places."""
    parts: dict[int, list[int]] = {}
    for i, shard in enumerate(by_shard(ids, shards, turn)):
        parts.setdefault(shard, []).append(i)
    return parts


def in_order(parts: Iterable[Sequence[int]], answers: Iterable[Sequence[T]]) -> list[T]:
    """Return the answers to all parts by their places; raises `RedisUnavailable` where that is all that came."""
    found = {i: answer for places, some in zip(parts, answers, strict=True) for i, answer in _pairs(places, some)}
    errors = [answer for answer in found.values() if isinstance(answer, RedisUnavailable)]
    if errors and len(errors) == len(found):
        raise errors[0]
    return [found[i] for i in range(len(found))]


def _pairs(places: Sequence[int], some: Sequence[T]) -> Iterable[tuple[int, T]]:
    return zip(places, some, strict=True)


def newest(letters: Iterable[Sequence[DeadLetter]], limit: int) -> list[DeadLetter]:
    """Return the newest of several lists, each of which has its newest first."""
    return list(itertools.islice(heapq.merge(*letters, key=lambda letter: -letter.at_s), limit))


def united(tenants: Sequence[Mapping[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return what is set for tenants, which is the same in each shard, unless a call was cut off."""
    return {name: values for some in reversed(tenants) for name, values in some.items()}


def figures(config: Config, surveys: Sequence[tuple[Overview, Sequence[WorkerRecord]]]) -> Stats:
    """Return the figures of all shards together; each worker's say which it serves."""
    workers = [record for _, records in surveys for record in records]
    shards = {record.inc: shard for shard, (_, records) in enumerate(surveys) for record in records}
    stats = assemble(config.queue, merged([view for view, _ in surveys]), workers, config.lease_us / 1e6)
    stats["workers"] = [worker | {"shard": shards[worker["inc"]]} for worker in stats["workers"]]
    return stats


def merged(views: Sequence[Overview]) -> Overview:
    """Return what is counted of all shards together; there is a leader only where each shard has one."""
    now_us = max(view.now_us for view in views)
    leads = all(view.leader and view.leader_until_us > view.now_us for view in views)
    return Overview(
        now_us=now_us,
        generation=",".join(filter(None, (view.generation for view in views))) or None,
        lanes=_sums(view.lanes for view in views),
        delayed=sum(view.delayed for view in views),
        dead=sum(view.dead for view in views),
        counts=_sums(view.counts for view in views),
        histograms=_sums(view.histograms for view in views),
        # Each shard has its own time: their rates are added, not what these are made of.
        rates={"since": now_us, "drain": sum(requests_per_second(view.rates, view.now_us) for view in views)},
        leader=", ".join(filter(None, (view.leader for view in views))) if leads else None,
        leader_until_us=now_us + 1,
        circuits={name: state for view in views for name, state in view.circuits.items()},
        card=next((view.card for view in views if view.card), None),
        tenant_lanes=sorted({lane for view in views for lane in view.tenant_lanes}),
        served={lane: most for view in views for lane, most in view.served.items()},
        speeds={inc: speed for view in views for inc, speed in view.speeds.items()},
    )


def _sums(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total)
