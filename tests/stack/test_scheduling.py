"""The scheduler's parts at work: each test fails when the part it names is broken."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from helpers import wait_until
from stack_processes import Stack
from stoker import Client, InferenceRequest, RequestExpired, RequestFailed, RequestPriority
from stoker.store import lookups
from stoker.store.connection import Store
from stoker_workers.engine import Tokens, Work
from stoker_workers.engines.sim import SimEngine, load_profile

ONE_ROW = ("--max-num-seqs", "1", "--profile", "zero")


def finish_order(stack: Stack) -> list[str]:
    """The ids in the order in which they ended, by the history."""
    lines = [line for _, fields in stack.redis.xrange(stack.keys.events) for line in fields["lines"].split("\n")]
    return [line.split(" ")[0] for line in lines if line.split(" ")[1] == "end"]


def test_a_better_class_goes_first_and_fifo_within_a_class_whatever_the_ids(stack: Stack, client: Client) -> None:
    """RequestQueue."""
    jobs = client.submit_many(
        [
            InferenceRequest(request_id=request_id, prompt_tokens=[1], max_tokens=2, priority=priority)
            for request_id, priority in [
                ("z-batch", RequestPriority.BATCH),
                ("y-normal", RequestPriority.NORMAL),
                ("x-normal", RequestPriority.NORMAL),
                ("w-high", RequestPriority.HIGH),
                ("v-critical", RequestPriority.CRITICAL),
            ]
        ]
    )
    stack.scheduler()
    stack.worker("worker", *ONE_ROW)
    for job in jobs:
        job.result(timeout=30)
    assert finish_order(stack) == ["v-critical", "w-high", "y-normal", "x-normal", "z-batch"]


def test_tenants_of_a_class_take_turns_however_many_requests_one_of_them_has(stack: Stack, client: Client) -> None:
    """RequestQueue: with one row, ids end in the order of the turns; a weight of 2 is two turns."""
    client.set_tenant("b", weight=2)
    names = [f"a{i}" for i in range(6)] + [f"b{i}" for i in range(4)] + ["-0", "-1"]
    jobs = client.submit_many(
        [
            InferenceRequest(request_id=f"r{name}", prompt_tokens=[1], max_tokens=1, tenant=name[0].strip("-") or None)
            for name in names
        ]
    )
    stack.scheduler()
    stack.worker("worker", *ONE_ROW)
    for job in jobs:
        job.result(timeout=30)
    order = [name[1] for name in finish_order(stack)]
    assert sorted(order[:4]) == ["-", "a", "b", "b"]
    assert sorted(order[4:8]) == ["-", "a", "b", "b"]
    assert order[8:] == ["a"] * 4
    assert not stack.redis.exists(stack.keys.active)


def test_what_no_worker_can_hold_hides_nothing_behind_it(stack: Stack, client: Client) -> None:
    """RequestQueue: thousands of better-scored entries that cannot run delay an eligible one by no more than a tick."""
    too_large = [InferenceRequest(prompt_tokens=[1], max_tokens=100_000, priority="high") for _ in range(10_000)]
    client.submit_many(too_large)
    stack.scheduler()
    stack.worker("worker", "--kv-cache-tokens", "1000", "--profile", "zero")
    began = time.monotonic()
    assert client.submit(prompt_tokens=[1], max_tokens=4).result(timeout=20).text
    # One tick reads 10,000 entries; a tick for each of them would take minutes.
    assert time.monotonic() - began < 10


def test_inputs_are_batched_within_the_budget_and_a_bad_one_fails_alone(stack: Stack, client: Client) -> None:
    """DynamicBatcher, in padded mode."""
    jobs = client.submit_many([InferenceRequest(inputs=item) for item in ["aaaa"] * 10 + ["bad"] + ["bbbb"] * 10])
    stack.scheduler()
    stack.worker("worker", "--max-num-seqs", "4", model="stack_models:Echo")
    responses = [job.response(timeout=30) for job in jobs]
    sizes = [response.output["batch"] for response in responses if response.error is None]
    assert len(sizes) == 20
    assert max(sizes) == 4
    assert isinstance(responses[10].error, RequestFailed)
    assert "bad word" in str(responses[10].error)


def test_a_batch_never_exceeds_the_budget_of_tokens(stack: Stack, client: Client) -> None:
    """DynamicBatcher: each input counts one token here, so a budget of 2 takes two."""
    jobs = client.submit_many([InferenceRequest(inputs="x") for _ in range(8)])
    stack.scheduler()
    stack.worker("worker", "--max-num-batched-tokens", "2", model="stack_models:Echo")
    assert max(job.result(timeout=30).output["batch"] for job in jobs) == 2


def test_a_worker_whose_rows_last_one_step_holds_more_than_it_has_rows(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    """So that the next step finds its rows there; without it the engine stands still after each step."""
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"base_ms": 20, "prefill_ms": 0, "row_ms": 0, "resident_ms": 0}))
    stack.scheduler()
    stack.worker("worker", "--max-num-seqs", "2", "--profile", str(profile))
    jobs = client.submit_many([InferenceRequest(prompt_tokens=[1], max_tokens=1) for _ in range(2000)])
    wait_until(lambda: any(worker.held_rows > worker.rows for worker in client.workers()))
    assert all(worker.held_rows <= worker.rows + worker.ahead for worker in client.workers())
    for job in jobs:
        job.cancel()


def test_what_a_worker_took_ahead_of_rows_that_go_on_runs_on_another(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    """It hands back what it would not take any more; else it would wait for the long answer though a row is free."""
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"base_ms": 20, "prefill_ms": 0, "row_ms": 0, "resident_ms": 0}))
    stack.scheduler()
    stack.worker("one", "--max-num-seqs", "1", "--profile", str(profile))
    short = client.submit_many([InferenceRequest(prompt_tokens=[1], max_tokens=1) for _ in range(2000)])
    wait_until(lambda: any(worker.ahead for worker in client.workers()))
    long = client.submit_many([InferenceRequest(prompt_tokens=[1], max_tokens=2000, priority="high") for _ in range(2)])
    wait_until(lambda: set(stack.held("one")) == {job.id for job in long}, poll=0.001)
    for job in short:
        job.cancel()
    stack.worker("two", "--max-num-seqs", "1", "--profile", str(profile))
    wait_until(lambda: set(stack.held("two")) == {long[1].id})
    assert set(stack.held("one")) == {long[0].id}
    for job in long:
        job.cancel()


def test_two_workers_share_the_work(stack: Stack, client: Client) -> None:
    """LoadBalancer."""
    stack.scheduler()
    stack.worker("one")
    stack.worker("two")
    jobs = client.submit_many([InferenceRequest(prompt_tokens=[i], max_tokens=20) for i in range(40)])
    shares = [job.result(timeout=30).worker for job in jobs]
    assert 15 <= shares.count("one") <= 25


def test_of_two_workers_that_were_measured_the_faster_one_answers(stack: Stack, client: Client, tmp_path: Path) -> None:
    """LoadBalancer and ServiceTimes: the speeds that the leader fits to heartbeats decide."""
    stack.scheduler()
    for name, base_ms in (("slow", 20), ("fast", 4)):
        profile = tmp_path / f"{name}.json"
        profile.write_text(json.dumps({"base_ms": base_ms, "prefill_ms": 0.001, "row_ms": 0, "resident_ms": 0}))
        stack.worker(name, "--profile", str(profile))
    requests = [InferenceRequest(prompt_tokens=[1], max_tokens=20) for _ in range(40)]

    def measured() -> bool:
        for job in client.submit_many(requests):
            job.result(timeout=30)
        speeds = {inc.partition(":")[0]: speed[1] for inc, speed in read_speeds(stack).items()}
        return len(speeds) == 2 and speeds["slow"] > 3 * speeds["fast"]

    wait_until(measured, 30)
    shares = [job.result(timeout=30).worker for job in client.submit_many(requests)]
    assert shares.count("fast") > 30


def read_speeds(stack: Stack) -> Mapping[str, tuple[float, float]]:
    """Return what the leader says of its workers."""
    store = Store(stack.config)
    try:
        return store.read(lookups.overview(store.keys)).speeds
    finally:
        store.close()


def test_no_worker_that_takes_nothing_ahead_gets_more_rows_than_it_has(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadBalancer and DynamicBatcher: credit is kept."""
    monkeypatch.setenv("STOKER_AHEAD_MS", "0")
    stack.scheduler()
    stack.worker("worker", "--max-num-seqs", "3")
    jobs = client.submit_many([InferenceRequest(prompt_tokens=[i], max_tokens=10) for i in range(12)])
    most = 0

    def all_done() -> bool:
        nonlocal most
        most = max(most, len(stack.held("worker")))
        return all(job.status() == "succeeded" for job in jobs)

    wait_until(all_done, 30)
    assert most == 3


def test_a_worker_that_keeps_failing_gets_no_more_work(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HealthMonitor: its circuit opens, and everything is answered by the healthy one."""
    stack.scheduler()
    monkeypatch.setenv("BROKEN_WORKER", "1")
    stack.worker("broken", "--max-num-seqs", "1", model="stack_models:Echo")
    monkeypatch.delenv("BROKEN_WORKER")
    stack.worker("healthy", "--max-num-seqs", "1", model="stack_models:Echo")

    def faults() -> int:
        client.submit(inputs="probe")
        record = stack.redis.hget(stack.keys.inc, stack.incarnation("broken"))
        return int(record.split("|")[12])

    wait_until(lambda: faults() >= 5, 30, poll=0.05)
    jobs = [client.submit(inputs=i) for i in range(20)]
    responses = [job.response(timeout=30) for job in jobs]
    held = [line for line in dispatches(stack)[-20:] if line[3].startswith("broken:")]
    assert all(response.error is None for response in responses)
    assert {response.worker for response in responses} == {"healthy"}
    assert held == []


def dispatches(stack: Stack) -> list[list[str]]:
    lines = [line for _, fields in stack.redis.xrange(stack.keys.events) for line in fields["lines"].split("\n")]
    return [parts for line in lines if (parts := line.split(" "))[1] == "dispatch"]


def test_a_request_expires_in_the_queue_soon_after_its_deadline(stack: Stack, client: Client) -> None:
    stack.scheduler()
    job = client.submit(prompt_tokens=[1], timeout=1.5)
    with pytest.raises(RequestExpired):
        job.result(timeout=10)


def test_a_request_expires_while_it_runs_and_its_row_is_freed(stack: Stack, client: Client) -> None:
    stack.scheduler()
    stack.worker("worker")
    job = client.submit(prompt_tokens=[1], max_tokens=100_000, timeout=1.5)
    wait_until(lambda: job.status() == "running", 10)
    with pytest.raises(RequestExpired):
        job.result(timeout=10)
    wait_until(lambda: not stack.held("worker"), 10, what="the row is handed back")


def test_a_cancelled_request_stops_within_a_beat(stack: Stack, client: Client) -> None:
    stack.scheduler()
    stack.worker("worker")
    job = client.submit(prompt_tokens=[1], max_tokens=100_000)
    wait_until(lambda: job.status() == "running", 10)
    job.cancel()
    assert job.status() == "cancelled"
    wait_until(lambda: not stack.held("worker"), 5, what="the row is handed back")


def test_an_idle_stack_issues_a_handful_of_commands_a_second(stack: Stack) -> None:
    """Per second at H = 200 ms: 20 leases, 5 beats, and reads that block. A loop that polls would issue hundreds."""
    stack.scheduler()
    stack.worker("worker")
    calls = calls_so_far(stack)
    until = time.monotonic() + 4
    wait_until(lambda: time.monotonic() >= until, 10, poll=0.1)
    spent = {name: count - calls.get(name, 0) for name, count in calls_so_far(stack).items()}
    assert spent["evalsha"] / 4 < 35
    assert spent["blpop"] / 4 < 8
    assert spent["xreadgroup"] / 4 < 4


def calls_so_far(stack: Stack) -> dict[str, int]:
    """How often each command was called, by clients or by scripts."""
    stats = stack.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(value["calls"]) for name, value in stats.items()}


@pytest.mark.measured
def test_a_model_that_cannot_be_loaded_is_said_and_nothing_is_lost(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker", model="stack_models:Unloadable", wait=False)
    job = client.submit(inputs=1)
    wait_until(lambda: "the disk is on fire" in stack.log("worker"), 30)
    assert worker.wait(20) == 2
    stack.worker("good", model="stack_models:Echo")
    assert job.result(timeout=30).output["echo"] == 1


@pytest.mark.measured
def test_another_model_is_refused_with_both_cards(stack: Stack, client: Client) -> None:
    stack.scheduler()
    stack.worker("sim")
    other = stack.worker("other", model="stack_models:Echo", wait=False)
    assert other.wait(20) == 2
    assert "queue: sim" in stack.log("other")
    assert "worker: stack_models:Echo" in stack.log("other")


def test_with_expected_lengths_more_fit_and_what_becomes_longer_answers_the_same(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AnswerLengths of a class and of a tenant, known from the first dispatch on; and preemption."""
    monkeypatch.setenv("STOKER_RESERVE", "expected")
    stack.redis.hset(stack.keys.histograms, "answer:normal:6", 1000)  # at most 8 tokens
    stack.redis.rpush(stack.keys.answers, *["normal:brief:5"] * 60)
    stack.scheduler()
    stack.worker("worker", "--kv-cache-tokens", "640")

    jobs = client.submit_many(
        InferenceRequest(prompt_tokens=[i + 1] * 10, max_tokens=300, tenant="brief" if i % 2 else None)
        for i in range(16)
    )
    wait_until(lambda: len(stack.running("worker")) > 2, 60, what="more than two run")  # two fit at full length

    responses = [job.result(timeout=120) for job in jobs]
    engine = SimEngine(load_profile("zero"))
    for i, response in enumerate(responses):
        engine.admit(Work(id=str(i), batch="b", prompt=[i + 1] * 10, max_tokens=300))
        events = [event for _ in range(301) for event in engine.step()]
        assert response.text == "".join(event.text for event in events if isinstance(event, Tokens))
    assert {response.attempts for response in responses} == {1}
    told = (line.split() for _, entry in stack.redis.xrange(stack.keys.events) for line in entry["lines"].splitlines())
    assert {int(words[-1]) for words in told if words[1] == "dispatch"} == {10 + 8, 10 + 5}


@pytest.mark.parametrize(("lower", "better"), [("batch", "normal"), ("normal", "critical")])
def test_better_requests_do_not_wait_for_rows_of_lower_classes_which_go_on_where_they_stood(
    stack: Stack, client: Client, lower: str, better: str
) -> None:
    """Preemption, and the worker that hands rows back."""
    long = {"max_tokens": 300, "priority": RequestPriority(lower), "ignore_eos": True}
    rows = [InferenceRequest(prompt_tokens=[number], **long) for number in range(1, 5)]
    stack.scheduler()
    stack.worker("worker", "--max-num-seqs", "4")
    jobs = client.submit_many(rows)
    wait_until(lambda: len(stack.running("worker")) == 4)
    began = time.monotonic()
    short = InferenceRequest(prompt_tokens=[9], max_tokens=2, priority=RequestPriority(better))
    urgent = client.submit_many([short, short])
    assert all(job.result(timeout=30).text for job in urgent)
    assert time.monotonic() - began < 1  # the others take 300 steps of 5 ms
    responses = [job.result(timeout=30) for job in jobs]
    assert sorted(response.attempts for response in responses) == [1, 1, 2, 2]
    engine = SimEngine(load_profile("zero"))
    for request, response in zip(rows, responses, strict=True):
        assert engine.admit(Work(id="x", batch="b", prompt=request.prompt_tokens or (), max_tokens=300))
        ids = []
        while engine.resident():
            ids += [token for event in engine.step() if isinstance(event, Tokens) for token in event.token_ids]
        assert response.token_ids == ids
    assert int(stack.redis.hget(stack.keys.counts, "preempted")) == 2
