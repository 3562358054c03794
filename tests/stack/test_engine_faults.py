"""Engines that run out of memory, lose their device or hang with the interpreter's lock: real processes, no GPU."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from helpers import wait_until
from stack_processes import Stack
from stoker import Client, InferenceRequest, RequestFailed
from stoker_workers.supervisor import HAND_BACK_S


def events(stack: Stack, name: str, event: str) -> list[dict[str, Any]]:
    """The lines of a worker's log that say this."""
    lines = [line for line in stack.log(name).splitlines() if line.startswith("{")]
    return [said for said in map(json.loads, lines) if said["event"] == event]


def words(stack: Stack) -> list[list[str]]:
    """The lines of the history, cut into words."""
    entries = stack.redis.xrange(stack.keys.events)
    return [line.split(" ") for _, fields in entries for line in fields["lines"].split("\n") if line]


def capacity(stack: Stack, name: str) -> int:
    return int(stack.redis.hget(stack.keys.inc, stack.incarnation(name)).split("|")[2])


def test_a_batch_that_finds_no_memory_is_split_and_nobody_is_charged(stack: Stack, client: Client) -> None:
    worker = stack.worker("tight", "--max-num-seqs", "16", model="stack_models:Tight")
    child, full = stack.child_of(worker), capacity(stack, "tight")
    jobs = client.submit_many([InferenceRequest(inputs="ab") for _ in range(16)])
    stack.scheduler()
    sizes = [job.result(timeout=30).output["batch"] for job in jobs]
    assert max(sizes) == 4, "as many as there is memory for"
    assert stack.child_of(worker) == child
    assert not [line for line in words(stack) if line[1] == "failure"]
    lacks = events(stack, "tight", "out of memory")
    assert [lack["in_step"] for lack in lacks][:2] == [16, 8]
    # Until it is calm for a while: 32 tokens at first, of which half and half again is left.
    assert 8 <= capacity(stack, "tight") <= 16 < full


def test_a_request_too_large_even_alone_ends_in_the_dead_letters_and_the_worker_lives(
    stack: Stack, client: Client
) -> None:
    stack.environment["STOKER_BACKOFF_MIN_MS"] = "50"
    stack.scheduler()
    worker = stack.worker("tight", model="stack_models:Tight")
    child = stack.child_of(worker)
    large = client.submit(inputs="x" * 20)
    with pytest.raises(RequestFailed, match=r"too large for this worker's memory even alone .*Tried to allocate 1 GiB"):
        large.result(timeout=30)
    assert [(letter.id, letter.reason) for letter in client.dead_letters()] == [(large.id, "out_of_memory")]
    assert client.submit(inputs="ab").result(timeout=30).output == {"batch": 1}
    assert stack.child_of(worker) == child


@pytest.mark.measured
def test_a_device_that_is_lost_ends_the_process_and_a_fresh_one_serves(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    stack.scheduler()
    worker = stack.worker("gpu", model="stack_models:Sticky")
    child, inc = stack.child_of(worker), stack.incarnation("gpu")
    jobs = client.submit_many([InferenceRequest(inputs=text) for text in ["a", str(mark), "b"]])
    assert [job.result(timeout=60).output for job in jobs] == ["a", str(mark), "b"]
    wait_until(lambda: (now := stack.incarnation("gpu")) and now != inc, 30, what="a fresh one registers")
    assert stack.child_of(worker) != child
    (died,) = events(stack, "gpu", "child died")
    assert (died["cause"], died["code"]) == ("device", 4)
    assert "an illegal memory access was encountered" in stack.log("gpu")
    assert not [line for line in words(stack) if line[1] == "failure"]


@pytest.mark.measured
def test_a_model_that_cannot_be_loaded_again_is_tried_again_more_and_more_rarely_until_its_folder_is_mended(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.write_text("fine")
    stack.environment["MODEL_FOLDER"] = str(tmp_path)
    stack.scheduler()
    worker = stack.worker("worker", model="stack_models:FromFolder")
    weights.rename(tmp_path / "away")
    os.kill(stack.child_of(worker), signal.SIGKILL)
    tries = wait_until(lambda: len(found := failed_loads(stack)) >= 3 and found, 60, what="it is tried again")
    assert stack.incarnation("worker") is None
    job = client.submit(inputs=1)
    # Half of 1 s and of 2 s at least, beside the time of a start.
    assert tries[1] - tries[0] >= 0.5
    assert tries[2] - tries[1] >= 1.0
    (tmp_path / "away").rename(weights)
    assert job.result(timeout=60).output == "fine"
    assert len(failed_loads(stack)) <= 5


def failed_loads(stack: Stack) -> list[float]:
    """When the worker gave up a load, in seconds."""
    said = events(stack, "worker", "model not loaded, trying again")
    return [datetime.fromisoformat(line["timestamp"]).timestamp() for line in said]


@pytest.mark.measured
def test_a_worker_whose_child_hears_nothing_ends_all_the_same_and_gives_its_work_back(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    """A class of the user's own may take any time, so that no limit ends it."""
    mark = tmp_path / "mark"
    mark.touch()
    stack.scheduler()
    worker = stack.worker("deaf", model="stack_models:Gripping")
    job = client.submit(inputs=str(mark))
    wait_until(lambda: not mark.exists(), 30, what="it hangs")
    worker.terminate()
    wait_until(lambda: stack.redis.hget(stack.keys.inc, stack.incarnation("deaf")).split("|")[8] == "0", 10)
    worker.terminate()
    assert worker.wait(HAND_BACK_S + 5) == 0
    stack.worker("next", model="stack_models:Gripping")
    assert job.result(timeout=30).output == str(mark)
    assert not [line for line in words(stack) if line[1] == "failure"]


def test_a_child_that_hangs_with_the_interpreters_lock_is_killed_and_its_work_runs_elsewhere(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    stack.environment["STOKER_HUNG_S"] = "2"
    stack.worker("one", model="stack_models:Gripping")
    stack.worker("other", model="stack_models:Gripping")
    jobs = client.submit_many([InferenceRequest(inputs=text) for text in [str(mark), *"abcdefgh"]])
    stack.scheduler()
    wait_until(lambda: not mark.exists(), 30, what="it hangs")
    hung = next(name for name in ("one", "other") if str(jobs[0].id) in stack.running(name))
    inc = stack.incarnation(hung)
    # Found within the limit and a look at its progress, then taken back at once; the rest is for a busy machine.
    wait_until(lambda: not stack.redis.hexists(stack.keys.inc, inc), 2 + stack.beats(3) + 5, what="it is buried")
    assert [job.result(timeout=60).output for job in jobs] == [str(mark), *"abcdefgh"]
    assert [died["cause"] for died in events(stack, hung, "child died")] == ["hung"]
    stack.wait_for_worker(hung)
