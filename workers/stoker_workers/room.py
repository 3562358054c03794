"""How many tokens a worker takes: what its engine can hold, or less for a while after it ran out of memory. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stoker_workers.engine import Cache
from stoker_workers.intake import Row

CALM_S = 10.0
"""So long without running out of memory, and the room grows by a quarter ..."""
CALM_MOST_S = 80.0
"""... twice as long after each time that it did run out before all of it was back, up to this."""


class Room:
    """Halves what the rows of a failed step occupied, and comes back step by step.

    It is never less than the largest of those rows: alone it may fit, and if it does not, its failure says so.
    """

    def __init__(self, full: int, cache: Cache) -> None:
        """Begin with all of it: `full` tokens, counted as `cache` says."""
        self.tokens = full
        self._full = full
        self._cache = cache
        self._calm_s = CALM_S
        self._grows_at_s = 0.0

    @property
    def reduced(self) -> bool:
        """Whether less than all is to be had now."""
        return self.tokens < self._full

    def shrink(self, costs: Sequence[int], now_s: float) -> None:
        """A step over rows of these costs (tokens) found no memory at `now_s` (monotonic seconds)."""
        if self.reduced:
            self._calm_s = min(2 * self._calm_s, CALM_MOST_S)
        held = min(self.tokens, self._occupied(costs))
        self.tokens = max(1, held // 2, *costs)
        self._grows_at_s = now_s + self._calm_s

    def grow(self, now_s: float) -> bool:
        """Take back a quarter more when it was calm for long enough; returns whether anything changed."""
        if self.tokens == self._full or now_s < self._grows_at_s:
            return False
        self.tokens = min(self._full, max(self.tokens + 1, self.tokens * 5 // 4))
        self._grows_at_s = now_s + self._calm_s
        if self.tokens == self._full:
            self._calm_s = CALM_S
        return True

    def takes(self, costs: Sequence[int], cost: int) -> bool:
        """Return whether one more row of `cost` fits beside rows of these costs."""
        return not self.reduced or not costs or self._occupied([*costs, cost]) <= self.tokens

    def _occupied(self, costs: Sequence[int]) -> int:
        return len(costs) * max(costs, default=0) if self._cache == "rect" else sum(costs)


@dataclass(frozen=True, slots=True)
class Parted:
    """What becomes of the rows of a worker whose step found no memory: those of the step itself, and of all of them
    what stays and what is given back.
    """

    ran: list[Row]
    kept: list[Row]
    back: list[Row]

    @property
    def alone(self) -> bool:
        """Whether the step had one row: it is too large for this engine, and neither kept nor given back."""
        return len(self.ran) == 1


def part(rows: Collection[Row], in_step: Collection[str], *, resumes: bool) -> Parted:
    """Keep the first half of a step's rows and give back all others. A step's only row fails, and the others stay.

    Those that stay are made ready to be admitted again: they go on behind their tokens if the engine `resumes`, else
    they begin anew. A stream that was read in part can begin anew only as another attempt, so it is given back.
    """
    ran = [row for row in rows if row.payload.id in in_step] or list(rows)
    stay = ran[: len(ran) // 2] if len(ran) > 1 else [row for row in rows if row is not ran[0]]
    kept = [row for row in stay if _ready_again(row, resumes)]
    gone = [*kept, *(ran if len(ran) == 1 else ())]
    return Parted(ran, kept, [row for row in rows if not any(row is other for other in gone)])


def _ready_again(row: Row, resumes: bool) -> bool:
    if resumes:
        row.work.generated = list(row.token_ids)
    elif row.published:
        return False
    else:
        row.token_ids, row.texts, row.unpublished_text = [], [], []
        row.tokens, row.first_token_us = 0, -1
    return True
