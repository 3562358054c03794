"""Which waiting requests go to a worker together."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple, Self

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.queue import charged_cost, class_rank

WINDOW_BUDGETS = 64
"""The window of a padded batch, in budgets of tokens.

A generation is used up before newer requests may overtake what is left of it, so that on average a batch chooses from
half a window. On lengths of conversations and a budget of 32,768 tokens, 16 budgets reach a padding efficiency of 0.93,
32 of 0.96 and 64 of 0.97.
"""

BATCH_OVERHEAD = 0.1
"""The fixed cost of a padded batch as a share of a full one's: what it is worth to fill batches up."""

PARTLY = 0.75
"""Where a window is cut into padded batches, these have all the rows that fit, this share of them, or ..."""

ALIKE = 0.9
"""... those whose lengths are at least this share of the longest: sizes enough to come near the best of all cuts."""

CLASS_WEIGHT = 0.25
"""How much less a batch is worth that prefers fitting lengths to the head's class."""

FLOOR = 0.9
"""The efficiency times the share of rows used that a padded batch must reach to be formed at once for a busy worker."""


@dataclass(slots=True, kw_only=True)
class Room:
    """What a worker can still take: its limits, what it holds, and at most `share` requests of this batch.

    `idle`: it holds nothing, so that waiting for a better batch would waste it. `largest`: the largest capacity of any
    worker, to which estimates are clamped.
    """

    mode: str
    cache: str
    rows: int
    capacity: int
    budget: int
    share: int
    largest: int | None = None
    held_rows: int = 0
    held_tokens: int = 0
    longest: int = 0
    idle: bool = False

    @classmethod
    def of(cls, worker: WorkerRecord, *, share: int, largest: int | None = None) -> Self:
        """Return the room of `worker`; half the rows of a padded worker are for the batch behind the running one."""
        return cls(
            mode=worker.mode,
            cache=worker.cache,
            rows=worker.rows + worker.ahead,
            capacity=worker.capacity,
            budget=worker.budget,
            share=min(share, max(1, worker.rows // 2)) if worker.mode == "padded" else share,
            largest=largest,
            held_rows=worker.held_rows,
            held_tokens=worker.held_tokens,
            longest=worker.longest,
            idle=worker.held_rows == 0,
        )

    def emptied(self) -> Self:
        """Return the room that there is once the worker holds nothing."""
        return replace(self, held_rows=0, held_tokens=0, longest=0, idle=True)

    @property
    def tokens_free(self) -> int:
        """The tokens of capacity that nothing occupies."""
        return self.capacity - (self.held_rows * self.longest if self.cache == "rect" else self.held_tokens)

    def admits(self, rows: int, tokens: int, longest: int) -> bool:
        """Return whether `rows` more requests fit, whose costs sum to `tokens`: the arithmetic of dispatch."""
        if rows > min(self.share, self.rows - self.held_rows):
            return False
        if self.cache == "rect":
            return (self.held_rows + rows) * max(self.longest, longest) <= self.capacity
        return self.held_tokens + tokens <= self.capacity

    def opens_to(self, cost: int) -> bool:
        """Return whether a batch may begin with a request of `cost` tokens.

        A busy padded worker gets the next batch only when a whole one would fit: what is left beside two batches would
        make a small third one.
        """
        if not self.admits(1, cost, cost):
            return False
        if self.mode == "continuous" or self.idle or cost >= self.budget:
            return True
        return self.tokens_free >= self.budget and self.rows - self.held_rows >= self.share


@dataclass(slots=True)
class Batch:
    """Requests for one worker in their order, and the tokens to reserve for each.

    `fill` is how much of the budget is used (padded: with the padding; continuous: by prompts), `efficiency` how much
    of the padded tokens is not padding. Where there are no requests, `linger_us` says how long to wait at most for a
    better batch; 0 means that the head doesn't fit.
    """

    requests: tuple[Waiting, ...] = ()
    costs: tuple[int, ...] = ()
    fill: float = 0.0
    efficiency: float = 1.0
    linger_us: int = 0


class DynamicBatcher:
    """Forms the next batch for one worker out of what waits, which is given in its order.

    Always:

    1. The head, the first in the order, is in the batch. If it doesn't fit, there is no batch.
    2. No limit is exceeded: rows, capacity, share, group, budget. What costs more than the budget goes alone.

    `continuous`:

    3. The order is kept and nothing overtakes: the batch ends at the first request that doesn't fit.
    4. Prompts sum to one step's budget at most, so that what could still be ordered waits here and not in a worker.

    `padded`, where all rows are padded to the longest and rows x longest is at most the budget:

    5. In order of length, cut the window into the batches that together cost least: padded tokens, and a fixed cost for
       each, which weighs fill and efficiency. The batch is the one that has the head in it. So each batch leaves the
       others as they are, and the last of a window are as good as the first.
    6. Put the head's class first: what stands behind the last request of that class, or a better one, only fills the
       rows that are left, unless a batch across the classes is worth much more. While others wait, CRITICAL at the
       front of the order goes together whatever its lengths: none waits for a batch of its own length, and what batches
       are full of in any case costs others little.
    7. Linger: a batch for a busy worker must reach a floor of efficiency and rows used. The floor sinks with the wait
       of the head and is gone after `max_queue_delay_ms`, and when the worker idles.
    8. Bound the reordering. What is in the window forms a generation, which newcomers may join for
       `max_queue_delay_ms`. After that, nothing behind its end is taken until what is left of it can't fill a batch;
       that goes on at the front of the next one, whose first batches it heads. So a request is passed over by what was
       waiting with it or came within that delay, and never by what comes later, while its generation lasts.

    It remembers only where the generation ends and since when. Times are microseconds of Redis TIME.
    """

    def __init__(self, config: Config) -> None:
        self._delay_us = config.max_queue_delay_ms * 1000
        self._group = config.group
        # W by rank of the class; suspects, which come last, have waited long enough in any case.
        self._terms_s = (0.0, 0.0, config.window_normal_s, config.window_low_s, config.window_batch_s, math.inf)
        self._end = float("-inf")
        self._opened_us = 0

    def window_tokens(self, room: Room) -> int:
        """Return how many tokens of waiting requests to show to `form`; fewer will do, far more are not looked at."""
        return WINDOW_BUDGETS * room.budget if room.mode == "padded" else max(0, room.tokens_free)

    def form(self, waiting: Sequence[Waiting], room: Room, *, now_us: int) -> Batch:
        """Return the next batch for `room`, empty when the head doesn't fit or a better batch is worth the wait."""
        if not waiting:
            return Batch()
        if room.mode != "padded":
            return self._continuous(waiting, room)
        cost = charged_cost(waiting[0], room.largest)
        if not room.opens_to(cost):
            return Batch()
        if cost >= room.budget:
            return Batch((waiting[0],), (cost,), 1.0)
        return self._padded(waiting, room, now_us)

    def _continuous(self, waiting: Sequence[Waiting], room: Room) -> Batch:
        costs: list[int] = []
        tokens = prompts = longest = 0
        rect, free = room.cache == "rect", room.capacity - room.held_tokens
        for request in waiting[: max(0, min(self._group, room.share, room.rows - room.held_rows))]:
            cost = charged_cost(request, room.largest)
            tokens, longest = tokens + cost, max(longest, cost)
            step = prompts + request.prompt_tokens
            full = not room.admits(len(costs) + 1, tokens, longest) if rect else tokens > free
            # Alone, a prompt above the budget goes in: the engine prefills it in chunks.
            if full or (costs and step > room.budget):
                break
            prompts = step
            costs.append(cost)
        return Batch(tuple(waiting[: len(costs)]), tuple(costs), min(1.0, prompts / max(1, room.budget)))

    def _padded(self, waiting: Sequence[Waiting], room: Room, now_us: int) -> Batch:
        lengths = _lengths(waiting, room.largest, self.window_tokens(room))
        places = self._generation(waiting, lengths, room.budget, now_us)
        table = _Table(lengths, room, self._group)
        choice = table.best(places)
        urgent, peers = _urgent(waiting, places), _peers(waiting, places)
        if 0 < len(urgent) < len(places):
            choice = table.filled_up(table.together(urgent), places[len(urgent) :])
        elif len(peers) < len(places):
            first = table.filled_up(table.best(peers), places[len(peers) :])
            if first.worth >= choice.worth * (1 - CLASS_WEIGHT):
                choice = first
        linger_us = 0 if room.idle else self._linger_us(waiting[0], choice.quality, now_us)
        if linger_us:
            return Batch(linger_us=linger_us)
        chosen = sorted(choice.places)
        return Batch(
            tuple(waiting[place] for place in chosen),
            tuple(lengths[place] for place in chosen),
            choice.fill,
            choice.efficiency,
        )

    def _generation(self, waiting: Sequence[Waiting], lengths: Sequence[int], budget: int, now_us: int) -> list[int]:
        """Return the places from which this batch may take, ascending."""
        size = len(lengths)
        if not 0 <= now_us - self._opened_us <= self._delay_us:
            while size and waiting[size - 1].score > self._end:
                size -= 1
            places = [place for place in range(size) if lengths[place] <= budget]
            if places and sum(map(lengths.__getitem__, places)) >= budget:
                return places
            size = len(lengths)
            self._opened_us, self._end = now_us, waiting[size - 1].score
        self._end = max(self._end, waiting[size - 1].score)
        return [place for place in range(size) if lengths[place] <= budget]

    def _linger_us(self, head: Waiting, quality: float, now_us: int) -> int:
        """Return for how long `quality` will still be under the floor."""
        # A deadline may have lifted the score by less than the class's term; the wait then looks longer, never shorter.
        waited_us = now_us - head.score + self._terms_s[class_rank(head.lane)] * 1e6
        # From the future: the clock was set back. How long the request waited is unknown, so it has waited enough.
        if waited_us < 0:
            return 0
        return int(max(0.0, self._delay_us * (1 - quality / FLOOR) - waited_us))


class _Choice(NamedTuple):
    """A batch by the places of its requests; `quality` is what the floor asks for."""

    worth: float
    quality: float
    fill: float
    efficiency: float
    places: list[int]


class _Table:
    """Chooses rows for a padded batch, which always contains place 0, out of the lengths in a window."""

    def __init__(self, lengths: Sequence[int], room: Room, group: int) -> None:
        self._lengths = lengths
        self._room = room
        self._most_rows = min(room.share, group, room.rows - room.held_rows)
        self._most_tokens = min(room.budget, room.tokens_free)
        self._rect = room.cache == "rect"

    def best(self, places: Sequence[int]) -> _Choice:
        """Return the batch that has the head in it, of those into which `places` are cut in order of length."""
        # Best placed last among equal lengths: batches are taken from the long end.
        order = sorted(reversed(places), key=self._lengths.__getitem__)
        rows = self._cut([self._lengths[place] for place in order])
        head, end = order.index(0), len(order)
        while end - rows[end] > head:
            end -= rows[end]
        return self._choice(order[end - rows[end] : end])

    def together(self, places: Sequence[int]) -> _Choice:
        """Return the batch of the first of `places`, and of each further one that fits beside those before it."""
        rows = [places[0]]
        tokens = longest = self._lengths[places[0]]
        for place in places[1:]:
            length = self._lengths[place]
            most = max(longest, length)
            if len(rows) < self._rows_of(most) and self._room.admits(len(rows) + 1, tokens + length, most):
                rows.append(place)
                tokens, longest = tokens + length, most
        return self._choice(rows)

    def filled_up(self, choice: _Choice, places: Sequence[int]) -> _Choice:
        """Return `choice` with its free rows given to the longest `places` that fit, while it becomes worth more."""
        rows = list(choice.places)
        longest = max(map(self._lengths.__getitem__, rows))
        tokens = sum(map(self._lengths.__getitem__, rows))
        shorter = sorted(
            (p for p in places if self._lengths[p] <= longest), key=self._lengths.__getitem__, reverse=True
        )
        for place in shorter[: self._rows_of(longest) - len(rows)]:
            length = self._lengths[place]
            gains = length * self._paid(longest * len(rows)) > tokens * longest
            if not gains or not self._room.admits(len(rows) + 1, tokens + length, longest):
                break
            rows.append(place)
            tokens += length
        return self._choice(rows)

    def _cut(self, lengths: Sequence[int]) -> list[int]:
        """Return for each number of the shortest of ascending `lengths` how many of these the batch of the longest has.

        It is the one with which cutting all of them costs least, one length after the other: what it costs to cut the
        shorter ones is known by then.
        """
        fixed = round(self._paid(0))
        costs, rows = [0], [0]
        for end, longest in enumerate(lengths, 1):
            most = min(self._rows_of(longest), end)
            some = int(PARTLY * most) or 1
            alike = end - bisect_left(lengths, ALIKE * longest, end - most, end)
            cost, size = costs[end - most] + most * longest, most
            if (other := costs[end - some] + some * longest) < cost:
                cost, size = other, some
            if (other := costs[end - alike] + alike * longest) < cost:
                cost, size = other, alike
            costs.append(cost + fixed)
            rows.append(size)
        return rows

    def _rows_of(self, longest: int) -> int:
        """Return how many rows of this length a batch can have; at least one, for what is longer may run alone."""
        rows = self._most_tokens // longest if longest else self._most_rows
        if self._rect:
            rows = min(rows, self._room.capacity // max(1, self._room.longest, longest) - self._room.held_rows)
        return max(1, min(rows, self._most_rows))

    def _paid(self, padded: int) -> float:
        """Return what a batch costs, in padded tokens."""
        return BATCH_OVERHEAD * self._room.budget + padded

    def _choice(self, places: list[int]) -> _Choice:
        longest = max(1, *map(self._lengths.__getitem__, places))
        tokens = sum(map(self._lengths.__getitem__, places))
        padded = longest * len(places)
        efficiency = tokens / padded
        return _Choice(
            tokens / self._paid(padded),
            efficiency * len(places) / self._rows_of(longest),
            padded / self._room.budget,
            efficiency,
            places,
        )


def _lengths(waiting: Sequence[Waiting], largest: int | None, window_tokens: int) -> list[int]:
    """Return the padded lengths of the window: of the first requests, until these have `window_tokens` together."""
    lengths = [*map(_reserve, waiting)]
    if largest is not None and max(lengths) > largest:
        lengths = [charged_cost(request, largest) for request in waiting]
    return lengths[: bisect_left([*accumulate(lengths)], window_tokens) + 1]


_reserve: Callable[[Waiting], int] = attrgetter("reserve")


def _urgent(waiting: Sequence[Waiting], places: Sequence[int]) -> Sequence[int]:
    """Return the places of CRITICAL before any other class."""
    size = next((size for size, place in enumerate(places) if class_rank(waiting[place].lane)), len(places))
    return places[:size]


def _peers(waiting: Sequence[Waiting], places: Sequence[int]) -> Sequence[int]:
    """Return the places up to the last one whose class is the head's or better."""
    rank = class_rank(waiting[0].lane)
    size = len(places)
    while class_rank(waiting[places[size - 1]].lane) > rank:
        size -= 1
    return places[:size]
