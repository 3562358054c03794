"""The policy of a queue, made of the objects that a scheduler runs, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import Batch, DynamicBatcher, Room
from stoker_scheduler.placement import Allowed, Place, Places, Speed
from stoker_scheduler.preemption import Preemption
from stoker_scheduler.queue import RequestQueue, charged_cost
from stoker_scheduler.reserve import Reserve


@dataclass(frozen=True, slots=True)
class Policy:
    """Who decides. `classes`: whether priorities and deadlines count, or the order of arrival alone.

    `refill`: whether a worker gets more while it runs something (continuous batching), or only once it is empty;
    `to_longest`: whether rows that are done wait for the longest of their batch. `reserve` and `preemption`: what BATCH
    leaves to the other classes, None for nothing.
    """

    name: str
    queue: RequestQueue
    batcher: DynamicBatcher
    balancer: LoadBalancer
    classes: bool = True
    refill: bool = True
    to_longest: bool = False
    reserve: Reserve | None = None
    preemption: Preemption | None = None


class FifoBatcher(DynamicBatcher):
    """The baseline for padded batches: whoever comes next, as long as rows x longest is within the budget."""

    def form(self, waiting: Sequence[Waiting], room: Room, *, now_us: int) -> Batch:
        """Return the requests at the front that fit together."""
        if room.mode != "padded":
            return super().form(waiting, room, now_us=now_us)
        costs: list[int] = []
        if not waiting or not room.opens_to(charged_cost(waiting[0], room.largest)):
            return Batch()
        for request in waiting[: room.share]:
            cost = charged_cost(request, room.largest)
            longest = max(cost, *costs) if costs else cost
            full = (len(costs) + 1) * longest > room.budget
            if costs and (full or not room.admits(len(costs) + 1, sum(costs) + cost, longest)):
                break
            costs.append(cost)
        padded = len(costs) * max(costs)
        return Batch(tuple(waiting[: len(costs)]), tuple(costs), min(1.0, padded / room.budget), sum(costs) / padded)


class InTurn(LoadBalancer):
    """A baseline for fleets of workers that differ: round robin."""

    _last = ""

    def choose(self, places: Places, request: Waiting, cost: int, allowed: Allowed | None = None) -> Place | None:
        """Return the next worker in the order of their names that has room."""
        able = [place for place in places if place.takes(cost) and (allowed is None or allowed(place))]
        chosen = next((place for place in able if place.record.inc > self._last), able[0] if able else None)
        self._last = chosen.record.inc if chosen else self._last
        return chosen


class LeastTokens(LoadBalancer):
    """A baseline for fleets of workers that differ: whoever holds the fewest tokens, however quick it is."""

    def places(self, workers: Sequence[WorkerRecord], speeds: Mapping[str, Speed], **options: Any) -> Places:
        """Return the workers as if they were alike."""
        return super().places(workers, {}, **options)


NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})


def policies(
    config: Config, mode: str, weights: Mapping[str, float] = NO_WEIGHTS, *, mixed: bool = False
) -> dict[str, Policy]:
    """Return the policy of a scheduler with these settings under `stoker`, and the baselines that say something.

    `weights` are those of tenants, by name; `mixed`: whether workers differ.
    """
    own = _policy("stoker", config, DynamicBatcher(config))
    found = {"stoker": replace(own, reserve=Reserve(config), preemption=Preemption(config))}
    found["fifo"] = _policy("fifo", config, FifoBatcher(config), classes=False)
    if mixed:
        found["in turn"] = replace(found["stoker"], name="in turn", balancer=InTurn(config))
        found["least tokens"] = replace(found["stoker"], name="least tokens", balancer=LeastTokens(config))
    if mode == "continuous":
        # Batches that are closed: rows that are done leave, or stay until the longest is done.
        found["static"] = _policy("static", config, DynamicBatcher(config), refill=False)
        found["longest"] = _policy("longest", config, DynamicBatcher(config), refill=False, to_longest=True)
    for policy in found.values():
        policy.queue.shares.weigh(weights)
    return found


def _policy(name: str, config: Config, batcher: DynamicBatcher, **options: Any) -> Policy:
    return Policy(name, RequestQueue(config), batcher, LoadBalancer(config), **options)
