"""The order in which waiting requests are considered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import attrgetter

from stoker.config import Config
from stoker.store.records import CLASSES, SUSPECT, Waiting, WorkerRecord, class_of, tenant_of
from stoker_scheduler.tenants import TenantShares, page_of

_RANKS = {name: rank for rank, name in enumerate(CLASSES)}

SHARE_MEMORY_US = 10_000_000
"""How fast the account behind `critical_share` forgets: its time constant, in microseconds.

Long enough to smooth over batches, short enough that an unused share can't be saved up for a long burst.
"""


@dataclass(slots=True)
class Order:
    """What waits, in the order to consider it, and what no registered worker could hold.

    `urgent`: the ids of CRITICAL that its share lets pass everybody. `largest`: what the workers can hold at most.
    """

    requests: tuple[Waiting, ...]
    unholdable: tuple[Waiting, ...]
    urgent: Set[str] = frozenset()
    largest: int | None = None


class RequestQueue:
    """Merges the lanes into one order.

    1. Merge by score: of two requests the one with the lower score comes first, whatever their lanes. With scores of
       `arrival + W[class]` a later arrival of class q passes a request of class p only within W[p] - W[q].
    2. Take CRITICAL before the merge while it had at most `critical_share` of the tokens dispatched lately, and by its
       score beyond that. This holds for every prefix of an order, so it does not matter how much of it is dispatched.
       What it had while nobody else waited is not held against it: it took nothing from anyone.
    3. Leave out the lanes that are held back; what they hold hides nothing.
    4. Keep suspects apart: they are never in an order with clean work.
    5. Pass over what no registered worker could hold even when empty, so that it stops nothing behind it.
    6. Share the turns of a class among its tenants (`TenantShares`), where it has several.
    7. Say whether a lane should be read deeper, because most of the page that was read had to be passed over.

    It remembers only how many tokens were dispatched lately, fading with `SHARE_MEMORY_US`, and what `shares` do.
    """

    def __init__(self, config: Config, shares: TenantShares | None = None) -> None:
        """Order a queue with the settings of `config`, going on with `shares`."""
        self.shares = shares or TenantShares()
        self._share = config.critical_share
        self._critical_tokens = 0.0
        self._all_tokens = 0.0
        self._faded_us = 0
        self._passes = True  # until an order says that CRITICAL waits alone

    def order(
        self,
        heads: Mapping[str, Sequence[Waiting]],
        workers: Iterable[WorkerRecord],
        *,
        held_back: Set[str] = frozenset(),
    ) -> Order:
        """Return the clean requests of `heads` (lane -> its first entries, ascending by score) in their order.

        `workers` are all that are registered; `held_back` names lanes, or classes with all of
        their lanes, whose requests may not run now.
        """
        lanes = [lane for lane, page in heads.items() if page and class_of(lane) != SUSPECT]
        if held_back:
            lanes = [lane for lane in lanes if lane not in held_back and class_of(lane) not in held_back]
        if len(lanes) > 1:
            # Best class first, so that the stable sort lets the better class go first where scores are equal.
            lanes.sort(key=lambda name: (class_rank(name), name))
        largest = largest_capacity(workers)
        first: list[Sequence[Waiting]] = []
        rest: list[Sequence[Waiting]] = []
        for lane in lanes:
            (rest if class_rank(lane) else first).append(heads[lane])
        critical, passed_over = _by_score(first, largest)
        others, also_passed_over = _by_score(rest, largest)
        self._passes = bool(others)
        merged, urgent = self._merge(critical, others)
        return Order(tuple(merged), (*passed_over, *also_passed_over), urgent, largest)

    def share(self, waiting: Mapping[str, int], depth: int) -> dict[str, int]:
        """Take in how many wait in each lane; returns the tenants' lanes to read, and how many entries of each.

        The lanes of a class share its `depth`; of a class with very many those of the least served are read.
        """
        self.shares.observe(waiting)
        if not any(map(tenant_of, waiting)):
            return {}
        lanes = self.shares.first(lane for lane in waiting if tenant_of(lane))
        sizes = Counter(map(class_of, lanes))
        return {lane: page_of(depth, sizes[class_of(lane)]) for lane in lanes}

    def suspects(self, heads: Mapping[str, Sequence[Waiting]], workers: Iterable[WorkerRecord]) -> Order:
        """Return the crash suspects of `heads` in their order."""
        pages = [page for lane, page in heads.items() if page and class_of(lane) == SUSPECT]
        suspects, unholdable = _by_score(pages, largest_capacity(workers))
        return Order(tuple(suspects), tuple(unholdable))

    def deeper(self, page: Sequence[Waiting], asked: int, workers: Iterable[WorkerRecord]) -> bool:
        """Return whether to read on in a lane, now, after a `page` of which `asked` entries were asked for.

        A full page of which at least half is unholdable says little about what could run. A caller that reads until
        this is False finds the eligible request behind any number of unholdable ones in the same tick.
        """
        if len(page) < asked:
            return False
        largest = largest_capacity(workers)
        passed_over = sum(not could_hold(request, largest) for request in page)
        return 2 * passed_over >= len(page)

    def dispatched(self, requests: Sequence[Waiting], *, now_us: int) -> None:
        """Note what was dispatched at `now_us` (microseconds of Redis TIME): the account behind `critical_share`."""
        if now_us > self._faded_us:
            fade = math.exp((self._faded_us - now_us) / SHARE_MEMORY_US)
            self._critical_tokens *= fade
            self._all_tokens *= fade
        # The stamp follows a clock that was set back: else nothing would fade until the clock caught up.
        self._faded_us = now_us
        self.shares.hand_out(requests)
        for request in requests:
            self._all_tokens += request.cost
            if self._passes and not class_rank(request.lane):
                self._critical_tokens += request.cost

    def _merge(self, critical: list[Waiting], others: list[Waiting]) -> tuple[list[Waiting], Set[str]]:
        if not critical:
            return self.shares.fair(others), frozenset()
        # The scores say when a class has its turns, the shares whose they are.
        others_turns, others = others, self.shares.fair(others)
        merged: list[Waiting] = []
        passing: set[str] = set()
        i = 0
        critical_tokens, all_tokens = self._critical_tokens, self._all_tokens
        for turn, urgent in zip(critical, self.shares.fair(critical), strict=True):
            due = turn.score
            while i < len(others) and others_turns[i].score < due and not self._within(critical_tokens, all_tokens):
                merged.append(others[i])
                all_tokens += others[i].cost
                i += 1
            if self._within(critical_tokens, all_tokens):
                passing.add(urgent.id)
            merged.append(urgent)
            critical_tokens += urgent.cost
            all_tokens += urgent.cost
        return merged + others[i:], passing

    def _within(self, critical_tokens: float, all_tokens: float) -> bool:
        return self._share > 0 and critical_tokens <= self._share * all_tokens


def largest_capacity(workers: Iterable[WorkerRecord]) -> int | None:
    """Return the most tokens that a registered worker can hold, None where no live worker is registered.

    What a worker lacks only for a while, because it ran out of memory, rules nothing out.
    """
    largest = None
    for worker in workers:
        if worker.state == "live":
            capacity = worker.full_capacity
            if largest is None or capacity > largest:
                largest = capacity
    return largest


def could_hold(request: Waiting, largest: int | None) -> bool:
    """Return whether a worker of the `largest` capacity could hold the request when empty.

    An estimate never rules a request out: the worker that counts its tokens decides. Without any worker nothing is
    ruled out either: a fleet that restarts must not fail what waits for it.
    """
    return largest is None or not request.exact or request.cost <= largest


def charged_cost(request: Waiting, largest: int | None) -> int:
    """Return the tokens to reserve for the request, an estimate clamped to the `largest` capacity."""
    return request.reserve if request.exact or largest is None else min(request.reserve, largest)


def _by_score(pages: Sequence[Sequence[Waiting]], largest: int | None) -> tuple[list[Waiting], list[Waiting]]:
    """Return what pages, each in its order, hold in the order of all, and apart from it what no worker could hold."""
    if not pages:
        return [], []
    requests = [*chain.from_iterable(pages)]
    unholdable: list[Waiting] = []
    # All entries of a tick come by here, nearly always to no end: so they are looked at without a call for each.
    if largest is not None and max(map(_cost, requests)) > largest:
        unholdable = [request for request in requests if not could_hold(request, largest)]
        requests = [request for request in requests if could_hold(request, largest)]
    if len(pages) > 1:
        requests.sort(key=_score)
    return requests, unholdable


@lru_cache(4096)
def class_rank(lane: str) -> int:
    """Return the place of the lane's class among the classes, 0 for the best; a tenant may follow behind a colon."""
    return _RANKS.get(class_of(lane), len(CLASSES))


_score: Callable[[Waiting], float] = attrgetter("score")
_cost: Callable[[Waiting], int] = attrgetter("cost")
