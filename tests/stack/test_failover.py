"""What happens to requests whose worker dies."""

from __future__ import annotations

import os
import signal
import time

from conftest import Stack
from helpers import wait_until
from stoker import Client, InferenceRequest

SLOW = ("--max-num-seqs", "8")


def requests(n: int, max_tokens: int, **fields: object) -> list[InferenceRequest]:
    return [InferenceRequest(prompt_tokens=[i + 1, 2, 3], max_tokens=max_tokens, **fields) for i in range(n)]


def with_tokens_out(stack: Stack, client: Client, name: str, ids: list[str], at_least: int) -> set[str]:
    """Wait until a worker runs that many of the requests and each of these has published tokens."""

    def started() -> set[str]:
        return {i for i in stack.running(name) & set(ids) if stack.redis.keys(f"{stack.keys.prefix}tokens:{i}:*")}

    return wait_until(lambda: found if len(found := started()) >= at_least else None, 30)


def test_requests_of_a_killed_child_are_answered_by_the_other_worker_once(stack: Stack, client: Client) -> None:
    stack.scheduler()
    victim = stack.worker("victim", *SLOW)
    jobs = client.submit_many(requests(8, 200, stream=True))
    ids = [job.id for job in jobs]
    touched = with_tokens_out(stack, client, "victim", ids, 4)
    stack.worker("other", *SLOW)
    touched = stack.running("victim") & set(ids)

    os.kill(stack.child_of(victim), signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: not stack.redis.exists(*[stack.keys.work(inc) for inc in old_incs(stack, "victim")] or ["-"]), 5)
    eligible_again_s = time.monotonic() - killed

    responses = {job.id: job.result(timeout=60) for job in jobs}
    assert len(touched) >= 4
    assert eligible_again_s < 2
    assert {i for i, response in responses.items() if response.attempts == 2} == touched
    assert all(response.attempts == 1 for i, response in responses.items() if i not in touched)
    assert all(len(response.token_ids) == 200 for response in responses.values())
    assert settled_once(stack, ids)


def test_requests_of_a_lost_machine_are_answered_after_its_lease(stack: Stack, client: Client) -> None:
    stack.scheduler()
    victim = stack.worker("victim", *SLOW)
    jobs = client.submit_many(requests(6, 200, stream=True))
    touched = with_tokens_out(stack, client, "victim", [job.id for job in jobs], 4)
    stack.worker("other", *SLOW)
    touched = stack.running("victim")

    child = stack.child_of(victim)
    victim.kill()
    os.kill(child, signal.SIGKILL)
    killed = time.monotonic()
    inc = stack.incarnation("victim")
    wait_until(lambda: not stack.redis.hexists(stack.keys.inc, inc), 10)
    taken_back_s = time.monotonic() - killed

    responses = [job.result(timeout=60) for job in jobs]
    assert {r.request_id for r in responses if r.attempts == 2} == touched
    assert {r.worker for r in responses if r.attempts == 2} == {"other"}
    assert taken_back_s < stack.beats(4) + 1
    assert settled_once(stack, [job.id for job in jobs])


def test_a_short_pause_requeues_nothing(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker", *SLOW)
    jobs = client.submit_many(requests(4, 100, stream=True))
    with_tokens_out(stack, client, "worker", [job.id for job in jobs], 4)

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
    jobs = client.submit_many(requests(4, 100, stream=True))
    ids = [job.id for job in jobs]
    with_tokens_out(stack, client, "zombie", ids, 4)
    stack.worker("other", *SLOW)
    child, inc = stack.child_of(zombie), stack.incarnation("zombie")
    for pid in (zombie.pid, child):
        os.kill(pid, signal.SIGSTOP)
    responses = [job.result(timeout=60) for job in jobs]
    for pid in (child, zombie.pid):
        os.kill(pid, signal.SIGCONT)

    wait_until(lambda: (now := stack.incarnation("zombie")) and now != inc, 30, what="a new incarnation")
    assert {response.worker for response in responses} == {"other"}
    assert settled_once(stack, ids)
    assert client.submit(prompt_tokens=[1], max_tokens=4).result(timeout=30).text


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


def test_sigterm_finishes_what_runs_and_leaves_nothing_held(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker", *SLOW)
    jobs = client.submit_many(requests(6, 60, stream=True))
    with_tokens_out(stack, client, "worker", [job.id for job in jobs], 4)

    worker.terminate()
    assert worker.wait(30) == 0
    assert stack.incarnation("worker") is None
    stack.worker("next")
    assert [job.result(timeout=30).attempts for job in jobs] == [1] * 6


def test_a_second_sigterm_hands_back_at_once_and_charges_nothing(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker", *SLOW)
    jobs = client.submit_many(requests(4, 2000, stream=True))
    with_tokens_out(stack, client, "worker", [job.id for job in jobs], 4)

    worker.terminate()
    wait_until(lambda: "|0|0|" in stack.redis.hget(stack.keys.inc, stack.incarnation("worker")), 10)
    worker.terminate()
    assert worker.wait(15) == 0
    states = [job.status() for job in jobs]
    failures = [stack.redis.get(stack.keys.flight(job.id)).split("|")[4] for job in jobs]
    assert states == ["queued"] * 4
    assert failures == ["0"] * 4


def old_incs(stack: Stack, name: str) -> list[str]:
    records = stack.redis.hgetall(stack.keys.inc)
    return [inc for inc, text in records.items() if inc.startswith(f"{name}:") and "|dead|" in text]


def settled_once(stack: Stack, ids: list[str]) -> bool:
    """Whether the history has exactly one end for each id."""
    lines = [line for _, fields in stack.redis.xrange(stack.keys.events) for line in fields["lines"].split("\n")]
    ends = [line.split(" ")[0] for line in lines if line.split(" ")[1] == "end"]
    return all(ends.count(request_id) == 1 for request_id in ids)
