"""Looks at a queue again and again, and what happened between them: what `stoker top` shows.

`take_look` reads; `Watch` is pure.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from stoker._merge import merged
from stoker.config import Config
from stoker.stats import OUTCOMES, Latency, Stats, assemble, latencies
from stoker.store import inspections, lookups, views
from stoker.store.connection import Store
from stoker.store.lookups import Overview
from stoker.store.records import CLASSES, SUSPECT, WorkerRecord, class_of

RATES_S = 10.0
"""Rates are those of so many seconds: several heartbeats, for workers tell their figures with each."""

LATENCIES_S = 60.0


@dataclass(frozen=True, slots=True)
class Look:
    """A queue at one moment. `oldest_s`: how long the first of each class has waited, None where none waits."""

    overview: Overview
    workers: list[WorkerRecord]
    oldest_s: Mapping[str, float | None]


class Recent(TypedDict):
    """What happened lately: rates over the last `rates_s` seconds, latencies of what ended in the last `latencies_s`.

    `busy` is the share of its time that each incarnation computed, 0 to 1.
    """

    rates_s: float
    latencies_s: float
    outcomes: dict[str, int]
    requests_per_second: float
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    busy: dict[str, float]
    latency_ms: dict[str, Latency]
    latency_ms_by_class: dict[str, dict[str, Latency]]


@dataclass(frozen=True, slots=True)
class View:
    """What there is to show: all figures, and what happened lately, None at the first look."""

    stats: Stats
    oldest_s: Mapping[str, float | None]
    recent: Recent | None


def take_look(stores: Sequence[Store]) -> Look:
    """Read the queue, of all its shards; raises `RedisUnavailable`."""
    looks = [_look(store) for store in stores]
    if len(looks) == 1:
        return looks[0]
    ages = {name: [look.oldest_s[name] for look in looks] for name in CLASSES}
    return Look(
        merged([look.overview for look in looks]),
        [record for look in looks for record in look.workers],
        {name: max((age for age in found if age is not None), default=None) for name, found in ages.items()},
    )


def _look(store: Store) -> Look:
    overview = store.read(lookups.overview(store.keys))
    records = store.read(lookups.workers(store.keys))
    rows = store.read(lookups.held_rows(store.keys, [record.inc for record in records])) if records else []
    workers = [dataclasses.replace(record, held_rows=held) for record, held in zip(records, rows, strict=True)]
    return Look(overview, workers, _oldest(store, overview))


def _oldest(store: Store, overview: Overview) -> dict[str, float | None]:
    oldest: dict[str, float | None] = dict.fromkeys(CLASSES)
    if not any(overview.lanes[name] for name in CLASSES):
        return oldest
    shared = dict.fromkeys(overview.tenant_lanes, 1)
    view = store.read(views.queue_view(store.keys, depth=1, shared=shared))
    heads = {entries[0].id: class_of(lane) for lane, entries in view.lanes.items() if entries and lane != SUSPECT}
    for request_id, at_us in store.read(inspections.accepted(store.keys, list(heads))).items():
        age_s = max(0.0, (overview.now_us - at_us) / 1e6)
        oldest[heads[request_id]] = max(age_s, oldest[heads[request_id]] or 0.0)
    return oldest


class Watch:
    """Remembers the looks of the last minute."""

    def __init__(self, config: Config) -> None:
        """Watch the queue of `config`."""
        self._config = config
        self._looks: deque[Look] = deque()

    def add(self, look: Look) -> View:
        """Take the next look; returns what there is to show."""
        if self._looks and _began_anew(self._looks[-1].overview, look.overview):
            self._looks.clear()
        self._looks.append(look)
        # One that is older than the window stays, so that the window is full.
        while len(self._looks) > 2 and _seconds(self._looks[1], look) >= LATENCIES_S:
            self._looks.popleft()
        stats = assemble(self._config.queue, look.overview, look.workers, self._config.lease_us / 1e6)
        return View(stats, look.oldest_s, self._recent(look))

    def _recent(self, now: Look) -> Recent | None:
        if len(self._looks) < 2:
            return None
        earlier = [look for look in self._looks if look is not now]
        before = next((look for look in reversed(earlier) if _seconds(look, now) >= RATES_S), earlier[0])
        seconds = max(_seconds(before, now), 1e-3)
        prompt, generation = (
            sum(_differences(before, now, f"{kind}_tokens").values()) / seconds for kind in ("prompt", "generation")
        )
        histograms = _less(now.overview.histograms, earlier[0].overview.histograms)
        return Recent(
            rates_s=seconds,
            latencies_s=_seconds(earlier[0], now),
            outcomes={name: _less(now.overview.counts, before.overview.counts).get(name, 0) for name in OUTCOMES},
            requests_per_second=_ended(before, now) / seconds,
            prompt_tokens_per_second=prompt,
            generation_tokens_per_second=generation,
            busy={inc: min(1.0, us / 1e6 / seconds) for inc, us in _differences(before, now, "busy_us").items()},
            latency_ms=latencies(histograms),
            latency_ms_by_class={name: latencies(histograms, (name,)) for name in CLASSES},
        )


def _seconds(before: Look, now: Look) -> float:
    return (now.overview.now_us - before.overview.now_us) / 1e6


def _ended(before: Look, now: Look) -> int:
    return sum(now.overview.counts.get(name, 0) - before.overview.counts.get(name, 0) for name in OUTCOMES)


def _less(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: number - before.get(name, 0) for name, number in now.items()}


def _differences(before: Look, now: Look, figure: str) -> dict[str, int]:
    """Return by how much a figure grew, for each incarnation that was there before."""
    earlier = {record.inc: record.figures.get(figure, 0) for record in before.workers}
    return {
        record.inc: max(0, record.figures.get(figure, 0) - earlier[record.inc])
        for record in now.workers
        if record.inc in earlier
    }


def _began_anew(before: Overview, now: Overview) -> bool:
    """Whether Redis lost or changed its history, so that differences mean nothing."""
    return (
        now.generation != before.generation
        or now.now_us <= before.now_us
        or any(now.counts.get(name, 0) < before.counts.get(name, 0) for name in OUTCOMES)
    )
