"""What a model runtime must be: one model on one device, which knows no Redis.

A worker drives an engine from one thread: `load`, `warm_up`, then `admit` and `step` in turn. Only `encode` and
`encode_chat` are called from another thread, beside `step`. Errors of a request are events; an exception out of
`step` is an error of the engine and ends the worker's child, `OutOfMemory` excepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from stoker.request import InferenceRequest

Mode = Literal["continuous", "padded"]
Cache = Literal["paged", "rect"]
Task = Literal["generate", "embed", "classify", "custom"]

GENERATION = frozenset({"max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "ignore_eos"})
"""The parameters of a request that say how to generate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a queue must know of its model: the first worker's card is the queue's.

    `identity` is a hash over everything that changes answers (config, weights index, tokenizer, dtype, task).
    `context` bounds prompt + max_tokens, `vocabulary` the token ids; 0 means: no such bound. `sampling`: what the model
    itself suggests for temperature, top_p and top_k.
    """

    name: str
    identity: str
    dtype: str
    vocabulary: int
    context: int
    mode: Mode
    task: Task = "generate"
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


@dataclass(slots=True, kw_only=True)
class Work:
    """A request as an engine sees it: tokenized and checked. `batch` names the delivery that it came in.

    `text` and `messages` are what `prompt` was made from, for engines whose model tokenizes elsewhere; `request` is the
    whole as it came.
    `generated` are the tokens that an earlier attempt of a streamed answer gave: an engine that `resumes` goes on
    behind them and does not give them again. `expected` is how many tokens of answer to keep room for, in an engine
    that can make room when an answer becomes longer; None: `max_tokens`.
    """

    id: str
    batch: str
    prompt: Sequence[int] = ()
    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    inputs: Any = None
    max_tokens: int = 16
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    request: InferenceRequest | None = None
    generated: Sequence[int] = ()
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request is resident and occupies `cost` tokens of capacity."""

    cost: int


@dataclass(frozen=True, slots=True)
class Full:
    """There is no room now; the worker gives the request back."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """The request can never run here: `field`, its `limit` and the `value` given.

    `unsupported`: another worker could, but this one was started without what the field needs.
    """

    field: str
    limit: str
    value: object = None
    unsupported: bool = False


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The model cannot be reached now; the worker gives the request back, whatever else is resident."""


@dataclass(slots=True)
class Tokens:
    """New tokens of a row. `text` holds whole characters only and lags behind where a stop string could begin.

    `token_ids` is empty in all events of a row whose engine knows its text alone; each then counts as one token.
    """

    id: str
    token_ids: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The row is gone. All its tokens and text were in `Tokens` events; `output` is what a user's model returned.

    `prompt_tokens` and `completion_tokens` are set by an engine that knows better than `Work.prompt` and its events.
    """

    id: str
    finish_reason: str
    output: Any = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The row is gone without an answer. `kind`: invalid (its own fault), retry (charged), failure (final), returned
    (the model never saw it: given back uncharged). `value`: what an invalid one was answered or had, for its message.
    """

    id: str
    reason: str
    kind: Literal["invalid", "retry", "failure", "returned"] = "retry"
    value: object = None


Event = Tokens | Finished | Failed


class Engine(Protocol):
    """One model on one device (or one tensor-parallel group).

    `raw`: whether `Work.inputs` carries every request as it came (a user's model), or `Work.prompt` its token ids.
    `parameters`: which of `GENERATION` it honours; a request with another one is refused by its name.
    `resumes`: whether it goes on behind `Work.generated`; the answers of others begin anew.
    """

    raw: bool
    parameters: frozenset[str]
    resumes: bool

    def load(self) -> ModelCard:
        """Load the model; raises `stoker.ConfigError` with what to do when it cannot."""

    def warm_up(self) -> None:
        """Run one example of the largest shape, so that the first request pays nothing extra."""

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a text, special tokens added as the model wants them. Thread-safe."""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a conversation through the model's template. Thread-safe."""

    def admit(self, work: Work) -> Admitted | Full | Invalid | Unavailable:
        """Take a request in; it is prefilled by one of the next steps."""

    def step(self) -> list[Event]:
        """Advance every resident row by at most one token; returns within about 50 ms even without events.

        Raises `OutOfMemory` where fewer rows could have been advanced.
        """

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


class OutOfMemory(Exception):
    """A step found no memory. Its rows are resident still, and once they are cancelled the engine is as good as new.

    A user's model may raise it as well. The worker tries again with half of the rows, gives the others back, and takes
    less for a while.
    """


@runtime_checkable
class Remote(Protocol):
    """What an engine has besides when its model runs elsewhere, and can be away while the engine is well."""

    def watch(self, tell: Callable[[str], None]) -> None:
        """Call `tell`, from any thread, with why the model is away, or with "" when it is back: now, and on changes."""
