"""What happens to requests that take their worker down, and to those that were beside them."""

from __future__ import annotations

import math
import os
import signal

import pytest

from helpers import wait_until
from stack_processes import Stack
from stoker import Client, InferenceRequest, RequestFailed

ENDINGS = {"abort": "SIGABRT", "exit": "exit code 1", "hang": "stood still"}
"""What a user is told of the end that an input of the model `Deadly` causes."""


@pytest.mark.parametrize("end", ENDINGS)
def test_a_crash_requeues_the_innocent_and_convicts_the_culprit(stack: Stack, client: Client, end: str) -> None:
    """Whether a signal or an exit of its own ends the process, or it never comes back: only a SIGKILL is nobody's."""
    stack.environment["STOKER_HUNG_S"] = "1"
    stack.scheduler()
    stack.worker("one", model="stack_models:Deadly")
    jobs = client.submit_many([InferenceRequest(inputs=item) for item in ["a", "b", "c"]])
    culprit = client.submit(inputs=end)
    assert [job.result(timeout=60).output for job in jobs] == ["a", "b", "c"]
    with pytest.raises(RequestFailed, match=ENDINGS[end]):
        culprit.result(timeout=60)
    letters = client.dead_letters()
    assert [(letter.id, letter.reason) for letter in letters] == [(culprit.id, "poison")]
    assert ENDINGS[end] in letters[0].message


def test_two_culprits_of_one_crash_are_found_by_halving_and_nobody_else_is_charged(
    stack: Stack, client: Client
) -> None:
    stack.worker("one", "--max-num-seqs", "16", model="stack_models:Deadly")
    inputs = [f"i{number}" for number in range(16)]
    inputs[3] = inputs[12] = "abort"
    jobs = client.submit_many([InferenceRequest(inputs=item) for item in inputs])
    stack.scheduler()
    for item, job in zip(inputs, jobs, strict=True):
        if item == "abort":
            with pytest.raises(RequestFailed, match="SIGABRT"):
                job.result(timeout=90)
        else:
            assert job.result(timeout=90).output == item
    assert deaths(stack) <= 2 * (math.ceil(math.log2(16)) + 2)


def test_a_child_that_stands_still_is_killed_and_its_work_runs_elsewhere(stack: Stack, client: Client) -> None:
    stack.environment["STOKER_HUNG_S"] = "2"
    stack.scheduler()
    stuck = stack.worker("stuck", "--max-num-seqs", "4")
    stack.worker("other", "--max-num-seqs", "4")
    jobs = client.submit_many([InferenceRequest(prompt_tokens=[i + 1], max_tokens=200) for i in range(8)])
    wait_until(lambda: stack.running("stuck"), 30)
    os.kill(stack.child_of(stuck), signal.SIGSTOP)
    assert [len(job.result(timeout=60).token_ids) for job in jobs] == [200] * 8
    assert "child hung" in stack.log("stuck")
    stack.wait_for_worker("stuck", stuck)


def deaths(stack: Stack) -> int:
    """How many children were reported dead."""
    entries = stack.redis.xrange(stack.keys.events)
    return sum(fields["script"] == "report" for _, fields in entries)
