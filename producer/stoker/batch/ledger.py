"""Which lines of a file are done: all up to a low mark, and some above it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Ledger:
    """Lines in the order in which they were read, and which of them are done.

    Memory is bounded by how far the newest line read is above the oldest that is not done.
    """

    def __init__(self, number: int = 1, offset: int = 0, done: Iterable[int] = ()) -> None:
        """Begin at line `number`, which begins at byte `offset`; `done` are lines from there on that are done."""
        self.number = number
        """The first line that is not done."""
        self.offset = offset
        """The byte at which that line begins."""
        self._next = number
        self._end = offset
        self._open: deque[tuple[int, int]] = deque()
        self._done = set(done)

    @property
    def span(self) -> int:
        """How many lines were read from the first on that is not done."""
        return self._next - self.number

    def read(self, number: int, offset: int, size: int) -> bool:
        """Note that a line was read; gives whether it is still to be done."""
        self._open.append((number, offset))
        self._next, self._end = number + 1, offset + size
        if number not in self._done:
            return True
        self._settle()
        return False

    def done(self, number: int) -> None:
        """Note that a line is done."""
        self._done.add(number)
        self._settle()

    def _settle(self) -> None:
        while self._open and self._open[0][0] in self._done:
            self._done.discard(self._open.popleft()[0])
        self.number, self.offset = self._open[0] if self._open else (self._next, self._end)

    def ranges(self) -> list[list[int]]:
        """Return the done lines from the low mark on as [first, last], in order."""
        found: list[list[int]] = []
        for number in sorted(self._done):
            if found and found[-1][1] == number - 1:
                found[-1][1] = number
            else:
                found.append([number, number])
        return found


def numbers(ranges: Iterable[Iterable[int]]) -> Iterable[int]:
    """Give the lines of `Ledger.ranges`."""
    for first, last in ranges:
        yield from range(first, last + 1)
