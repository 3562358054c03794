"""Many requests through `map` and `as_completed`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from helpers import wait_until
from sdk.fleet import Fleet
from stoker.client import Client
from stoker.config import Config
from stoker.errors import IdempotencyConflict, InvalidRequest, RequestCancelled, RequestFailed, ResultTimeout
from stoker.request import InferenceRequest

SMALL = {"in_flight": 8, "group": 4, "heartbeat_ms": 100}
HOLD = {"do": "hold"}


def test_responses_come_in_order(client: Client, fleet: Fleet) -> None:
    found = [response.text for response in client.map((f"p {i}" for i in range(1500)), max_tokens=32)]
    assert found == [f"P {i} " for i in range(1500)]


def test_items_are_prompts_token_lists_or_requests(client: Client, fleet: Fleet) -> None:
    items = ["a b", [1, 2], InferenceRequest(prompt="c d", request_id="mine")]
    responses = list(client.map(items, max_tokens=1))
    assert [response.text for response in responses] == ["A ", "2 ", "C "]
    assert responses[2].request_id == "mine"


def test_nothing_maps_to_nothing(client: Client) -> None:
    assert list(client.map([])) == []


def test_errors_are_responses_in_their_places(client: Client, fleet: Fleet) -> None:
    same = InferenceRequest(prompt="one", request_id="same", metadata=HOLD)
    client.submit(same)
    items = [
        "a",
        "",
        InferenceRequest(prompt="two", request_id="same"),
        InferenceRequest(prompt="b", metadata={"do": "fail"}),
    ]
    ok, empty, conflict, failed = client.map(items)
    assert (ok.text, ok.error) == ("A ", None)
    assert (empty.status, type(empty.error)) == ("refused", InvalidRequest)
    assert (conflict.status, type(conflict.error), conflict.request_id) == ("refused", IdempotencyConflict, "same")
    assert (failed.status, type(failed.error)) == ("failed", RequestFailed)


def test_a_keyword_that_no_request_has_is_refused_at_once(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="did you mean max_tokens"):
        next(client.map(["a"], max_token=3))


def test_what_is_known_already_is_not_run_again(client: Client, fleet: Fleet) -> None:
    requests = [InferenceRequest(prompt=f"{i}", request_id=f"r{i}") for i in range(5)]
    first = list(client.map(requests))
    with Client(config=client.config) as other:
        assert list(other.map(requests)) == first
        assert other.stats()["counts"]["submitted"] == 5


def test_so_many_are_in_flight_and_no_more_are_taken(redis_url: str) -> None:
    config = Config(redis_url=redis_url, **SMALL)
    taken = []

    def endless() -> Iterator[str]:
        for i in itertools.count():
            taken.append(i)
            yield str(i)

    with Fleet(config) as fleet, Client(config=config) as client:
        for i, response in enumerate(itertools.islice(client.map(endless()), 50)):
            assert response.text == f"{i} "
            assert len(taken) <= i + 1 + config.in_flight
        assert fleet.most_waiting <= config.in_flight


def test_a_slow_reader_does_not_keep_the_next_from_being_sent(redis_url: str) -> None:
    config = Config(redis_url=redis_url, **SMALL)
    with Fleet(config), Client(config=config) as client:
        responses = client.map(map(str, range(100)))
        next(responses)
        wait_until(lambda: client.stats()["counts"]["succeeded"] == config.in_flight)
        assert [next(responses).text for _ in range(3)] == ["1 ", "2 ", "3 "]
        assert client.stats()["counts"]["submitted"] > config.in_flight


def test_a_slow_source_does_not_hold_up_what_is_there(redis_url: str) -> None:
    config = Config(redis_url=redis_url, heartbeat_ms=100)
    with Fleet(config), Client(config=config) as client, Client(config=config) as other:

        def slow() -> Iterator[InferenceRequest]:
            yield InferenceRequest(prompt="first", request_id="first")
            # A group has room for more, but this comes later.
            started = time.monotonic()
            wait_until(lambda: time.monotonic() - started > 0.1)
            yield InferenceRequest(prompt="second", request_id="second")
            wait_until(lambda: other.job("second").status() == "succeeded")
            yield InferenceRequest(prompt="third", request_id="third")

        assert [response.text for response in client.map(slow())] == ["FIRST ", "SECOND ", "THIRD "]


def test_a_full_queue_is_waited_out(redis_url: str) -> None:
    config = Config(redis_url=redis_url, max_waiting=3, **SMALL)
    with Fleet(config) as fleet, Client(config=config) as client:
        assert [response.text for response in client.map(map(str, range(40)))] == [f"{i} " for i in range(40)]
        assert fleet.most_waiting <= 3


def test_ten_thousand_requests_are_few_calls(client: Client, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    post = client._link.store.post
    monkeypatch.setattr(client._link.store, "post", lambda call: calls.append(call.script) or post(call))
    assert sum(response.error is None for response in client.map(["hi"] * 10_000)) == 10_000
    # 20 full groups, and a few more where a slow fleet left room for less than a group.
    assert set(calls) == {"submit"}
    assert len(calls) <= 30


def test_responses_come_as_they_complete(client: Client, fleet: Fleet) -> None:
    slow = client.submit(prompt="slow", metadata=HOLD)
    wait_until(lambda: fleet.held)
    quick = [client.submit(prompt=f"q{i}") for i in range(3)]
    responses = client.as_completed([slow, *quick], timeout=10)
    assert sorted(next(responses).text for _ in range(3)) == ["Q0 ", "Q1 ", "Q2 "]
    fleet.release()
    assert [response.text for response in responses] == ["SLOW "]


def test_what_submit_many_gave_can_be_waited_for(client: Client, fleet: Fleet) -> None:
    jobs = client.submit_many(["a", "", "b"])
    responses = list(client.as_completed(jobs, timeout=10))
    assert responses[0].status == "refused"
    assert sorted(response.text for response in responses[1:]) == ["A ", "B "]


def test_jobs_of_others_and_ended_ones_complete_too(client: Client, fleet: Fleet) -> None:
    with Client(config=client.config) as other:
        ended, waiting = other.submit(prompt="a"), other.submit(prompt="b", metadata=HOLD)
        ended.result(timeout=5)
        jobs = [ended, client.job(waiting.id), other.job("nobody"), client.submit(prompt="c"), ended]
        responses = client.as_completed(jobs, timeout=20)
        found = [next(responses) for _ in range(4)]
        assert sorted(response.text for response in found) == ["", "A ", "A ", "C "]
        fleet.release()
        assert next(responses).text == "B "


def test_a_response_comes_once_though_its_reader_was_woken_twice(client: Client, fleet: Fleet) -> None:
    first, held = client.submit(prompt="a"), client.submit(prompt="b", metadata=HOLD)
    wait_until(lambda: fleet.held)
    fleet.open.clear()
    last = client.submit(prompt="c")
    responses = client.as_completed([first, held, last], timeout=10)
    assert next(responses).text == "A "
    client._link.state.book.wake_all()
    fleet.release()
    held.result(timeout=5)
    assert next(responses).text == "B "
    fleet.open.set()
    assert [response.text for response in responses] == ["C "]


def test_not_all_completed_in_time_is_an_error(client: Client, fleet: Fleet) -> None:
    held, quick = client.submit(prompt="a", metadata=HOLD), client.submit(prompt="b")
    responses = client.as_completed([held, quick], timeout=1)
    assert next(responses).text == "B "
    with pytest.raises(ResultTimeout) as caught:
        next(responses)
    assert caught.value.request_id == held.id


def test_what_is_cancelled_completes(client: Client) -> None:
    job = client.submit(prompt="a")
    job.cancel()
    [response] = client.as_completed([job], timeout=5)
    assert isinstance(response.error, RequestCancelled)
