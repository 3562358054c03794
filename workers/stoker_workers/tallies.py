"""Histograms in a flat piece of memory, which one process may write while another reads."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.buckets import EDGES, bucket_of
from stoker.store.records import CLASSES

FINEST_US = 125
"""The first edge of times, in microseconds: 2^-3 ms, so that the edges of the queue's histograms are among these."""

INTER_TOKEN, OUTPUT_TOKEN, STEP, STEP_ROWS, SCRIPT = "inter_token", "output_token", "step", "step_rows", "script"

KINDS: dict[str, tuple[Sequence[str], int]] = {
    INTER_TOKEN: (CLASSES, FINEST_US),
    OUTPUT_TOKEN: (CLASSES, FINEST_US),
    STEP: (("",), FINEST_US),
    STEP_ROWS: (("",), 1),
    SCRIPT: (
        ("agree", "beat", "begin", "deregister", "flush", "hand_back", "incarnate", "register", "report", "settle"),
        FINEST_US,
    ),
}
"""Each kind of histogram: what it is kept apart by, and its first edge (microseconds, or a plain number)."""

_PLACES = [(kind, label) for kind, (labels, _) in KINDS.items() for label in labels]
_CELLS = EDGES + 2
_WHERE = {place: (number * _CELLS, KINDS[place[0]][1]) for number, place in enumerate(_PLACES)}
SIZE = len(_PLACES) * _CELLS * 8
"""Bytes of all of them."""

Totals = dict[tuple[str, str], list[int]]
"""Of each histogram, by kind and label: how many in each bucket, and last the sum."""


class Tallies:
    """All histograms of `KINDS`. Each may be written by one thread, and read by any process that has the memory."""

    def __init__(self, memory: memoryview | bytearray) -> None:
        """Count in `memory`, of `SIZE` bytes, zero at first."""
        self._cells = memoryview(memory).cast("q")

    def observe(self, kind: str, label: str, value: int, times: int = 1) -> None:
        """Count `value`, in microseconds for times, as often as it was met."""
        start, first = _WHERE[kind, label]
        self._cells[start + bucket_of(value, first)] += times
        self._cells[start + EDGES + 1] += value * times

    def timed(self, script: str, seconds: float) -> None:
        """Count a script that Redis answered."""
        self.observe(SCRIPT, script, int(seconds * 1e6))

    def read(self) -> Totals:
        """Return all of them as they are now."""
        cells = self._cells.tolist()
        return {place: cells[n * _CELLS : (n + 1) * _CELLS] for n, place in enumerate(_PLACES)}

    def close(self) -> None:
        """Let go of the memory."""
        self._cells.release()


def added(one: Totals, other: Totals) -> Totals:
    """Return the sum of two."""
    return {place: [a + b for a, b in zip(cells, other[place], strict=True)] for place, cells in one.items()}
