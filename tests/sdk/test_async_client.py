"""The awaited client has the verbs of the other one."""

from __future__ import annotations

import asyncio
import inspect
import time
from types import SimpleNamespace

import pytest
import redis

from helpers import wait_until
from sdk.fleet import WORKER, Fleet, cut_readers
from stoker._async_link import Streams
from stoker.async_client import AsyncClient, AsyncJob
from stoker.client import Client, Job
from stoker.config import Config
from stoker.errors import (
    IdempotencyConflict,
    InvalidRequest,
    QueueFull,
    RedisUnavailable,
    RequestCancelled,
    RequestFailed,
    RequestLost,
    ResultTimeout,
    StokerError,
)
from stoker.request import Chunk, InferenceRequest, Restarted

TOKENS = {"prompt_tokens": [1, 2, 3], "max_tokens": 64}
HOLD = {"do": "hold"}


async def until(predicate: object, what: str = "") -> None:
    """Wait beside the event loop."""
    await asyncio.to_thread(wait_until, predicate, what=what)


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Job, AsyncJob)], ids=["clients", "jobs"])
def test_both_have_the_same_verbs_with_the_same_arguments(one: type, other: type) -> None:
    def verbs(kind: type) -> dict[str, list[str]]:
        members = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in members if not name.startswith("_")}

    assert verbs(one) == verbs(other)


async def test_a_result_is_awaited(aclient: AsyncClient, fleet: Fleet) -> None:
    job = await aclient.submit(prompt="hello there")
    response = await job.result(timeout=5)
    assert (response.text, response.worker) == ("HELLO THERE ", WORKER)
    assert await job.status() == "succeeded"
    assert await aclient.job(job.id).result(timeout=5) == response
    assert job.nonce
    assert (repr(job), repr(aclient)) == (f"<stoker.AsyncJob {job.id}>", "<stoker.AsyncClient of queue 'default'>")


async def test_those_who_begin_together_ask_once_what_the_queue_is(aclient: AsyncClient, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as server:

        def asked() -> list[int]:
            found = server.info("commandstats")
            return [found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("info", "ping")]

        before = asked()
        await asyncio.gather(*(aclient.submit(prompt=f"n {number}") for number in range(50)))
        # With this test's own INFO; the PING goes with the question how many shards there are.
        assert [after - one for after, one in zip(asked(), before, strict=True)] == [2, 1]


async def test_who_gives_up_while_facts_are_read_takes_them_from_nobody(aclient: AsyncClient, redis_url: str) -> None:
    first = asyncio.ensure_future(aclient.submit(prompt="given up"))
    second = asyncio.ensure_future(aclient.submit(prompt="waited for"))
    await asyncio.sleep(0)
    first.cancel()
    assert await (await second).status() == "queued"


async def test_who_submits_while_the_client_closes_is_told_so(aclient: AsyncClient, redis_url: str) -> None:
    submitting = asyncio.ensure_future(aclient.submit(prompt="late"))
    await asyncio.sleep(0)
    await aclient.close()
    with pytest.raises(StokerError, match="this client is closed"):
        await submitting


async def test_one_reader_serves_any_number_of_awaits(aclient: AsyncClient, fleet: Fleet) -> None:
    async def ask(number: int) -> str:
        job = await aclient.submit(prompt=f"n {number}")
        return (await job.result(timeout=20)).text

    found = await asyncio.gather(*(ask(number) for number in range(500)))
    assert found == [f"N {number} " for number in range(500)]
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert [name for name in names if name.startswith("stoker")] == ["stoker-wakeups"]


async def test_what_is_submitted_while_a_call_is_in_flight_leaves_together(aclient: AsyncClient, fleet: Fleet) -> None:
    await aclient.submit(prompt="the queue is known")
    calls: list[str] = []
    aclient._here().store.timed = lambda script, _seconds: calls.append(script)
    jobs = await asyncio.gather(*(aclient.submit(prompt=f"n {number}") for number in range(100)))
    assert len({job.id for job in jobs}) == 100
    assert calls.count("submit") <= 2


async def test_a_submit_that_is_given_up_takes_none_of_the_others_along(aclient: AsyncClient, fleet: Fleet) -> None:
    tasks = [asyncio.create_task(aclient.submit(prompt=f"n {number}")) for number in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(job, AsyncJob) for job in found] == [number != 3 for number in range(10)]
    assert (await found[9].result(timeout=20)).text == "N 9 "  # type: ignore[union-attr]  # it is no exception


async def test_errors_are_raised(aclient: AsyncClient, fleet: Fleet) -> None:
    with pytest.raises(InvalidRequest, match="max_tokens"):
        await aclient.submit(prompt="hi", max_tokens=0)
    await aclient.submit(prompt="hi", request_id="a")
    with pytest.raises(IdempotencyConflict):
        await aclient.submit(prompt="ho", request_id="a")
    with pytest.raises(RequestFailed):
        await (await aclient.submit(prompt="hi", metadata={"do": "fail"})).result(timeout=5)
    with pytest.raises(RequestLost):
        await aclient.job("nobody").result(timeout=5)
    with pytest.raises(ResultTimeout):
        await (await aclient.submit(prompt="hi", metadata=HOLD)).result(timeout=0.05)


async def test_many_are_submitted_and_complete(aclient: AsyncClient, fleet: Fleet) -> None:
    jobs = await aclient.submit_many(["a", "", "b"])
    assert isinstance(jobs[1], InvalidRequest)
    responses = [response async for response in aclient.as_completed(jobs, timeout=10)]
    assert [response.status for response in responses] == ["refused", "succeeded", "succeeded"]
    held = await aclient.submit(prompt="c", metadata=HOLD)
    with pytest.raises(ResultTimeout):
        [response async for response in aclient.as_completed([held], timeout=0.05)]


async def test_responses_of_a_map_come_in_order(aclient: AsyncClient, fleet: Fleet) -> None:
    items = [*(f"p {i}" for i in range(1200)), "", InferenceRequest(prompt="last")]
    responses = [response async for response in aclient.map(items, max_tokens=32)]
    assert [response.text for response in responses] == [*(f"P {i} " for i in range(1200)), "", "LAST "]
    assert isinstance(responses[1200].error, InvalidRequest)


async def test_a_full_queue_is_waited_out(redis_url: str) -> None:
    config = Config(redis_url=redis_url, heartbeat_ms=100, max_waiting=3, in_flight=8, group=4)
    async with AsyncClient(config=config) as client:
        await client.submit_many(["x"] * 3)
        with pytest.raises(QueueFull):
            await client.submit(prompt="y", block=True, block_timeout=0.1)
        with Fleet(config):
            job = await client.submit(prompt="y", block=True, block_timeout=20)
            assert (await job.result(timeout=5)).text == "Y "
            assert len([response async for response in client.map(map(str, range(30)))]) == 30


async def test_a_request_is_cancelled(aclient: AsyncClient, fleet: Fleet) -> None:
    job = await aclient.submit(prompt="hi", metadata=HOLD)
    assert await job.cancel() is True
    with pytest.raises(RequestCancelled):
        await job.result(timeout=5)


async def test_an_answer_comes_token_by_token(aclient: AsyncClient, fleet: Fleet) -> None:
    assert [chunk.text async for chunk in aclient.stream(**TOKENS)] == ["2 ", "3 ", "4 "]
    chunks = [chunk async for chunk in aclient.stream(**TOKENS, metadata={"do": "restart"})]
    assert [type(chunk) for chunk in chunks] == [Chunk, Chunk, Restarted, Chunk, Chunk]
    with pytest.raises(RequestFailed):
        [chunk async for chunk in aclient.stream(**TOKENS, metadata={"do": "fail"})]


async def test_more_streams_are_read_at_once_than_there_are_connections(aclient: AsyncClient, fleet: Fleet) -> None:
    async def read(number: int) -> str:
        return "".join([chunk.text async for chunk in aclient.stream(prompt=f"s {number}", metadata={"do": "first"})])

    reading = [asyncio.create_task(read(number)) for number in range(150)]
    await until(lambda: len(fleet.held) == 150)
    fleet.release()
    assert await asyncio.gather(*reading) == [f"S {number} " for number in range(150)]


async def test_two_who_read_one_stream_get_all_of_it(aclient: AsyncClient, fleet: Fleet) -> None:
    job = await aclient.submit(**TOKENS, stream=True, metadata={"do": "first"})
    early = job.stream(timeout=20)
    assert (await anext(early)).text == "2 "
    ahead = asyncio.create_task(anext(early))
    await asyncio.sleep(0)  # it waits for what comes next, and was there first
    late = [asyncio.create_task(anext(job.stream(timeout=5))) for _ in range(2)]
    assert [chunk.text for chunk in await asyncio.gather(*late)] == ["2 ", "2 "]
    await asyncio.to_thread(fleet.release)
    assert (await ahead).text == "3 4 "


async def test_leaving_a_stream_cancels_its_request(aclient: AsyncClient, fleet: Fleet) -> None:
    chunks = aclient.stream(**TOKENS, request_id="left", metadata={"do": "first"})
    await anext(chunks)
    await chunks.aclose()
    assert await aclient.job("left").status() == "cancelled"


async def test_cancelling_a_task_cancels_what_it_streams(aclient: AsyncClient, fleet: Fleet) -> None:
    async def read() -> None:
        async for _ in aclient.stream(**TOKENS, request_id="left", metadata=HOLD):
            pass

    task = asyncio.create_task(read())
    await until(lambda: fleet.held)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await aclient.job("left").status() == "cancelled"


async def test_a_large_result_and_a_lost_wake_up_arrive(aclient: AsyncClient, fleet: Fleet, redis_url: str) -> None:
    large = await aclient.submit(prompt="hi", metadata={"do": "large"})
    assert len((await large.result(timeout=5)).text) == 100_000
    job = await aclient.submit(prompt="hi", metadata=HOLD)
    with pytest.raises(ResultTimeout):
        await job.result(timeout=0.1)
    await asyncio.to_thread(cut_readers, redis_url)
    fleet.release()
    assert (await job.result(timeout=10)).text == "HI "


async def test_an_emptied_redis_has_lost_what_was_outstanding(aclient: AsyncClient, redis_url: str) -> None:
    job = await aclient.submit(prompt="hi")
    waiting = asyncio.create_task(job.result())
    await asyncio.sleep(0)
    with redis.Redis.from_url(redis_url) as server:
        server.flushall()
    started = time.monotonic()
    with pytest.raises(RequestLost):
        await waiting
    assert time.monotonic() - started < 2.5


async def test_a_server_that_is_away_is_an_error_in_bounded_time() -> None:
    async with AsyncClient("redis://127.0.0.1:1/0", config=Config(retry_timeout_s=0.2)) as client:
        started = time.monotonic()
        with pytest.raises(RedisUnavailable, match="connect: Redis at"):
            await client.submit(prompt="hi")
        with pytest.raises(RedisUnavailable, match="waiting for a result"):
            await client.job("a").result()
        with pytest.raises(RedisUnavailable):
            await anext(client.job("a").stream())
        assert time.monotonic() - started < 5


async def test_what_is_wrong_with_a_request_is_said_without_redis() -> None:
    async with AsyncClient(config=Config(redis_url="redis://127.0.0.1:1/0", retry_timeout_s=60)) as client:
        with pytest.raises(InvalidRequest, match="prompt"):
            await asyncio.wait_for(client.submit(""), 5)


async def test_closing_ends_who_waits_and_leaves_no_task(config: Config) -> None:
    client = AsyncClient(config=config)
    job = await client.submit(prompt="hi", stream=True)
    waiting = [asyncio.create_task(job.result()), asyncio.create_task(anext(job.stream()))]
    loop = asyncio.get_running_loop()
    await until(lambda: {"stoker-wakeups", "stoker-first-tokens"} <= {t.get_name() for t in asyncio.all_tasks(loop)})
    await client.close()
    for task in waiting:
        with pytest.raises(StokerError, match="closed"):
            await task
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("stoker")]
    with pytest.raises(StokerError, match="closed"):
        await client.submit(prompt="hi")


def test_one_client_may_be_used_by_one_loop_after_another(config: Config, fleet: Fleet) -> None:
    client = AsyncClient(config=config)

    async def submit() -> AsyncJob:
        job = await client.submit(prompt="hi")
        await job.result(timeout=5)
        return await client.submit(prompt="ho")

    job = asyncio.run(submit())

    async def read() -> str:
        text = (await job.result(timeout=5)).text
        await client.close()
        return text

    assert asyncio.run(read()) == "HO "


async def test_operators_have_their_verbs(aclient: AsyncClient, fleet: Fleet) -> None:
    await (await aclient.submit(prompt="hi", request_id="dead", metadata={"do": "fail"})).response(timeout=5)
    assert (await aclient.stats())["counts"]["failed"] == 1
    assert [worker.worker for worker in await aclient.workers()] == [WORKER]
    assert (await aclient.queue_card()).identity == "echo-1"
    assert await aclient.drain(WORKER) is True
    assert await aclient.drain(WORKER, drained=False) is True
    await aclient.set_model("echo-1", {"name": "echo"})
    with pytest.raises(StokerError):
        await aclient.forget_model()
    assert [letter.id for letter in await aclient.dead_letters()] == ["dead"]
    again = await aclient.retry_dead("dead")
    assert (await again.response(timeout=5)).status == "failed"
    assert await aclient.purge_dead([again.id]) == 1


async def test_a_cancel_that_comes_together_with_tokens_still_cancels() -> None:
    config = Config(redis_url="redis://127.0.0.1:1/0")
    link = SimpleNamespace(
        loop=asyncio.get_running_loop(), state=SimpleNamespace(config=config), start=lambda *_: None, closed=False
    )
    streams, place = Streams(link), ("r", "n", "0")  # type: ignore[arg-type]  # the parts that are asked
    reading = asyncio.create_task(streams.read(place, 10_000))
    await asyncio.sleep(0)
    streams.wake_all()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
