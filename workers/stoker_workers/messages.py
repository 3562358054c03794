"""What a supervisor and its child say to each other: one JSON object a line, over two pipes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from stoker_workers.engine import Capacity, ModelCard


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to make the engine: the options of `stoker worker`."""

    model: str
    engine: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    task: str = "auto"
    pooling: str = "auto"
    profile: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_tokens: int | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    tokenizer: str | None = None
    send_token_ids: bool = False
    max_model_len: int | None = None
    server_timeout: float | None = None
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Serve:
    """To the child: take work as this incarnation, and forget what came under another."""

    inc: str


@dataclass(frozen=True, slots=True)
class Stop:
    """To the child: these (id, delivery) moved on; drop their rows and hand them back."""

    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class Drain:
    """To the child: take nothing new, finish what runs within `grace_s`, hand back the rest, say Drained."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Nudge:
    """To the child: show that the loop turns, by raising `progress` on the board; hold no more than `ahead`."""

    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """From the child: the model is loaded and warm."""

    card: dict[str, Any]
    capacity: dict[str, Any]

    @staticmethod
    def of(card: ModelCard, capacity: Capacity) -> Loaded:
        """Make the message of both."""
        return Loaded(asdict(card), asdict(capacity))


@dataclass(frozen=True, slots=True)
class Refused:
    """From the child: the model cannot be loaded, and trying again will not help."""

    message: str


@dataclass(frozen=True, slots=True)
class Costs:
    """From the child: what requests really occupy, as [id, delivery, tokens]."""

    rows: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Drained:
    """From the child: nothing is resident, everything is settled or handed back."""


@dataclass(frozen=True, slots=True)
class Away:
    """From the child: a model that runs elsewhere cannot take requests now, and why; an empty reason: it can again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Holds:
    """From the child: so many tokens it can hold now; less than it was loaded with after it ran out of memory."""

    tokens: int


Message = Serve | Stop | Drain | Nudge | Loaded | Refused | Costs | Drained | Away | Holds | EngineOptions
_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def to_line(message: Message) -> bytes:
    """Return the message as one line."""
    fields = {name: getattr(message, name) for name in message.__slots__}  # `asdict` would copy them
    return json.dumps({"kind": type(message).__name__, **fields}).encode() + b"\n"


def from_line(line: bytes) -> Message:
    """Return the message in a line that `to_line` made."""
    fields = json.loads(line)
    return _KINDS[fields.pop("kind")](**fields)
