"""msgpack with bounds: whatever came over the wire is refused before it costs memory."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Any, TypeVar

import msgpack

from stoker.errors import InvalidRequest

N = TypeVar("N", int, float)

MAX_ITEMS = 1 << 18
"""Elements of one array or map; 4 MB of empty maps would cost 291 MB."""


def pack(value: object, field: str = "inputs") -> bytes:
    """Return `value` in msgpack; raises `InvalidRequest` naming `field` when it has no msgpack form."""
    try:
        return bytes(msgpack.packb(value))
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(field, f"must be a msgpack value ({error})", type(value).__name__) from None


def unpack(data: bytes, field: str = "payload") -> Any:
    """Return the value in `data`; raises `InvalidRequest` naming `field` for anything but one plain, bounded value."""
    try:
        return msgpack.unpackb(
            data, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0, strict_map_key=True, raw=False
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise InvalidRequest(field, f"must be one plain msgpack value ({reason})", len(data)) from None


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Return token ids as a type letter (H: 16 bits, I: 32 bits) and little-endian integers: half of a msgpack list."""
    code = "H" if not tokens or max(tokens) < 1 << 16 else "I"
    return code.encode() + _little(array(code, tokens)).tobytes()


def unpack_tokens(data: object, field: str = "prompt_tokens") -> list[int]:
    """Return the token ids in `data`; raises `InvalidRequest` when it is not what `pack_tokens` makes."""
    if not isinstance(data, bytes) or data[:1] not in (b"H", b"I") or (len(data) - 1) % (2 if data[:1] == b"H" else 4):
        raise InvalidRequest(field, "must be packed token ids", type(data).__name__)
    tokens = array(data[:1].decode())
    tokens.frombytes(data[1:])
    return _little(tokens).tolist()


def pack_floats(vector: array[float]) -> bytes:
    """Return an `array("f")` as the letter f and little-endian float32: less than half of a msgpack list."""
    return b"f" + little_floats(vector)


def little_floats(vector: array[float]) -> bytes:
    """Return an `array("f")` as little-endian float32."""
    return _little(vector[:]).tobytes()


def unpack_floats(data: object, field: str = "vector") -> array[float]:
    """Return the vector in `data`; raises `InvalidRequest` when it is not what `pack_floats` makes."""
    if not isinstance(data, bytes) or data[:1] != b"f" or (len(data) - 1) % 4:
        raise InvalidRequest(field, "must be packed floats", type(data).__name__)
    vector = array("f")
    vector.frombytes(data[1:])
    return _little(vector)


def _little(numbers: array[N]) -> array[N]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
