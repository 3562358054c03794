"""Workers in front of OpenAI-compatible servers: what a client sees when those fail, and when they don't."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import wait_until
from odd_server import OddServer, Request, hang, raw, status, token, whole
from stack_processes import Stack
from stoker import Client, InferenceRequest, InvalidRequest, Restarted, UnsupportedParameter


@pytest.fixture
def server() -> Iterator[OddServer]:
    server = OddServer(whole("one ", "two"))
    yield server
    server.end()


@pytest.fixture
def other() -> Iterator[OddServer]:
    server = OddServer(whole("one ", "two"))
    yield server
    server.end()


def front(stack: Stack, name: str, server: OddServer, *options: str) -> None:
    """Start a worker in front of a server."""
    stack.worker(name, "--engine", "openai", "--base-url", server.url, *options, model="m")


def available(client: Client) -> set[str]:
    return {worker.worker for worker in client.workers() if worker.available}


def ends(stack: Stack, request_id: str) -> int:
    """How often a request ended, by the history."""
    lines = [line for _, fields in stack.redis.xrange(stack.keys.events) for line in fields["lines"].split("\n")]
    return sum(line.split(" ")[:2] == [request_id, "end"] for line in lines)


def test_an_answer_is_text_with_the_servers_usage_and_no_token_ids(
    stack: Stack, client: Client, server: OddServer
) -> None:
    stack.scheduler()
    front(stack, "worker", server)
    response = client.submit(prompt="Hi", max_tokens=8).result(timeout=30)
    assert (response.text, response.token_ids, response.finish_reason) == ("one two", None, "stop")
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (3, 2)
    pieces = list(client.stream(prompt="Hi", max_tokens=8))
    assert "".join(piece.text for piece in pieces) == "one two"
    assert [piece.token_ids for piece in pieces] == [[]] * len(pieces)


def test_requests_of_a_server_that_dies_in_mid_answer_run_on_another_once(
    stack: Stack, client: Client, server: OddServer, other: OddServer
) -> None:
    server.default = raw(token("lost "), hang=True)
    stack.scheduler()
    front(stack, "doomed", server)
    wait_until(lambda: available(client) == {"doomed"}, 20, what="its server was found")
    requests = [InferenceRequest(prompt=f"Hi {n}", max_tokens=8, stream=True) for n in range(6)]
    jobs = client.submit_many(requests)
    streams = [job.stream() for job in jobs]
    assert {next(stream).text for stream in streams} == {"lost "}
    front(stack, "well", other)
    server.vanish()

    responses = [job.result(timeout=60) for job in jobs]
    assert {(response.text, response.worker) for response in responses} == {("one two", "well")}
    assert [ends(stack, job.id) for job in jobs] == [1] * 6
    assert sorted(request.body["prompt"] for request in other.posts) == [f"Hi {n}" for n in range(6)]
    for stream in streams:
        first, *rest = list(stream)
        assert isinstance(first, Restarted)
        assert "".join(piece.text for piece in [first, *rest]) == "one two"
    assert available(client) == {"well"}


def test_a_server_that_is_down_burns_no_attempts_however_long_it_lasts(
    stack: Stack, client: Client, server: OddServer
) -> None:
    stack.scheduler()
    front(stack, "worker", server)
    wait_until(lambda: available(client) == {"worker"}, 20, what="its server was found")
    inc = stack.incarnation("worker")
    server.vanish()
    jobs = client.submit_many([InferenceRequest(prompt="Hi", max_tokens=8) for _ in range(6)])
    wait_until(lambda: available(client) == set(), 20, what="the worker takes nothing more")
    wait_until(lambda: [job.status() for job in jobs] == ["queued"] * 6, 20, what="all were given back")
    flights = [stack.redis.get(stack.keys.flight(job.id)) for job in jobs]
    assert [flight.split("|")[4] for flight in flights if flight] == ["0"] * sum(map(bool, flights))
    server.listen()
    assert [job.result(timeout=30).text for job in jobs] == ["one two"] * 6
    assert (stack.incarnation("worker"), [worker.faults for worker in client.workers()]) == (inc, [0])


def test_a_worker_whose_server_is_not_up_yet_waits_for_it(stack: Stack, client: Client, server: OddServer) -> None:
    server.vanish()
    stack.scheduler()
    front(stack, "worker", server)
    job = client.submit(prompt="Hi", max_tokens=8)
    # What was sent before the first beat that says so comes back.
    wait_until(lambda: available(client) == set() and job.status() == "queued", 20, what="it waits in the queue")
    server.listen()
    assert job.result(timeout=30).text == "one two"


def test_a_400_fails_one_request_and_counts_against_nobody(stack: Stack, client: Client, server: OddServer) -> None:
    stack.scheduler()
    front(stack, "worker", server)
    server.scripts = [status(400, '{"error": {"message": "prompt is too long"}}')]
    with pytest.raises(InvalidRequest, match="prompt is too long"):
        client.submit(prompt="Hi", max_tokens=8).result(timeout=30)
    assert client.submit(prompt="Hi", max_tokens=8).result(timeout=30).text == "one two"
    (worker,) = client.workers()
    assert worker.faults == 0


def test_a_500_is_tried_again_and_counts_against_the_worker(stack: Stack, client: Client, server: OddServer) -> None:
    stack.scheduler()
    front(stack, "worker", server)
    server.scripts = [status(500)]
    assert client.submit(prompt="Hi", max_tokens=8).result(timeout=30).attempts == 2
    wait_until(lambda: [worker.faults for worker in client.workers()] == [1], what="the fault is counted")


def test_cancel_closes_the_connection_to_the_server(stack: Stack, client: Client, server: OddServer) -> None:
    server.default = raw(token("one "), hang=True)
    stack.scheduler()
    front(stack, "worker", server)
    job = client.submit(prompt="Hi", max_tokens=8)
    wait_until(lambda: server.posts, 20, what="the request is at the server")
    assert not server.posts[0].closed.is_set()
    job.cancel()
    assert server.posts[0].closed.wait(10)


def test_parameters_that_servers_may_ignore_are_refused_by_name(
    stack: Stack, client: Client, server: OddServer
) -> None:
    stack.scheduler()
    front(stack, "worker", server)
    for field, value in {"top_k": 5, "ignore_eos": True, "prompt_tokens": [1, 2]}.items():
        prompt = {} if field == "prompt_tokens" else {"prompt": "Hi"}
        with pytest.raises(UnsupportedParameter, match=field):
            client.submit(**prompt, **{field: value}).result(timeout=30)
    assert server.posts == []


def test_a_worker_takes_as_many_as_its_concurrency(stack: Stack, client: Client, server: OddServer) -> None:
    server.default = hang
    stack.scheduler()
    front(stack, "worker", server, "--max-num-seqs", "2")
    jobs = client.submit_many([InferenceRequest(prompt="Hi", max_tokens=8) for _ in range(5)])
    wait_until(lambda: len(server.posts) == 2, 20, what="two are at the server")
    assert [job.status() for job in jobs].count("queued") == 3
    server.default = whole("done")
    for job in jobs:
        job.cancel()
    assert client.submit(prompt="Hi", max_tokens=8).result(timeout=30).text == "done"


def test_the_key_stands_in_no_argument_and_no_log(
    stack: Stack, client: Client, server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    server.scripts = [status(500, '{"error": "sk-very-secret"}')]
    stack.scheduler()
    process = stack.worker(
        "worker", "--engine", "openai", "--base-url", server.url, "--api-key-env", "MY_KEY", model="m"
    )
    assert client.submit(prompt="A prompt", max_tokens=8).result(timeout=30).text == "one two"
    assert server.posts[-1].headers["authorization"] == "Bearer sk-very-secret"
    for pid in (process.pid, stack.child_of(process)):
        assert "sk-very-secret" not in Path(f"/proc/{pid}/cmdline").read_text()
    assert "sk-very-secret" not in stack.log("worker")
    assert "A prompt" not in stack.log("worker")


@pytest.mark.measured
def test_sigterm_finishes_what_is_at_the_server_and_leaves(stack: Stack, client: Client, server: OddServer) -> None:
    go_on = threading.Event()

    async def slowly(writer: asyncio.StreamWriter, request: Request) -> None:
        await asyncio.to_thread(go_on.wait, 60)
        await whole("done")(writer, request)

    server.default = slowly
    stack.scheduler()
    process = stack.worker("worker", "--engine", "openai", "--base-url", server.url, model="m")
    job = client.submit(prompt="Hi", max_tokens=8)
    wait_until(lambda: server.posts, 20, what="the request is at the server")
    process.terminate()
    wait_until(lambda: available(client) == set(), 20, what="the worker takes nothing more")
    go_on.set()
    assert job.result(timeout=30).text == "done"
    assert process.wait(30) == 0
    assert "child died" not in stack.log("worker")
