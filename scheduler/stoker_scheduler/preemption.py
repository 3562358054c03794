"""Which offline requests workers give back for those that wait and cannot be placed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stoker.config import Config
from stoker.store.records import Held, Waiting, WorkerRecord
from stoker_scheduler.queue import charged_cost, largest_capacity

Key = tuple[str, str]
"""A request's id and its delivery."""


class Preemption:
    """Chooses rows of BATCH to give back.

    1. Only for requests of other classes that no worker has room for, in their order, and no more rows than they need.
    2. Of the worker where the fewest have to go; there those that began last, which lose the least work.
    3. None that was begun less than `preempt_ms` ago, if others will do: whoever was preempted before must not go
       again within that time, which the script checks.

    Times are microseconds of Redis TIME.
    """

    def __init__(self, config: Config) -> None:
        self._spared_us = config.preempt_ms * 1000

    def choose(
        self,
        blocked: Sequence[Waiting],
        workers: Sequence[WorkerRecord],
        held: Mapping[str, Sequence[Held]],
        now_us: int,
    ) -> dict[str, list[Key]]:
        """Return what each incarnation is to give back so that `blocked` fit; `held`: whom they hold."""
        largest = largest_capacity(workers)
        places = [_Place(worker, held.get(worker.inc, ()), now_us - self._spared_us) for worker in workers]
        chosen: dict[str, list[Key]] = {}
        for request in blocked:
            cost = charged_cost(request, largest)
            options = [(len(victims), place) for place in places if (victims := place.victims(cost)) is not None]
            if not options:
                continue
            _, place = min(options, key=lambda option: (option[0], option[1].inc))
            chosen.setdefault(place.inc, []).extend(place.take(cost))
        return {inc: keys for inc, keys in chosen.items() if keys}


class _Place:
    """What is free at one worker, and who could leave it."""

    def __init__(self, worker: WorkerRecord, held: Sequence[Held], settled_us: int) -> None:
        usable = worker.available and worker.mode == "continuous" and worker.cache == "paged"
        self.inc = worker.inc
        self._rows = worker.rows - worker.held_rows
        self._tokens = worker.capacity - worker.held_tokens
        # From the end: the latest of those that ran long enough, then the others.
        leaving = [member for member in held if member.batch and member.cost] if usable else []
        self._leaving = sorted(leaving, key=lambda member: (member.since_us <= settled_us, member.since_us, member.id))

    def victims(self, cost: int) -> list[Held] | None:
        """Return who has to go for one more row of `cost` tokens; None where that is not enough, or nobody is there."""
        if not self._leaving:
            return None
        rows, tokens = self._rows, self._tokens
        going: list[Held] = []
        for member in reversed(self._leaving):
            if rows >= 1 and tokens >= cost:
                break
            going.append(member)
            rows, tokens = rows + 1, tokens + member.cost
        return going if rows >= 1 and tokens >= cost else None

    def take(self, cost: int) -> list[Key]:
        """Let them go, and give the room to a row of `cost` tokens."""
        going = self.victims(cost) or []
        del self._leaving[len(self._leaving) - len(going) :]
        self._rows += len(going) - 1
        self._tokens += sum(member.cost for member in going) - cost
        return [(member.id, member.delivery) for member in going]
