"""What was asked for: one batch, as it stands in its record. Values only, no I/O."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stoker.batch.format import Kind
from stoker.config import Config
from stoker.errors import ConfigError, InvalidRequest, StokerError
from stoker.request import RequestPriority

BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a batch may be called: RQ takes no other names for its jobs."""

FILE_DEFAULTS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "ignore_eos")
"""Fields of a request that may be given for the whole file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One batch. `input`, `output`, `errors`: absolute paths, on a disk that its batch workers see too.

    With the store `redis` the paths are the client's alone: the input was sent, and the answers are fetched.
    `source` is what messages call the input. `defaults` stand for what a line leaves out.
    """

    id: str
    input: str
    output: str
    errors: str
    source: str
    kind: Kind = "jsonl"
    priority: str = RequestPriority.BATCH
    max_in_flight: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    any_model: bool = False
    store: Literal["folder", "redis"] = "folder"

    @property
    def parts(self) -> Path:
        """The folder of what runs write before it is whole: beside the output, so that it takes no space twice."""
        output = Path(self.output)
        return output.with_name(f".{output.name}.{self.id}")

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Spec:
        """Return what `to_json` gave, decoded; raises `StokerError` for what it would not have made."""
        try:
            return cls(**value)
        except TypeError as error:
            raise StokerError(f"a batch's record cannot be read: {error}") from error

    @property
    def digest(self) -> str:
        """What tells this batch from another one of the same id."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=12).hexdigest()


def check_places(spec: Spec, config: Config) -> None:
    """Raise `ConfigError` for files outside `batch_root`: whoever can write to Redis names a batch's files."""
    root = config.batch_root
    for place in (spec.input, spec.output, spec.errors):
        if root is not None and not Path(place).resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"batch_root: this batch worker uses files in {root} alone, got {place!r}")


def check_batch_id(value: object) -> str:
    """Return `value` if a batch may be called so; raises `InvalidRequest`."""
    if not isinstance(value, str) or not BATCH_ID.fullmatch(value):
        raise InvalidRequest("batch", f"must match {BATCH_ID.pattern}", value)
    return value


def check_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a file gives all its lines; raises `InvalidRequest` for those that it may not."""
    for name in defaults:
        if name not in FILE_DEFAULTS:
            raise InvalidRequest("defaults", f"may have {', '.join(FILE_DEFAULTS)}", name)
    return dict(defaults)


def output_for(source: Path) -> Path:
    """Return where a file's answers go unless told otherwise."""
    return source.with_name(f"{source.stem}.output.jsonl")


def errors_for(output: Path) -> Path:
    """Return where the errors of a batch with this output go."""
    stem = output.name.removesuffix(".jsonl").removesuffix(".output")
    return output.with_name(f"{stem}.errors.jsonl")
