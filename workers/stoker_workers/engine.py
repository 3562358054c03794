"""What a model runtime must be: one model on one device, which knows no Redis.

A worker drives an engine from one thread: `load`, `warm_up`, then `admit` and `step` in turn. Only `encode` and
`encode_chat` are called from another thread, beside `step`. Errors of a request are events; an exception out of
`step` is an error of the engine and ends the worker's child.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Mode = Literal["continuous", "padded"]
Cache = Literal["paged", "rect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a queue must know of its model: the first worker's card is the queue's.

    `identity` is a hash over everything that changes answers (config, weights index, tokenizer, dtype).
    `context` bounds prompt + max_tokens, `vocabulary` the token ids; 0 means: no such bound. `sampling`: what the model
    itself suggests for temperature, top_p and top_k.
    """

    name: str
    identity: str
    dtype: str
    vocabulary: int
    context: int
    mode: Mode
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the engine can hold: at most `rows` requests, whose costs (tokens) sum to at most `tokens` (paged), or
    with rows x longest at most `tokens` (rect). `budget` is `max_num_batched_tokens`: the most tokens of one step
    (continuous) or of one padded batch (rows x longest).
    """

    rows: int
    tokens: int
    budget: int
    cache: Cache = "paged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. `seed` is always set: derived from the id if not given."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request as an engine sees it: tokenized and checked. `batch` names the delivery that it came in."""

    id: str
    batch: str
    prompt: Sequence[int] = ()
    inputs: Any = None
    max_tokens: int = 16
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request is resident and occupies `cost` tokens of capacity."""

    cost: int


@dataclass(frozen=True, slots=True)
class Full:
    """There is no room now; the worker gives the request back."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """The request can never run here: `field`, its `limit` and the `value` given."""

    field: str
    limit: str
    value: object = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of a row. `text` holds whole characters only and lags behind where a stop string could begin."""

    id: str
    token_ids: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The row is gone. All its tokens and text were in `Tokens` events; `output` is what a user's model returned."""

    id: str
    finish_reason: str
    output: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The row is gone without an answer. `kind`: invalid (its own fault), retry (charged), failure (final)."""

    id: str
    reason: str
    kind: Literal["invalid", "retry", "failure"] = "retry"


Event = Tokens | Finished | Failed


class Engine(Protocol):
    """One model on one device (or one tensor-parallel group).

    `raw`: whether `Work.inputs` carries every request as it came (a user's model), or `Work.prompt` its token ids.
    """

    raw: bool

    def load(self) -> ModelCard:
        """Load the model; raises `stoker.ConfigError` with what to do when it cannot."""

    def warm_up(self) -> None:
        """Run one example of the largest shape, so that the first request pays nothing extra."""

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a text, special tokens added as the model wants them. Thread-safe."""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a conversation through the model's template. Thread-safe."""

    def admit(self, work: Work) -> Admitted | Full | Invalid:
        """Take a request in; it is prefilled by one of the next steps."""

    def step(self) -> list[Event]:
        """Advance every resident row by at most one token; returns within about 50 ms even without events."""

    def scheduled(self) -> Sequence[str]:
        """Return the ids that the next `step` will touch: who is blamed when it crashes."""

    def cancel(self, request_id: str) -> None:
        """Drop a row at once; unknown ids are ignored. No event follows."""

    def resident(self) -> Sequence[str]:
        """Return the ids admitted and not yet finished, failed or cancelled."""

    def capacity(self) -> Capacity:
        """Return what the engine can hold."""

    def close(self) -> None:
        """Free the device."""
