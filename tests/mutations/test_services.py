"""What the services owe the protocol beside the scripts: calls repeated, entries read again, deaths told in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import exceptions

from helpers import wait_until
from mutations.conftest import INC
from stoker import Config
from stoker.every import Outage
from stoker.store import reads, scripts
from stoker.store.connection import AsyncStore, Store
from stoker.store.keys import Keys
from stoker.store.records import Waiting
from stoker_scheduler.leader import Leadership
from stoker_scheduler.service import Scheduler
from stoker_workers.child import Child
from stoker_workers.engines.sim import SimEngine, load_profile
from stoker_workers.intake import Row
from stoker_workers.messages import EngineOptions, Loaded
from stoker_workers.reader import Reader
from stoker_workers.reporter import Reporter
from stoker_workers.session import Session
from stoker_workers.supervisor import Life, Supervisor


def dispatch(store: Store, config: Config) -> str:
    """Lead, and hand the request over; gives its delivery."""
    token = store.run(scripts.lead("s:1", "", "g", config)).token
    waiting = Waiting("r", "normal", "r:3:4:x", 0.0, 3, 4, True)
    return store.run(scripts.dispatch(token, 1, INC, [(waiting, 7)])).delivery


# --- the child ------------------------------------------------------------------------------------------------------


def test_a_doorbell_whose_reply_was_lost_is_read_again(store: Store, config: Config) -> None:
    dispatch(store, config)
    assert store.read(reads.doorbells(store.keys, INC, own=False, block_ms=20, count=16))
    taken: list[Row] = []
    outage = Outage()
    session = Session(INC, Reporter(store, INC, config, lambda keys: None, outage))
    engine = SimEngine(load_profile("zero"))
    reader = Reader(config, engine, lambda *_: None, lambda _, rows: taken.extend(rows), lambda *_: None, outage)
    thread = threading.Thread(target=reader.read, args=(session,))
    thread.start()
    with contextlib.suppress(pytest.fail.Exception):
        wait_until(lambda: taken, 2)
    session.reading = False
    thread.join()
    session.reporter.finish()
    assert [row.payload.id for row in taken] == ["r"]


def test_a_begin_whose_reply_was_lost_is_repeated(
    store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch(store, config)
    call, begins = Store._call, []

    def lose_the_first(self: Store, made: scripts.Call[Any]) -> list[Any]:
        reply = call(self, made)
        if made.script == "begin":
            begins.append(made)
            if len(begins) == 1:
                raise exceptions.TimeoutError("the reply was lost")
        return reply

    monkeypatch.setattr(Store, "_call", lose_the_first)
    taken: list[Row] = []
    outage = Outage()
    session = Session(INC, Reporter(store, INC, config, lambda keys: None, outage))
    engine = SimEngine(load_profile("zero"))
    reader = Reader(config, engine, lambda *_: None, lambda _, rows: taken.extend(rows), lambda *_: None, outage)
    thread = threading.Thread(target=reader.read, args=(session,))
    thread.start()
    with contextlib.suppress(pytest.fail.Exception):
        wait_until(lambda: taken, 2)
    session.open = session.reading = False
    thread.join()
    session.reporter.finish()
    assert [row.payload.id for row in taken] == ["r"]
    assert len(begins) == 2


def test_a_hand_back_is_repeated_until_it_is_answered(
    store: Store, config: Config, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = dispatch(store, config)
    client = redis.Redis.from_url(redis_url, protocol=3)
    connect, calls = client.connection_pool.get_connection, iter(["refused"])

    def refused_once() -> Any:
        if next(calls, None):
            raise exceptions.ConnectionError("refused")
        return connect()

    monkeypatch.setattr(client.connection_pool, "get_connection", refused_once)
    reporter = Reporter(Store(config, client=client), INC, config, lambda keys: None, Outage())
    reporter.hand_back([("r", delivery)])
    reporter.finish()
    assert lane(redis_url, store.keys) == [b"r:3:4:x"]


def lane(redis_url: str, keys: Keys) -> list[bytes]:
    with redis.Redis.from_url(redis_url) as client:
        return list(client.zrange(f"{keys.prefix}lane:normal", 0, -1))


# --- the scheduler --------------------------------------------------------------------------------------------------


def test_a_dispatch_without_an_answer_is_repeated_with_its_number(
    store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[object] = []
    call = AsyncStore._call

    async def lose_the_first(self: AsyncStore, made: scripts.Call[Any]) -> list[Any]:
        reply = await call(self, made)
        if made.script == "dispatch":
            numbers.append(made.args[1])
            if len(numbers) == 1:
                raise exceptions.TimeoutError("the reply was lost")
        return reply

    monkeypatch.setattr(AsyncStore, "_call", lose_the_first)

    async def two_ticks() -> None:
        scheduler = Scheduler(config)
        await scheduler._leadership.tick()
        with contextlib.suppress(ConnectionError):
            await scheduler.tick()
        await scheduler.tick()
        await scheduler._store.close()
        await scheduler._bell.close()

    asyncio.run(two_ticks())
    assert numbers == [1, 1]


def test_a_deposed_leader_claims_under_another_nonce(config: Config, redis_url: str) -> None:
    async def tokens() -> list[str]:
        store = AsyncStore(config)
        leader = Leadership(store, config)
        await leader.tick()
        first = leader.token
        with redis.Redis.from_url(redis_url) as client:
            client.hset(store.keys.leader, "token", "9:other:nonce")
            await leader.tick()
            client.hset(store.keys.leader, "until", "0")
        await leader.tick()
        await store.close()
        return [first, leader.token]

    first, second = asyncio.run(tokens())
    assert first.split(":")[2] != second.split(":")[2]


# --- the supervisor -------------------------------------------------------------------------------------------------


def test_a_worker_whose_name_was_taken_ends(config: Config) -> None:
    async def told() -> Supervisor:
        options = EngineOptions(model="sim")
        supervisor = Supervisor(config, options, name="w")
        child = Child(config, options, INC, "error")
        life = Life(supervisor, child, "g", Loaded({"name": "sim", "mode": "continuous"}, {"tokens": 1, "rows": 1}))
        await life._heed(scripts.Beaten("VOID", detail="superseded"))
        await supervisor.store.close()
        child.board.close()
        return supervisor

    assert asyncio.run(told()).stopping.is_set()


def test_a_death_is_reported_before_the_next_child_registers(config: Config, redis_url: str) -> None:
    keys = Keys(config.queue)

    async def bury_one() -> None:
        supervisor = Supervisor(config, EngineOptions(model="sim"), name="w", log_level="error")
        work = asyncio.create_task(supervisor.run())
        await until(lambda: words(redis_url, keys).count("register") == 1, work)
        [child] = model_processes()
        os.kill(child, signal.SIGKILL)
        await until(lambda: words(redis_url, keys).count("register") == 2, work)
        supervisor.stop()
        await work

    asyncio.run(bury_one())
    told = words(redis_url, keys)
    assert told[: told.index("register", told.index("register") + 1)].count("report") == 1


async def until(condition: Any, work: asyncio.Task[None]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            assert not work.done(), work
            await asyncio.sleep(0.02)


def words(redis_url: str, keys: Keys) -> list[str]:
    """What the history says of workers: the first word of each line."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        entries = client.xrange(keys.events)
    return [line.split(" ")[1] for _, fields in entries for line in fields["lines"].split("\n")]


def model_processes() -> list[int]:
    """The children of this process that run a model."""
    children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
    return [int(pid) for pid in children if b"stoker_workers.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
