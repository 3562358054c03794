"""A queue read as its leader sees it, and what would be handed out next: read-only, for who looks."""

from __future__ import annotations

from dataclasses import dataclass

from stoker.config import Config
from stoker.stats import requests_per_second
from stoker.store import lookups, reads, views
from stoker.store.connection import Store
from stoker.store.lookups import Overview
from stoker.store.records import CLASSES
from stoker.store.views import QueueView
from stoker_scheduler.answers import AnswerLengths
from stoker_scheduler.placement import Speed
from stoker_scheduler.preview import Preview, preview
from stoker_scheduler.queue import RequestQueue
from stoker_scheduler.reserve import BatchRoom
from stoker_scheduler.tenants import TenantShares

DEPTH = 2048
"""How many entries of a class are read: what stands further back has no place yet."""


@dataclass(frozen=True, slots=True)
class LookAhead:
    """One moment of a queue: what was read, the policy that knows the tenants' shares, and what it would do."""

    overview: Overview
    view: QueueView
    queue: RequestQueue
    preview: Preview

    @property
    def waiting(self) -> int:
        """How many wait for a worker in all, suspects too."""
        return sum(self.overview.lanes.values())

    @property
    def drain_rate(self) -> float:
        """Requests that end a second, as measured lately."""
        return requests_per_second(self.overview.rates, self.overview.now_us)


def look_ahead(store: Store, config: Config, *, most: int = 8) -> LookAhead:
    """Read a queue and let the policy plan `most` batches; raises `RedisUnavailable`."""
    overview = store.read_patiently(lookups.overview(store.keys))
    known = store.read(lookups.workers(store.keys))
    expected: dict[str, int] = {}
    if config.reserve == "expected":
        answers = AnswerLengths()
        answers.observe(store.read(reads.answers(store.keys)))
        expected = answers.expected()
    queue = RequestQueue(config, TenantShares(overview.served))
    untold = {name: 1 for name in CLASSES if overview.lanes[name]}
    shared = queue.share(dict.fromkeys(overview.tenant_lanes, 1) | untold, DEPTH)
    view = store.read(views.queue_view(store.keys, depth=DEPTH, known=known, expected=expected, shared=shared))
    speeds = {inc: Speed(*numbers) for inc, numbers in overview.speeds.items()}
    rooms = {inc: _room(*numbers) for inc, numbers in overview.rooms.items()}
    found = preview(config, view, queue, overview.circuits, speeds, rooms, most=most)
    return LookAhead(overview, view, queue, found)


def _room(rows: float, tokens: float, ms: float, held: float, *prices: float) -> BatchRoom:
    return BatchRoom(int(rows), int(tokens), ms, int(held), *prices)
