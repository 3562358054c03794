"""What a worker does with what it gets, as events instead of steps: the time of many equal steps is one sum.

The numbers are those of the sim engine with the same profile, whose steps the tests compare with these.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from stoker_workers.engine import Capacity, Work
from stoker_workers.engines.continuous import prefill_chunks
from stoker_workers.engines.padded import Batches
from stoker_workers.engines.sim import Profile
from stoker_workers.pacing import Pacer


@dataclass(slots=True)
class Row:
    """One request at a worker. `place` is its place in the trace, `cost` what is reserved for it.

    One that was preempted comes again with what it had of its answer in its prompt. `offline`: of class BATCH.
    """

    place: int
    prompt: int
    output: int
    cost: int
    batch: str
    offline: bool = False

    @property
    def to_prefill(self) -> int:
        """The tokens of its prompt."""
        return self.prompt


_offline: Callable[[Row], bool] = attrgetter("offline")


class Tally:
    """What workers did, added up.

    `useful` and `paid` are tokens of padded batches without and with their padding, or rows that steps needed and had;
    `offered` is what they had room for. Oversized padded batches (one row above the budget) are left out of all three.
    """

    __slots__ = ("busy_ms", "offered", "paid", "useful")

    def __init__(self) -> None:
        self.busy_ms = 0.0
        self.useful = self.paid = self.offered = 0


class VirtualEngine(Protocol):
    """A worker's engine on a virtual clock, in milliseconds.

    It is given rows at any time; `begin` starts what runs next and says when that ends, `end` gives the rows that had
    their first token and those that are done.
    """

    capacity: Capacity

    def give(self, row: Row) -> None:
        """Take a row in; the next `begin` looks at it."""

    def leave(self, place: int) -> None:
        """Let a row go as soon as it can; `gone` gives it."""

    def gone(self) -> list[Row]:
        """Take the rows that were let go."""

    def begin(self, now: float) -> float | None:
        """Start to run at `now`; returns when it ends, None where there is nothing to run."""

    def cut(self, now: float) -> float:
        """Return when what runs could end at the earliest from `now` on, and let it end there."""

    def end(self, tally: Tally) -> tuple[list[Row], list[Row]]:
        """End what ran: the rows whose answers begin with it, and those that leave."""


class ContinuousEngine:
    """Steps of decodes and chunks of prompts, under a token budget; rows leave one by one.

    `pacer`: what a worker has between its doorbells and its engine; None: all rows go in at once.
    `to_longest`: rows that are done stay, and cost, until all are: a baseline without continuous batching.
    """

    def __init__(
        self, profile: Profile, capacity: Capacity, *, to_longest: bool = False, pacer: Pacer | None = None
    ) -> None:
        self.capacity = capacity
        self._pacer = pacer
        self._waiting: list[Row] = []
        self._leaving: list[int] = []
        self._gone: list[Row] = []
        self._profile = profile
        self._to_longest = to_longest
        self._prefilling: deque[list[int]] = deque()  # what is left of each prompt, and the place of its row in _rows
        self._rows: dict[int, Row] = {}
        self._ends: list[tuple[int, int]] = []  # the number of the step with which a decoding row ends, and its place
        self._last_end = 0
        self._step = 0
        self._resident = 0
        # What runs: chunks of prompts, and steps; how long the first takes, how much longer each one after it, and all.
        self._chunks: list[int] = []
        self._began = 0.0
        self._steps = 0
        self._first_ms = self._grows_ms = self._takes_ms = 0.0

    def give(self, row: Row) -> None:
        """Take a row in; it is prefilled from the next step on."""
        self._waiting.append(row)

    def leave(self, place: int) -> None:
        """Let a row go before the next step, with what it has of its answer."""
        self._leaving.append(place)

    def gone(self) -> list[Row]:
        """Take the rows that were let go."""
        gone = self._gone
        if gone:
            self._gone = []
        return gone

    def begin(self, now: float) -> float | None:
        """Start one step while prompts are prefilled, else all steps until a row ends."""
        if self._leaving:
            self._let_go()
        if self._waiting:
            self._take_up(now / 1000)
        if not self._rows:
            return None
        decoding = len(self._ends)
        self._began, self._steps, self._chunks = now, 1, []
        if self._prefilling:
            self._chunks = prefill_chunks([left for left, _ in self._prefilling], self.capacity.budget - decoding)
        elif not self._waiting:
            self._steps = (self._last_end if self._to_longest else self._ends[0][0]) - self._step
        rows = decoding + len(self._chunks)
        self._first_ms = self._profile.step_ms(sum(self._chunks), rows, self._resident)
        # Each step leaves a token of every decoding row resident.
        self._grows_ms = self._profile.resident_ms * decoding
        self._takes_ms = self._duration(self._steps)
        return now + self._takes_ms

    def cut(self, now: float) -> float:
        """Return the end of the step that runs at `now`, after which nothing else will."""
        if self._steps > 1:
            self._steps = min(self._steps, self._steps_within(now - self._began))
            self._takes_ms = self._duration(self._steps)
        return self._began + self._takes_ms

    def end(self, tally: Tally) -> tuple[list[Row], list[Row]]:
        """Count the steps, and take out the rows that ended with the last of them."""
        steps, decoding, chunks = self._steps, len(self._ends), self._chunks
        tally.busy_ms += self._takes_ms
        tally.paid += steps * (decoding + len(chunks))
        tally.offered += steps * self.capacity.rows
        self._step += steps
        self._resident += steps * decoding
        if self._pacer:
            self._pacer.stepped(steps)
        begun: list[Row] = []
        if chunks:
            self._resident += sum(chunks)
            tally.useful += len(chunks)
            begun = self._prefilled()
        ended = self._ends and self._ends[0][0] <= self._step
        return begun, self._leave(tally) if ended else []

    def _take_up(self, now_s: float) -> None:
        """Begin what waits, as far as a worker would."""
        waiting, self._waiting = self._waiting, []
        if self._pacer:
            self._pacer.observe(waiting, self._rows.values(), now_s)
            waiting.sort(key=_offline)
        for number, row in enumerate(waiting):
            if self._pacer and not self._pacer.takes(row, idle=not self._rows, now_s=now_s):
                self._waiting = waiting[number:]
                return
            self._rows[row.place] = row
            self._prefilling.append([row.prompt, row.place])

    def _let_go(self) -> None:
        """Take out the rows that are to leave; what they have of their answers becomes a part of their prompts."""
        leaving, self._leaving = set(self._leaving), []
        self._gone += [row for row in self._waiting if row.place in leaving]
        self._waiting = [row for row in self._waiting if row.place not in leaving]
        for left, place in self._prefilling:
            if place in leaving:
                self._resident -= self._rows[place].prompt - left
                self._gone.append(self._rows.pop(place))
        self._prefilling = deque(one for one in self._prefilling if one[1] not in leaving)
        for end, place in self._ends:
            if place in leaving:
                row = self._rows.pop(place)
                made = row.output - (end - self._step)
                self._resident -= row.prompt + made
                row.prompt, row.output = row.prompt + made, row.output - made
                self._gone.append(row)
        self._ends = [one for one in self._ends if one[1] not in leaving]
        heapq.heapify(self._ends)

    def _prefilled(self) -> list[Row]:
        """Take the chunks off the prompts; a prompt that is done gives its first token in the same step."""
        begun = []
        for chunk in self._chunks:
            first = self._prefilling[0]
            first[0] -= chunk
            if not first[0]:
                self._prefilling.popleft()
                row = self._rows[first[1]]
                end = self._step + max(1, row.output) - 1
                heapq.heappush(self._ends, (end, row.place))
                self._last_end = max(self._last_end, end)
                self._resident += 1
                begun.append(row)
        return begun

    def _leave(self, tally: Tally) -> list[Row]:
        left: list[Row] = []
        if self._to_longest and (self._prefilling or self._step < self._last_end):
            return left
        while self._ends and self._ends[0][0] <= self._step:
            _, place = heapq.heappop(self._ends)
            row = self._rows.pop(place)
            tally.useful += max(1, row.output) - 1
            self._resident -= row.prompt + row.output
            left.append(row)
        if not self._rows:
            self._resident = 0
        return left

    def _duration(self, steps: int) -> float:
        """Return the milliseconds of the first `steps` steps of what runs."""
        return steps * self._first_ms + self._grows_ms * (steps * (steps - 1) // 2)

    def _steps_within(self, passed: float) -> int:
        """Return the number of the step that runs after `passed` milliseconds, from 1."""
        first, grows = self._first_ms, self._grows_ms
        if passed <= first or not first:
            return 1
        if not grows:
            return math.ceil(passed / first)
        half = first - grows / 2
        return math.ceil((math.sqrt(half * half + 2 * grows * passed) - half) / grows)


class PaddedEngine:
    """Whole batches, padded to their longest; one more waits behind the one that runs."""

    def __init__(self, profile: Profile, max_num_seqs: int, budget: int, longest: int) -> None:
        self._profile = profile
        self._batches = Batches(max_num_seqs, budget, longest)
        self._rows: dict[str, Row] = {}
        self._running: list[Row] = []
        self._ends = 0.0
        self._took = 0.0
        self.capacity = self._batches.capacity

    def give(self, row: Row) -> None:
        """Take a row in; its batch runs when those before are done."""
        name = str(row.place)
        self._rows[name] = row
        self._batches.admit(Work(id=name, batch=row.batch), row.cost)

    def leave(self, place: int) -> None:
        """Keep it: a batch runs to its end, and nobody asks for its rows."""

    def gone(self) -> list[Row]:
        """Return nothing: no row is let go."""
        return []

    def begin(self, now: float) -> float | None:
        """Start the next batch."""
        self._running = [self._rows[work.id] for work in self._batches.next()]
        if not self._running:
            return None
        self._took = self._profile.step_ms(self._padded(), len(self._running), 0)
        self._ends = now + self._took
        return self._ends

    def cut(self, now: float) -> float:
        """Return when the batch ends: nothing joins it."""
        return self._ends

    def end(self, tally: Tally) -> tuple[list[Row], list[Row]]:
        """Give the rows of the batch, whose answers are whole."""
        done, self._running = self._running, []
        tally.busy_ms += self._took
        padded = self._padded(done)
        if padded <= self.capacity.budget:
            tally.useful += sum(row.cost for row in done)
            tally.paid += padded
            tally.offered += self.capacity.budget
        for row in done:
            self._batches.drop(str(row.place))
            del self._rows[str(row.place)]
        return done, done

    def _padded(self, rows: list[Row] | None = None) -> int:
        rows = self._running if rows is None else rows
        return len(rows) * max(row.cost for row in rows)
