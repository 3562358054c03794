"""How an `AsyncClient` reads many token streams: in few reads, and nobody waits for another's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from stoker import Config
from stoker._async_link import READS, Streams
from stoker.errors import RedisUnavailable
from stoker.store.keys import Keys
from stoker.store.lookups import Place
from stoker.store.reads import TokenRecord

CONFIG = Config(redis_url="redis://127.0.0.1:1/0")
KEYS = Keys(CONFIG.tag)


def place(name: str, after: str = "0") -> Place:
    return name, "n", after


class Redis:
    """Holds every read until the test answers it."""

    def __init__(self) -> None:
        self.reads: list[tuple[list[str], asyncio.Future[Any]]] = []
        self.came = asyncio.Event()

    async def read_patiently(self, read: Any) -> Any:
        (command,) = read.commands
        names = command[command.index("STREAMS") + 1 :]
        reply = asyncio.get_running_loop().create_future()
        self.reads.append((sorted(name.split(":")[-2] for name in names[: len(names) // 2]), reply))
        self.came.set()
        return read.parse([await reply])

    async def asked(self, number: int) -> list[list[str]]:
        """Return which streams each read was for, once there were so many."""
        while len(self.reads) < number:
            self.came.clear()
            await asyncio.wait_for(self.came.wait(), 5)
        return [names for names, _ in self.reads]

    def answer(self, number: int, *names: str) -> None:
        """Answer a read with a token for each of these streams."""
        fields = {b"ids": b"H\x01\x00", b"text": b"hi"}
        self.reads[number][1].set_result({KEYS.tokens(name, "n").encode(): [(b"1-1", fields)] for name in names})


@pytest.fixture
async def redis() -> Redis:
    return Redis()


@pytest.fixture
async def streams(redis: Redis) -> AsyncIterator[Streams]:
    tasks: dict[str, asyncio.Task[None]] = {}

    def start(name: str, body: Any) -> None:
        if name not in tasks:
            tasks[name] = asyncio.create_task(body())

    state = SimpleNamespace(config=CONFIG, keys=KEYS)
    link: Any = SimpleNamespace(loop=asyncio.get_running_loop(), state=state, start=start, closed=False, waiting=redis)
    yield Streams(link)
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


def reading(streams: Streams, *places: Place) -> list[asyncio.Task[list[TokenRecord]]]:
    return [asyncio.create_task(streams.read(one, 5000)) for one in places]


async def at_rest(streams: Streams) -> None:
    """Wait until all that was asked for is seen, and is read or has to wait."""
    changed: Any = streams._firsts.changed
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while changed.is_set() or not changed._waiters:  # noqa: ASYNC110  # what an event shows nobody tells
            await asyncio.sleep(0)


async def test_who_comes_while_a_read_is_under_way_does_not_wait_for_its_end(redis: Redis, streams: Streams) -> None:
    reading(streams, place("slow"))
    await redis.asked(1)
    (late,) = reading(streams, place("late"))
    assert await redis.asked(2) == [["slow"], ["late"]]
    redis.answer(1, "late")
    assert [record.text for record in await late] == ["hi"]
    assert not redis.reads[0][1].done()


async def test_who_comes_together_shares_a_read(redis: Redis, streams: Streams) -> None:
    reading(streams, place("a"), place("b"), place("c"))
    assert await redis.asked(1) == [["a", "b", "c"]]


async def test_all_that_a_read_was_for_is_in_the_next_one(redis: Redis, streams: Streams) -> None:
    first, _ = reading(streams, place("a", "0-1"), place("b", "0-1"))
    await redis.asked(1)
    redis.answer(0, "a")
    await first
    reading(streams, place("a", "1-1"))
    assert await redis.asked(2) == [["a", "b"], ["a", "b"]]


async def test_tokens_of_answers_that_go_on_do_not_end_the_read_of_who_waits_for_a_first_one(
    redis: Redis, streams: Streams
) -> None:
    more, first = reading(streams, place("goes on", "1-1"), place("new"))
    assert sorted(await redis.asked(2)) == [["goes on"], ["new"]]
    redis.answer((await redis.asked(2)).index(["goes on"]), "goes on")
    assert len(await more) == 1
    reading(streams, place("goes on", "2-1"))
    assert (await redis.asked(3))[2] == ["goes on"]
    assert not first.done()


async def test_no_more_reads_than_allowed_are_under_way_and_the_next_takes_all_who_wait(
    redis: Redis, streams: Streams
) -> None:
    for number in range(READS):
        reading(streams, place(f"r{number}"))
        await redis.asked(number + 1)
    reading(streams, place("x"))
    await at_rest(streams)
    reading(streams, place("y"))
    await at_rest(streams)
    assert len(redis.reads) == READS
    redis.answer(0, "r0")
    assert (await redis.asked(READS + 1))[READS] == ["x", "y"]


async def test_two_places_of_a_stream_are_read_for_apart(redis: Redis, streams: Streams) -> None:
    ahead, behind = reading(streams, place("a", "1-1"), place("a", "0-1"))
    assert await redis.asked(2) == [["a"], ["a"]]
    redis.answer(0, "a")
    assert [record.entry for record in await behind] == ["1-1"]
    assert not ahead.done()


async def test_a_read_that_fails_fails_for_those_that_it_was_for(redis: Redis, streams: Streams) -> None:
    (failed,) = reading(streams, place("a"))
    await redis.asked(1)
    (other,) = reading(streams, place("b"))
    await redis.asked(2)
    redis.reads[0][1].set_exception(RedisUnavailable("gone"))
    with pytest.raises(RedisUnavailable, match="gone"):
        await failed
    redis.answer(1, "b")
    assert len(await other) == 1
