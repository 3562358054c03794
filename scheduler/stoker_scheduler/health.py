"""Which workers may be trusted with requests, and which are gone."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from stoker.config import Config
from stoker.store.records import WorkerRecord
from stoker_scheduler.pace import Pace

LONGEST_OPEN_S = 600.0
"""How long a circuit stays open at most, however often it opened."""


class CircuitState(enum.Enum):
    """Closed: requests flow. Open: none do. Half-open: one at a time, as a probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(slots=True)
class _Circuit:
    """The circuit of one worker name; `faults` and `successes` are the counters last read of its incarnation `inc`.

    `slow`: it opened because the worker was slow, not because it failed.
    """

    inc: str
    faults: int
    successes: int
    seen_s: float
    state: CircuitState = CircuitState.CLOSED
    recent: deque[float] = field(default_factory=deque)
    proven: int = 0
    openings: int = 0
    until_s: float = 0.0
    slow: bool = False


class HealthMonitor:
    """Watches workers by what their records count, and proposes; scripts decide.

    1. Close, open, half-open: `breaker_faults` worker faults within `breaker_window_s` open a worker's circuit. After
       `breaker_open_s`, doubled at each re-opening up to ten minutes, it is half-open and gets one probe at a time. One
       more fault re-opens it, `breaker_successes` successes close it and clear its record.
    2. Only worker faults count; a bad request is the request's fault and is not among them.
    3. If the circuits of all available workers are open, none is excluded: a doubtful answer beats none. While one is
       half-open, its probes are how the fleet comes back.
    4. A worker that is slow beside its peers (see `Pace`) has its circuit opened, too. Its probes must come back in
       time as well. Where nobody else is trusted any more it is taken back at once: slow beats none.
    5. Propose for reclaim the incarnations that are not live or were silent for longer than the lease.

    A circuit belongs to the worker's name, its counters to the incarnation. So a restart keeps its record: faults still
    count in their window, and one that came out of an open circuit begins half-open (a restart may well have repaired
    it, so no more waiting; but nothing has shown it yet) with its doublings, and successes of the old process prove
    nothing about the new one. What a monitor sees for the first time counts from there: the past of a worker that
    another leader watched is no fault of now. A name that was not registered for `load_timeout_s`, in which a restart
    would have come back, is forgotten. Times are monotonic seconds.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pace = Pace(config)
        self._circuits: dict[str, _Circuit] = {}
        self._peers: set[str] = set()
        self._excluded: frozenset[str] = frozenset()
        self._probing: frozenset[str] = frozenset()

    def observe(self, workers: Sequence[WorkerRecord], now_s: float) -> None:
        """Take in the records read at `now_s`; `excluded` and `probing` answer by them until the next call."""
        live = [worker for worker in workers if worker.state == "live"]
        for worker in live:
            self._advance(worker, now_s)
        for name in [n for n, c in self._circuits.items() if now_s - c.seen_s > self._config.load_timeout_s]:
            del self._circuits[name]
        available = [worker for worker in live if worker.available]
        self._eject_slow(live, available, now_s)
        barred = {worker.inc for worker in available if self.state(worker.worker) is CircuitState.OPEN}
        if len(barred) == len(available):
            barred = set()
        half_open = [worker for worker in available if self.state(worker.worker) is CircuitState.HALF_OPEN]
        self._probing = frozenset(worker.inc for worker in half_open if worker.held_rows == 0)
        self._excluded = frozenset(barred | {worker.inc for worker in half_open if worker.held_rows > 0})

    def excluded(self) -> frozenset[str]:
        """Return the incarnations that may get nothing now: open, or half-open with a probe under way."""
        return self._excluded

    def probing(self) -> frozenset[str]:
        """Return the incarnations that may get exactly one request now, which is their probe."""
        return self._probing

    def state(self, worker: str) -> CircuitState:
        """Return the state of the circuit of the worker of this name."""
        circuit = self._circuits.get(worker)
        return circuit.state if circuit is not None else CircuitState.CLOSED

    def not_closed(self) -> dict[str, str]:
        """Return the state of each circuit that is not closed, with its cause: `open, slow`."""
        return {
            name: f"{circuit.state.value}, {'slow' if circuit.slow else 'faults'}"
            for name, circuit in sorted(self._circuits.items())
            if circuit.state is not CircuitState.CLOSED
        }

    def lapsed(self, workers: Sequence[WorkerRecord], lease_us: int) -> list[str]:
        """Return the incarnations whose work should be taken back; only the script knows whether a grace counts."""
        return [worker.inc for worker in workers if worker.state != "live" or worker.beat_age_us > lease_us]

    def _eject_slow(self, live: Sequence[WorkerRecord], available: Sequence[WorkerRecord], now_s: float) -> None:
        """Open the circuits of the slow, and close them again where they are all that is left."""
        for name in self._pace.observe(live, self._trusted(available), now_s):
            # One that was found slow in the same moment is no peer any more: the last worker is never left out.
            if self._trusted(available) - {name} and self.state(name) is CircuitState.CLOSED:
                self._open(self._circuits[name], now_s, slow=True)
        if not self._trusted(available):
            for worker in available:
                if self._circuits[worker.worker].slow:
                    self._close(self._circuits[worker.worker])
        self._peers = self._trusted(available)

    def _trusted(self, available: Sequence[WorkerRecord]) -> set[str]:
        return {worker.worker for worker in available if self.state(worker.worker) is CircuitState.CLOSED}

    def _advance(self, worker: WorkerRecord, now_s: float) -> None:
        circuit = self._circuits.get(worker.worker)
        if circuit is None:
            circuit = _Circuit(worker.inc, worker.faults, worker.successes, now_s)
            self._circuits[worker.worker] = circuit
        elif circuit.inc != worker.inc:
            circuit.inc, circuit.faults, circuit.successes, circuit.proven = worker.inc, 0, 0, 0
            if circuit.state is CircuitState.OPEN:
                circuit.state = CircuitState.HALF_OPEN
        faults = max(0, worker.faults - circuit.faults)
        successes = max(0, worker.successes - circuit.successes)
        circuit.faults, circuit.successes, circuit.seen_s = worker.faults, worker.successes, now_s
        self._count(circuit, worker, faults, successes, now_s)

    def _count(self, circuit: _Circuit, worker: WorkerRecord, faults: int, successes: int, now_s: float) -> None:
        if circuit.state is CircuitState.OPEN:
            # What still comes from an open circuit was sent before it opened, and proves nothing.
            if now_s >= circuit.until_s:
                circuit.state, circuit.proven = CircuitState.HALF_OPEN, 0
                self._pace.restart(worker, now_s)
        elif circuit.state is CircuitState.HALF_OPEN:
            circuit.proven += successes
            proven = circuit.proven >= self._config.breaker_successes
            slow = proven and circuit.slow and self._pace.is_slow(worker, self._peers)
            if faults or slow:
                self._open(circuit, now_s, slow=slow)
            elif proven:
                self._close(circuit)
        else:
            # More faults than open the circuit tell nothing more: a worker that counts wildly costs no memory.
            circuit.recent.extend([now_s] * min(faults, self._config.breaker_faults))
            while circuit.recent and circuit.recent[0] <= now_s - self._config.breaker_window_s:
                circuit.recent.popleft()
            if len(circuit.recent) >= self._config.breaker_faults:
                self._open(circuit, now_s, slow=False)

    @staticmethod
    def _close(circuit: _Circuit) -> None:
        circuit.state, circuit.openings, circuit.slow = CircuitState.CLOSED, 0, False

    def _open(self, circuit: _Circuit, now_s: float, *, slow: bool) -> None:
        first_s = self._config.breaker_open_s
        open_s = min(first_s * 2.0**circuit.openings, max(first_s, LONGEST_OPEN_S))
        circuit.state, circuit.until_s = CircuitState.OPEN, now_s + open_s
        circuit.openings, circuit.slow = min(circuit.openings + 1, 64), slow
        circuit.recent.clear()
