"""`stoker queue preview` and what `stoker explain` says of a place in line, against what the scheduler then does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.conftest import Cli
from cli.test_json import check
from helpers import wait_until
from stack_processes import Stack
from stoker import InferenceRequest

ONE_ROW = ("--max-num-seqs", "1", "--profile", "zero")
ENDLESS = 100_000


def requests(names: str, **fields: Any) -> list[InferenceRequest]:
    return [
        InferenceRequest(request_id=name, prompt_tokens=[1], max_tokens=1, tenant=name[0], **fields)
        for name in names.split()
    ]


def previewed(cli: Cli, *more: str) -> dict[str, Any]:
    return check("queue preview", cli("queue", "preview", "--json", *more).stdout)


def ids(found: dict[str, Any]) -> list[str]:
    return [request["id"] for batch in found["batches"] for request in batch["requests"]]


def finish_order(stack: Stack) -> list[str]:
    lines = [line for _, fields in stack.redis.xrange(stack.keys.events) for line in fields["lines"].split("\n")]
    return [line.split(" ")[0] for line in lines if line.split(" ")[1] == "end"]


def test_an_empty_queue_has_nothing_next(cli: Cli) -> None:
    assert cli("queue", "preview").output == "nothing waits\n"
    assert previewed(cli)["batches"] == []


def test_without_workers_what_waits_is_told_and_no_batch(cli: Cli) -> None:
    cli("submit", "hello", "--no-wait", "--tenant", "a")
    assert "1 wait, and no worker could take any" in cli("queue", "preview").output or previewed(cli)["waiting"] == 1
    assert previewed(cli)["batches"] == []


def test_the_preview_is_the_order_in_which_the_scheduler_then_runs_it(stack: Stack, cli: Cli) -> None:
    stack.worker("worker", *ONE_ROW)
    with stack.client() as client:
        client.set_tenant("b", weight=2)
        jobs = client.submit_many([*requests("a1 a2 a3 a4 b1 b2 b3"), *requests("c1", priority="high")])
        before = previewed(cli)
        assert before["batches"][0]["when"] == "now"
        assert {batch["when"] for batch in before["batches"][1:]} == {"later"}
        assert stack.redis.zcard(stack.keys.lane("normal:a")) == 4, "a preview changes nothing"
        shown = cli("queue", "preview").output
        assert "next of 8 that wait" in shown
        stack.scheduler()
        for job in jobs:
            job.result(timeout=60)
    assert ids(before) == finish_order(stack)


def test_a_preview_shows_no_more_batches_than_asked_for(stack: Stack, cli: Cli) -> None:
    stack.worker("worker", *ONE_ROW)
    with stack.client() as client:
        client.submit_many(requests("a1 a2 a3 a4"))
    assert ids(previewed(cli, "--batches", "2")) == ["a1", "a2"]


def test_a_tenant_that_floods_is_told_that_others_were_served_less(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("worker", "--max-num-seqs", "1")
    with stack.client() as client:
        first = client.submit(request_id="x", prompt_tokens=[1], max_tokens=ENDLESS, tenant="a")
        wait_until(lambda: first.status() == "running", 30)
        client.submit_many([*requests("a1 a2"), *requests("b1 b2")])
        wait_until(lambda: len(previewed(cli)["shares"]) == 2, 30)
        wait_until(lambda: explained(cli, "a2")["position"] == 3, 30)
        story = explained(cli, "a2")
        assert story["held_back_by"] == ["credit", "fairness", "order"]
        assert story["fairness"]["tenants"] == 2
        assert story["fairness"]["overtaken_by"] >= 1
        assert story["score"]["score_s"] == pytest.approx(
            story["score"]["arrival_s"] + story["score"]["term_s"], abs=1e-3
        )
        assert (story["score"]["term_s"], story["score"]["window_s"]) == (pytest.approx(60, abs=1e-3), 60)
        words = cli("explain", "a2").stdout
        for word in ("no worker has room for it", "other tenants were served less", "lowest of 2 tenants"):
            assert word in words
        assert explained(cli, "b1")["held_back_by"] == ["credit"] or explained(cli, "b1")["position"] <= 2
        first.cancel()


def test_a_deadline_that_lifts_a_request_is_told(stack: Stack, cli: Cli) -> None:
    with stack.client() as client:
        client.submit(request_id="a", prompt_tokens=[1], max_tokens=1, timeout=20)
    story = explained(cli, "a")
    assert (story["score"]["term_s"], story["score"]["window_s"]) == (pytest.approx(20, abs=1e-3), 60)
    assert story["held_back_by"] == ["no_scheduler", "no_workers"]
    assert story["eta_s"] is None
    assert "lifted by its deadline" in cli("explain", "a").stdout


def test_the_eta_is_what_stands_before_it_over_the_measured_rate(
    stack: Stack, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_AHEAD_MS", "0")  # else the short ones let one of the three go to the worker ahead
    stack.scheduler()
    stack.worker("worker", "--max-num-seqs", "1")
    with stack.client() as client:
        for _ in range(3):
            client.submit(prompt_tokens=[1], max_tokens=1).result(timeout=30)
        first = client.submit(prompt_tokens=[1], max_tokens=ENDLESS)
        wait_until(lambda: first.status() == "running", 30)
        client.submit_many(requests("a1 a2 a3"))
        story = explained(cli, "a3")
        rate = json.loads(cli("stats", "--json").stdout)["rates"]["requests_per_second"]
        assert story["position"] == 3
        assert story["eta_s"] == pytest.approx(3 / rate, rel=0.5)
        assert "its turn" in cli("explain", "a3").stdout
        first.cancel()


def explained(cli: Cli, request_id: str) -> dict[str, Any]:
    return check("explain", cli("explain", request_id, "--json").stdout)
