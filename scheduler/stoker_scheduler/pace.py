"""Which workers are slow for what they were given, whatever their load. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low

from stoker.config import Config
from stoker.store.records import WorkerRecord

WINDOW_BEATS = 10
WINDOWS = 3
"""A worker that is slow in so many windows in a row, each of ten heartbeats or longer, is found slow."""

STEPS_LEAST = 8
"""A window lasts until the worker took so many steps: fewer may be chance."""

BUSY = "busy_us"
SHAPE = ("steps", "prompt_tokens", "row_steps", "token_steps")
"""What a step's time is made of: itself, tokens to prefill, rows, and tokens resident."""

Figures = Mapping[str, int]


@dataclass(slots=True)
class _Track:
    """What one incarnation did: its figures when the window began, and the last windows."""

    inc: str
    mode: str
    since_s: float
    began: Figures
    windows: deque[Figures] = field(default_factory=lambda: deque(maxlen=WINDOWS))
    strikes: int = 0


class Pace:
    """Compares what workers' steps cost.

    1. A step's time is a sum of prices (0 or more) times what `SHAPE` counts. So a worker of the same prices needs at
       most as many times a peer's time as the largest of the ratios between their counts: what it needs beyond that is
       its own slowness, and no batch size, prompt length or occupancy explains it.
    2. Where an engine's steps wait instead of compute (a model that runs elsewhere), that says nothing: there a row
       must also wait longer for each token than a peer's.
    3. Slow in a window is who needs `slow_factor` times as long as at least half of its peers, the trusted workers of
       its mode. So at most half of a fleet can be found slow, and nobody who is alone.

    Times are monotonic seconds.
    """

    def __init__(self, config: Config) -> None:
        self._factor = config.slow_factor
        self._window_s = WINDOW_BEATS * config.heartbeat_ms / 1000
        self._tracks: dict[str, _Track] = {}

    def observe(self, workers: Sequence[WorkerRecord], trusted: Collection[str], now_s: float) -> set[str]:
        """Take in the records read at `now_s`; returns the names found slow. `trusted` names who may be a peer."""
        names = {worker.worker for worker in workers}
        self._tracks = {name: track for name, track in self._tracks.items() if name in names}
        ended = [worker.worker for worker in workers if self._ends_window(worker, now_s)]
        return {name for name in ended if self._found_slow(self._tracks[name], name, trusted)}

    def restart(self, worker: WorkerRecord, now_s: float) -> None:
        """Begin a worker's window anew: what it did before says nothing about how it is now."""
        self._tracks[worker.worker] = _Track(worker.inc, worker.mode, now_s, worker.figures)

    def is_slow(self, worker: WorkerRecord, trusted: Collection[str]) -> bool:
        """Return whether the worker is slow in the window that runs, as far as that says something."""
        track = self._tracks.get(worker.worker)
        verdict = self._verdict(track, worker.worker, _grown(track.began, worker.figures), trusted) if track else None
        return bool(verdict)

    def _ends_window(self, worker: WorkerRecord, now_s: float) -> bool:
        """Take in the worker's figures; returns whether they ended a window."""
        track = self._tracks.get(worker.worker)
        if track is None or track.inc != worker.inc:
            self.restart(worker, now_s)
            return False
        window = _grown(track.began, worker.figures)
        if now_s - track.since_s < self._window_s or window.get("steps", 0) < STEPS_LEAST:
            return False
        track.since_s, track.began = now_s, worker.figures
        track.windows.append(window)
        return True

    def _found_slow(self, track: _Track, name: str, trusted: Collection[str]) -> bool:
        verdict = self._verdict(track, name, track.windows[-1], trusted)
        if verdict is not None:
            track.strikes = track.strikes + 1 if verdict else 0
        return bool(verdict) and track.strikes >= WINDOWS

    def _verdict(self, track: _Track, name: str, window: Figures, trusted: Collection[str]) -> bool | None:
        """Return whether the worker was slow in this window; None where there is nobody to compare it with."""
        peers = [
            _total(other.windows)
            for peer, other in self._tracks.items()
            if peer in trusted and peer != name and other.mode == track.mode and other.windows
        ]
        return median_low(slowness(window, peer) for peer in peers) > self._factor if peers else None


def slowness(one: Figures, other: Figures) -> float:
    """Return how many times as long `one` needed as its counts and `other`'s prices explain at most; 0: unknown."""
    patience = _patience(one), _patience(other)
    if not other.get(BUSY) or not all(patience):
        return 0.0
    ratios = []
    for name in SHAPE:
        mine, theirs = one.get(name, 0), other.get(name, 0)
        if mine and not theirs:
            return 0.0
        ratios.append(mine / theirs if theirs else 0.0)
    return one.get(BUSY, 0) / other[BUSY] / max(ratios) * min(1.0, patience[0] / patience[1]) if any(ratios) else 0.0


def _patience(figures: Figures) -> float:
    """Return how many steps a row waits for a token, or for its end where there are no tokens; 0: unknown."""
    work = figures.get("generation_tokens", 0) or figures.get("finished", 0)
    return figures.get("row_steps", 0) / work if work else 0.0


def _grown(before: Figures, after: Figures) -> Figures:
    return {name: max(0, number - before.get(name, 0)) for name, number in after.items()}


def _total(windows: Collection[Figures]) -> Figures:
    names = {name for window in windows for name in window}
    return {name: sum(window.get(name, 0) for window in windows) for name in names}
