"""How long answers are lately: what there is kept room for when `reserve` is `expected`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import ceil

from stoker.stats import bucket_ms
from stoker.store.reads import Answers

SHARE = 0.8
"""Of the answers that are expected to find room for all their tokens; the others may be preempted."""

FADE = 0.99
"""What an answer counts less with every reading; read every 5 s, half is forgotten after 6 minutes."""

FEWEST = 50.0
"""Answers of a class, or of a tenant in it, before anything is expected of it."""


class AnswerLengths:
    """The running 80th percentile of the tokens of answers, by class, and by lane for tenants with enough of their own.

    A queue serves one model, so that neither mixes answers of several.

    Classes: out of the queue's histogram, whose counts only rise. Counts that fell belong to another history (an
    emptied Redis): it begins anew. It is the upper edge of the percentile's bucket: up to 41 % more, which serves as
    the margin.

    Tenants: out of the list of the last 4,096 answers of requests with a tenant, which settle writes. A tenant of which
    `FEWEST` are there (more than about 1 % of them) is expected by its own percentile, the exact one; all others are by
    their class's. So no number of tenants makes more of it than that list, and 81 of them that have their own; who
    ceases to come falls out of it; and whoever leads, or only looks, reads the same out of Redis, so that a new leader
    begins where the last one was. A histogram for each tenant would need somebody to choose whose to drop, and what a
    leader alone remembered would be gone with it. Requests without a tenant cost nothing here.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], int] = {}
        self._recent: dict[tuple[str, int], float] = {}
        self._lengths: Mapping[str, Sequence[int]] = {}

    def observe(self, answers: Answers) -> None:
        """Take in what stands in Redis now."""
        self._lengths = answers.lengths
        counts: dict[tuple[str, int], int] = {}
        for field, number in answers.histograms.items():
            metric, priority, bucket = field.split(":")
            if metric == "answer" and bucket != "sum":
                counts[priority, int(bucket)] = number
        if any(counts.get(place, 0) < number for place, number in self._seen.items()):
            self._seen, self._recent = {}, {}
        for place, number in counts.items():
            self._recent[place] = self._recent.get(place, 0.0) * FADE + number - self._seen.get(place, 0)
        self._seen = counts

    def expected(self) -> dict[str, int]:
        """Return the tokens to expect of an answer, for each class and each tenant's lane that had enough of them."""
        return self._of_classes() | self._of_tenants()

    def _of_classes(self) -> dict[str, int]:
        expected: dict[str, int] = {}
        for priority in {priority for priority, _ in self._recent}:
            buckets = sorted((bucket, n) for (name, bucket), n in self._recent.items() if name == priority)
            total = sum(n for _, n in buckets)
            if total >= FEWEST:
                below = accumulate(n for _, n in buckets)
                edge = next(bucket for (bucket, _), n in zip(buckets, below, strict=True) if n >= SHARE * total)
                expected[priority] = round(bucket_ms(edge))
        return expected

    def _of_tenants(self) -> dict[str, int]:
        enough = {lane: sorted(lengths) for lane, lengths in self._lengths.items() if len(lengths) >= FEWEST}
        return {lane: lengths[ceil(SHARE * len(lengths)) - 1] for lane, lengths in enough.items()}
