"""That all who use a queue mean the same number of shards: with another one, a request's id names another shard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from stoker.config import Config
from stoker.errors import ConfigError
from stoker.store import scripts
from stoker.store.connection import AsyncStore, Command, Read, Store
from stoker.store.keys import Keys


@contextlib.contextmanager
def looking(config: Config) -> Iterator[Store]:
    """Open a queue, or a shard, to look at it; raises `ConfigError`, as `agree` does, and `RedisUnavailable`."""
    with contextlib.closing(Store(config)) as store:
        agree(store, patiently=True)
        yield store


def agree(store: Store, *, patiently: bool, claim: bool = False) -> None:
    """Raise `ConfigError` where the queue has another number of shards than the store's settings say.

    With `claim` the number is fixed, where there is none: before anything is submitted or served.
    """
    config = store.config
    first = Store(config.of(0)) if config.shard else store
    run, read = (first.run_patiently, first.read_patiently) if patiently else (first.run, first.read)
    try:
        theirs = read(number(first.keys))
        if claim and theirs in (None, 1) and config.shards > 1:
            theirs = run(scripts.agree(config.shards)).shards
    finally:
        if first is not store:
            first.close()
    refuse_other(config, theirs)


async def agree_async(store: AsyncStore, *, patiently: bool, claim: bool = False) -> None:
    """Do the same, awaited."""
    config = store.config
    first = AsyncStore(config.of(0)) if config.shard else store
    run, read = (first.run_patiently, first.read_patiently) if patiently else (first.run, first.read)
    try:
        theirs = await read(number(first.keys))
        if claim and theirs in (None, 1) and config.shards > 1:
            theirs = (await run(scripts.agree(config.shards))).shards
    finally:
        if first is not store:
            await first.close()
    refuse_other(config, theirs)


def number(keys: Keys) -> Read[int | None]:
    """Read how many shards a queue has, None for one that was never used; `keys` are those of its first.

    A user of Redis made before there were shards may not read it, and its queue has one.
    """
    # The first command only makes the others optional.
    commands: list[Command] = [("PING",), ("GET", keys.shards), ("GET", keys.generation)]
    return Read(commands, _parse_number, "connect", required=1)


def _parse_number(reply: list[Any]) -> int | None:
    _, shards, generation = reply
    return int(shards) if shards else 1 if generation else None


def refuse_other(config: Config, theirs: int | None) -> None:
    """Raise `ConfigError` where the queue has another number of shards than `config` says; None is not fixed yet."""
    if theirs is not None and theirs != config.shards:
        raise ConfigError(
            f"shards: queue {config.queue!r} has {theirs}, got {config.shards};"
            f" set STOKER_SHARDS to the same for all its clients, schedulers and workers"
        )
