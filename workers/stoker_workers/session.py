"""What a worker's child has in hand under one incarnation."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

import structlog

from stoker.store.scripts import Settlement
from stoker_workers.intake import Row
from stoker_workers.reporter import Reporter

log = structlog.get_logger()

TOLD = ("failure", "retry")
"""The outcomes of attempts that operators hear of."""

Key = tuple[str, str]
"""A request's id and its delivery: one attempt."""


@dataclass(slots=True)
class Session:
    """The time under one incarnation. Whatever came under an older one is dropped, not reported."""

    inc: str
    reporter: Reporter
    open: bool = True
    reading: bool = True
    draining: bool = False
    reader: threading.Thread | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    waiting: list[Row] = field(default_factory=list)
    resident_tokens: int = 0
    """The sum over `rows`: it is noted with every step, and adding it up anew would cost more than the rest."""
    begun: set[Key] = field(default_factory=set)
    """Attempts begun and not ended: a doorbell that rings twice must not begin them twice."""

    def give_back(self, keys: list[Key]) -> None:
        """Hand attempts back uncharged."""
        # Reported first: whoever finds an attempt neither here nor there would take it for lost.
        self.reporter.hand_back(keys)
        self.begun.difference_update(keys)

    def settle(self, items: list[Settlement]) -> None:
        """Report how attempts ended: all of a step at once, so that the reporter wakes up once."""
        told = items if log.is_enabled_for(logging.DEBUG) else [item for item in items if item.outcome in TOLD]
        for item in told:
            # Its reason is a word; the message beside it may quote the request, and goes to the client alone.
            note = log.info if item.outcome in TOLD else log.debug
            facts = {"outcome": item.outcome, "reason": item.reason, "attempt": item.attempt}
            note("attempt ended", inc=self.inc, id=item.id, delivery=item.delivery, **facts)
        self.reporter.settle(items)
        self.begun.difference_update((item.id, item.delivery) for item in items)

    def take(self, row: Row) -> None:
        """Note an attempt that the engine holds now; one that it holds again brings tokens along."""
        self.rows[row.payload.id] = row
        self.resident_tokens += row.resident_tokens

    def drop(self, row: Row) -> None:
        """Forget an attempt that the engine does not hold any more."""
        del self.rows[row.payload.id]
        self.resident_tokens -= row.resident_tokens
