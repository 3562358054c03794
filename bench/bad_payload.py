"""How long a payload takes that was made to cost much, until it is refused: the bound is 50 ms for each.

    python bench/bad_payload.py

Payloads have the largest size that is accepted by default (1 MiB), where their kind can have any size.
"""

from __future__ import annotations

import os
import time

from stoker import Config
from stoker.errors import InvalidRequest
from stoker.store.codec import decode_payload

BOUND_MS = 50.0
RUNS = 20
SIZE = Config().payload_bytes
HEADER = b"1795533457829043" + b"1|n|d|normal||0|60000000|3:16:x|1|c|0||"
MAPS = b"\xdd\x00\x03\xff\xff"


def filled(head: bytes, piece: bytes) -> bytes:
    """Return a payload of the largest size: `head`, then the piece again and again."""
    return (head + piece * (SIZE // len(piece)))[:SIZE]


BOMBS = {
    "an array that claims 4 G items": filled(b"\xdd\xff\xff\xff\xff", b"\x00"),
    "a map that claims 4 G items": filled(b"\xdf\xff\xff\xff\xff", b"\xa1x\x00"),
    "a million levels": filled(b"", b"\x91"),
    "claims within claims": filled(b"\xdd\x00\x04\x00\x00" * 500, b"\x00"),
    "a million empty maps": (b"\x94" + (MAPS + b"\x80" * 0x3FFF8) * 4)[:SIZE],
    "a million empty lists": (b"\x94" + (MAPS + b"\x90" * 0x3FFF8) * 4)[:SIZE],
    "maps in maps": filled(b"", b"\x81\xa1x"),
    "extension types": filled(b"\xdd\x00\x03\xff\xff", b"\xd4\x05x"),
    "bad UTF-8": b"\xdb" + (SIZE - 5).to_bytes(4, "big") + filled(b"", b"\xff")[: SIZE - 5],
    "trailing bytes": filled(b"\xc0", b"\xc0"),
    "random bytes": os.urandom(SIZE),
    "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "an unknown field of 1 MB": b"\x92\x81\xdb" + (SIZE - 10).to_bytes(4, "big") + b"x" * (SIZE - 10) + b"\xc0\xc0",
}


def refused_ms(body: bytes) -> float:
    """Return the milliseconds until the payload is refused."""
    began = time.perf_counter()
    try:
        decode_payload("r", HEADER + body, 1, SIZE)
    except InvalidRequest:
        return (time.perf_counter() - began) * 1000
    raise AssertionError("it was accepted")


def main() -> None:
    """Print the median and the slowest run of each; fail where the median is over the bound."""
    print(f"{'payload':32}{'bytes':>10}{'median ms':>11}{'worst ms':>10}")
    slow = []
    for name, body in BOMBS.items():
        assert len(body) <= SIZE, name
        took = sorted(refused_ms(body) for _ in range(RUNS))
        print(f"{name:32}{len(body):>10}{took[RUNS // 2]:>11.2f}{took[-1]:>10.2f}")
        slow += [name] if took[RUNS // 2] > BOUND_MS else []
    assert not slow, f"over {BOUND_MS} ms: {slow}"


if __name__ == "__main__":
    main()
