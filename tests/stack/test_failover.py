"""What happens to requests whose worker dies."""

from __future__ import annotations

import os
import signal
import time

import pytest

from helpers import wait_until
from stack_processes import Stack
from stoker import Chunk, Client, InferenceRequest, Restarted

SLOW = ("--max-num-seqs", "8")


def requests(n: int, max_tokens: int) -> list[InferenceRequest]:
    return [InferenceRequest(prompt_tokens=[i + 1, 2, 3], max_tokens=max_tokens, stream=True) for i in range(n)]


def with_tokens_out(stack: Stack, name: str, ids: list[str], at_least: int = 4) -> set[str]:
    """Wait until a worker runs that many of the requests with published tokens; returns all that it runs then."""

    def started() -> bool:
        streams = {key.split(":")[3] for key in stack.redis.keys(f"{stack.keys.prefix}tokens:*")}
        return len(stack.running(name) & streams & set(ids)) >= at_least

    wait_until(started, 30, what=f"{at_least} requests of {name} have tokens out")
    return stack.running(name)


def test_requests_of_a_killed_child_are_answered_by_the_other_worker_once(stack: Stack, client: Client) -> None:
    stack.scheduler()
    victim = stack.worker("victim", *SLOW)
    stack.worker("other", *SLOW)
    jobs = client.submit_many(requests(12, 300))
    ids = [job.id for job in jobs]
    touched = with_tokens_out(stack, "victim", ids)

    inc, killed = stack.incarnation("victim"), time.monotonic()
    os.kill(stack.child_of(victim), signal.SIGKILL)
    wait_until(lambda: not stack.redis.hexists(stack.keys.inc, inc), 5, what="its work is taken back")
    eligible_again_s = time.monotonic() - killed

    responses = [job.result(timeout=60) for job in jobs]
    assert {response.request_id for response in responses if response.attempts == 2} == touched
    assert {response.attempts for response in responses if response.request_id not in touched} == {1}
    assert {len(response.token_ids) for response in responses} == {300}
    assert settled_once(stack, ids)
    # The promise is 0.5 s; this machine may be busy with other tests.
    assert eligible_again_s < 2


def test_readers_of_a_killed_childs_streams_see_each_token_once(stack: Stack, client: Client) -> None:
    stack.scheduler()
    victim = stack.worker("victim", *SLOW)
    jobs = client.submit_many(requests(4, 300))
    streams = [job.stream(timeout=60) for job in jobs]
    chunks = [[next(stream)] for stream in streams]

    os.kill(stack.child_of(victim), signal.SIGKILL)
    for seen, stream in zip(chunks, streams, strict=True):
        seen += stream

    undisturbed = [job.result(timeout=60) for job in client.submit_many(requests(4, 300))]
    for seen, job, wanted in zip(chunks, jobs, undisturbed, strict=True):
        assert gapless(seen)
        assert {chunk.attempt for chunk in seen} == {1, 2}
        assert [token for chunk in seen for token in chunk.token_ids] == wanted.token_ids
        assert "".join(chunk.text for chunk in seen) == wanted.text == job.result(timeout=60).text


def gapless(chunks: list[Chunk]) -> bool:
    """Whether the chunks show each offset once, from 0 on."""
    places = [chunk.offset + i for chunk in chunks for i in range(len(chunk.token_ids))]
    return places == list(range(len(places))) and not any(isinstance(chunk, Restarted) for chunk in chunks)


def test_requests_of_a_lost_machine_are_answered_after_its_lease(stack: Stack, client: Client) -> None:
    stack.scheduler()
    victim = stack.worker("victim", *SLOW)
    stack.worker("other", *SLOW)
    jobs = client.submit_many(requests(12, 300))
    ids = [job.id for job in jobs]
    touched = with_tokens_out(stack, "victim", ids)

    inc, child, killed = stack.incarnation("victim"), stack.child_of(victim), time.monotonic()
    victim.kill()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not stack.redis.hexists(stack.keys.inc, inc), 10, what="its work is taken back")
    taken_back_s = time.monotonic() - killed

    responses = [job.result(timeout=60) for job in jobs]
    assert {response.request_id for response in responses if response.attempts == 2} == touched
    assert {response.worker for response in responses if response.attempts == 2} == {"other"}
    assert settled_once(stack, ids)
    assert taken_back_s < stack.beats(4) + 1


def test_a_short_pause_requeues_nothing(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker", *SLOW)
    jobs = client.submit_many(requests(4, 300))
    with_tokens_out(stack, "worker", [job.id for job in jobs])

    child = stack.child_of(worker)
    for pid in (worker.pid, child):
        os.kill(pid, signal.SIGSTOP)
    resume_at = time.monotonic() + stack.beats(2)
    wait_until(lambda: time.monotonic() >= resume_at, 5)
    for pid in (child, worker.pid):
        os.kill(pid, signal.SIGCONT)

    assert [job.result(timeout=60).attempts for job in jobs] == [1, 1, 1, 1]


def test_a_zombie_is_fenced_off_and_serves_again(stack: Stack, client: Client) -> None:
    stack.scheduler()
    zombie = stack.worker("zombie", *SLOW)
    stack.worker("other", *SLOW)
    jobs = client.submit_many(requests(12, 300))
    ids = [job.id for job in jobs]
    touched = with_tokens_out(stack, "zombie", ids)
    child, inc = stack.child_of(zombie), stack.incarnation("zombie")
    for pid in (zombie.pid, child):
        os.kill(pid, signal.SIGSTOP)
    responses = [job.result(timeout=60) for job in jobs]
    for pid in (child, zombie.pid):
        os.kill(pid, signal.SIGCONT)

    wait_until(lambda: (now := stack.incarnation("zombie")) and now != inc, 30, what="a new incarnation")
    assert {response.worker for response in responses if response.request_id in touched} == {"other"}
    assert settled_once(stack, ids)
    assert client.submit(prompt_tokens=[1], max_tokens=4).result(timeout=30).text


@pytest.mark.measured
def test_two_processes_of_one_name_do_not_fight(stack: Stack, client: Client) -> None:
    stack.scheduler()
    older = stack.worker("twin")
    before = stack.incarnation("twin")
    stack._processes["older"] = older
    stack.worker("twin", wait=False)
    wait_until(lambda: (now := stack.incarnation("twin")) and now != before, 30)

    assert older.wait(10) != 0
    assert "another worker took the name" in stack.log("twin")
    assert client.submit(prompt_tokens=[1], max_tokens=4).result(timeout=30).text


@pytest.mark.measured
def test_sigterm_finishes_what_runs_and_leaves_nothing_held(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker", *SLOW)
    jobs = client.submit_many(requests(6, 300))
    with_tokens_out(stack, "worker", [job.id for job in jobs])

    worker.terminate()
    assert worker.wait(30) == 0
    assert stack.incarnation("worker") is None
    stack.worker("next")
    assert [job.result(timeout=30).attempts for job in jobs] == [1] * 6


@pytest.mark.measured
def test_a_second_sigterm_hands_back_at_once_and_charges_nothing(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker", *SLOW)
    jobs = client.submit_many(requests(4, 3000))
    with_tokens_out(stack, "worker", [job.id for job in jobs])

    worker.terminate()
    # Two signals at once would be one: the first was heard when the worker no longer accepts.
    wait_until(lambda: stack.redis.hget(stack.keys.inc, stack.incarnation("worker")).split("|")[8] == "0", 10)
    worker.terminate()
    assert worker.wait(15) == 0
    states = [job.status() for job in jobs]
    failures = [stack.redis.get(stack.keys.flight(job.id)).split("|")[4] for job in jobs]
    assert states == ["queued"] * 4
    assert failures == ["0"] * 4


def settled_once(stack: Stack, ids: list[str]) -> bool:
    """Whether the history has exactly one end for each id."""
    lines = [line for _, fields in stack.redis.xrange(stack.keys.events) for line in fields["lines"].split("\n")]
    ends = [line.split(" ")[0] for line in lines if line.split(" ")[1] == "end"]
    return all(ends.count(request_id) == 1 for request_id in ids)
