"""Which requests workers give back for better ones that wait and cannot be placed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from stoker.config import Config
from stoker.store.records import BATCH, CLASSES, SUSPECT, Held, Waiting, WorkerRecord
from stoker_scheduler.queue import charged_cost, class_rank, largest_capacity

_OFFLINE = class_rank(BATCH)

LOOKED_AT = 16
"""Workers whose rows are read at a time for CRITICAL: in a large fleet rows end sooner than all would be read."""


class Preemption:
    """Chooses rows to give back.

    1. Only for requests that no worker has room for, in their order, and no more rows than they need. CRITICAL, within
       its share, may take those of every other class; HIGH, NORMAL and LOW, and CRITICAL beyond, those of BATCH.
    2. Rows of the lowest class go first; then those of the worker where the fewest have to go; then those that ran
       least, which lose the least work.
    3. What was begun n times before is spared until it has run for `preempt_ms` x 2^(n - 1) again. So nothing is
       preempted more often than that, and what needs long without a break has it after a few times.

    Times are microseconds of Redis TIME.
    """

    def __init__(self, config: Config) -> None:
        self._spared_us = config.preempt_ms * 1000

    def choose(
        self,
        blocked: Sequence[Waiting],
        urgent: Set[str],
        workers: Sequence[WorkerRecord],
        held: Mapping[str, Sequence[Held]],
        now_us: int,
    ) -> dict[str, list[Held]]:
        """Return what each incarnation is to give back so that `blocked` fit; `held`: whom they hold.

        `urgent`: the ids of CRITICAL within its share.
        """
        largest = largest_capacity(workers)
        able = filter(_gives_rows, workers)
        places = [_Place(worker, self._askable(held.get(worker.inc, ()), now_us), now_us) for worker in able]
        if not any(place.has_offline for place in places):
            blocked = [request for request in blocked if request.id in urgent]
        chosen: dict[str, list[Held]] = {}
        for request in blocked:
            cost, best = charged_cost(request, largest), 1 if request.id in urgent else _OFFLINE
            options = [(going, place) for place in places if (going := place.victims(cost, best)) is not None]
            if not options:
                continue
            going, place = min(options, key=lambda option: (option[1].loss(option[0]), option[1].inc))
            place.take(cost, going)
            if going:
                chosen.setdefault(place.inc, []).extend(going)
        return chosen

    def _askable(self, held: Sequence[Held], now_us: int) -> list[Held]:
        return [one for one in held if one.cost and one.name != SUSPECT and not self._spared(one, now_us)]

    def _spared(self, member: Held, now_us: int) -> bool:
        return member.before > 0 and 0 <= now_us - member.since_us < self._spared_us * 2.0 ** (member.before - 1)


def givers(workers: Sequence[WorkerRecord], now_us: int) -> list[WorkerRecord]:
    """Return the workers to look at for rows that others may take; where there are many, others each time."""
    able = [worker for worker in workers if _gives_rows(worker)]
    start = now_us % max(1, len(able))
    return (able[start:] + able[:start])[:LOOKED_AT]


def _gives_rows(worker: WorkerRecord) -> bool:
    """Return whether a worker can be asked for rows: a padded batch runs to its end, with all of them."""
    return worker.available and worker.mode == "continuous" and worker.cache == "paged"


class _Place:
    """What is free at one worker, and who could leave it."""

    def __init__(self, worker: WorkerRecord, askable: Sequence[Held], now_us: int) -> None:
        self.inc = worker.inc
        self._now_us = now_us
        self._rows = worker.free_rows
        self._tokens = worker.capacity - worker.held_tokens
        # From the end: of the lowest class the latest, and so on.
        self._leaving = sorted(askable, key=lambda member: (class_rank(member.name), member.since_us, member.id))

    @property
    def has_offline(self) -> bool:
        """Whether a row of BATCH could leave."""
        return bool(self._leaving) and self._leaving[-1].offline

    def victims(self, cost: int, best: int) -> list[Held] | None:
        """Return who of the classes from rank `best` down has to go for one more row of `cost` tokens.

        None where that is not enough.
        """
        rows, tokens = self._rows, self._tokens
        going: list[Held] = []
        for member in reversed(self._leaving):
            if (rows >= 1 and tokens >= cost) or class_rank(member.name) < best:
                break
            going.append(member)
            rows, tokens = rows + 1, tokens + member.cost
        return going if rows >= 1 and tokens >= cost else None

    def loss(self, victims: Sequence[Held]) -> tuple[int, int, int]:
        """Return what their going costs, to compare: their best class, how many they are, how long they ran."""
        best = min((class_rank(member.name) for member in victims), default=len(CLASSES))
        return -best, len(victims), sum(self._now_us - member.since_us for member in victims)

    def take(self, cost: int, going: Sequence[Held]) -> None:
        """Let them go, and give the room to a row of `cost` tokens."""
        del self._leaving[len(self._leaving) - len(going) :]
        self._rows += len(going) - 1
        self._tokens += sum(member.cost for member in going) - cost
