"""What the shell offers for names that only Redis knows. Quick or silent: a TAB must never hang, or print an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stoker.store.connection import Store

DEADLINE_S = 0.5
MOST_LETTERS = 200
KEYS_A_PAGE = 2000
MOST_PAGES = 50
"""Queues are found among the first 100,000 keys, which takes tens of milliseconds; a TAB is worth no more."""

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _from_redis(names: Callable[[Store], Iterable[str]]) -> Complete:
    """Return a completion out of the names that a function reads."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        try:
            from stoker.command import make_config
            from stoker.store.connection import Store

            given = {name: ctx.params.get(name) for name in ("redis_url", "queue", "shards", "shard")}
            config = make_config(**given)
            deadlines = {"connect_timeout_s": DEADLINE_S, "socket_timeout_s": DEADLINE_S}
            found: set[str] = set()
            for part in config.each():
                with closing(Store(part.model_copy(update=deadlines))) as store:
                    found.update(name for name in names(store) if name.startswith(incomplete))
            return sorted(found)
        except Exception:  # whatever is wrong, the command itself will say it
            return []

    return complete


def _workers(store: Store) -> Iterable[str]:
    from stoker.store import lookups

    return [record.worker for record in store.read(lookups.workers(store.keys))]


def _dead_ids(store: Store) -> Iterable[str]:
    from stoker.store import lookups

    return store.read(lookups.dead_ids(store.keys, MOST_LETTERS))


def _batches(store: Store) -> Iterable[str]:
    from stoker.store import batches

    return store.read(batches.batch_ids(store.keys))


def _queues(store: Store) -> Iterable[str]:
    from stoker.store import inspections

    found = {store.config.queue}
    cursor = 0
    for _ in range(MOST_PAGES):
        page = store.read(inspections.queue_page(cursor, KEYS_A_PAGE))
        if page is None:
            break
        found.update(page.names)
        cursor = page.cursor
        if not cursor:
            break
    return found


workers = _from_redis(_workers)
dead_ids = _from_redis(_dead_ids)
batches = _from_redis(_batches)
queues = _from_redis(_queues)
