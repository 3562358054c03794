"""What is read out of Redis, as values: the scheduler's pure parts decide on these alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Self

CLASSES = ("critical", "high", "normal", "low", "batch")
"""The priority classes, best first; each has a lane of its name."""

BATCH = "batch"
"""The class of offline work, which runs beside the others in what they leave."""

SUSPECT = "suspect"
"""The lane of the requests that were running when their worker's engine crashed."""

LANES = (*CLASSES, SUSPECT)
"""The lanes of requests without a tenant, and that of the suspects; a tenant's lane is `<class>:<tenant>`."""


def lane_of(name: str, tenant: str) -> str:
    """Return the lane of a class's requests that name a tenant, or none."""
    return f"{name}:{tenant}" if tenant else name


@lru_cache(4096)
def class_of(lane: str) -> str:
    """Return the class of a lane."""
    return lane.partition(":")[0]


@lru_cache(4096)
def tenant_of(lane: str) -> str:
    """Return the tenant of a lane, empty where it is that of the requests without one."""
    return lane.partition(":")[2]


FULL_CAPACITY = "full_capacity"
"""The figure of a worker that says what it can hold when it does not lack memory."""

AHEAD = "ahead"
"""The figure of a worker that says how many requests it takes while all its rows are in use."""


@dataclass(slots=True)
class Waiting:
    """A request in its lane. `score` (microseconds): lower goes first. `exact`: whether its tokens are known.

    `expected`: for how many tokens of answer to keep room; None: for `max_tokens`. `affinity`: a number that stands for
    its affinity key; None: it has none. What follows from these fields is read many times, so it is worked out once:
    `offline`, whether it is of class BATCH, of whichever tenant; `cost`, the most tokens that it will occupy;
    `reserve`, the tokens that it is expected to occupy.
    """

    id: str
    lane: str
    member: str
    score: float
    prompt_tokens: int
    max_tokens: int
    exact: bool
    expected: int | None = None
    affinity: int | None = None
    offline: bool = field(init=False, repr=False, compare=False)
    cost: int = field(init=False, repr=False, compare=False)
    reserve: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.offline = class_of(self.lane) == BATCH
        self.cost = self.reserve = self.prompt_tokens + self.max_tokens
        if self.expected is not None:
            self.reserve = self.prompt_tokens + min(self.max_tokens, self.expected)


def parse_tail(tail: str) -> tuple[int, int, bool, int | None]:
    """Return what a lane's member says behind the id: prompt tokens, max_tokens, whether exact, and the affinity."""
    prompt, most, flags = tail.split(":")
    digits = flags[1:].removesuffix("s") if len(flags) > 1 else ""  # the s is of what may be displaced
    return int(prompt), int(most), flags[0] == "x", int(digits, 16) if digits else None


@dataclass(frozen=True, slots=True)
class Held:
    """A request that a worker holds under `delivery`; `cost` in tokens, 0 where it was asked to leave.

    `since_us`: when it was begun, or handed over where it was not begun. `name`: its class, or `SUSPECT`. `before`: how
    often it was begun under earlier deliveries.
    """

    id: str
    delivery: str
    cost: int
    since_us: int
    name: str
    before: int = 0

    @property
    def offline(self) -> bool:
        """Whether it is of class BATCH, and no suspect."""
        return self.name == BATCH


@dataclass(slots=True)
class WorkerRecord:
    """One incarnation of a worker, with what it holds. Who wants to change one changes a `copy`.

    `rows`, `capacity` (tokens) and `budget` (tokens of one batch or step) are its limits; `ahead` is how many requests
    it takes beside its `rows`, to begin them as soon as rows end. `held_rows`, `held_tokens` and `longest` (the largest
    cost held; only kept for `cache == "rect"`) are what it holds now; `batch_rows` and `batch_tokens` are the part of
    class batch, 0 where it was not asked for. `rate` is in tokens/s, 0 while unknown. `faults` and `successes` count
    since its start. `beat_age_us` is its silence by the clock of Redis.
    """

    inc: str
    worker: str
    rows: int
    capacity: int
    budget: int
    mode: str
    cache: str
    state: str = "live"
    accepting: bool = True
    drained: bool = False
    progress: int = 0
    rate: float = 0.0
    faults: int = 0
    successes: int = 0
    beat_age_us: int = 0
    held_rows: int = 0
    held_tokens: int = 0
    longest: int = 0
    batch_rows: int = 0
    batch_tokens: int = 0
    ahead: int = 0
    figures: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Self:
        """Return the same in a new record; much faster than `replace`, for every batch needs one."""
        return type(self)(*_values(self))

    @property
    def full_capacity(self) -> int:
        """The tokens that it will hold again when it has less `capacity` for a while."""
        full = self.figures.get(FULL_CAPACITY)
        return self.capacity if full is None else max(self.capacity, full)

    @property
    def free_rows(self) -> int:
        """How many more requests it takes, by their number."""
        return self.rows + self.ahead - self.held_rows

    @property
    def available(self) -> bool:
        """Whether dispatch would be answered at all: live, accepting and not drained."""
        return self.state == "live" and self.accepting and not self.drained


_values: Callable[[WorkerRecord], tuple[Any, ...]] = attrgetter(*(one.name for one in fields(WorkerRecord)))
