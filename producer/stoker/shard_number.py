"""Giving a queue another number of shards, which only an empty one can have: its ids then name other shards."""

from __future__ import annotations

import contextlib

from stoker.config import Config
from stoker.errors import ConfigError
from stoker.stats import OUTCOMES
from stoker.store import lookups, reads, scripts
from stoker.store.agreement import number, refuse_other
from stoker.store.connection import Store


def set_number(config: Config, shards: int) -> int:
    """Give a queue another number of shards; returns the one before.

    Raises `ConfigError` while it has workers or requests that have not ended.
    """
    with contextlib.closing(Store(config.model_copy(update={"shards": 1, "shard": None}))) as first:
        before = first.read_patiently(number(first.keys)) or 1
        for part in config.model_copy(update={"shards": before, "shard": None}).each():
            with contextlib.closing(Store(part)) as store:
                counts = store.read_patiently(reads.counts(store.keys))
                live = counts.get("submitted", 0) - sum(counts.get(name, 0) for name in OUTCOMES)
                workers = store.read_patiently(lookups.worker_count(store.keys))
            if live or workers:
                raise ConfigError(
                    f"shards: queue {config.queue!r} has {before}, and in them {live} request(s) that have not ended"
                    f" and {workers} worker(s); stop its clients, then its workers, and its schedulers last"
                )
        answer = first.run_patiently(scripts.agree(shards, instead_of=before))
    refuse_other(config.model_copy(update={"shards": shards}), answer.shards)
    return before
