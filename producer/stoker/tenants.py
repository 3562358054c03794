"""What may be set for one tenant of a queue. It stands in Redis, so that every client and scheduler knows the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stoker.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that may be set for a tenant, from `low` to `high`; `help` says what it does."""

    low: float
    high: float
    help: str
    whole: bool = False


MOST = 10.0**15
"""The largest limit: a script still counts exactly up to it."""

SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "weight": Setting(0.001, 1000, "its share beside the other tenants of a class; 1 unless set"),
        "max_waiting": Setting(1, MOST, "requests of it that may wait", whole=True),
        "max_tokens": Setting(1, MOST, "tokens (prompt and max_tokens) of it that may wait", whole=True),
        "max_bytes": Setting(1, MOST, "bytes of its waiting requests and kept results", whole=True),
    }
)
"""All settings, by name. An operator's tool offers each of them, and a queue keeps no other."""


def check_setting(name: str, value: object) -> float:
    """Return the number; raises `InvalidRequest` naming the setting, its limits and the value otherwise."""
    setting = SETTINGS.get(name)
    if setting is None:
        raise InvalidRequest(name, f"must be one of {', '.join(SETTINGS)}", value)
    kind = "a whole number" if setting.whole else "a number"
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not setting.low <= number <= setting.high or (setting.whole and number != int(number)):
        raise InvalidRequest(name, f"must be {kind} from {setting.low:g} to {setting.high:g}", value)
    return number


def number_text(number: float) -> str:
    """Return the number as Redis keeps it: never with an exponent, which no script reads."""
    return str(int(number)) if number == int(number) else f"{number:.6f}".rstrip("0")
