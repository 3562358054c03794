"""A run of a batch: each line once, whatever the line is, and whatever becomes of the run."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batch.conftest import Bench, Outcome, framed, text_of
from helpers import wait_until
from sdk.fleet import Fleet, Running
from stoker.batch import flight, lease, parts
from stoker.batch import run as runs
from stoker.batch.checkpoint import Checkpoint
from stoker.batch.files import Folder
from stoker.batch.run import run_batch
from stoker.errors import StokerError

HOLD = {"metadata": {"do": "hold"}}
FAIL = {"metadata": {"do": "fail"}}


# --- lines ------------------------------------------------------------------------------------------------------------


def test_every_line_is_answered_once(bench: Bench, fleet: Fleet) -> None:
    batch = bench.submit(*(framed(f"c{i}", f"word {i}") for i in range(700)))
    assert bench.run(batch) == "completed"
    answers = bench.answers()
    assert set(answers) == {f"c{i}" for i in range(700)}
    assert all(text_of(answers[f"c{i}"]) == f"WORD {i} " for i in range(700))
    status = batch.status()
    assert (status.state, status.total, status.done, status.succeeded, status.failed) == ("completed", 700, 700, 700, 0)
    assert (status.completion_tokens, dict(status.workers)) == (1400, {"w": 700})
    assert not bench.errors()


def test_nothing_is_left_of_a_batch_without_errors_but_its_output(bench: Bench, fleet: Fleet) -> None:
    bench.run(bench.submit("a b", "c"))
    assert sorted(path.name for path in bench.folder.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_bad_lines_are_errors_and_the_good_ones_run(bench: Bench, fleet: Fleet) -> None:
    lines = [
        b"\xef\xbb\xbf" + json.dumps(framed("first")).encode() + b"\r\n",
        b"\n",
        b"oops\n",
        framed("twice"),
        framed("twice", "again"),
        framed("n", n=2),
        framed("long", [1] * 99_999),
        framed("vocabulary", [5000]),
        b"x" * 2_000_000,
        framed("fails", **FAIL),
        b'{"prompt": "last"}',
    ]
    bench.config = bench.config.model_copy(update={"batch_line_bytes": 1 << 20})
    batch = bench.submit(*lines)
    with (bench.folder / "in.jsonl").open("r+b") as file:
        file.truncate((bench.folder / "in.jsonl").stat().st_size - 1)
    assert bench.run(batch) == "completed"
    assert set(bench.answers()) == {"first", "twice", "line-11"}
    assert bench.codes() == {
        2: "empty_line",
        3: "invalid_json",
        5: "duplicate_custom_id",
        6: "unsupported_parameter",
        7: "context_length_exceeded",
        8: "invalid_request",
        9: "line_too_long",
        10: "request_failed",
    }
    source = str(bench.folder / "in.jsonl")
    assert all(line["error"]["message"].startswith(f"{source}:{n}: ") for n, line in bench.errors().items())
    assert "line 4" in bench.errors()[5]["error"]["message"]
    assert {line["custom_id"] for line in bench.errors().values()} == {
        None,
        "twice",
        "n",
        "long",
        "vocabulary",
        "fails",
    }
    assert batch.status().errors["line_too_long"] == 1


def test_a_text_file_has_a_prompt_a_line(bench: Bench, fleet: Fleet) -> None:
    (bench.folder / "p.txt").write_text("one two\nthree\n")
    batch = bench.client.batches.create(bench.folder / "p.txt", output=bench.folder / "out.jsonl", max_tokens=1)
    assert bench.run(batch) == "completed"
    assert {name: text_of(line) for name, line in bench.answers().items()} == {"line-1": "ONE ", "line-2": "THREE "}


def test_what_a_worker_refuses_is_an_error_of_that_line(bench: Bench, fleet: Fleet) -> None:
    batch = bench.submit(framed("a", metadata={"do": "bad"}), framed("b"))
    assert bench.run(batch) == "completed"
    assert bench.codes() == {1: "invalid_request"}
    assert bench.errors()[1]["error"]["param"] == "prompt_tokens"


def test_large_answers_come_too(bench: Bench, fleet: Fleet) -> None:
    bench.run(bench.submit(framed("a", metadata={"do": "large"})))
    assert len(text_of(bench.answers()["a"])) == 100_000


def test_the_queue_never_holds_more_than_the_batch_may_have_in_flight(bench: Bench, fleet: Fleet) -> None:
    fleet.open.clear()
    batch = bench.submit(*(framed(f"c{i}") for i in range(300)), max_in_flight=20)
    outcome = bench.start(batch)
    wait_until(lambda: fleet.most_waiting == 20, 10)
    fleet.open.set()
    assert outcome.result() == "completed"
    assert fleet.most_waiting <= 20
    assert len(bench.answers()) == 300


def test_long_lines_are_taken_by_their_bytes(bench: Bench, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "MOST_BYTES", 50_000)
    fleet.open.clear()
    outcome = bench.start(bench.submit(*(framed(f"c{i}", "x" * 9_000) for i in range(60))))
    wait_until(lambda: fleet.most_waiting, 10)
    fleet.open.set()
    assert outcome.result() == "completed"
    assert fleet.most_waiting <= 6
    assert len(bench.answers()) == 60


def test_a_full_queue_is_waited_out(bench: Bench, fleet: Fleet) -> None:
    bench.config = bench.config.model_copy(update={"max_waiting": 8})
    assert bench.run(bench.submit(*(framed(f"c{i}") for i in range(200)))) == "completed"
    assert len(bench.answers()) == 200


def test_without_a_worker_nothing_is_sent_until_one_says_what_the_model_is(bench: Bench) -> None:
    batch = bench.submit("a")
    outcome = bench.start(batch)
    wait_until(lambda: "model is not known" in batch.status().why, 10)
    with Fleet(bench.config):
        assert outcome.result() == "completed"


# --- cancel, pause, windows -------------------------------------------------------------------------------------------


def running(bench: Bench, fleet: Fleet, held: int = 3, **options: Any) -> tuple[Any, Any]:
    """A batch of which two lines are answered, some run until they are released, and the rest waits."""
    lines = [framed("a"), framed("b"), *(framed(f"h{i}", **HOLD) for i in range(held))]
    batch = bench.submit(*lines, *(framed(f"r{i}") for i in range(200)), b"oops", max_in_flight=4, **options)
    outcome = bench.start(batch)
    wait_until(lambda: len(fleet.held) == held and batch.status().succeeded >= 2, 15, what="lines are held")
    return batch, outcome


def release_until_done(fleet: Fleet, outcome: Outcome) -> None:
    """Let all that the worker holds finish, whenever it came to hold it."""

    def released() -> bool:
        for row in fleet.held:
            row.do = ""
        return outcome.done.is_set()

    wait_until(released, 30, what="the batch is run to its end")


def test_cancelling_keeps_what_is_done_and_gives_every_other_line_an_error(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    asked = time.monotonic()
    assert batch.cancel() == "running"
    assert batch.status().state == "cancelling"
    assert outcome.result() == "cancelled"
    assert set(bench.answers()) == {"a", "b"}
    codes = bench.codes()
    assert (len(codes), codes[207]) == (205, "invalid_json")
    assert {code for number, code in codes.items() if number != 207} == {"batch_cancelled"}
    assert batch.status().state == "cancelled"
    assert time.monotonic() - asked < 10
    wait_until(lambda: not fleet.held, 5, what="the worker's rows are free")


def test_a_paused_batch_goes_on_where_it_was(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    batch.pause()
    assert outcome.result() == "paused"
    assert bench.run(batch) == "not run"
    fleet.release()
    assert batch.resume() == "queued"
    assert bench.run(batch) == "completed"
    assert len(bench.answers()) == 206
    assert bench.codes() == {207: "invalid_json"}


def test_a_paused_batch_that_is_cancelled_is_written_off_by_the_next_run(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    batch.pause()
    outcome.result()
    batch.cancel()
    assert bench.run(batch) == "cancelled"
    assert len(bench.answers()) + len(bench.codes()) == 207


def test_what_is_not_done_when_the_window_ends_is_expired(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4, window=3.0)
    assert outcome.result() == "expired"
    assert set(bench.answers()) == {"a", "b"}
    codes = bench.codes()
    assert len(codes) == 205
    assert set(codes.values()) == {"batch_expired", "invalid_json"}
    assert batch.status().state == "expired"


def test_a_batch_that_nobody_ran_in_its_window_is_written_off_without_a_worker(bench: Bench) -> None:
    batch = bench.submit("a", "b", window=0.05)
    wait_until(lambda: batch.status().now > batch.status().expires_at, 5)
    assert bench.run(batch) == "expired"
    assert set(bench.codes().values()) == {"batch_expired"}
    assert (bench.folder / "out.jsonl").read_bytes() == b""


def test_a_batchs_deadline_is_that_of_its_requests(bench: Bench, fleet: Fleet) -> None:
    running(bench, fleet, held=4, window=1800)
    timeouts = [row.payload.request.timeout for row in fleet.held]
    assert all(1700 < timeout <= 1800 for timeout in timeouts)


# --- retry ------------------------------------------------------------------------------------------------------------


def test_a_retry_runs_the_failed_lines_alone(bench: Bench, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [framed(f"c{i}", **(FAIL if i % 3 == 0 else {})) for i in range(30)]
    batch = bench.submit(*lines, b"oops")
    assert bench.run(batch) == "completed"
    first = bench.answers()
    assert len(first) == 20
    ran: list[str] = []

    def outcome(self: Running) -> tuple[str, str, bytes]:
        ran.append(self.payload.id)
        self.do = ""
        return original(self)

    original = Running.outcome
    monkeypatch.setattr(Running, "outcome", outcome)
    assert batch.retry() == 11
    assert bench.run(batch) == "completed"
    answers = bench.answers()
    assert len(answers) == 30
    assert {name: answers[name] for name in first} == first
    assert sorted(ran) == sorted(f"b-{i + 1}-1" for i in range(0, 30, 3))
    assert bench.codes() == {31: "invalid_json"}
    status = batch.status()
    assert (status.done, status.succeeded, status.failed, status.round) == (31, 30, 1, 1)


def test_errors_that_a_retry_heals_are_withdrawn(bench: Bench, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = bench.submit(framed("a", **FAIL), framed("b"))
    bench.run(batch)
    assert (bench.folder / "out.errors.jsonl").exists()
    monkeypatch.setattr(Running, "__post_init__", lambda self: None)
    batch.retry()
    bench.run(batch)
    assert set(bench.answers()) == {"a", "b"}
    assert not (bench.folder / "out.errors.jsonl").exists()


def test_a_cancelled_batch_can_be_retried_to_its_end(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    batch.cancel()
    outcome.result()
    wait_until(lambda: not fleet.held, 5)
    batch.retry()
    again = bench.start(batch)
    release_until_done(fleet, again)
    assert again.result() == "completed"
    assert len(bench.answers()) == 206


# --- ends of runs -----------------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_leaves_the_batch_to_the_next(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    outcome.stop.set()
    assert outcome.result() == "queued"
    fleet.release()
    assert bench.run(batch) == "completed"
    assert len(bench.answers()) == 206


def test_only_one_run_has_the_batch(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    assert bench.run(batch) == "not run"
    fleet.release()
    assert outcome.result() == "completed"


def test_a_run_that_lost_its_lease_stops_and_doubles_nothing(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    bench.lapse(batch)
    second = bench.start(batch)
    assert outcome.result() == "lost"
    fleet.release()
    assert second.result() == "completed"
    assert len(bench.answers()) == 206
    assert bench.codes() == {207: "invalid_json"}


class Crash(BaseException):
    """The machine stops here."""


def crash_at(n: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the n-th act on files or on the lease be the last; what is written then may be cut short."""
    acts: list[str] = []
    counter = itertools.count()

    def crashing(name: str, act: Callable[..., Any], torn: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            acts.append(name)
            if next(counter) == n:
                if torn:
                    torn(*arguments)
                raise Crash
            return act(*arguments, **more)

        return wrapped

    append, end, replace = Folder.append, lease.Lease.end, Path.replace
    half = lambda files, name, data: append(files, name, data[: len(data) // 2])  # noqa: E731
    monkeypatch.setattr(Folder, "append", crashing("append", append, half))
    monkeypatch.setattr(Folder, "sync", crashing("sync", Folder.sync))
    monkeypatch.setattr(Path, "replace", crashing("replace", replace))
    monkeypatch.setattr(Folder, "remove", crashing("remove", Folder.remove))
    monkeypatch.setattr(lease.Lease, "end", crashing("end", end, lambda *arguments: end(*arguments)))
    monkeypatch.setattr(shutil, "rmtree", crashing("rmtree", shutil.rmtree))
    return acts


@pytest.mark.untraced
@pytest.mark.slow
@pytest.mark.parametrize("bad", [True, False])
def test_a_crash_at_any_act_leaves_each_line_once(
    bench: Bench, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, bad: bool
) -> None:
    monkeypatch.setattr(runs, "COMMIT_S", 0.0)
    for n in itertools.count():
        for path in bench.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        lines = [framed(f"c{i}") for i in range(9)] + ([b"oops"] if bad else [])
        batch = bench.submit(*lines, batch_id=f"b{n}", max_in_flight=4)
        with monkeypatch.context() as patch:
            acts = crash_at(n, patch)
            try:
                bench.run(batch)
                crashed = False
            except Crash:
                crashed = True
        bench.lapse(batch)
        assert bench.run(batch) in ("completed", "not run")
        assert set(bench.answers()) == {f"c{i}" for i in range(9)}, acts
        assert bench.codes() == ({10: "invalid_json"} if bad else {}), acts
        assert batch.status().state == "completed"
        if not crashed:
            break
    assert n > 10


def test_a_full_disk_fails_the_batch_clearly_and_resume_ends_it(
    bench: Bench, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(files: Folder, name: str, data: bytes) -> None:
        append(files, name, data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(files.path / name))

    append = Folder.append
    batch = bench.submit(*(framed(f"c{i}") for i in range(50)))
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "append", full)
        assert bench.run(batch) == "failed"
    status = batch.status()
    assert (status.state, "No space left on device" in status.why) == ("failed", True)
    assert batch.resume() == "queued"
    assert bench.run(batch) == "completed"
    assert len(bench.answers()) == 50


def test_a_changed_input_fails_the_batch(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    outcome.stop.set()
    outcome.result()
    with (bench.folder / "in.jsonl").open("a") as file:
        file.write("more\n")
    assert bench.run(batch) == "failed"
    assert "was changed" in batch.status().why
    fleet.release()


def test_files_outside_the_folder_that_is_allowed_are_not_touched(bench: Bench, fleet: Fleet) -> None:
    batch = bench.submit("a")
    bench.config = bench.config.model_copy(update={"batch_root": bench.folder / "allowed"})
    assert bench.run(batch) == "failed"
    assert "batch_root" in batch.status().why
    bench.config = bench.config.model_copy(update={"batch_root": bench.folder})
    batch.resume()
    assert bench.run(batch) == "completed"


def test_a_missing_input_fails_the_batch(bench: Bench, fleet: Fleet) -> None:
    batch = bench.submit("a")
    (bench.folder / "in.jsonl").unlink()
    assert bench.run(batch) == "failed"
    assert "no such file" in batch.status().why


def test_an_output_that_somebody_else_wrote_meanwhile_is_not_overwritten(bench: Bench, fleet: Fleet) -> None:
    batch = bench.submit("a")
    (bench.folder / "out.jsonl").write_text("yours")
    assert bench.run(batch) == "failed"
    assert "move it away" in batch.status().why
    assert (bench.folder / "out.jsonl").read_text() == "yours"
    (bench.folder / "out.jsonl").unlink()
    batch.resume()
    assert bench.run(batch) == "completed"
    assert set(bench.answers()) == {"line-1"}


def test_a_redis_that_forgot_the_batch_gets_it_back_from_its_files(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    outcome.stop.set()
    assert outcome.result() == "queued"
    with bench.redis() as server:
        server.flushall()
    with pytest.raises(StokerError, match="unknown"):
        batch.resume()
    assert bench.client.batches.adopt(bench.folder / "out.jsonl").id == "b"
    again = bench.start(batch)
    release_until_done(fleet, again)
    assert again.result() == "completed"
    assert len(bench.answers()) == 206


def test_the_answers_so_far_can_be_read(bench: Bench, fleet: Fleet) -> None:
    batch, outcome = running(bench, fleet, held=4)
    assert {line["custom_id"] for line in batch.results()} == {"a", "b"}
    fleet.release()
    outcome.result()
    assert len(list(batch.results())) == 206
    assert [line["error"]["code"] for line in batch.errors()] == ["invalid_json"]


def test_answers_are_read_while_their_run_makes_one_file_of_its_parts(
    bench: Bench, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, outcome = running(bench, fleet, held=4)
    outcome.stop.set()
    outcome.result()
    look = parts.last_checkpoint

    def end_meanwhile(files: Folder) -> Checkpoint | None:
        monkeypatch.undo()
        checkpoint = look(files)
        assert checkpoint
        whole = parts.merged(files, "out", checkpoint.outputs, epoch=9)
        parts.tidy(files, replace(checkpoint, outputs=(whole,)), epoch=9)
        return checkpoint

    monkeypatch.setattr(parts, "last_checkpoint", end_meanwhile)
    assert {line["custom_id"] for line in batch.results()} == {"a", "b"}


def test_the_ids_of_a_file_are_the_same_in_every_run(bench: Bench, fleet: Fleet) -> None:
    bench.run(bench.submit("a", "b"))
    assert {line["id"] for line in bench.answers().values()} == {"b-1-0", "b-2-0"}
    assert run_batch(bench.config, "unknown", bench.start(bench.client.batches.get("b")).stop) == "not run"
    assert parts.last_epoch(Folder(bench.folder / "nothing")) == 0
