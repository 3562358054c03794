"""An upgrade: every process of the stack is replaced, one after the other, under load."""

from __future__ import annotations

from collections import Counter

import pytest

from helpers import wait_until
from stack.steady_load import SteadyLoad
from stack_processes import Stack
from stoker import Client

WORKERS = ("w0", "w1", "w2")
SCHEDULERS = ("s0", "s1")
ROWS = ("--max-num-seqs", "4")
TOKENS = 40
"""About a third of a second each."""
LIVE = 24
"""Requests in flight: twice as many as there are rows."""


@pytest.mark.long
def test_replacing_every_process_under_load_loses_and_fails_nothing_and_charges_nobody(
    stack: Stack, client: Client
) -> None:
    stack.environment["STOKER_DRAIN_TIMEOUT_S"] = "0.1"  # less than a request takes, so that some are handed back
    running = {name: stack.scheduler(name) for name in SCHEDULERS}
    running |= {name: stack.worker(name, *ROWS) for name in WORKERS}
    with SteadyLoad(client, live=LIVE, max_tokens=TOKENS) as load:
        wait_until(lambda: all(stack.running(name) for name in WORKERS), 30, what="all are busy")
        for name in WORKERS:
            before = stack.incarnation(name)
            running[name].terminate()
            assert running[name].wait(60) == 0
            running[name] = stack.worker(name, *ROWS, wait=False)
            wait_until(lambda b=before, n=name: (now := stack.incarnation(n)) and now != b, 60, what=f"{name} is back")
            wait_until(lambda n=name: stack.running(n), 30, what=f"{name} is given work")
        for name in SCHEDULERS:
            running[name].terminate()
            assert running[name].wait(30) == 0
            answered = len(load.responses)
            running[name] = stack.scheduler(name)
            wait_until(lambda n=answered: len(load.responses) > n + LIVE, 60, what="work goes on")
    assert [response.error for response in load.responses if response.error] == []
    assert {len(response.token_ids) for response in load.responses} == {TOKENS}
    lines = [
        line.split(" ")
        for _, fields in stack.redis.xrange(stack.keys.events)
        for line in fields["lines"].split("\n")
        if line
    ]
    words = Counter(line[1] for line in lines)
    assert words["submit"] == words["end"] == len(load.responses)
    # Nobody is charged, no worker is lost: each took its leave, and what it did not finish it handed back.
    assert words["failure"] == words["report"] == words["void"] == 0
    assert {line[6] for line in lines if line[1] == "requeue"} == {"handed_back"}
