"""How far a run is, as it stands in its folder: what counts of the files that runs wrote. Values only, no I/O."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stoker.errors import StokerError
from stoker.request import InferenceResponse

MOST_WORKERS = 64
OTHERS = "others"
"""Where workers beyond those counted by name are counted."""


@dataclass(slots=True)
class Tally:
    """What became of a batch's lines."""

    succeeded: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    workers: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Lines with an error."""
        return self.errors.total()

    def answered(self, response: InferenceResponse) -> None:
        """Count an answer."""
        self.succeeded += 1
        self.prompt_tokens += response.usage.prompt_tokens
        self.completion_tokens += response.usage.completion_tokens
        name = response.worker or OTHERS
        self.workers[name if name in self.workers or len(self.workers) < MOST_WORKERS else OTHERS] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "succeeded": self.succeeded,
            "errors": dict(self.errors),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "workers": dict(self.workers),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Tally:
        """Return what `to_dict` gave."""
        plain = {name: int(value[name]) for name in ("succeeded", "prompt_tokens", "completion_tokens")}
        return cls(errors=Counter(value["errors"]), workers=Counter(value["workers"]), **plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A moment of a batch that a later run goes on from.

    `outputs` and `errors`: the segments, each a file's name and how many of its bytes count, in order. `number` and
    `offset`: the first line that is not done, and the byte it begins at; `done`: ranges of lines done from there on.
    `input`: size and modification time of the file, which must not change. `retried`: whether this round runs only what
    failed in the one before.
    """

    round: int
    number: int = 1
    offset: int = 0
    done: tuple[tuple[int, int], ...] = ()
    outputs: tuple[tuple[str, int], ...] = ()
    errors: tuple[tuple[str, int], ...] = ()
    tally: Mapping[str, Any] = field(default_factory=lambda: Tally().to_dict())
    total: int = 0
    input: tuple[int, int] = (0, 0)
    finished: bool = False

    def to_json(self) -> bytes:
        """Return it as one line of JSON."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Checkpoint:
        """Return what `to_json` gave; raises `StokerError` for anything else."""
        try:
            value = json.loads(data)
            for name in ("done", "outputs", "errors"):
                value[name] = tuple((first, int(second)) for first, second in value[name])
            size, stamp = value["input"]
            return cls(**value | {"input": (int(size), int(stamp))})
        except (ValueError, TypeError, KeyError) as error:
            raise StokerError(f"a checkpoint cannot be read: {error}") from error
