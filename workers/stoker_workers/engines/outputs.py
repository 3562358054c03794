"""What a user's own code gave: whether it can be sent, and how its errors are told."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from stoker.errors import InvalidRequest
from stoker_workers.engine import Failed

_MAX_DEPTH = 100  # msgpack itself gives up at about 500 on one side and 1,000 on the other
_MAX_REASON = 1000
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


def check_output(output: Any) -> str | None:
    """Return what in `output` msgpack cannot carry and where it is, None if all is well."""
    if isinstance(output, array) and output.typecode == "f":
        return None  # a vector: sent as its bytes
    return _check(output, "output", 0)


def _check(value: Any, where: str, depth: int) -> str | None:
    if depth > _MAX_DEPTH:
        return f"the output is nested deeper than {_MAX_DEPTH}"
    if value is None or isinstance(value, bool | bytes):
        return None
    if isinstance(value, int):
        return None if _INT_MIN <= value <= _INT_MAX else f"{where} is an int of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{where} is {value}, not a finite number"
    if isinstance(value, str):
        return check_text(value, where)
    if isinstance(value, list | tuple):
        return _check_list(value, where, depth)
    if isinstance(value, dict):
        return _check_dict(value, where, depth)
    return f"{where} is of type {type_name(value)}; return None, bool, int, float, str, bytes, list or dict"


def check_text(value: str, where: str) -> str | None:
    """Return what is wrong with a string, which msgpack sends as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{where} is a string with a lone surrogate"
    return None


def _check_list(value: Sequence[Any], where: str, depth: int) -> str | None:
    # Vectors are the common large output: this passes them at the speed of C.
    if set(map(type, value)) == {float} and all(map(math.isfinite, value)):
        return None
    problems = (_check(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value))
    return next((problem for problem in problems if problem), None)


def _check_dict(value: Mapping[Any, Any], where: str, depth: int) -> str | None:
    for key, item in value.items():
        if not isinstance(key, str):
            return f"{where} has a key of type {type_name(key)}; keys must be str"
        if problem := check_text(key, f"a key of {where}") or _check(item, f"{where}[{key!r}]", depth + 1):
            return problem
    return None


def invalid(request_id: str, error: BaseException) -> Failed | None:
    """Return the failure that an `InvalidRequest` of the user's code means, None for any other error."""
    if not isinstance(error, InvalidRequest):
        return None
    return Failed(request_id, f"{error.field}: {error.limit}", "invalid", error.value)


def describe(error: BaseException) -> str:
    """Return an error's type and message, short enough to store and always encodable."""
    try:
        message = str(error)
    except Exception:  # the user's own __str__
        message = "(its message cannot be read)"
    text = f"{type(error).__name__}: {message}"
    return text[:_MAX_REASON].encode(errors="replace").decode()


def type_name(value: object) -> str:
    """Return a value's type as its author would name it."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
