"""Where faults happen: picks their targets, keeps the load going, and measures recoveries by the history."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TypeVar

from chaos.fleet import Fleet, Machine
from chaos.record import Line, Record

T = TypeVar("T")

POLL_S = 0.01
PATIENCE_S = 120.0
"""How long anything may take before the run is given up: far longer than any bound."""
LIVE = 96
"""Requests that are kept in flight while a fault's share of the load lasts ..."""
TRICKLE = 8
"""... and after it, lest a fault wait for work that nobody sends."""
ABSENT_S = 3.0
"""A worker whose child died often waits longer and longer: after so long it is started again, as an operator would."""
TICKS = 20
"""A scheduler that had so many answers since it was started has begun to claim the lease, again and again."""
RETURN_MS = 2000.0
"""Within this everything goes on after Redis, or the way to it, came back."""


class Stuck(Exception):
    """Something that must happen did not: the run is over."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long a fault took to be recovered from, and may take; None where nothing is measured, or nothing promised.

    `broken` says what must not have happened and did.
    """

    ms: float | None = None
    bound_ms: float | None = None
    broken: str = ""


class Arena:
    """What the faults work with."""

    def __init__(self, fleet: Fleet, record: Record, rng: random.Random, requests: int) -> None:
        self.fleet, self.record, self.rng = fleet, record, rng
        self.beat_ms = float(fleet.config.heartbeat_ms)
        self.lease_ms = fleet.config.lease_us / 1000
        self.leader_ms = fleet.config.leader_lease_us / 1000
        self.planted: set[str] = set()
        self.allowed = self._share_ends = 0
        self._requests = requests
        self._paced_at = 0.0
        self._pressed = False
        self._absent_since: dict[str, float] = {}

    # --- load ---------------------------------------------------------------------------------------------------------

    def share(self, end: int) -> None:
        """Let the load of the next fault go up to this many requests."""
        self._share_ends = min(end, self._requests)

    def pace(self) -> None:
        """Read on in the history, and let the clients submit what keeps the workers busy."""
        self.record.read()
        if time.monotonic() - self._paced_at < 0.1:
            return
        self._paced_at = time.monotonic()
        live = self.allowed + len(self.planted) - self.record.ended
        wanted = LIVE if self.allowed < self._share_ends or self._pressed else TRICKLE
        left = self._requests - self.allowed
        # Beyond a fault's share less and less, so that some is left for the next one whatever this one takes.
        most = left if self.allowed < self._share_ends else -(-left // 16)
        self.allow(self.allowed + max(0, min(wanted - live, most)))

    @contextlib.contextmanager
    def pressed(self) -> Iterator[None]:
        """Keep all workers busy meanwhile, even beyond the fault's share."""
        self._pressed = True
        try:
            yield
        finally:
            self._pressed = False

    def allow(self, total: int) -> None:
        """Let the clients submit up to so many requests in all."""
        self.allowed = total
        clients = self.fleet.clients
        for i, client in enumerate(clients):
            client.say(str((total + i) // len(clients)))

    # --- time ---------------------------------------------------------------------------------------------------------

    def now_us(self) -> int:
        """The clock of Redis."""
        seconds, micros = self.fleet.redis.time()
        return int(seconds) * 1_000_000 + int(micros)

    def sleep(self, ms: float) -> None:
        """Let time pass under load."""
        until = time.monotonic() + ms / 1000
        while (left := until - time.monotonic()) > 0:
            self.pace()
            time.sleep(min(POLL_S, left))

    def until(self, wanted: Callable[[], T | None], what: str, patience_s: float = PATIENCE_S) -> T:
        """Wait until `wanted` gives something; raises `Stuck`."""
        deadline = time.monotonic() + patience_s
        while True:
            self.pace()
            if value := wanted():
                return value
            if time.monotonic() > deadline:
                raise Stuck(f"not within {patience_s:g} s: {what}")
            self.revive()
            time.sleep(POLL_S)

    # --- targets ------------------------------------------------------------------------------------------------------

    def start(self, machine: Machine) -> None:
        """Start a machine again."""
        # Until it registers it has no child to lose: a start takes as long as it takes.
        self.record.registered.pop(machine.name, None)
        machine.start()

    def revive(self) -> None:
        """Start workers again that wait too long to try again themselves."""
        for machine in self.fleet.workers:
            if not self._waits_to_retry(machine):
                self._absent_since.pop(machine.name, None)
            elif time.monotonic() - self._absent_since.setdefault(machine.name, time.monotonic()) > ABSENT_S:
                self._absent_since.pop(machine.name)
                machine.kill()
                self.start(machine)

    def _waits_to_retry(self, machine: Machine) -> bool:
        """Whether a worker has no child, after it had one: it counts the deaths that it is here to die."""
        return machine.wanted and machine.child is None and machine.name in self.record.registered

    def busy_worker(self, least: int = 1) -> tuple[Machine, str]:
        """A worker that runs at least so many requests, and its incarnation."""

        def find() -> tuple[Machine, str] | None:
            for machine in self.rng.sample(self.fleet.workers, len(self.fleet.workers)):
                inc = self.record.incarnation(machine.name)
                if inc and machine.child and len(self.record.held(inc, "running")) >= least:
                    return machine, inc
            return None

        with self.pressed():
            return self.until(find, f"a worker runs {least} requests")

    def leader(self) -> Machine:
        """The scheduler that leads, once another one stands by."""

        def find() -> Machine | None:
            if not all(scheduler.alive and scheduler.link.answered > TICKS for scheduler in self.fleet.schedulers):
                return None
            node = self.record.checker.token.split(":")[1] if self.record.checker.token else ""
            return next((s for s in self.fleet.schedulers if s.alive and node.endswith(f"-{s.pid}")), None)

        return self.until(find, "a scheduler leads")

    # --- what is measured ---------------------------------------------------------------------------------------------

    def freed(self, inc: str, since_us: int, bound_ms: float) -> Recovery:
        """Wait until nothing is held any more by what was hit: all of it waits again, or has ended."""
        self.record.read()
        held = set(self.record.held(inc))

        def times() -> list[int] | None:
            seen: dict[str, int] = {}
            for line in self.record.since(since_us):
                if line.id in held and line.word in ("requeue", "end"):
                    seen.setdefault(line.id, line.time_us)
            return [since_us, *seen.values()] if seen.keys() == held else None

        freed_us = max(self.until(times, f"the {len(held)} requests of {inc} are taken back"))
        return self.recovery(since_us, freed_us, bound_ms)

    def taken_over(self, since_us: int, bound_ms: float) -> Recovery:
        """Wait until a scheduler leads that did not before."""
        return self.recovery(
            since_us, self.happened(since_us, "a leader", lambda line: line.word == "leader"), bound_ms
        )

    def resumed(self, since_us: int, word: str = "begin", worker: str = "", bound_ms: float = RETURN_MS) -> Recovery:
        """Wait until work goes on: a request is begun, by this worker if one is named, or another `word` is written."""

        def wanted(line: Line) -> bool:
            return line.word == word and line.by.startswith(f"{worker}:" if worker else "")

        with self.pressed():
            return self.recovery(since_us, self.happened(since_us, f"{word} {worker}", wanted), bound_ms)

    def happened(self, since_us: int, what: str, wanted: Callable[[Line], bool]) -> int:
        """Wait for a line of the history; gives its time."""
        return self.until(lambda: self.record.first(since_us, wanted), what).time_us

    def recovery(self, since_us: int, until_us: int, bound_ms: float | None) -> Recovery:
        """A recovery of this length; each grace that began in it adds a lease to its bound."""
        graces = sum(line.word == "grace" and line.time_us <= until_us for line in self.record.since(since_us))
        bound = None if bound_ms is None else bound_ms + graces * self.lease_ms
        return Recovery((until_us - since_us) / 1000, bound)

    def lost_since(self, since_us: int, incs: Collection[str] = ()) -> str:
        """Say which workers were declared lost since then, if any (of `incs`, if they are given)."""
        self.record.read()
        voids = [line.rest[0] for line in self.record.since(since_us) if line.word == "void" and line.rest[1] == "lost"]
        found = [inc for inc in voids if not incs or inc in incs]
        return f"declared lost: {', '.join(found)}" if found else ""
