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

    `since_us`: when it was begun, or handed over where it was not begun. `batch`: whether it is a clean one of class
    batch.
    """

    id: str
    delivery: str
    cost: int
    since_us: int
    batch: bool


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
    def available(self) -> bool:
        """Whether dispatch would be answered at all: live, accepting and not drained."""
        return self.state == "live" and self.accepting and not self.drained
