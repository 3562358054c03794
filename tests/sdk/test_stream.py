"""Answers token by token."""

from __future__ import annotations

import pytest

from helpers import wait_until
from sdk.fleet import Fleet
from stoker.client import Client
from stoker.errors import RequestCancelled, RequestFailed, RequestLost, ResultTimeout
from stoker.request import Chunk, Restarted

TOKENS = {"prompt_tokens": [1, 2, 3], "max_tokens": 64}
CHUNKS = [Chunk("2 ", [2], 1, 0), Chunk("3 ", [3], 1, 1), Chunk("4 ", [4], 1, 2)]


def test_an_answer_comes_token_by_token(client: Client, fleet: Fleet) -> None:
    assert list(client.stream(**TOKENS)) == CHUNKS


def test_the_first_token_does_not_wait_for_the_last(client: Client, fleet: Fleet) -> None:
    chunks = client.stream(prompt="one two three", metadata={"do": "first"})
    assert next(chunks) == Chunk("ONE ", [3], 1, 0)
    wait_until(lambda: fleet.held, what="the request still runs")
    fleet.release()
    assert [chunk.text for chunk in chunks] == ["TWO THREE "]  # the worker never published these


def test_an_answer_that_begins_anew_says_so(client: Client, fleet: Fleet) -> None:
    chunks = list(client.stream(**TOKENS, metadata={"do": "restart"}))
    assert [type(chunk) for chunk in chunks] == [Chunk, Chunk, Restarted, Chunk, Chunk]
    assert [chunk.text for chunk in chunks] == ["2 ", "3 ", "2 ", "3 ", "4 "]
    assert [(chunk.attempt, chunk.offset) for chunk in chunks[2:]] == [(2, 0), (2, 1), (2, 2)]


def test_a_retry_before_the_first_token_goes_unseen(client: Client, fleet: Fleet) -> None:
    chunks = list(client.stream(**TOKENS, metadata={"do": "retry"}))
    assert [(type(chunk), chunk.text) for chunk in chunks] == [(Chunk, "2 "), (Chunk, "3 "), (Chunk, "4 ")]


def test_a_failure_comes_after_what_was_published(client: Client, fleet: Fleet) -> None:
    chunks = client.stream(**TOKENS, metadata={"do": "fail"})
    assert [next(chunks).text for _ in range(3)] == ["2 ", "3 ", "4 "]
    with pytest.raises(RequestFailed, match="it broke"):
        next(chunks)


def test_leaving_the_loop_cancels_the_request(client: Client, fleet: Fleet) -> None:
    for _ in client.stream(**TOKENS, request_id="left", metadata={"do": "first"}):
        break
    assert client.job("left").status() == "cancelled"
    wait_until(lambda: not fleet.held)


def test_leaving_the_stream_of_a_job_does_not(client: Client, fleet: Fleet) -> None:
    job = client.submit(**TOKENS, stream=True, metadata={"do": "first"})
    for _ in job.stream():
        break
    assert job.status() == "running"


def test_a_stream_can_be_read_again_and_by_others(client: Client, fleet: Fleet) -> None:
    job = client.submit(**TOKENS, stream=True)
    assert list(job.stream()) == list(job.stream()) == CHUNKS
    assert job.result(timeout=5).text == "2 3 4 "
    with Client(config=client.config) as other:
        assert list(other.job(job.id).stream()) == CHUNKS


def test_what_was_not_submitted_as_a_stream_comes_in_one_piece(client: Client, fleet: Fleet) -> None:
    assert list(client.submit(**TOKENS).stream()) == [Chunk("2 3 4 ", [2, 3, 4], 1, 0)]


def test_a_stream_ends_with_its_timeout(client: Client) -> None:
    job = client.submit(**TOKENS, stream=True)
    with pytest.raises(ResultTimeout):
        next(job.stream(timeout=0.05))


def test_a_cancelled_stream_raises(client: Client, fleet: Fleet) -> None:
    job = client.submit(**TOKENS, stream=True, metadata={"do": "first"})
    chunks = job.stream(timeout=10)
    next(chunks)
    job.cancel()
    with pytest.raises(RequestCancelled):
        next(chunks)


def test_the_stream_of_an_id_that_nobody_knows_is_lost(client: Client) -> None:
    with pytest.raises(RequestLost):
        next(client.job("nobody").stream(timeout=10))
