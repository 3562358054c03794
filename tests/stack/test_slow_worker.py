"""A worker that is five times as slow as its peers is left out, probed, and taken back once it is well."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from helpers import wait_until
from stack.steady_load import SteadyLoad
from stack_processes import Stack
from stoker import Client
from stoker_workers.engines.sim import Profile

ROWS = ("--max-num-seqs", "4")
# Slow enough that a busy machine adds little to what the engine sleeps.
WELL = Profile(base_ms=30, prefill_ms=0.1, row_ms=0.5)
SLOW = Profile(base_ms=150, prefill_ms=0.5, row_ms=2.5)


def circuit(stack: Stack, name: str) -> str:
    """What the leader says of a worker's circuit, as `stoker workers` shows it."""
    told = stack.redis.hget(stack.keys.leader, "circuits") or ""
    return dict(pair.split("=", 1) for pair in told.split("|") if pair).get(name, "closed")


def given_to(stack: Stack, name: str) -> int:
    """How many requests were handed to a worker so far."""
    entries = stack.redis.xrange(stack.keys.events)
    lines = [line.split(" ") for _, fields in entries for line in fields["lines"].split("\n") if line]
    return sum(parts[1] == "dispatch" and parts[3].startswith(f"{name}:") for parts in lines)


@pytest.mark.long
def test_a_worker_five_times_as_slow_is_left_out_probed_and_taken_back_when_it_is_well(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    stack.environment["STOKER_BREAKER_OPEN_S"] = "2"
    profiles = {"well": WELL, "slow": SLOW}
    for name, profile in profiles.items():
        (tmp_path / name).write_text(json.dumps(dataclasses.asdict(profile)))
    stack.scheduler()
    for name in ("a", "b"):
        stack.worker(name, *ROWS, "--profile", str(tmp_path / "well"))
    slow = stack.worker("c", *ROWS, "--profile", str(tmp_path / "slow"))
    with SteadyLoad(client, live=16, max_tokens=10) as load:
        wait_until(lambda: stack.running("c"), 30, what="the slow one works")
        wait_until(lambda: circuit(stack, "c") == "open, slow", 90, what="it is left out")
        assert {circuit(stack, name) for name in "ab"} == {"closed"}

        # What it held is finished; then it gets nothing until its probe, which is one request.
        wait_until(lambda: circuit(stack, "c") == "half-open, slow" or not stack.held("c"), 60, what="it is idle")
        before, answered = given_to(stack, "c"), len(load.responses)
        wait_until(lambda: given_to(stack, "c") > before, 60, what="it is probed")
        assert len(stack.held("c")) <= 1
        wait_until(lambda: circuit(stack, "c") == "open, slow", 60, what="it is found slow still")
        assert given_to(stack, "c") - before <= 4, "one at a time, and no more than prove it"
        others = [response for response in load.responses[answered:] if response.worker != "c"]
        assert others, "its peers work on"

        slow.terminate()
        assert slow.wait(60) == 0
        stack.worker("c", *ROWS, "--profile", str(tmp_path / "well"))
        wait_until(lambda: circuit(stack, "c") == "closed", 60, what="it is taken back")
        wait_until(lambda: len(stack.running("c")) > 1, 30, what="it works as the others do")
    assert [response.error for response in load.responses if response.error] == []
