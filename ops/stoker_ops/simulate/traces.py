"""Reads traces: when requests came, and how long their prompts and answers were. Never what they said."""

from __future__ import annotations

import csv
import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from stoker.errors import ConfigError, shorten
from stoker.request import MAX_TOKENS, RequestPriority

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""The columns of the Azure LLM inference traces."""

MOONCAKE = ("timestamp", "input_length", "output_length")
"""The fields of Mooncake's traces that count here; `timestamp` is in milliseconds."""

OWN = {"at_s", "prompt_tokens", "output_tokens", "max_tokens", "priority", "tenant", "timeout", "affinity_key"}
"""The fields of a trace of one's own; the first three must be there."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace, `at_s` seconds after its first.

    `output_tokens` are what its answer has in the end, `max_tokens` what its client asked for. `timeout` is its time to
    live in seconds.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    priority: RequestPriority = RequestPriority.NORMAL
    tenant: str = ""
    timeout: float | None = None
    affinity_key: str = ""


def read_trace(path: Path) -> list[Arrival]:
    """Return the requests of a trace in the order of their times.

    Knows the format by its first line: a CSV with Azure's columns, or JSON lines with Mooncake's fields or our own.
    Raises `ConfigError` naming file, line, field and value.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = _in_order(_csv(file, path) if path.suffix.lower() == ".csv" else _json_lines(file, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"trace: {path} cannot be read: {error}") from error
    if not found:
        raise ConfigError(f"trace: {path} has no requests")
    return found


def shaped(
    arrivals: Sequence[Arrival], *, repeat: int, rate: float | None, max_tokens: int | None, timeout: float | None
) -> list[Arrival]:
    """Return the trace as it is to be replayed.

    `repeat`: each request so many times at once. `rate`: times as fast; None: all from the start, a microsecond
    apart, as in one call of a client. `max_tokens` and `timeout` (s), where given, are those of every request.
    """
    found = []
    for arrival in arrivals:
        changed = replace(
            arrival,
            at_s=arrival.at_s / rate if rate else 0.0,
            max_tokens=max(max_tokens, arrival.output_tokens) if max_tokens else arrival.max_tokens,
            timeout=timeout or arrival.timeout,
        )
        found += [changed] * repeat
    return [replace(one, at_s=place / 1e6) for place, one in enumerate(found)] if rate is None else found


def _in_order(arrivals: Iterator[Arrival]) -> list[Arrival]:
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def _csv(file: Iterator[str], path: Path) -> Iterator[Arrival]:
    reader = csv.DictReader(file)
    if missing := [name for name in AZURE if name not in (reader.fieldnames or ())]:
        raise ConfigError(f"trace: {path} must have the columns {', '.join(AZURE)}; missing: {', '.join(missing)}")
    first: datetime | None = None
    for row in reader:
        line = _Line(path, reader.line_num, row)
        at = line.time(AZURE[0])
        first = first or at
        prompt, output = line.tokens(AZURE[1], least=1), line.tokens(AZURE[2])
        yield Arrival((at - first).total_seconds(), prompt, output, output)


def _json_lines(file: Iterator[str], path: Path) -> Iterator[Arrival]:
    first_ms: float | None = None
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"trace: {path}:{number} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"trace: {path}:{number} must hold one JSON object, got {shorten(fields)}")
        line = _Line(path, number, fields)
        if MOONCAKE[1] not in fields:
            yield _own(line, fields)
            continue
        at_ms = line.number(MOONCAKE[0])
        first_ms = at_ms if first_ms is None else first_ms
        prompt, output = line.tokens(MOONCAKE[1], least=1), line.tokens(MOONCAKE[2])
        yield Arrival((at_ms - first_ms) / 1000, prompt, output, output)


def _own(line: _Line, fields: Mapping[str, Any]) -> Arrival:
    if unknown := sorted(set(fields) - OWN):
        line.fail(unknown[0], f"is no field of a trace; there are {', '.join(sorted(OWN))}")
    output = line.tokens("output_tokens")
    for name in ("tenant", "affinity_key"):
        if not isinstance(fields.get(name, ""), str):
            line.fail(name, "must be a text")
    if fields.get("priority", "normal") not in list(RequestPriority):
        line.fail("priority", f"must be one of {', '.join(RequestPriority)}")
    return Arrival(
        line.number("at_s"),
        line.tokens("prompt_tokens", least=1),
        output,
        line.tokens("max_tokens", least=output) if "max_tokens" in fields else output,
        RequestPriority(fields.get("priority", "normal")),
        fields.get("tenant", ""),
        line.number("timeout") if fields.get("timeout") is not None else None,
        fields.get("affinity_key", ""),
    )


class _Line:
    """The fields of one line, checked as they are asked for."""

    def __init__(self, path: Path, number: int, fields: Mapping[str, Any]) -> None:
        self._where = f"trace: {path}:{number}"
        self._fields = fields

    def tokens(self, name: str, least: int = 0) -> int:
        """Return a number of tokens."""
        limit = f"must be a whole number from {least} to {MAX_TOKENS}"
        value = self._of(name, lambda value: int(value) if isinstance(value, str) else operator.index(value), limit)
        if not least <= value <= MAX_TOKENS:
            self.fail(name, limit)
        return value

    def number(self, name: str) -> float:
        """Return a finite number that is not negative."""
        limit = "must be a finite number >= 0"
        value = self._of(name, float, limit)
        if not math.isfinite(value) or value < 0:
            self.fail(name, limit)
        return value

    def time(self, name: str) -> datetime:
        """Return a time of ISO 8601."""
        return self._of(name, datetime.fromisoformat, "must be a time like 2023-11-16 18:17:03.97")

    def fail(self, name: str, limit: str) -> None:
        """Raise `ConfigError` for a field."""
        raise ConfigError(f"{self._where}: {name} {limit}, got {shorten(self._fields.get(name))}")

    def _of(self, name: str, kind: Callable[[Any], T], limit: str) -> T:
        try:
            return kind(self._fields[name])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{self._where}: {name} {limit}, got {shorten(self._fields.get(name))}") from None
