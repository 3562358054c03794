"""`stoker submit`, `status`, `result`, `cancel`, `stats` and `queue`, on a stack of real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Cli
from stack_processes import Stack

SUBMIT = ("submit", "The with statement", "--max-tokens", "8")


def test_submit_streams_the_answer_and_every_form_gives_the_same(served_cli: Cli) -> None:
    streamed = served_cli(*SUBMIT)
    whole = served_cli(*SUBMIT, "--no-stream")
    piped = served_cli("submit", "-", "--max-tokens", "8", answer="The with statement")
    assert (streamed.exit_code, whole.exit_code, piped.exit_code) == (0, 0, 0)
    assert len(streamed.stdout.rstrip("\n")) == 8
    assert streamed.stdout == whole.stdout == piped.stdout


def test_chat_and_system_make_a_conversation(served_cli: Cli) -> None:
    chat = json.loads(served_cli("submit", "--chat", "hi", "--json").stdout)
    system = json.loads(served_cli("submit", "--system", "Be brief.", "hi", "--json").stdout)
    # The sim counts the bytes of "role: content" and a line's end.
    assert chat["usage"]["prompt_tokens"] == len("user: hi\n")
    assert system["usage"]["prompt_tokens"] == len("system: Be brief.\nuser: hi\n")
    assert chat["usage"]["completion_tokens"] == 128


def test_a_prompt_may_come_from_a_file(served_cli: Cli, tmp_path: Path) -> None:
    (path := tmp_path / "prompt.txt").write_text("The with statement")
    assert served_cli("submit", "--file", str(path), "--max-tokens", "8").stdout == served_cli(*SUBMIT).stdout


def test_json_has_the_whole_response(served_cli: Cli) -> None:
    response = json.loads(served_cli(*SUBMIT, "--json", "--id", "mine").stdout)
    assert response["request_id"] == "mine"
    assert response["status"] == "succeeded"
    assert response["usage"] == {"prompt_tokens": 18, "completion_tokens": 8, "total_tokens": 26}
    assert response["timings"]["e2e_ms"] > 0
    assert response["error"] is None


def test_an_answer_is_fetched_later_by_its_id(served_cli: Cli) -> None:
    request_id = served_cli(*SUBMIT, "--no-wait").stdout.strip()
    assert json.loads(served_cli(*SUBMIT, "--no-wait", "--json", "--id", "x").stdout) == {"id": "x"}
    assert served_cli("result", "x", "--wait-timeout", "20").exit_code == 0
    answer = served_cli("result", request_id, "--wait-timeout", "20")
    assert answer.exit_code == 0
    assert answer.stdout == served_cli(*SUBMIT).stdout
    assert served_cli("status", request_id).stdout == "succeeded\n"
    assert json.loads(served_cli("status", request_id, "--json").stdout) == {"id": request_id, "status": "succeeded"}


def test_stats_and_queue_show_what_runs(served_cli: Cli) -> None:
    served_cli(*SUBMIT)
    table = served_cli("stats").stdout
    assert all(word in table for word in ("queue default", "succeeded", "time to first token", "worker"))
    figures = json.loads(served_cli("stats", "--json").stdout)
    counts = figures["counts"]
    # Those of the tests before, too.
    assert 0 < counts["submitted"] == counts["succeeded"] == figures["latency_ms"]["e2e"]["count"]
    shown = served_cli("queue", "show").stdout
    assert "sim (none, continuous" in shown
    assert json.loads(served_cli("queue", "show", "--json").stdout)["workers"] == 1


@pytest.mark.measured
def test_the_model_is_only_let_go_when_no_worker_serves_it(stack: Stack, cli: Cli) -> None:
    worker = stack.worker("worker", "--profile", "zero")
    refused = cli("queue", "set-model")
    assert refused.exit_code == 1
    worker.terminate()
    assert worker.wait(30) == 0
    assert cli("queue", "set-model").exit_code == 0
    assert "none yet" in cli("queue", "show").stdout


def test_a_failed_request_exits_with_1_and_says_why(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("worker", "--profile", "zero")
    late = cli("submit", "x", "--id", "gone", "--no-wait", "--timeout", "0.001")
    assert late.exit_code == 0
    failed = cli("result", "gone", "--wait-timeout", "10")
    assert failed.exit_code == 1
    assert "expired" in failed.stderr
    assert json.loads(cli("result", "gone", "--json").stdout)["status"] == "expired"


def test_without_workers_submit_says_so_and_exits_with_4_in_time(cli: Cli) -> None:
    waited = cli("submit", "x", "--wait-timeout", "0.3", "--no-stream")
    assert waited.exit_code == 4
    assert "no workers are registered" in waited.stderr


def test_cancel_ends_a_request_and_says_when_there_was_none(cli: Cli) -> None:
    request_id = cli("submit", "x", "--no-wait").stdout.strip()
    cancelled = cli("cancel", request_id)
    assert (cancelled.exit_code, cancelled.stdout) == (0, f"{request_id}: cancelled\n")
    unknown = cli("cancel", "unknown", "--json")
    assert (unknown.exit_code, json.loads(unknown.stdout)) == (1, {"unknown": False})


def test_an_unknown_request_has_the_status_unknown(cli: Cli) -> None:
    shown = cli("status", "nobody")
    assert (shown.exit_code, shown.stdout) == (1, "unknown\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["submit"], "TEXT", id="no prompt"),
        pytest.param(["submit", "x", "--max-tokens", "0"], "max_tokens", id="no tokens"),
        pytest.param(["submit", "x", "--timeout", "-1"], "timeout", id="a negative time to live"),
        pytest.param(["submit", "x", "--temperature", "nan"], "temperature", id="NaN"),
        pytest.param(["submit", "x", "--priority", "urgent"], "priority", id="no such class"),
        pytest.param(["submit", "x", "--id", "a b"], "request_id", id="an id with a blank"),
        pytest.param(["submit", "x", "--tenant", "a|b"], "tenant", id="a tenant with a bar"),
        pytest.param(["status", "a:b"], "request_id", id="a status of no id"),
        pytest.param(["submit", "x", "--queue", "a b"], "queue", id="a queue with a blank"),
        pytest.param(["submit", "x", "--redis", "http://h"], "redis_url", id="no Redis scheme"),
        pytest.param(["submit", "x", "--redis", "redis://u:p@h/0"], "STOKER_REDIS_URL", id="a password in argv"),
        pytest.param(["submit", "x", "--redis", "redis://h/0?password=p"], "STOKER_REDIS_URL", id="one in the query"),
    ],
)
def test_bad_input_is_a_usage_error_that_names_the_field(cli: Cli, arguments: list[str], said: str) -> None:
    refused = cli(*arguments)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_redis_that_is_down_exits_with_3_in_bounded_time(cli: Cli) -> None:
    refused = cli("status", "x", url="redis://127.0.0.1:1/0", STOKER_RETRY_TIMEOUT_S="0.2")
    assert refused.exit_code == 3
    assert "127.0.0.1:1" in refused.stderr


def test_without_any_redis_a_command_says_what_to_do(cli: Cli, short_tmp: object) -> None:
    refused = cli("stats", STOKER_REDIS_URL=None, STOKER_STATE=str(short_tmp))
    assert refused.exit_code == 2
    assert "stoker up" in refused.stderr


def test_an_unknown_setting_names_the_nearest_known_one(cli: Cli) -> None:
    refused = cli("stats", STOKER_HEARTBEAT_SM="5")
    assert refused.exit_code == 2
    assert "STOKER_HEARTBEAT_MS" in refused.stderr


def test_what_is_less_durable_than_asked_goes_on_and_says_so(stack: Stack, cli: Cli) -> None:
    # The server of the tests keeps nothing on a disk.
    left = cli(*SUBMIT, "--no-wait", "--id", "a", "--durability", "fsync")
    assert (left.exit_code, left.stdout) == (1, "a\n")
    assert "accepted with durability 'memory', not 'fsync'; it goes on" in left.stderr
    assert cli("status", "a").stdout == "queued\n"
    assert cli(*SUBMIT, "--no-wait", "--durability", "disk").exit_code == 2


def test_a_better_newcomer_takes_the_place_of_a_sheddable_request(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_MAX_WAITING", "1")
    assert cli(*SUBMIT, "--no-wait", "--sheddable", "--id", "a").exit_code == 0
    better = (*SUBMIT, "--no-wait", "--priority", "high", "--id", "b")
    refused = cli(*better)
    assert refused.exit_code != 0
    assert "max_waiting" in refused.stderr
    assert cli(*better, "--displace").exit_code == 0
    assert cli("status", "a").stdout == "failed\n"
    assert cli("status", "b").stdout == "queued\n"


def test_an_affinity_key_goes_along_with_a_request(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*SUBMIT, "--no-wait", "--affinity-key", "chat 7", "--id", "a").exit_code == 0
    monkeypatch.setenv("STOKER_AFFINITY_KEY_BYTES", "5")
    refused = cli(*SUBMIT, "--no-wait", "--affinity-key", "chat 7")
    assert refused.exit_code == 2
    assert "affinity_key: must be at most affinity_key_bytes (5) bytes of UTF-8, it has 6" in refused.stderr
