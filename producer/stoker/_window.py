"""The items of one `map`: taken from their source, sent in groups, and given back in order, so many at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stoker._calls import Item, check_fields, fitting, refused
from stoker._flows import Flow, State, prepare, send
from stoker._outstanding import Pending
from stoker.config import Config
from stoker.errors import QueueFull, StokerError
from stoker.request import InferenceResponse
from stoker.store.codec import Submission

PATIENCE_S = 0.05
"""How long a group may wait for a slow source to fill it."""


class Slot:
    """One item's place in the order: what is to be sent, then who waits for it, or its response."""

    __slots__ = ("_response", "pending", "submission")

    def __init__(self) -> None:
        """Hold a place."""
        self.submission: Submission | None = None
        self.pending: Pending | None = None
        self._response: InferenceResponse | None = None

    @property
    def response(self) -> InferenceResponse | None:
        """The response, once it is there."""
        return self.pending.response if self.pending else self._response

    def refuse(self, request_id: str, error: StokerError) -> None:
        """End without having been accepted."""
        self.submission, self._response = None, refused(request_id, error)


class Window:
    """What one `map` has taken and not yet given back: at most `in_flight`, refilled in groups."""

    def __init__(self, config: Config, fields: Mapping[str, Any]) -> None:
        """Start empty; `fields` complete every item. Raises `InvalidRequest` for a name that no request has."""
        check_fields(fields)
        self.exhausted = False
        self._fields = fields
        self._most = config.in_flight
        # A quarter, so that the rest keeps the workers busy while a group is made.
        self._chunk = min(config.group, max(1, self._most // 4))
        self._order: deque[Slot] = deque()
        self._unsent: deque[Slot] = deque()
        self._paused_until = 0.0

    @property
    def wants(self) -> int:
        """How many items to take from the source now; 0 while there is no room for a group, or no room in the queue."""
        room = self._most - len(self._order)
        return 0 if self.exhausted or self._unsent or room < self._chunk else self._chunk

    @property
    def finished(self) -> bool:
        """Whether all was given back."""
        return self.exhausted and not self._order

    @property
    def head(self) -> Pending | None:
        """Who waits for the next response; None while it is not even sent."""
        return self._order[0].pending if self._order else None

    @property
    def pause_s(self) -> float | None:
        """How long there may be no room in the queue; None when nothing waits to be sent."""
        return max(0.0, self._paused_until - time.monotonic()) if self._unsent else None

    def take(self, source: Iterator[Item]) -> list[Item]:
        """Take a group from the source, or less where it is slow: what is there must not wait for what is not."""
        items: list[Item] = []
        started = time.monotonic()
        for _ in range(self.wants):
            try:
                items.append(next(source))
            except StopIteration:
                self.exhausted = True
                break
            if time.monotonic() - started > PATIENCE_S:
                break
        return items

    def ready(self) -> Iterator[InferenceResponse]:
        """Give back what is done at the head, at most a group: a slow reader must not keep the next from being sent."""
        for _ in range(self._chunk):
            response = self._order[0].response if self._order else None
            if response is None:
                return
            self._order.popleft()
            yield response

    def advance(self, state: State, items: Sequence[Item]) -> Flow[None]:
        """Take items in, and send what waits to be sent while the queue has room."""
        yield from self._add(state, items)
        while self._unsent and time.monotonic() >= self._paused_until:
            yield from self._send(state)

    def _add(self, state: State, items: Sequence[Item]) -> Flow[None]:
        if not items:
            return
        for submission in (yield from prepare(state, items, self._fields)):
            slot = Slot()
            self._order.append(slot)
            if isinstance(submission, Submission):
                slot.submission = submission
                self._unsent.append(slot)
            else:
                slot.refuse("", submission)

    def _send(self, state: State) -> Flow[None]:
        slots = [self._unsent[i] for i in range(min(len(self._unsent), state.config.group))]
        items = [slot.submission for slot in slots if slot.submission is not None]
        items = items[: fitting(items)]
        outcomes = yield from send(state, items)
        full = []
        for item, outcome in zip(items, outcomes, strict=True):
            slot = self._unsent.popleft()
            if isinstance(outcome, Pending):
                slot.pending, slot.submission = outcome, None
            elif isinstance(outcome, QueueFull):
                full.append(slot)
                self._paused_until = time.monotonic() + outcome.retry_after
            else:
                slot.refuse(item.id, outcome)
        self._unsent.extendleft(reversed(full))
