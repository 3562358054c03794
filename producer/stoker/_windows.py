"""The items of one `map` over shards: a window for each, fed by turns or ids, and one order over all."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from stoker._calls import Item
from stoker._flows import Flow, State
from stoker._merge import by_shard
from stoker._outstanding import Pending
from stoker._window import PATIENCE_S, Window
from stoker.config import Config
from stoker.request import InferenceRequest, InferenceResponse


def id_of(item: object, fields: Mapping[str, Any]) -> str | None:
    """Return the id that a request is given, None where it gets one made for it; wrong ones are found later."""
    found = fields.get("request_id") or (item.request_id if isinstance(item, InferenceRequest) else None)
    return found if isinstance(found, str) else None


class Windows:
    """What one `map` has taken and not yet given back: at most `in_flight` over all shards."""

    def __init__(self, config: Config, fields: Mapping[str, Any]) -> None:
        """Start empty; `fields` complete every item. Raises `InvalidRequest` for a name that no request has."""
        self._fields = fields
        self._most = config.in_flight
        self._chunk = min(config.group, max(1, self._most // 4))
        self._windows = [Window(config.of(shard), fields) for shard in range(config.shards)]
        self._feeds: list[deque[Item]] = [deque() for _ in self._windows]
        self._order: deque[int] = deque()
        self._exhausted = False
        self._turn = 0

    @property
    def wants(self) -> bool:
        """Whether there is room for a group."""
        return not self._exhausted and self._most - len(self._order) >= self._chunk

    @property
    def finished(self) -> bool:
        """Whether all was given back."""
        return self._exhausted and not self._order

    @property
    def head(self) -> tuple[int, Pending | None]:
        """The shard of the next response, and who waits for it; None while it is not even sent."""
        shard = self._order[0]
        return shard, self._windows[shard].head

    @property
    def pause_s(self) -> float | None:
        """How long there may be no room in some shard's queue; None when nothing waits to be sent."""
        pauses = [window.pause_s for window in self._windows]
        return min((pause for pause in pauses if pause is not None), default=None)

    def take(self, source: Iterator[Item]) -> None:
        """Take a group from the source, or less where it is slow, and deal it to the shards."""
        if not self.wants:
            return
        items: list[Item] = []
        started = time.monotonic()
        for item in itertools.islice(source, self._chunk):
            items.append(item)
            if time.monotonic() - started > PATIENCE_S:
                break
        else:
            self._exhausted = len(items) < self._chunk
        shards = by_shard([id_of(item, self._fields) for item in items], len(self._windows), self._turn)
        self._turn += len(items)
        for item, shard in zip(items, shards, strict=True):
            self._feeds[shard].append(item)
        self._order.extend(shards)

    def advance(self, states: list[State]) -> Iterator[tuple[int, Flow[None]]]:
        """Give, for each shard that has something to send, its number and the flow that sends it."""
        for shard, (window, feed, state) in enumerate(zip(self._windows, self._feeds, states, strict=True)):
            items = [feed.popleft() for _ in range(min(len(feed), window.wants))]
            if items or window.pause_s == 0:
                yield shard, window.advance(state, items)

    def ready(self) -> Iterator[InferenceResponse]:
        """Give back what is done at the head, at most a group: a slow reader must not keep the next from being sent."""
        for _ in range(self._chunk):
            found = next(self._windows[self._order[0]].ready(), None) if self._order else None
            if found is None:
                return
            self._order.popleft()
            yield found
