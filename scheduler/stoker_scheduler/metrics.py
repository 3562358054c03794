"""How well the queue is doing, in numbers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stoker.config import Config
from stoker.store.records import WorkerRecord
from stoker_scheduler.batcher import Batch

WINDOW_S = 30.0
"""Rates and utilisation are over about this much time, in seconds."""

RECENT_BATCHES = 1024
"""Means and shares are over this many batches."""

ANSWERED = ("succeeded", "failed")
"""The counters of requests that a worker brought to an end."""

TOKENS = ("prompt_tokens", "generation_tokens")
"""The counters of tokens of the requests that were answered."""

COUNTERS = ("submitted", *ANSWERED, "expired", "cancelled", *TOKENS)
"""The queue's counters that only rise. Others, such as what waits now, have no rate."""

BUSY = "busy_us"
"""The figure of a worker that counts the microseconds in which it ran something, since its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerMetrics:
    """The state of a scheduler's work. Shares and utilisations are by the name of the worker, between 0 and 1.

    `rates` has what each of `COUNTERS` rises by in a second; `requests_per_s` counts what was answered.
    """

    requests_per_s: float
    tokens_per_s: float
    rates: Mapping[str, float]
    batches: int
    batch_size: float
    fill: float
    efficiency: float
    shares: Mapping[str, float]
    utilisation: Mapping[str, float]


class MetricsCollector:
    """Turns what happened into figures.

    1. Rates over a sliding window, from snapshots, half a heartbeat apart, of counters that only rise. A counter
       that fell belongs to another history (an emptied Redis): the window begins anew.
    2. Size, fill and padding efficiency of the last batches, and each worker's share of their tokens.
    3. Utilisation of each worker over the same window, from the busy time that it reports.
    4. Bounded memory: windows have an end, and what is gone is forgotten.

    Times are monotonic seconds.
    """

    def __init__(self, config: Config) -> None:
        self._step_s = config.heartbeat_ms / 2000
        self._counts = _Window(self._step_s)
        self._busy: dict[str, _Window] = {}
        self._names: dict[str, str] = {}
        self._recent: deque[tuple[str, int, int, float, float]] = deque(maxlen=RECENT_BATCHES)
        self._batches = 0

    def observe_batch(self, batch: Batch, worker: WorkerRecord) -> None:
        """Count a batch that was dispatched to `worker`."""
        self._batches += 1
        self._recent.append((worker.worker, len(batch.requests), sum(batch.costs), batch.fill, batch.efficiency))

    def observe_counts(self, counts: Mapping[str, int], now_s: float) -> None:
        """Take in the queue's counters as read at `now_s`."""
        self._counts.add({name: counts.get(name, 0) for name in COUNTERS}, now_s)

    def observe_workers(self, workers: Sequence[WorkerRecord], now_s: float) -> None:
        """Take in the workers' busy times as read at `now_s`."""
        self._names = {worker.inc: worker.worker for worker in workers if worker.state == "live"}
        self._busy = {inc: self._busy.get(inc) or _Window(self._step_s) for inc in self._names}
        for worker in workers:
            if worker.inc in self._busy and BUSY in worker.figures:
                self._busy[worker.inc].add({BUSY: worker.figures[BUSY]}, now_s)

    def snapshot(self) -> SchedulerMetrics:
        """Return the figures of now."""
        rates = self._counts.rates()
        count = max(1, len(self._recent))
        tokens: Counter[str] = Counter()
        for name, _, batch_tokens, _, _ in self._recent:
            tokens[name] += batch_tokens
        busy = {self._names[inc]: window.rates().get(BUSY, 0.0) / 1e6 for inc, window in self._busy.items()}
        return SchedulerMetrics(
            requests_per_s=sum(rates.get(name, 0.0) for name in ANSWERED),
            tokens_per_s=sum(rates.get(name, 0.0) for name in TOKENS),
            rates=rates,
            batches=self._batches,
            batch_size=sum(size for _, size, _, _, _ in self._recent) / count,
            fill=sum(fill for _, _, _, fill, _ in self._recent) / count,
            efficiency=sum(efficiency for _, _, _, _, efficiency in self._recent) / count,
            shares={name: amount / max(1, tokens.total()) for name, amount in tokens.items()},
            utilisation={name: min(1.0, share) for name, share in busy.items()},
        )


class _Window:
    """Snapshots of rising counters within a sliding window."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._snapshots: deque[tuple[float, Mapping[str, int]]] = deque()

    def add(self, counts: Mapping[str, int], now_s: float) -> None:
        snapshots = self._snapshots
        # However often it is fed, a window of this many snapshots is fine enough.
        if snapshots and now_s - snapshots[-1][0] < self._step_s:
            return
        if snapshots and any(counts.get(name, 0) < value for name, value in snapshots[-1][1].items()):
            snapshots.clear()
        snapshots.append((now_s, dict(counts)))
        while len(snapshots) > 1 and snapshots[1][0] <= now_s - WINDOW_S:
            snapshots.popleft()

    def rates(self) -> dict[str, float]:
        if len(self._snapshots) < 2:
            return {}
        (first_s, first), (last_s, last) = self._snapshots[0], self._snapshots[-1]
        return {name: (value - first.get(name, 0)) / (last_s - first_s) for name, value in last.items()}
