"""That all workers of a queue serve the same model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from stoker.config import Config
from stoker.errors import ModelMismatch, RedisUnavailable
from stoker.store import reads
from stoker.store.connection import AsyncStore


def other_model(queue: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> ModelMismatch:
    """Return the error of a worker whose card is not that of its queue."""
    shown = [
        f"{side}: {card['name']} ({card['dtype']}, {card['identity'][:12]})"
        for side, card in (("queue", theirs), ("worker", ours))
    ]
    return ModelMismatch(f"queue {queue!r} serves another model; {'; '.join(shown)}; see `stoker queue set-model`")


async def check_shards(config: Config, ours: Mapping[str, Any]) -> None:
    """Raise `ModelMismatch` where another shard serves another model; one whose Redis is away is not asked."""
    for shard in range(config.shards):
        if shard == config.shard or config.shards == 1:
            continue
        store = AsyncStore(config.of(shard))
        try:
            with contextlib.suppress(RedisUnavailable):
                theirs = await store.read(reads.card(store.keys))
                if theirs and theirs.identity != ours["identity"]:
                    raise other_model(config.queue, theirs.fields, ours)
        finally:
            await store.close()
