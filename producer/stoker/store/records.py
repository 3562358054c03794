"""What is read out of Redis, as values: the scheduler's pure parts decide on these alone."""

from __future__ import annotations

from dataclasses import dataclass, field

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


def class_of(lane: str) -> str:
    """Return the class of a lane."""
    return lane.partition(":")[0]


def tenant_of(lane: str) -> str:
    """Return the tenant of a lane, empty where it is that of the requests without one."""
    return lane.partition(":")[2]


FULL_CAPACITY = "full_capacity"
"""The figure of a worker that says what it can hold when it does not lack memory."""


@dataclass(slots=True)
class Waiting:
    """A request in its lane. `score` (microseconds): lower goes first. `exact`: whether its tokens are known.

    `expected`: for how many tokens of answer to keep room; None: for `max_tokens`.
    """

    id: str
    lane: str
    member: str
    score: float
    prompt_tokens: int
    max_tokens: int
    exact: bool
    expected: int | None = None

    @property
    def offline(self) -> bool:
        """Whether it is of class BATCH, of whichever tenant."""
        return class_of(self.lane) == BATCH

    @property
    def cost(self) -> int:
        """The most tokens that the request will occupy."""
        return self.prompt_tokens + self.max_tokens

    @property
    def reserve(self) -> int:
        """The tokens that it is expected to occupy."""
        return self.cost if self.expected is None else self.prompt_tokens + min(self.max_tokens, self.expected)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One incarnation of a worker, with what it holds.

    `rows`, `capacity` (tokens) and `budget` (tokens of one batch or step) are its limits; `held_rows`, `held_tokens`
    and `longest` (the largest cost held; only kept for `cache == "rect"`) what it holds now; `batch_rows` and
    `batch_tokens` are the part of class batch, 0 where it was not asked for. `rate` is in tokens/s, 0 while unknown.
    `faults` and `successes` count since its start. `beat_age_us` is its silence by the clock of Redis.
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
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def full_capacity(self) -> int:
        """The tokens that it will hold again when it has less `capacity` for a while."""
        return max(self.capacity, self.figures.get(FULL_CAPACITY, 0))

    @property
    def available(self) -> bool:
        """Whether dispatch would be answered at all: live, accepting and not drained."""
        return self.state == "live" and self.accepting and not self.drained
