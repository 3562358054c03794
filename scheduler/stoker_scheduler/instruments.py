"""What one scheduler counts of its own work, for its exporter."""

from __future__ import annotations

import time

from prometheus_client import Histogram

from stoker.buckets import edges
from stoker_scheduler.batcher import Batch

LEAD = "lead"
"""The script that every scheduler calls all the time, whether it leads or stands by."""

SHARES = [tenth / 10 for tenth in range(1, 11)]


class Instruments:
    """Histograms of ticks, scripts and batches; they belong to no registry but the one whose collector gives them."""

    def __init__(self) -> None:
        """Begin at zero."""
        seconds = edges(0.000125)
        self.tick = Histogram(
            "stoker_scheduler_tick_seconds",
            "How long it took to read the queue and to act on it, while leading.",
            buckets=seconds,
            registry=None,
        )
        self.script = Histogram(
            "stoker_script_seconds",
            "How long Redis and the way to it took to answer a script.",
            ["script"],
            buckets=seconds,
            registry=None,
        )
        self.batch_requests = Histogram(
            "stoker_batch_requests", "Requests of a dispatched batch.", buckets=edges(1)[:16], registry=None
        )
        self.batch_tokens = Histogram(
            "stoker_batch_tokens",
            "Tokens reserved for a dispatched batch: prompts and max_tokens.",
            buckets=edges(1)[:24],
            registry=None,
        )
        self.fill = Histogram(
            "stoker_batch_fill_ratio",
            "Share of max_num_batched_tokens that a dispatched batch uses, with its padding.",
            buckets=SHARES,
            registry=None,
        )
        self.efficiency = Histogram(
            "stoker_batch_padding_efficiency_ratio",
            "Share of a dispatched batch that is not padding; 1 where nothing is padded.",
            buckets=SHARES,
            registry=None,
        )
        self._scripts: dict[str, Histogram] = {}
        self._claimed_s: float | None = None

    def timed(self, script: str, seconds: float) -> None:
        """Count a script that was answered."""
        if script not in self._scripts:  # to look one up takes longer than to count
            self._scripts[script] = self.script.labels(script)
        self._scripts[script].observe(seconds)
        if script == LEAD:
            self._claimed_s = time.monotonic()

    def dispatched(self, batch: Batch) -> None:
        """Count a batch of which a worker took something."""
        self.batch_requests.observe(len(batch.requests))
        self.batch_tokens.observe(sum(batch.costs))
        self.fill.observe(batch.fill)
        self.efficiency.observe(batch.efficiency)

    @property
    def unheard_s(self) -> float | None:
        """Seconds since Redis last answered a claim to lead, None if it never did."""
        return None if self._claimed_s is None else time.monotonic() - self._claimed_s
