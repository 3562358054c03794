"""What a process holds, over time, and whether that grows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

MIB = 1 << 20
RSS_SHARE = 0.05
RSS_MIB = 4.0
"""Memory may be so much more at the end: allocators keep what a rare large batch took."""
COUNT = 3
"""... and so many more descriptors, threads or connections: those of a call under way, or of one that is torn down."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process, `at_s` after the beginning."""

    at_s: float
    rss_mib: float
    descriptors: int
    threads: int
    connections: int


FIGURES = ("rss_mib", "descriptors", "threads", "connections")


def look(pid: int, at_s: float) -> Sample | None:
    """Return what a process holds now; None where it has ended."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return Sample(
                at_s,
                process.memory_info().rss / MIB,
                process.num_fds(),
                process.num_threads(),
                len(process.net_connections("all")),
            )
    except psutil.Error:
        return None


@dataclass(frozen=True, slots=True)
class Course:
    """One figure of one process: its median in the first and in the last third of the time after the warm-up."""

    first: float
    last: float
    most: float

    def grown(self, figure: str) -> bool:
        """Whether the end is higher than the beginning by more than chance explains."""
        allowed = max(RSS_MIB, RSS_SHARE * self.first) if figure == "rss_mib" else COUNT
        return self.last > self.first + allowed


def course(samples: Sequence[Sample], figure: str, warm_up_s: float, end_s: float) -> Course | None:
    """Return how a figure went; None where there is not a sample in each third."""
    third_s = (end_s - warm_up_s) / 3
    warm = [sample for sample in samples if sample.at_s >= warm_up_s]
    first = [getattr(sample, figure) for sample in warm if sample.at_s <= warm_up_s + third_s]
    last = [getattr(sample, figure) for sample in warm if sample.at_s >= end_s - third_s]
    if not first or not last:
        return None
    return Course(statistics.median(first), statistics.median(last), max(getattr(sample, figure) for sample in warm))


def courses(
    seen: Mapping[str, Sequence[Sample]], warm_up_s: float, end_s: float
) -> dict[str, dict[str, Course | None]]:
    """Return for each process how each of its figures went."""
    return {
        name: {figure: course(samples, figure, warm_up_s, end_s) for figure in FIGURES}
        for name, samples in seen.items()
    }


def wrong(went: Mapping[str, Mapping[str, Course | None]]) -> list[str]:
    """Return in words what grew, and which processes were not seen from beginning to end."""
    found = []
    for name, figures in went.items():
        for figure, how in figures.items():
            if how is None:
                found.append(f"{name}: too few samples of {figure}")
            elif how.grown(figure):
                found.append(f"{name}: {figure} went from {how.first:,.1f} to {how.last:,.1f}")
    return found


def table(went: Mapping[str, Mapping[str, Course | None]]) -> str:
    """Return the medians of the first and of the last third, and the most, for each process and figure."""
    rows = [("process", *(figure.replace("_mib", " MiB") for figure in FIGURES))]
    rows += [(name, *(_told(figures[figure]) for figure in FIGURES)) for name, figures in went.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def _told(how: Course | None) -> str:
    return "-" if how is None else f"{how.first:,.0f} -> {how.last:,.0f} (max {how.most:,.0f})"
