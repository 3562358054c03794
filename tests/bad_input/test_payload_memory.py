"""What a payload that was made to cost much costs: memory in proportion to its size, in a process that has little."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import pytest

from stoker.errors import InvalidRequest
from stoker.store.pack import MAX_CONTAINERS, unpack

BOMBS = {
    "an array that claims 4 G items": b"\xdd\xff\xff\xff\xff",
    "a map that claims 4 G items": b"\xdf\xff\xff\xff\xff",
    "a string that claims 4 GB": b"\xdb\xff\xff\xff\xff",
    "bytes that claim 4 GB": b"\xc6\xff\xff\xff\xff",
    "an extension that claims 4 GB": b"\xc9\xff\xff\xff\xff\x05",
    "a million levels": b"\x91" * 1_000_000 + b"\xc0",
    "claims within claims": b"\xdd\x00\x04\x00\x00" * 500 + b"\x00" * 1_000_000,
    "a million empty maps": b"\xdd\x00\x0f\xff\xff" + b"\x80" * 0xFFFFF,
    "lists of empty maps": b"\x94" + (b"\xdd\x00\x03\xff\xff" + b"\x80" * 0x3FFFF) * 4,
    "lists of empty lists": b"\x94" + (b"\xdd\x00\x03\xff\xff" + b"\x90" * 0x3FFFF) * 4,
    "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "bad UTF-8": b"\xa2\xff\xfe",
    "trailing bytes": b"\xc0\xc0",
}
FIXED_BYTES = 8 << 20
"""What the containers that are allowed may cost before there is one too many."""


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_and_takes_little_more_memory_than_it_has_bytes(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="payload: must be one plain msgpack value"):
            unpack(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) + FIXED_BYTES


def test_as_many_containers_as_are_allowed_are_read() -> None:
    # The array itself is one of them.
    data = b"\xdd" + (MAX_CONTAINERS - 1).to_bytes(4, "big") + b"\x80" * (MAX_CONTAINERS - 1)
    assert unpack(data) == [{}] * (MAX_CONTAINERS - 1)
    with pytest.raises(InvalidRequest, match="more than 65536 arrays and maps"):
        unpack(b"\x91" + data)


LITTLE = """
import resource, sys
from stoker.errors import InvalidRequest
from stoker.store.pack import unpack
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)
try:
    unpack(sys.stdin.buffer.read())
except InvalidRequest:
    print("refused")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the size of a process from /proc")
@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_a_process_that_may_take_64_mb_more_survives_it(data: bytes) -> None:
    ended = subprocess.run([sys.executable, "-c", LITTLE], input=data, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"refused\n"), ended.stderr.decode()
