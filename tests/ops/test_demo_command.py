"""`stoker demo`: a stack for a moment, requests through it, and the figures."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from helpers import marked_processes, process_is_gone, wait_until
from stoker.errors import ConfigError, InvalidRequest
from stoker.request import Chunk, InferenceRequest, InferenceResponse, RequestPriority, Restarted, Timings, Usage
from stoker.store.records import WorkerRecord
from stoker_ops import screen
from stoker_ops.cli import _engine
from stoker_ops.demo import make_report, percentiles, read_prompts
from stoker_workers.demo import sample_prompts

STOKER = ("-c", "from stoker.cli import main; main()")
SIM = ("--model", "sim", "--profile", "zero")
Python = Callable[..., subprocess.Popen[str]]


def endless(folder: Path) -> Path:
    """Prompts that take the sim engine minutes."""
    file = folder / "endless.jsonl"
    file.write_text(json.dumps({"prompt": "hello", "max_tokens": 100_000}) + "\n")
    return file


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.usefixtures("unmeasured")
def test_a_demo_runs_a_real_model_on_a_bare_machine_and_ends_with_a_table(python: Python, temp: Path) -> None:
    bare = {"PATH": "/nowhere", "HOME": "", "TMPDIR": str(temp)}
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTEST", "COVERAGE"))}
    process = python(*STOKER, "demo", "--workers", "1", env=bare | kept)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors == ""
    lines = out.splitlines()
    assert lines[0].startswith("starting a Redis, a scheduler and the workers, which load demo")
    count = len(sample_prompts())
    assert f": w0 serve demo; pushing {count} requests" in lines[1]
    assert f"{count + 1} of {count + 1} requests" in out
    assert 'asked meanwhile, ahead of all others: The "with" statement is used to\n' in out
    for word in (
        "queue time",
        "first token (TTFT)",
        "end to end",
        "batch fill",
        "w0",
        f"{count + 1} ok",
        "0 failed",
    ):
        assert word in out, word


def test_a_demo_with_a_failed_request_exits_with_1_and_its_json_has_the_reason(
    python: Python, short_tmp: Path, temp: Path
) -> None:
    prompts = short_tmp / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello", "max_tokens": 3}\n' * 9 + '{"prompt": "hello", "max_tokens": 1000000}\n')
    process = python(*STOKER, "demo", *SIM, "--json", "--prompts", str(prompts))
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    report = json.loads(out)
    assert (report["requests"], report["succeeded"], report["failed"]) == (11, 10, 1)
    assert "must be at most the model's context of 131072" in report["reasons"][0]
    assert report["tokens"] == 9 * 3 + 96
    assert [worker["name"] for worker in report["workers"]] == ["w0", "w1"]
    assert sum(worker["requests"] for worker in report["workers"]) == 10
    assert 0 < report["batch_fill"] <= 1
    for name in ("queue_ms", "ttft_ms", "e2e_ms"):
        assert 0 < report[name]["p50"] <= report[name]["p95"] <= report[name]["p99"]


def test_ctrl_c_ends_a_demo_on_a_terminal_with_130(python: Python, short_tmp: Path, temp: Path) -> None:
    leader, terminal = pty.openpty()
    command = (*STOKER, "demo", "--model", "sim", "--workers", "1", "--prompts", str(endless(short_tmp)))
    process = python(*command, stdout=terminal, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"})
    os.close(terminal)
    shown = b""
    # The bar, and the streamed answer above it.
    while b"0/2" not in shown or b"asked meanwhile" not in shown:
        shown += os.read(leader, 65536)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the end of what it draws
        while os.read(leader, 65536):
            pass
    os.close(leader)
    assert process.wait(10) == 130


@pytest.mark.usefixtures("unmeasured")
def test_a_demo_ends_when_its_starter_is_killed(python: Python, short_tmp: Path, temp: Path) -> None:
    command = [
        sys.executable,
        *STOKER,
        "demo",
        "--model",
        "sim",
        "--workers",
        "1",
        "--prompts",
        str(endless(short_tmp)),
    ]
    starter = python("-c", f"import subprocess; subprocess.run({command!r})", stderr=None)
    while "pushing" not in starter.stdout.readline():  # type: ignore[union-attr]  # it is a pipe
        assert not process_is_gone(starter.pid)
    starter.kill()
    wait_until(lambda: not marked_processes(str(short_tmp)), 30, what="no process is left")


# --- its parts --------------------------------------------------------------------------------------------------------


def test_prompts_are_requests_as_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "priority": "high", "max_tokens": 5}\n{"prompt_tokens": [1, 2]}\n')
    assert read_prompts(file) == [
        InferenceRequest(prompt="a", priority=RequestPriority.HIGH, max_tokens=5),
        InferenceRequest(prompt_tokens=[1, 2]),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n{", "prompts.jsonl:2: "),
        ("[1]", "prompts.jsonl:1: "),
        ('{"colour": "red"}', "colour"),
        ('{"prompt": ""}', "prompt: must be a non-empty string"),
        ("\n", "has no request in it"),
        (b"\xff", "cannot be read"),
    ],
)
def test_prompts_that_cannot_be_read_are_named_with_their_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        read_prompts(file)


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles([float(number) for number in range(1, 101)]) == {"p50": 51.0, "p95": 96.0, "p99": 100.0}
    assert percentiles([3.0, None]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([None]) == {"p50": None, "p95": None, "p99": None}


def answer(worker: str, tokens: int) -> InferenceResponse:
    return InferenceResponse(
        "id", "succeeded", worker=worker, usage=Usage(4, tokens), timings=Timings(queue_ms=1, ttft_ms=2, e2e_ms=1500)
    )


def refused() -> InferenceResponse:
    return InferenceResponse("id", "refused", error=InvalidRequest("prompt", "must be shorter", 9))


def record(name: str, steps: int, row_steps: int) -> WorkerRecord:
    figures = {"steps": steps, "row_steps": row_steps}
    return WorkerRecord(
        inc=f"{name}:1-a",
        worker=name,
        rows=8,
        capacity=64,
        budget=64,
        mode="continuous",
        cache="paged",
        figures=figures,
    )


def test_a_report_has_each_workers_share_and_how_full_its_batches_were() -> None:
    responses = [answer("w0", 10), answer("w0", 20), answer("w1", 30), refused()]
    workers = [record("w1", 0, 0), record("w0", 10, 40)]
    report = make_report("m", responses, workers, seconds=2.0, ready_s=1.0)
    assert (report.requests, report.succeeded, report.failed) == (4, 3, 1)
    assert report.reasons == ["prompt: must be shorter, got 9"]
    assert (report.tokens, report.tokens_per_s) == (60, 30.0)
    assert [(worker.name, worker.requests, worker.batch_fill) for worker in report.workers] == [
        ("w0", 2, 0.5),
        ("w1", 1, None),
    ]
    assert report.batch_fill == 0.5


def drawn(terminal: bool) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=terminal, width=100, color_system=None), written


def test_without_a_terminal_a_line_tells_every_few_seconds_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "LINE_EVERY_S", 0.0)
    console, written = drawn(False)
    shown = screen.Screen(console)
    shown.asked("why?")
    with shown.live(2):
        shown.piece(Chunk("[no] markup", [1]))
        shown.finished(answer("w0", 10))
        shown.piece(Restarted("[so] it is", [1]))
        shown.finished(refused())
    lines = written.getvalue().splitlines()
    assert lines[0].startswith("1 of 2 requests, 10 tokens")
    assert lines[1].startswith("2 of 2 requests, 1 failed, 10 tokens")
    assert lines[3:] == ["asked meanwhile, ahead of all others: why?", "[so] it is"]


def test_on_a_terminal_the_answer_grows_above_a_bar() -> None:
    console, written = drawn(True)
    shown = screen.LiveScreen(console)
    shown.asked("why?")
    with shown.live(1):
        shown.piece(Chunk("[so] it is", [1]))
        shown.finished(answer("w0", 10))
    shown.table(make_report("m", [answer("w0", 10), refused()], [record("w0", 0, 0)], seconds=1.0, ready_s=1.0))
    text = written.getvalue()
    for part in ("why?", "[so] it is", "1/1", "10 tokens", "1.5 s", "failed: prompt: must be shorter"):
        assert part in text, part


def test_a_quiet_screen_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = screen.make_screen(quiet=True)
    shown.say("hello")
    shown.table(make_report("m", [], [], seconds=1.0, ready_s=1.0))
    assert capsys.readouterr().out == ""
    assert type(screen.make_screen()) is screen.Screen


def test_without_torch_one_line_says_so_and_sim_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"model": None, "engine": "auto"}
    assert _engine(dict(options), print).model == "demo"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    assert _engine(dict(options), said.append).model == "sim"
    assert said == ['without torch no model runs, so the sim engine answers; pip install "stoker[worker]" adds it']
    assert _engine(options | {"model": "mine:Model"}, said.append).model == "mine:Model"
    assert _engine(options | {"engine": "sim"}, said.append).model == "sim"
    assert len(said) == 1
