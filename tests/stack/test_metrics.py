"""What a real stack exports: right, from one scheduler only, and never going backwards."""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path

import pytest
from prometheus_client import Metric

from helpers import wait_until
from scraping import beside, get, scrape, total
from stack_processes import Stack
from stoker import Client, InferenceRequest, InferenceResponse, RequestFailed, RequestPriority
from stoker.buckets import bucket_of, edges
from stoker.store.records import CLASSES
from stoker_ops.embedded import ServerBinary, start

QUEUE_ONLY = "stoker_num_requests_waiting"
TIMINGS = {
    "stoker_request_queue_time_seconds": "queue_ms",
    "stoker_time_to_first_token_seconds": "ttft_ms",
    "stoker_e2e_request_latency_seconds": "e2e_ms",
}


@pytest.fixture
def stack(exporting_stack: Stack) -> Stack:
    """One whose processes export."""
    return exporting_stack


def until_counted(url: str, name: str, number: float, **labels: str) -> dict[str, Metric]:
    """Scrape until a figure is right: a reading of the queue serves for a second."""

    def counted() -> dict[str, Metric] | None:
        families = scrape(url)
        return families if total(families, name, **labels) == number else None

    return wait_until(counted, 20, poll=0.1, what=f"{name} {labels} is {number:g}")


def cumulated(families: dict[str, Metric], name: str, priority: str) -> dict[float, float]:
    return {
        float(sample.labels["le"]): sample.value
        for sample in families[name].samples
        if sample.name == f"{name}_bucket" and sample.labels["priority"] == priority
    }


def measured(responses: list[InferenceResponse], timing: str) -> list[float]:
    """What the client was told of each request, in seconds."""
    return [getattr(response.timings, timing) / 1000 for response in responses]


def test_counts_are_exact_and_latencies_in_their_buckets(stack: Stack, client: Client) -> None:
    stack.scheduler()
    stack.worker("worker", "--max-num-seqs", "4")
    items = [
        InferenceRequest(prompt_tokens=[1] * (10 + i), max_tokens=4 + i % 5, priority=priority, ignore_eos=True)
        for i in range(12)
        for priority in RequestPriority
    ]
    jobs = client.submit_many(items)
    responses = [job.response(timeout=60) for job in jobs]
    assert {response.status for response in responses} == {"succeeded"}
    queue = until_counted(
        stack.metrics_url("scheduler"), "stoker_requests_finished_total", len(items), outcome="succeeded"
    )
    prompt = sum(response.usage.prompt_tokens for response in responses if response.usage)
    generated = sum(response.usage.completion_tokens for response in responses if response.usage)
    assert total(queue, "stoker_requests_submitted_total", model="sim") == len(items)
    assert total(queue, "stoker_prompt_tokens_total", model="sim") == prompt
    assert total(queue, "stoker_generation_tokens_total", model="sim") == generated
    assert total(queue, "stoker_batch_requests_sum", model="sim") == len(items)
    for priority in CLASSES:
        mine = [r for r, item in zip(responses, items, strict=True) if item.priority == priority]
        for name, timing in TIMINGS.items():
            times = measured(mine, timing)
            expected = {edge: float(sum(t <= edge for t in times)) for edge in [*edges(0.001), float("inf")]}
            assert cumulated(queue, name, priority) == expected, (name, priority)
            assert total(queue, f"{name}_sum", priority=priority) == pytest.approx(sum(times), rel=0.01)

    worker = scrape(stack.metrics_url("worker"))
    assert total(worker, "stoker_engine_prompt_tokens_total", worker="worker", model="sim") == prompt
    assert total(worker, "stoker_engine_generation_tokens_total", worker="worker") == generated
    assert total(worker, "stoker_engine_finished_total") == len(items)
    assert total(worker, "stoker_engine_step_requests_sum") == pytest.approx(generated, rel=0.2)
    for priority in CLASSES:
        tokens = sum(
            r.usage.completion_tokens - 1
            for r, item in zip(responses, items, strict=True)
            if item.priority == priority and r.usage
        )
        assert total(worker, "stoker_inter_token_latency_seconds_count", priority=priority) == tokens
        assert total(worker, "stoker_request_time_per_output_token_seconds_count", priority=priority) == 12
        # The sim engine's step sleeps for 5 ms, and more with rows in it.
        assert (total(worker, "stoker_inter_token_latency_seconds_sum", priority=priority) or 0) > 0.005 * tokens


def test_end_to_end_is_what_a_client_sees_on_its_own_clock(stack: Stack, client: Client) -> None:
    stack.scheduler()
    stack.worker("worker")
    seen = []
    for _ in range(15):
        began = time.monotonic()
        client.submit(prompt_tokens=[1], max_tokens=30, ignore_eos=True).result(timeout=30)
        seen.append(time.monotonic() - began)
    families = until_counted(stack.metrics_url("scheduler"), "stoker_requests_finished_total", 15, outcome="succeeded")
    counts = cumulated(families, "stoker_e2e_request_latency_seconds", "normal")
    median = min(edge for edge, number in counts.items() if number >= 8)
    mine = edges(0.001)[bucket_of(int(statistics.median(seen) * 1e6), 1000)]
    assert mine in (median, 2 * median)
    assert (total(families, "stoker_e2e_request_latency_seconds_sum", priority="normal") or 0) < sum(seen)


def test_what_waits_is_counted_weighed_and_aged_by_class(stack: Stack, client: Client) -> None:
    stack.scheduler()
    client.submit_many([InferenceRequest(prompt_tokens=[1] * 20, max_tokens=30, priority="high") for _ in range(3)])
    client.submit(prompt_tokens=[1], max_tokens=9, priority="batch")
    url = stack.metrics_url("scheduler")
    families = until_counted(url, "stoker_num_requests_waiting", 3, priority="high")
    assert total(families, "stoker_num_requests_waiting") == 4
    assert total(families, "stoker_num_tokens_waiting", priority="high") == 150
    assert total(families, "stoker_num_tokens_waiting", priority="batch") == 10
    assert total(families, "stoker_oldest_request_waiting_seconds", priority="low") == 0
    age = total(families, "stoker_oldest_request_waiting_seconds", priority="high") or 0

    def older() -> bool:
        now = total(scrape(url), "stoker_oldest_request_waiting_seconds", priority="high")
        return now is not None and now > age + 1

    wait_until(older, 20, poll=0.2)
    assert age < 60


@pytest.mark.measured
def test_outcomes_retries_and_dead_letters_are_counted(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.scheduler()
    monkeypatch.setenv("BROKEN_WORKER", "1")
    broken = stack.worker("broken", model="stack_models:Echo")
    with pytest.raises(RequestFailed):
        client.submit(inputs="x").result(timeout=30)
    client.submit(inputs="late", timeout=0.001).response(timeout=30)
    broken.terminate()
    monkeypatch.delenv("BROKEN_WORKER")
    stack.worker("worker", model="stack_models:Echo")
    client.submit(inputs="x").result(timeout=30)
    families = until_counted(stack.metrics_url("scheduler"), "stoker_requests_finished_total", 3)
    assert total(families, "stoker_requests_finished_total", outcome="succeeded") == 1
    assert total(families, "stoker_requests_finished_total", outcome="failed") == 1
    assert total(families, "stoker_requests_finished_total", outcome="expired") == 1
    assert total(families, "stoker_request_retries_total") == 2
    assert total(families, "stoker_num_dead_letters") == 1


def test_the_leader_alone_exports_the_queue_and_the_next_one_takes_it_up(stack: Stack, client: Client) -> None:
    first = stack.scheduler("first")
    one = stack.metrics_url("first")
    until_counted(one, "stoker_leader", 1)
    stack.scheduler("second")
    two = stack.metrics_url("second")
    wait_until(lambda: get(beside(two, "/readyz"))[0] == 200, 20, what="the standby is ready")
    stack.worker("worker")
    client.submit(prompt_tokens=[1], max_tokens=2).result(timeout=30)
    until_counted(one, "stoker_requests_submitted_total", 1)
    standby = scrape(two)
    assert (total(standby, "stoker_leader"), total(standby, QUEUE_ONLY)) == (0, None)
    assert total(standby, "stoker_script_seconds_count", script="lead")
    first.kill()
    families = until_counted(two, "stoker_leader", 1)
    assert total(families, "stoker_requests_submitted_total") == 1


def test_a_scheduler_without_redis_lives_is_not_ready_and_exports_no_stale_queue(
    server_binary: ServerBinary, short_tmp: Path
) -> None:
    with start(short_tmp / "r", server=server_binary) as server:
        stack = Stack(server.url, short_tmp, metrics=True)
        stack.scheduler()
        url = stack.metrics_url("scheduler")
        assert total(until_counted(url, "stoker_leader", 1), QUEUE_ONLY) is not None
    try:
        families = until_counted(url, "stoker_redis_up", 0)
        assert (total(families, "stoker_leader"), total(families, QUEUE_ONLY)) == (0, None)
        wait_until(lambda: get(beside(url, "/readyz"))[0] == 503, 20, what="not ready")
        assert get(beside(url, "/healthz")) == (200, "ok\n")
        with start(short_tmp / "r", server=server_binary):
            wait_until(lambda: get(beside(url, "/readyz"))[0] == 200, 20, what="ready again")
            until_counted(url, "stoker_leader", 1)
    finally:
        stack.end()


def test_a_killed_child_takes_no_count_with_it(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker")
    url = stack.metrics_url("worker")
    client.submit(prompt_tokens=[1] * 7, max_tokens=5, ignore_eos=True).result(timeout=30)
    wait_until(lambda: total(scrape(url), "stoker_engine_generation_tokens_total") == 5, 20)
    before = scrape(url)
    os.kill(stack.child_of(worker), signal.SIGKILL)
    wait_until(lambda: total(scrape(url), "stoker_engine_deaths_total", cause="killed") == 1, 20)
    wait_until(lambda: get(beside(url, "/readyz"))[0] == 200, 30, what="serves again")
    client.submit(prompt_tokens=[1] * 7, max_tokens=5, ignore_eos=True).result(timeout=30)
    wait_until(lambda: total(scrape(url), "stoker_engine_generation_tokens_total") == 10, 20)
    after = scrape(url)
    for family in before.values():
        if family.type not in ("counter", "histogram"):
            continue
        values = {(s.name, *sorted(s.labels.items())): s.value for s in after[family.name].samples}
        for sample in family.samples:
            assert values[sample.name, *sorted(sample.labels.items())] >= sample.value, sample


def test_the_state_of_workers_is_exported_by_both_sides(stack: Stack, client: Client) -> None:
    stack.scheduler()
    worker = stack.worker("worker", "--kv-cache-tokens", "200000")
    queue, own = stack.metrics_url("scheduler"), stack.metrics_url("worker")
    families = until_counted(queue, "stoker_worker_state", 1, worker="worker", state="serving")
    assert total(families, "stoker_worker_state") == 1
    assert total(families, "stoker_worker_tokens_limit", worker="worker") == 200_000
    assert total(families, "stoker_worker_credit_tokens", worker="worker") == 200_000
    assert total(families, "stoker_worker_circuit_open", worker="worker") == 0
    age = total(families, "stoker_worker_heartbeat_age_seconds", worker="worker")
    assert age is not None
    assert age < 60
    job = client.submit(prompt_tokens=[1], max_tokens=100_000)
    until_counted(queue, "stoker_worker_tokens_held", 100_001, worker="worker")
    assert total(scrape(queue), "stoker_num_requests_running") == 1
    client.drain("worker")
    until_counted(queue, "stoker_worker_state", 1, worker="worker", state="drained")
    assert (total(scrape(own), "stoker_heartbeat_age_seconds", worker="worker") or 0) < 60
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: get(beside(own, "/readyz")) == (503, "draining\n"), 20, what="says that it drains")
    job.cancel()


def test_a_taken_port_stops_no_scheduler(stack: Stack, client: Client) -> None:
    stack.scheduler("first")
    port = stack.metrics_url("first").rpartition(":")[2].partition("/")[0]
    stack.scheduler("second", "--metrics-port", port)
    wait_until(lambda: "no metrics" in stack.log("second"), 20)
    assert stack.log("second").count("no metrics") == 1
    stack.worker("worker", "--metrics-port", port)
    assert client.submit(prompt_tokens=[1], max_tokens=2).result(timeout=30).text
    assert stack.log("worker").count("no metrics") == 1
