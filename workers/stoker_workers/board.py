"""A page of memory that a worker's child writes and its supervisor reads, also after the child was killed."""

from __future__ import annotations

import mmap
import struct
import tempfile
from collections.abc import Sequence
from typing import BinaryIO

from stoker_workers import tallies
from stoker_workers.tallies import Tallies

COUNTERS = (
    "progress",
    "steps",
    "row_steps",
    "token_steps",
    "busy_us",
    "prompt_tokens",
    "generation_tokens",
    "finished",
    "faults",
    "successes",
    "started_us",
)
"""Running totals since the child's start. `row_steps` and `token_steps`: rows, and tokens resident before a step,
summed over steps. `started_us`: when the running step began (monotonic), 0 between steps."""

SIZE = 1 << 17
_HEAD = struct.Struct(f"<{len(COUNTERS)}q")
_LENGTH = struct.Struct("<I")
_TEXT = _HEAD.size + _LENGTH.size


class Board:
    """The counters and histograms, and the ids in the step in progress: the crash set, if the child dies now.

    One process writes. A reader may see counters of two moments, never half a number.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Map `file`, which `make_file` made."""
        self._file = file
        self._map = mmap.mmap(file.fileno(), SIZE + tallies.SIZE)
        self.tallies = Tallies(memoryview(self._map)[SIZE:])
        self._values = list(_HEAD.unpack_from(self._map, 0))
        self._index = {name: index for index, name in enumerate(COUNTERS)}

    @staticmethod
    def make_file() -> BinaryIO:
        """Return an unnamed file of the right size: it ends with the last process that has it open."""
        file = tempfile.TemporaryFile()  # noqa: SIM115  # it stays open for the life of the board
        file.truncate(SIZE + tallies.SIZE)
        return file

    def add(self, name: str, amount: int = 1) -> None:
        """Raise a counter."""
        self._values[self._index[name]] += amount

    def begin_step(self, ids: Sequence[str], now_us: int) -> None:
        """Note which requests the step touches, before it runs."""
        text = " ".join(ids).encode()[: SIZE - _TEXT]
        self._map[_TEXT : _TEXT + len(text)] = text
        _LENGTH.pack_into(self._map, _HEAD.size, len(text))
        self._values[self._index["started_us"]] = now_us
        self.publish()

    def end_step(self) -> None:
        """Note that the step is over: nobody is blamed for a death between steps."""
        _LENGTH.pack_into(self._map, _HEAD.size, 0)
        self._values[self._index["started_us"]] = 0
        self.add("progress")
        self.publish()

    def publish(self) -> None:
        """Make the counters readable."""
        _HEAD.pack_into(self._map, 0, *self._values)

    def read(self) -> dict[str, int]:
        """Return all counters."""
        return dict(zip(COUNTERS, _HEAD.unpack_from(self._map, 0), strict=True))

    def crash_set(self) -> list[str]:
        """Return the ids in the step in progress; empty between steps."""
        (length,) = _LENGTH.unpack_from(self._map, _HEAD.size)
        return bytes(self._map[_TEXT : _TEXT + length]).decode(errors="replace").split()

    def close(self) -> None:
        """Unmap the page."""
        self.tallies.close()
        self._map.close()
        self._file.close()
