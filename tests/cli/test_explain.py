"""`stoker explain`: what happened to a request, and what it waits for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from cli.conftest import Cli
from helpers import wait_until
from sdk.fleet import Fleet
from stack_processes import HEARTBEAT_MS, Stack
from stoker import Client, Config, RequestPriority


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    with Fleet(Config(redis_url=redis_url, heartbeat_ms=HEARTBEAT_MS)) as fleet:
        yield fleet


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    with Client(config=fleet.config) as client:
        yield client


def explained(cli: Cli, request_id: str) -> dict[str, Any]:
    shown = cli("explain", request_id, "--json")
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


def test_an_answered_request_has_its_times_and_its_attempts(client: Client, cli: Cli) -> None:
    client.submit(request_id="a", prompt="hello world").result(timeout=30)
    story = explained(cli, "a")
    assert (story["state"], story["attempts"], story["history"], story["why"]) == ("succeeded", 1, [], None)
    assert story["worker"] == "w"
    assert 0 <= story["queue_ms"] <= story["e2e_ms"] <= story["age_ms"]


def test_what_waits_without_workers_says_so_its_place_and_the_fix(redis_url: str, cli: Cli) -> None:
    with Client(redis_url) as alone:
        alone.submit(request_id="first", prompt="x")
        alone.submit(request_id="late", prompt="x")
        alone.submit(request_id="urgent", prompt="x", priority=RequestPriority.HIGH, timeout=60)
    story = explained(cli, "late")
    assert (story["state"], story["ahead"]) == ("queued", 2)
    assert (story["why"], story["fix"]) == ("no scheduler leads", "start one: stoker scheduler")
    words = cli("explain", "urgent").stdout
    for word in ("queued", "high", "deadline", "ahead of it  0 requests", "start one: stoker scheduler"):
        assert word in words


def test_a_dead_letter_says_why_and_where_it_failed(client: Client, cli: Cli) -> None:
    job = client.submit(request_id="a", prompt="hello", tenant="acme", metadata={"do": "fail"})
    assert job.response(timeout=30).status == "failed"
    story = explained(cli, "a")
    assert (story["state"], story["reason"], story["tenant"]) == ("failed", "error", "acme")
    assert story["message"]
    assert [(entry["worker"], entry["cause"]) for entry in story["history"]] == [("w", "error")]
    assert "ended        error on w" in cli("explain", "a").stdout


def test_a_letter_whose_result_expired_is_still_explained_and_so_is_what_was_made_of_it(
    client: Client, fleet: Fleet, cli: Cli
) -> None:
    job = client.submit(request_id="a", prompt="hello", metadata={"do": "fail"})
    assert job.response(timeout=30).status == "failed"
    before = explained(cli, "a")
    with redis.Redis.from_url(fleet.config.redis_url) as server:
        server.delete("stoker:{default}:result:a")
    after = explained(cli, "a")
    assert {name: after[name] for name in ("state", "reason", "attempts", "history")} == {
        name: before[name] for name in ("state", "reason", "attempts", "history")
    }
    retried = client.retry_dead("a")
    retried.response(timeout=30)
    assert explained(cli, retried.id)["retry_of"] == "a"


def test_a_running_request_names_its_worker(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one")
    with stack.client() as client:
        job = client.submit(prompt_tokens=[1], max_tokens=2000)
        wait_until(lambda: job.id in stack.running("one"), 30)
        assert "running on one" in cli("explain", job.id).stdout
        job.cancel()


def test_what_is_unknown_exits_with_1(cli: Cli) -> None:
    shown = cli("explain", "nobody")
    assert shown.exit_code == 1
    assert "nothing is known of nobody" in shown.output


def test_a_request_with_an_affinity_key_says_which_workers_that_prefers(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("worker")
    with stack.client() as client:
        client.submit(request_id="a", prompt_tokens=[1], max_tokens=100_000, affinity_key="s")
        wait_until(lambda: explained(cli, "a")["state"] == "running")
        assert explained(cli, "a")["homes"] == ["worker"]
        assert "key prefers  worker" in cli("explain", "a").stdout
        wait_until(lambda: stack.redis.hget(stack.keys.leader, "speeds"))


def test_what_the_reserve_keeps_back_says_so_though_a_row_is_free(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one", "--max-num-seqs", "2")
    with stack.client() as client:
        users = [client.submit(prompt_tokens=[1], max_tokens=200) for _ in range(2)]
        for job in users:
            job.response(timeout=30)
        for name in ("first", "second"):
            client.submit(request_id=name, prompt_tokens=[1], max_tokens=20_000, priority=RequestPriority.BATCH)
        wait_until(lambda: explained(cli, "first")["state"] == "running")
        wait_until(lambda: explained(cli, "second")["held_back_by"] == ["reserve"])
        batches = json.loads(cli("queue", "preview", "--json").stdout)["batches"]
        assert [one["when"] for one in batches] == ["later"]
