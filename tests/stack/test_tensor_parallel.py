"""A worker whose model is split over processes is one worker to everybody else, and is restarted as a whole."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from helpers import process_is_gone, wait_until
from stack_processes import Stack
from stoker import Client

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SPLIT = ("--device", "cpu", "--tensor-parallel-size", "2")
SIZES = ("--kv-cache-tokens", "8192", "--max-num-batched-tokens", "256")
PROMPTS = ["The with statement", "A class definition", "Lambda expressions", "If an exception"]


def ranks_of(child: int) -> list[int]:
    tasks = Path(f"/proc/{child}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


@pytest.mark.long
def test_a_group_that_loses_a_rank_is_restarted_and_answers_everything_once(stack: Stack, client: Client) -> None:
    stack.scheduler()
    process = stack.worker("group", *SPLIT, *SIZES, model="demo")
    first = [client.submit(prompt=prompt, max_tokens=40, ignore_eos=True).result(timeout=60) for prompt in PROMPTS]
    inc, child = stack.incarnation("group"), stack.child_of(process)
    (rank,) = ranks_of(child)

    jobs = [client.submit(prompt=prompt, max_tokens=400, ignore_eos=True, stream=True) for prompt in PROMPTS]
    wait_until(lambda: len(stack.running("group")) == len(PROMPTS), 30, what="all run")
    os.kill(rank, signal.SIGKILL)
    wait_until(lambda: process_is_gone(child), 30, what="the group ended")
    wait_until(lambda: (now := stack.incarnation("group")) and now != inc, 90, what="the group is back")

    answers = [job.result(timeout=120) for job in jobs]
    assert [len(answer.token_ids) for answer in answers] == [400] * len(PROMPTS)
    assert [answer.token_ids[:40] for answer in answers] == [answer.token_ids for answer in first]
    assert [answer.attempts for answer in answers] == [2] * len(PROMPTS)
    # A killed rank is nobody's fault: no request is suspected of it.
    events = [json.loads(line) for line in stack.log("group").splitlines() if line.startswith("{")]
    assert [event["cause"] for event in events if event["event"] == "child died"] == ["killed"]
