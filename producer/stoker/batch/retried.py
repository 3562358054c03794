"""The lines that a retry runs again: a bit for each line of the file, kept beside its answers."""

from __future__ import annotations

import json

from stoker.batch.checkpoint import Checkpoint
from stoker.batch.files import Files
from stoker.batch.parts import read_segments
from stoker.batch.source import whole_lines


class Retried:
    """A set of line numbers, one bit each: a million lines are 125 KB."""

    def __init__(self, bits: bytes) -> None:
        """Read `bits` as `mark` wrote them."""
        self._bits = bits

    def __contains__(self, number: int) -> bool:
        """Whether the line is to run again."""
        index = number >> 3
        return index < len(self._bits) and bool(self._bits[index] >> (number & 7) & 1)

    @classmethod
    def of(cls, files: Files, round_: int) -> Retried:
        """Return the lines that round `round_` runs."""
        return cls(files.get(_name(round_)) or b"")

    @staticmethod
    def mark(files: Files, round_: int, last: Checkpoint) -> None:
        """Note for round `round_` the lines that failed in the one before."""
        bits = bytearray((last.total >> 3) + 1)
        for line in whole_lines(read_segments(files, last.errors)):
            number = int(json.loads(line)["error"]["line"])
            bits[number >> 3] |= 1 << (number & 7)
        files.put(_name(round_), bytes(bits))


def _name(round_: int) -> str:
    return f"retry-{round_}"
