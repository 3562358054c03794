"""Which worker a request goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.placement import UNKNOWN, Allowed, Homes, Place, Places, Speed, usual

FORGET_US = 60_000_000
"""A head that nobody asked about for so long is gone: what was noted about it is dropped."""


@dataclass(slots=True)
class _Blocked:
    """Since when a head could not be placed, when it was last asked about, and the worker kept for it."""

    since_us: int
    asked_us: int
    inc: str | None = None


class LoadBalancer:
    """Places requests on workers.

    1. Only workers that are available, not shut (by an open circuit, a reservation, a quarantine) and have credit:
       rows, and tokens as dispatch counts them (paged: the sum; rect: rows x longest; a busy padded worker: a whole
       batch). One that is probed gets one request.
    2. Of these the one where it is done first: its own steps, and the drain time of all that is then held, tokens over
       the rate (`Speed`). The rate is what the worker does when it is full, so that a slow one gets its share of the
       tokens and a fast one more; what it did lately would make an idle worker look slow. Where both would be idle its
       own steps decide. A worker of which nothing is known counts like the median of the others. Equal workers go by
       name, so that the same state always gives the same answer.
    3. Of more than `scan_workers` workers the better one of two that are drawn by the request's id and by their rates.
    4. A request with an affinity key goes to one of the key's homes (`Homes`), if it would be done there at most
       `affinity_slack_ms` later than where rule 2 or 3 sends it.
    5. A head that no worker can take keeps one: after `max_queue_delay_ms`, the worker that drains first of those that
       could hold it when empty is reserved, so that smaller requests can't starve it. The reservation stays with that
       worker while it can be used, for draining two workers halfway serves nobody.

    It remembers only since when each such head has waited, and homes. Times are microseconds of Redis TIME.
    """

    def __init__(self, config: Config) -> None:
        self._linger_us = config.max_queue_delay_ms * 1000
        self._slack_s = config.affinity_slack_ms / 1000
        self._scanned = config.scan_workers
        self._homes = Homes()
        # In the order in which they were last asked about.
        self._blocked: dict[str, _Blocked] = {}

    def places(
        self,
        workers: Sequence[WorkerRecord],
        speeds: Mapping[str, Speed],
        *,
        shut: Set[str] = frozenset(),
        probing: Set[str] = frozenset(),
    ) -> Places:
        """Return the workers that may get requests now.

        `speeds`, `shut` and `probing` go by incarnations.
        """
        able = [worker for worker in workers if worker.available and worker.inc not in shut]
        known = [speeds[worker.inc] for worker in able if worker.inc in speeds]
        other = usual(known) if len(known) < len(able) else UNKNOWN

        def homes(key: int) -> Sequence[str]:
            return self._homes.of(key, workers)

        return Places(
            able,
            speed=lambda worker: speeds.get(worker.inc, other),
            homes=homes,
            probing=probing,
            scanned=self._scanned,
        )

    def choose(self, places: Places, request: Waiting, cost: int, allowed: Allowed | None = None) -> Place | None:
        """Return where `request`, which reserves `cost` tokens, goes; None where no worker can take it now."""
        chosen = places.least(request.id, cost, request.max_tokens, allowed)
        if chosen is None:
            return None
        if self._blocked:
            self._blocked.pop(request.id, None)
        if request.affinity is None:
            return chosen
        latest_s = chosen.done_s(cost, request.max_tokens) + self._slack_s
        for home in places.homes(request.affinity):
            near = home.done_s(cost, request.max_tokens) <= latest_s
            if near and home.takes(cost) and (allowed is None or allowed(home)):
                return home
        return chosen

    def reserve(self, places: Places, request: Waiting, cost: int, *, now_us: int) -> Place | None:
        """Return the worker to keep free for `request`, a head that `choose` found no worker for.

        None while it has not waited long enough, and where no usable worker could ever hold it. The caller gives
        nothing else to the worker returned, in this tick; it is asked again in the next.
        """
        self._forget(now_us)
        blocked = self._blocked.pop(request.id, None) or _Blocked(now_us, now_us)
        self._blocked[request.id] = blocked
        blocked.asked_us = now_us
        if now_us - blocked.since_us < self._linger_us:
            return None
        able = [place for place in places.usable() if place.record.rows > 0 and cost <= place.capacity]
        kept = next((place for place in able if place.record.inc == blocked.inc), None)
        kept = kept or min(able, key=Place.drain_s, default=None)
        blocked.inc = kept.record.inc if kept is not None else None
        return kept

    def _forget(self, now_us: int) -> None:
        while self._blocked:
            longest = next(iter(self._blocked))
            if abs(now_us - self._blocked[longest].asked_us) < FORGET_US:
                return
            del self._blocked[longest]
