"""`stoker batch`: what it prints, to which stream, and its exit codes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from cli.conftest import Cli
from sdk.fleet import Fleet
from stoker.batch.run import run_batch
from stoker.batch.status import BatchStatus
from stoker.batch.watch import Rates, duration, summary, watch_live
from stoker.client import Client
from stoker.config import Config
from stoker.store import batches, reads
from stoker.store.connection import Store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOKER_STATE", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def config(redis_url: str) -> Config:
    """As the command has it."""
    return Config(redis_url=redis_url, heartbeat_ms=200, backoff_min_ms=1, backoff_max_ms=1)


@pytest.fixture
def runner(config: Config) -> Iterator[None]:
    """Answers, and runs whatever batch is there."""
    over, store = threading.Event(), Store(config)

    def run() -> None:
        while not over.wait(0.05):
            for batch_id in store.read(batches.due_ids(store.keys)):
                run_batch(config, batch_id, over)

    with Fleet(config):
        thread = threading.Thread(target=run)
        thread.start()
        yield
        over.set()
        thread.join()
    store.close()


def write(path: Path, *lines: object) -> None:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


GOOD = {"custom_id": "a", "prompt": "hello"}


def test_submit_prints_the_id_and_where_answers_will_be(cli: Cli, folder: Path) -> None:
    write(folder / "in.jsonl", GOOD)
    done = cli("batch", "submit", "in.jsonl", "--id", "mine")
    assert (done.exit_code, done.stdout) == (0, f"mine: answers will be in {folder / 'in.output.jsonl'}\n")
    listed = cli("batch", "list")
    assert listed.stdout.startswith("mine: queued, 0 of ? lines")
    assert json.loads(cli("batch", "list", "--json").stdout)[0]["id"] == "mine"
    assert json.loads(cli("batch", "submit", "in.jsonl", "--json", "--output", "o").stdout)["output"] == str(
        folder / "o"
    )


def test_waiting_shows_progress_on_standard_error_and_exits_0(cli: Cli, folder: Path, runner: None) -> None:
    write(folder / "in.jsonl", GOOD, {"custom_id": "b", "prompt": "x"})
    done = cli("batch", "submit", "in.jsonl", "--id", "mine", "--wait")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "mine: completed, 2 of 2 lines (100 %)" in done.stderr
    assert (folder / "in.output.jsonl").read_text().count("\n") == 2
    assert cli("batch", "watch", "mine").exit_code == 0


def test_failed_lines_exit_1_and_say_where_to_look(cli: Cli, folder: Path, runner: None) -> None:
    write(folder / "in.jsonl", GOOD, "oops\n")
    done = cli("batch", "submit", "in.jsonl", "--id", "mine", "--wait")
    assert done.exit_code == 1
    assert f"1 of 2 lines failed: invalid_json 1; see {folder / 'in.errors.jsonl'}" in done.stderr
    errors = cli("batch", "errors", "mine")
    assert json.loads(errors.stdout)["error"]["message"].startswith("in.jsonl:2: ")
    assert json.loads(cli("batch", "results", "mine").stdout)["custom_id"] == "a"
    status = cli("batch", "status", "mine").stdout
    assert "invalid_json: 1" in status
    assert "w: 1 answers" in status
    assert json.loads(cli("batch", "status", "mine", "--json").stdout)["failed"] == 1
    assert cli("batch", "retry", "mine").stdout == "mine: 1 lines run again\n"
    assert cli("batch", "watch", "mine").exit_code == 1


def test_standard_input_and_output_make_a_filter(cli: Cli, folder: Path, runner: None) -> None:
    done = cli("batch", "submit", "-", "--output", "-", answer=json.dumps(GOOD) + "\n")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["custom_id"] == "a"
    assert "completed" in done.stderr


def test_waiting_with_json_prints_one_document(cli: Cli, folder: Path, runner: None) -> None:
    write(folder / "in.txt", "one\n", "two\n")
    done = cli("batch", "submit", "in.txt", "--wait", "--json", "--max-tokens", "1")
    assert (done.exit_code, json.loads(done.stdout)["succeeded"]) == (0, 2)


def test_a_window_that_ends_exits_4(cli: Cli, folder: Path, config: Config) -> None:
    write(folder / "in.jsonl", GOOD)
    assert cli("batch", "submit", "in.jsonl", "--id", "mine", "--window", "0.01s").exit_code == 0
    assert run_batch(config, "mine", threading.Event()) == "expired"
    assert cli("batch", "watch", "mine").exit_code == 4


def test_a_batch_that_failed_as_a_whole_says_why_and_how_to_go_on(cli: Cli, folder: Path, config: Config) -> None:
    write(folder / "in.jsonl", GOOD)
    cli("batch", "submit", "in.jsonl", "--id", "mine")
    (folder / "in.jsonl").unlink()
    assert run_batch(config, "mine", threading.Event()) == "failed"
    done = cli("batch", "watch", "mine")
    assert done.exit_code == 1
    assert "no such file" in done.stderr
    assert "stoker batch resume mine" in done.stderr


def test_cancel_pause_and_resume_print_the_state(cli: Cli, folder: Path, config: Config) -> None:
    write(folder / "in.jsonl", GOOD)
    cli("batch", "submit", "in.jsonl", "--id", "mine")
    assert cli("batch", "pause", "mine").stdout.startswith("mine: paused")
    assert cli("batch", "watch", "mine").exit_code == 0
    assert cli("batch", "resume", "mine").stdout.startswith("mine: queued")
    assert cli("batch", "cancel", "mine").stdout.startswith("mine: cancelling")
    assert run_batch(config, "mine", threading.Event()) == "cancelled"
    assert cli("batch", "watch", "mine").exit_code == 1
    again = cli("batch", "cancel", "mine")
    assert (again.exit_code, "is over (cancelled)" in again.stderr) == (1, True)


def test_resume_takes_the_output_of_a_batch_that_redis_forgot(cli: Cli, folder: Path, redis_url: str) -> None:
    import redis

    write(folder / "in.jsonl", GOOD)
    cli("batch", "submit", "in.jsonl", "--id", "mine")
    with redis.Redis.from_url(redis_url) as server:
        server.flushall()
    assert cli("batch", "status", "mine").exit_code == 1
    assert cli("batch", "resume", "in.output.jsonl").stdout == "mine\n"
    assert cli("batch", "status", "mine").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nothing.jsonl",), "no such file"),
        ((".",), "not a folder"),
        (("in.jsonl", "--output", "in.jsonl"), "another file than the input"),
        (("in.jsonl", "--output", "there"), "nothing is overwritten"),
        (("in.jsonl", "--id", "a.b"), "[A-Za-z0-9_-]"),
        (("in.jsonl", "--window", "soon"), "90s, 30m, 2h or 3d"),
        (("packed.gz",), "gunzip"),
    ],
)
def test_what_cannot_be_a_batch_exits_2(cli: Cli, folder: Path, arguments: tuple[str, ...], says: str) -> None:
    write(folder / "in.jsonl", GOOD)
    write(folder / "there", "yours")
    (folder / "packed.gz").write_bytes(b"\x1f\x8b\x08")
    done = cli("batch", "submit", *arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert (folder / "there").read_text() == "yours"


def test_an_estimate_reads_the_file_and_sends_nothing(cli: Cli, folder: Path, config: Config) -> None:
    long = "x" * 5_000_000
    write(folder / "in.jsonl", GOOD, GOOD, "oops\n", {"prompt": "y" * 40, "max_tokens": 5}, {"prompt": long})
    with Fleet(config), Client(config=config) as client:
        client.submit(prompt="x").result(timeout=20)
        done = cli("batch", "estimate", "in.jsonl")
        assert done.exit_code == 0
        store = Store(config)
        assert store.read(reads.counts(store.keys))["submitted"] == 1
        store.close()
    assert "5 lines, 3 with errors" in done.stdout
    assert "in.jsonl:2: custom_id 'a' was there" in done.stdout
    assert "in.jsonl:5: the line is over batch_line_bytes" in done.stdout
    assert "at most 21 tokens of answers" in done.stdout
    assert "no measured rate" in done.stdout
    assert json.loads(cli("batch", "estimate", "in.jsonl", "--json").stdout)["lines"] == 5


def test_a_batch_worker_without_rq_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = cli("batch-worker")
    assert (done.exit_code, "stoker[batch]" in done.stderr) == (2, True)


def test_redis_that_is_away_exits_3(cli: Cli, folder: Path) -> None:
    write(folder / "in.jsonl", GOOD)
    done = cli("batch", "list", url="redis://127.0.0.1:1/0", STOKER_RETRY_TIMEOUT_S="0.1")
    assert done.exit_code == 3


# --- watching ---------------------------------------------------------------------------------------------------------


def status(done: int, now: float, **more: object) -> BatchStatus:
    fields = {"id": "b", "state": "running", "output": "o", "errors_file": "e", "total": 100, "succeeded": done}
    return BatchStatus(**fields | {"done": done, "now": now, "completion_tokens": 10 * done} | more)


def test_rates_are_those_of_the_last_seconds() -> None:
    rates = Rates()
    rates.saw(status(0, 100.0))
    assert (rates.lines_per_s, rates.left_s(status(0, 100.0))) == (0.0, None)
    rates.saw(status(20, 110.0))
    assert (rates.lines_per_s, rates.tokens_per_s, rates.left_s(status(20, 110.0))) == (2.0, 20.0, 40.0)
    for second in range(111, 140):
        rates.saw(status(20, float(second)))
    assert rates.lines_per_s == 0.0
    rates.saw(status(5, 141.0))
    assert rates.lines_per_s == 0.0


def test_times_are_for_people() -> None:
    assert [duration(s) for s in (5, 89, 600, 7200, 200_000)] == ["5 s", "89 s", "10 min", "2.0 h", "2.3 days"]


def test_a_line_about_a_batch_says_what_matters() -> None:
    assert summary(status(5, 1.0)) == "b: running, 5 of 100 lines (5 %)"
    assert (
        summary(status(5, 1.0, failed=2, round=1, why="w")) == "b: running, 5 of 100 lines (5 %), 2 failed, round 2, w"
    )


def test_the_live_picture_shows_errors_and_workers(capsys: pytest.CaptureFixture[str]) -> None:
    seen = [status(5, 1.0, workers={"w0": 4, "w1": 1}), status(100, 2.0, state="completed", errors={"x": 1})]
    handle = Mock(status=Mock(side_effect=seen))
    assert watch_live(handle).done == 100
    shown = capsys.readouterr().err
    assert "completed" in shown
    assert "error" in shown
