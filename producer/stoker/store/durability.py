"""How durable an acceptance is: what is asked of Redis behind a submit, and what its answers mean. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stoker.errors import InvalidRequest
from stoker.store.connection import Command

MEMORY = "memory"
FSYNC = "fsync"
_REPLICATED = re.compile(r"replicated:([1-9]\d?)")
_APPENDS = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
"""The settings under which Redis answers a write only when it is on the disk."""


@dataclass(frozen=True, slots=True)
class Durability:
    """A level: in the memory of Redis, on its disk (`fsync`), or in the memory of `replicas` others too."""

    level: str = MEMORY
    replicas: int = 0

    @classmethod
    def parse(cls, level: object) -> Durability:
        """Return the level that a caller names; raises `InvalidRequest`."""
        if level == MEMORY:
            return IN_MEMORY
        copies = _REPLICATED.fullmatch(level) if isinstance(level, str) else None
        if copies is None and level != FSYNC:
            raise InvalidRequest("durability", "must be 'memory', 'fsync' or 'replicated:n' with n from 1 to 99", level)
        return cls(str(level), int(copies[1]) if copies else 0)

    def commands(self, timeout_s: float) -> Sequence[Command]:
        """Return what waits, at most `timeout_s`, until what the connection has written is that durable."""
        timeout_ms = max(1, int(timeout_s * 1000))  # 0 were for ever
        if self.replicas:
            return (("WAIT", self.replicas, timeout_ms),)
        # A Redis before 7.2 does not know WAITAOF: there only its settings tell.
        return (("WAITAOF", 1, 0, timeout_ms), ("CONFIG", "GET", "*append*")) if self.level == FSYNC else ()

    def reached(self, replies: Sequence[Any]) -> str:
        """Return the level that the replies to `commands` prove; a refused command's reply is None."""
        if self.replicas:
            copies = min(replies[0] or 0, self.replicas)
            return f"replicated:{copies}" if copies else MEMORY
        if self.level == MEMORY:
            return MEMORY
        synced, settings = replies
        if synced is not None:
            return FSYNC if synced[0] >= 1 else MEMORY
        said = {name.decode(): value.decode() for name, value in (settings or {}).items()}
        return FSYNC if said.items() >= _APPENDS.items() else MEMORY


IN_MEMORY = Durability()
