"""Which crash suspects run next, apart from clean work: bisection, so that a culprit takes few workers with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from stoker.store.records import Waiting
from stoker_scheduler.batcher import Batch, Room
from stoker_scheduler.queue import charged_cost


def half(suspects: Sequence[Waiting], groups: Mapping[str, str], room: Room) -> Batch:
    """Return the suspects to run next, in their order: half, rounded up, of those that crashed with the first one.

    `groups` maps an id to the incarnation whose death made it a suspect: those of one death are a set. A half that
    survives is cleared; one that crashes is a smaller set. So of n suspects with one culprit at most ceil(log2 n) + 2
    deaths are seen, the first one and the two solo crashes that convict it among them. A set is never mixed with
    another one: a crash would say less. What `room` can't hold goes later; it must be that of a worker that holds
    nothing. Empty when not even the first fits.
    """
    if not suspects:
        return Batch()
    group = groups.get(suspects[0].id)
    peers = [request for request in suspects if groups.get(request.id) == group]
    taken: list[Waiting] = []
    costs: list[int] = []
    for request in peers[: ceil(len(peers) / 2)]:
        cost = charged_cost(request, room.largest)
        if not _fits(room, [*costs, cost]):
            break
        taken.append(request)
        costs.append(cost)
    return Batch(tuple(taken), tuple(costs))


def _fits(room: Room, costs: Sequence[int]) -> bool:
    longest = max(costs)
    if len(costs) > 1 and room.mode == "padded" and len(costs) * longest > room.budget:
        return False
    return room.admits(len(costs), sum(costs), longest)
