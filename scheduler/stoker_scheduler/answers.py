"""How long answers are lately: what there is kept room for when `reserve` is `expected`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from stoker.stats import bucket_ms

SHARE = 0.8
"""Of the answers that are expected to find room for all their tokens; the others may be preempted."""

FADE = 0.99
"""What an answer counts less with every reading; read every 5 s, half is forgotten after 6 minutes."""

FEWEST = 50.0
"""Answers of a class before anything is expected of it."""


class AnswerLengths:
    """The running 80th percentile of the tokens of answers, by class.

    It is fed with the queue's histogram, whose counts only rise. Counts that fell belong to another history (an emptied
    Redis): it begins anew.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], int] = {}
        self._recent: dict[tuple[str, int], float] = {}

    def observe(self, histograms: Mapping[str, int]) -> None:
        """Take in the fields `<metric>:<class>:<bucket>` of the histograms as read now."""
        counts: dict[tuple[str, int], int] = {}
        for field, number in histograms.items():
            metric, priority, bucket = field.split(":")
            if metric == "answer" and bucket != "sum":
                counts[priority, int(bucket)] = number
        if any(counts.get(place, 0) < number for place, number in self._seen.items()):
            self._seen, self._recent = {}, {}
        for place, number in counts.items():
            self._recent[place] = self._recent.get(place, 0.0) * FADE + number - self._seen.get(place, 0)
        self._seen = counts

    def expected(self) -> dict[str, int]:
        """Return the tokens to expect of an answer, for each class that had enough of them.

        It is the upper edge of the percentile's bucket: up to 41 % more, which serves as the margin.
        """
        expected: dict[str, int] = {}
        for priority in {priority for priority, _ in self._recent}:
            buckets = sorted((bucket, n) for (name, bucket), n in self._recent.items() if name == priority)
            total = sum(n for _, n in buckets)
            if total >= FEWEST:
                below = accumulate(n for _, n in buckets)
                edge = next(bucket for (bucket, _), n in zip(buckets, below, strict=True) if n >= SHARE * total)
                expected[priority] = round(bucket_ms(edge))
        return expected
