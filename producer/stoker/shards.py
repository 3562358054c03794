"""One queue as several, its shards: which one a request belongs to, and what their keys are named by. Pure.

A shard is a whole queue: its keys share a hash tag of their own, so that it lies on one node of a Redis Cluster.
"""

from __future__ import annotations

import functools
import itertools
from binascii import crc_hqx
from string import ascii_lowercase

SLOTS = 16_384
MOST_SHARDS = 128
TAG_ROOM = 8
"""How much longer than its queue's name a shard's tag may be."""


def slot_of(tag: str) -> int:
    """Return the slot of a Redis Cluster in which the keys of a hash tag lie."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def shard_of(request_id: str, shards: int) -> int:
    """Return the shard that a request belongs to, by its id alone."""
    return crc_hqx(request_id.encode(errors="surrogatepass"), 0) % shards


@functools.lru_cache(maxsize=4 * MOST_SHARDS)
def tag_of(queue: str, shards: int, shard: int) -> str:
    """Return the hash tag of a shard's keys.

    That of the first is the queue's name. The slots of the others lie in the other n-ths of all slots, away from their
    borders: n nodes with equal parts get a shard each. Names that differ in a number alone would lie on one node.
    """
    if shard == 0:
        return queue
    part = (slot_of(queue) * shards // SLOTS + shard) % shards
    endings = itertools.chain.from_iterable(itertools.product(ascii_lowercase, repeat=n) for n in itertools.count())
    tags = (f"{queue}~{shard}{''.join(ending)}" for ending in endings)
    return next(tag for tag in tags if _within(slot_of(tag) * shards, part))


def _within(place: int, part: int) -> bool:
    return place // SLOTS == part and SLOTS // 4 <= place % SLOTS < SLOTS * 3 // 4
