"""What both clients refuse before it is sent, with the field, its limit and what was given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import redis

from bad_input.requests import BAD, KINDS
from stoker import AsyncClient, Client, Config
from stoker.errors import IdempotencyConflict, InvalidRequest, QueueFull, RequestFailed, ResultTimeout
from stoker.store.keys import Keys

CARD = {"vocabulary": 1000, "context": 64}
rows = pytest.mark.parametrize(("fields", "field", "limit", "value"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])


def check(error: InvalidRequest, field: str, limit: str, value: object) -> None:
    assert type(error) is KINDS.get(field, InvalidRequest)
    assert (error.field, limit in error.limit) == (field, True), error
    assert value is None or error.value == value or (error.value != error.value and value != value)
    assert type(value) in (type(None), type(error.value))
    assert str(error).startswith(f"{field}: ")
    assert len(str(error)) < 300


@rows
def test_a_bad_request_is_refused_with_its_field_its_limit_and_what_was_given(
    client: Client, fields: dict[str, Any], field: str, limit: str, value: object
) -> None:
    client.set_model("m", CARD)
    with pytest.raises(InvalidRequest) as caught:
        client.submit(**fields)
    check(caught.value, field, limit, value)
    assert client.stats()["counts"]["submitted"] == 0


@rows
async def test_the_awaited_client_refuses_the_same(
    aclient: AsyncClient, fields: dict[str, Any], field: str, limit: str, value: object
) -> None:
    await aclient.set_model("m", CARD)
    with pytest.raises(InvalidRequest) as caught:
        await aclient.submit(**fields)
    check(caught.value, field, limit, value)
    assert (await aclient.stats())["counts"]["submitted"] == 0


def test_one_bad_request_among_many_is_its_own_error_and_the_others_are_accepted(client: Client) -> None:
    first, bad, last = client.submit_many(["a", [1, -2], "b"])
    assert isinstance(bad, InvalidRequest)
    assert bad.field == "prompt_tokens"
    assert client.stats()["counts"]["submitted"] == 2
    assert {first.status(), last.status()} == {"queued"}  # type: ignore[union-attr]  # both are jobs


def test_a_queue_with_an_impossible_name_is_refused_at_once() -> None:
    for make in (Client, AsyncClient):
        with pytest.raises(InvalidRequest, match="queue: must match"):
            make("redis://127.0.0.1:1/0", queue="a:b")


def test_an_impossible_id_is_refused_when_it_is_asked_for(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"request_id: must match .*, got 'a:b'"):
        client.job("a:b")


def test_the_same_id_with_another_payload_is_a_conflict_and_the_first_goes_on(client: Client) -> None:
    job = client.submit("one", request_id="a")
    with pytest.raises(IdempotencyConflict, match="'a' is taken by a request with other content"):
        client.submit("two", request_id="a")
    assert job.status() == "queued"
    assert client.stats()["counts"]["submitted"] == 1


async def test_the_awaited_client_says_the_same_of_a_conflict(aclient: AsyncClient) -> None:
    await aclient.submit("one", request_id="a")
    with pytest.raises(IdempotencyConflict, match="'a' is taken"):
        await aclient.submit("two", request_id="a")


def test_a_full_queue_says_why(config: Config) -> None:
    with Client(config=config.model_copy(update={"max_waiting": 1})) as client:
        client.submit("one")
        with pytest.raises(QueueFull, match="queue 'default' is full; no worker is alive") as caught:
            client.submit("two")
    assert 0 < caught.value.retry_after <= 60


async def test_the_awaited_client_says_the_same_of_a_full_queue(config: Config) -> None:
    async with AsyncClient(config=config.model_copy(update={"max_waiting": 1})) as client:
        await client.submit("one")
        with pytest.raises(QueueFull, match="is full"):
            await client.submit("two")


@pytest.mark.parametrize("timeout", [0, -1, math.nan], ids=["zero", "negative", "NaN"])
def test_waiting_for_no_time_does_not_wait(client: Client, timeout: float) -> None:
    with pytest.raises(ResultTimeout):
        client.submit("one").result(timeout=timeout)


def test_waiting_for_ever_is_no_error(client: Client) -> None:
    job = client.submit("one")
    assert job.cancel()
    assert client.job(job.id).response(timeout=math.inf).status == "cancelled"


@pytest.mark.parametrize(
    "result",
    [
        b"succeeded|n|d|a|" + b"9" * 400 + b"|2|3|1||one:1-x||0|",
        b"succeeded|n|d|a|1|2|3|1||one:1-x||1|\x90",
        b"succeeded|n|d|a|1|2|3|1||one:1-x||10|\x81\xa4text\xcd\x12\x34\xc0",
        b"failed|n|d|a|1|2|3|1||one:1-x||8|\x81\xa5field\x01",
    ],
    ids=["a time without end", "no map", "a number for the text", "a field that is no name"],
)
def test_a_result_that_cannot_be_read_is_that_requests_error_alone(
    client: Client, redis_url: str, result: bytes
) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.set(Keys("default").result("a"), result)
    response = client.job("a").response(timeout=10)
    assert isinstance(response.error, RequestFailed)
    assert "its result cannot be read" in str(response.error)
