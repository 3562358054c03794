"""What a stack writes to its logs: one event a line, as JSON, with what it is about, and never a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from helpers import process_is_gone, wait_until
from stack_processes import Stack
from stoker.cli import main

MARKER = "xyzzy-the-secret-of-the-prompt"
LONG_RUNNING = ("scheduler", "worker", "up", "demo")


def events(stack: Stack, name: str) -> list[dict[str, Any]]:
    """Every line of a log as the event that it is."""
    return [json.loads(line) for line in stack.log(name).splitlines()]


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_what_runs_long_takes_a_log_level(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    [option] = [option for option in command.params if option.name == "log_level"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == ["debug", "info", "warning", "error"]


def test_no_prompt_is_in_any_log_at_debug_level_whatever_happens_to_it(stack: Stack) -> None:
    stack.scheduler("scheduler", "--log-level", "debug")
    # One at a time, so that each has its own end.
    options = ("--log-level", "debug", "--max-num-seqs", "1")
    process = stack.worker("one", *options, model="stack_models:Quoting")
    first_child = stack.child_of(process)
    with stack.client() as client:
        for word, end in (("ok", "succeeded"), ("fail", "failed"), ("raise", "failed"), ("unpriced", "failed")):
            response = client.submit(inputs=f"{MARKER} {word}").response(timeout=90)
            assert response.status == end
            assert response.error is None or MARKER in str(response.error), "the client is told"
        crash = client.submit(inputs=f"{MARKER} crash")
        wait_until(lambda: process_is_gone(first_child), 60, what="the crash ended the engine")
        crash.cancel()
    logs = stack.log("scheduler") + stack.log("one")
    assert MARKER not in logs
    told = events(stack, "one") + events(stack, "scheduler")
    assert all({"event", "level", "timestamp"} <= set(event) for event in told)
    failed = next(event for event in told if event["event"] == "engine failed")
    assert failed["exception"].endswith("stack_models.Crash")
    assert "in predict" in failed["exception"]
    assert failed["inc"].startswith("one:")


def test_debug_tells_of_each_attempt_by_id_worker_and_delivery(stack: Stack) -> None:
    stack.scheduler("scheduler", "--log-level", "debug")
    stack.worker("one", "--log-level", "debug", model="stack_models:Echo")
    with stack.client() as client:
        client.submit(inputs="good", request_id="a").result(timeout=60)
        assert client.submit(inputs="bad", request_id="b").response(timeout=60).status == "failed"

    def ended(request_id: str) -> dict[str, Any] | None:
        found = (event for event in events(stack, "one") if event["event"] == "attempt ended")
        return next((event for event in found if event["id"] == request_id), None)

    a, b = wait_until(lambda: ended("a")), wait_until(lambda: ended("b"))
    assert (a["level"], a["outcome"], a["attempt"]) == ("debug", "ok", 1)
    assert (b["level"], b["outcome"], b["reason"]) == ("info", "failure", "error")
    assert a["inc"] == stack.incarnation("one")
    [begun] = [event for event in events(stack, "one") if event["event"] == "begun" and event["ids"] == ["a"]]
    assert begun["delivery"] == a["delivery"]
    [dispatched] = [e for e in events(stack, "scheduler") if e["event"] == "dispatched" and e["ids"] == ["a"]]
    assert dispatched["inc"] == a["inc"]


def test_at_level_error_a_healthy_stack_is_silent(stack: Stack, short_tmp: Path) -> None:
    stack.scheduler("scheduler", "--log-level", "error")
    stack.worker("one", "--log-level", "error", "--profile", "zero")
    with stack.client() as client:
        client.submit(prompt="hello", max_tokens=2).result(timeout=60)
    assert stack.log("scheduler") == stack.log("one") == ""
