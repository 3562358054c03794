"""A whole stack on one machine: it gets ready, heals, ends in order, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from helpers import marked_processes, process_is_gone, wait_until
from scraping import scrape, total
from stoker import AsyncClient, Client, Config
from stoker.errors import ConfigError, RedisUnavailable
from stoker_ops import gpus, interrupt, kept, tied
from stoker_ops.cli import _config, _ready_line, _run
from stoker_ops.kept import Kept, restart_delay
from stoker_ops.local import LocalStack, NotReady, StackError, _Before
from stoker_ops.settings import StackSettings, arguments_of, short_temp
from stoker_workers.cli import worker
from stoker_workers.messages import EngineOptions

SIM = EngineOptions("sim", profile="zero")
READY_S = 60.0
SHOUT = """
class Shout:
    def load(self, device): pass
    def predict(self, batch): return [text.upper() for text in batch]
"""


@pytest.fixture
def up(python: Callable[..., subprocess.Popen[str]], short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs `stoker up` with a state folder in `short_tmp` and waits for its ready line."""
    monkeypatch.setenv("STOKER_STATE", str(short_tmp / "s"))

    def run(*options: str) -> subprocess.Popen[str]:
        # Its errors go to the test's own: a pipe that nobody reads would fill.
        code = "from stoker.cli import main; main()"
        process = python("-c", code, "up", "--model", "sim", "--profile", "zero", *options, stderr=None)
        line = process.stdout.readline()
        assert line.startswith(f"ready at unix://{short_tmp}/s/redis.sock"), line
        return process

    return run


def told(process: subprocess.Popen[str]) -> dict[str, object]:
    """What a stack behind pipes says next."""
    return json.loads(process.stdout.readline())


def tell(process: subprocess.Popen[str], message: object) -> None:
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def settings_for(parent: int, **others: object) -> dict[str, object]:
    options = {"model": "sim", "profile": "zero"}
    return {"parent": parent, "options": options, "workers": 1, "ready_timeout_s": READY_S} | others


def pid_of(mark: Path, words: str) -> int:
    """The one process of this test whose command line has these words."""
    found = [pid for pid, command in marked_processes(str(mark)).items() if words in command]
    assert len(found) == 1, found
    return found[0]


# --- stoker up --------------------------------------------------------------------------------------------------------


def test_up_serves_until_ctrl_c_and_its_next_start_has_the_data_and_may_bring_another_model(up, short_tmp, monkeypatch):
    process = up("--workers", "2")
    with Client(f"unix://{short_tmp}/s/redis.sock") as client:
        job = client.submit(prompt="hello", request_id="mine", max_tokens=3)
        assert job.result(timeout=20).usage.completion_tokens == 3
        assert {worker.worker for worker in client.workers()} == {"w0", "w1"}
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not (short_tmp / "s" / "redis.sock").exists()

    (short_tmp / "shout.py").write_text(SHOUT)
    monkeypatch.setenv("PYTHONPATH", str(short_tmp))
    up("--model", "shout:Shout")
    with Client(f"unix://{short_tmp}/s/redis.sock") as client:
        assert client.job("mine").result(timeout=10).usage.completion_tokens == 3
        assert client.submit(inputs="hello").result(timeout=20).output == "HELLO"


def tied_to(pid, short_tmp):
    """The processes that are to end with a process."""
    return [command for command in marked_processes(str(short_tmp)).values() if f"tied {pid}" in command]


def test_a_second_up_joins_the_redis_of_the_first_and_takes_it_over_when_that_is_killed(up, short_tmp):
    first = up()
    second = up()
    with Client(f"unix://{short_tmp}/s/redis.sock") as client:
        names = {worker.worker for worker in client.workers() if worker.state == "live"}
        assert len(names) == 2
        assert "w0" in names
        first.kill()
        job = client.submit(prompt="hello", request_id="mine", max_tokens=3, block=True)
        assert job.result(timeout=30).worker in names - {"w0"}
    wait_until(lambda: not tied_to(first.pid, short_tmp), 10, what="what the first one started has ended with it")
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0


@pytest.mark.usefixtures("unmeasured")
def test_up_exports_metrics_of_scheduler_and_workers(python, short_tmp, monkeypatch):
    monkeypatch.setenv("STOKER_STATE", str(short_tmp / "s"))
    code = "from stoker.cli import main; main()"
    with (short_tmp / "log").open("w") as log:
        process = python("-c", code, "up", "--workers", "2", "--model", "sim", stderr=log)
    assert process.stdout.readline().startswith("ready")
    urls = re.findall(r'"url": "([^"]+)"', (short_tmp / "log").read_text())
    assert len(urls) == 3
    leaders = [total(scrape(url), "stoker_leader") for url in urls]
    states = [total(scrape(url), "stoker_engine_state", state="serving") for url in urls]
    assert (leaders.count(1), states.count(1)) == (1, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest.mark.parametrize(("home", "exports"), [(None, False), ("s", True)])
def test_a_stack_that_lives_for_a_moment_exports_nothing(short_tmp, home, exports):
    settings = StackSettings(options=SIM, home=short_tmp / home if home else None)
    assert LocalStack(Config(), settings).config.metrics is exports
    assert LocalStack(Config(metrics=True), settings).config.metrics


def test_up_refuses_a_model_that_is_not_there_at_once(python, short_tmp, monkeypatch):
    monkeypatch.setenv("STOKER_STATE", str(short_tmp / "s"))
    process = python("-c", "from stoker.cli import main; main()", "up", "--model", "/nowhere")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors == "stoker: model: no folder at /nowhere (a model is a local folder; nothing is downloaded)\n"
    assert not (short_tmp / "s").exists()


def test_a_given_redis_is_named_in_the_ready_line_without_its_password():
    stack = LocalStack(Config(redis_url="redis://me:secret@host:1/0", queue="q"), StackSettings(options=SIM))
    line = _ready_line(stack, StackSettings(options=SIM))
    assert line.startswith("ready at redis://host:1/0: ")
    assert line.endswith('Try: stoker submit --queue q --redis redis://host:1/0 "The with statement"')


@pytest.mark.parametrize(("given", "used"), [(None, None), ("redis://a:1/0", "redis://a:1/0")])
def test_up_uses_the_redis_it_is_given_else_starts_one(monkeypatch, given, used):
    monkeypatch.delenv("STOKER_REDIS_URL", raising=False)
    assert _config(given, None).redis_url == used
    with pytest.raises(ConfigError, match="password on the command line"):
        _config("redis://:secret@a:1/0", None)


def test_a_stack_that_is_not_ready_in_time_exits_with_4(capsys):
    async def late() -> int:
        raise NotReady("no worker has loaded its model")

    with pytest.raises(SystemExit) as caught:
        _run(late)
    assert caught.value.code == 4
    assert capsys.readouterr().err == "stoker: no worker has loaded its model\n"


# --- behind pipes -----------------------------------------------------------------------------------------------------


def test_a_stack_behind_pipes_says_when_it_is_ready_and_ends_with_its_input(python, temp):
    process = python("-P", "-m", "stoker_ops.local")
    tell(process, settings_for(os.getpid(), workers=2))
    ready = told(process)["ready"]
    assert ready["workers"] == ["w0", "w1"]
    assert ready["devices"] == ["auto", "auto"]
    assert ready["redis_url"].startswith(f"unix://{temp}/stoker-")
    process.stdin.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == ""


def test_a_stack_behind_pipes_offers_a_folder_for_a_model_and_a_line_instead_of_one_ends_it(python, temp):
    process = python("-P", "-m", "stoker_ops.local")
    tell(process, settings_for(os.getpid(), options={"model": None}))
    folder = Path(told(process)["folder"])
    assert folder.is_relative_to(temp)
    (folder / "weights").write_bytes(b"0")
    tell(process, {})
    assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"options": {"model": "/nowhere"}}, "ConfigError", "no folder at /nowhere"),
        ({"options": {"model": "sim", "colour": "red"}}, "ConfigError", "colour"),
        ({"workers": 0}, "ConfigError", "at least 1"),
        ({"redis_url": "unix:///nowhere/redis.sock"}, "RedisUnavailable", "does not answer"),
    ],
)
def test_a_stack_behind_pipes_says_why_it_cannot_start(python, temp, monkeypatch, others, error, message):
    monkeypatch.setenv("STOKER_RETRY_TIMEOUT_S", "0.1")
    process = python("-P", "-m", "stoker_ops.local")
    tell(process, settings_for(os.getpid(), **others))
    failed = told(process)["failed"]
    assert failed["error"] == error
    assert message in failed["message"]
    assert process.wait(30) == 1


@pytest.mark.usefixtures("unmeasured")
def test_kill_9_of_the_starter_leaves_nothing_although_its_fork_holds_the_pipe(python, temp, short_tmp):
    code = f"""
    import json, os, subprocess, sys, time
    command = [sys.executable, "-P", "-m", "stoker_ops.local"]
    stack = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    child = os.fork()
    if not child:
        time.sleep(600)
    stack.stdin.write(json.dumps({settings_for(0)!r} | {{"parent": os.getpid()}}).encode() + b"\\n")
    stack.stdin.flush()
    print(child, stack.stdout.readline().decode(), flush=True)
    time.sleep(600)
    """
    starter = python("-c", textwrap.dedent(code))
    child, ready = starter.stdout.readline().split(maxsplit=1)
    assert "ready" in ready
    starter.kill()
    try:
        wait_until(lambda: set(marked_processes(str(short_tmp))) <= {int(child)}, 15, what="only the fork is left")
    finally:
        os.kill(int(child), signal.SIGKILL)


# --- healing ----------------------------------------------------------------------------------------------------------


async def until(predicate: Callable[[], object]) -> None:
    """Wait in the event loop, which has to go on."""
    await asyncio.to_thread(wait_until, predicate, 30.0)


async def test_what_dies_is_started_again_but_not_what_was_told_to_end(temp, short_tmp):
    async with (
        LocalStack(Config(), StackSettings(options=SIM, quiet=True)) as stack,
        AsyncClient(config=stack.config) as client,
    ):
        redis, worker = pid_of(temp, "redis-server unixsocket"), pid_of(short_tmp, "--name w0")
        os.kill(redis, signal.SIGKILL)
        await until(lambda: process_is_gone(redis))
        os.kill(worker, signal.SIGKILL)
        await until(lambda: process_is_gone(worker))
        job = await client.submit(prompt="hello", max_tokens=3)
        assert (await job.result(30)).worker == "w0"

        async def work() -> None:
            os.kill(pid_of(short_tmp, "--name w0"), signal.SIGTERM)
            await asyncio.Event().wait()

        with pytest.raises(StackError, match="w0 ended with code 0"):
            await stack.during(work())


async def test_a_stack_is_not_ready_in_time_and_says_what_is_missing(temp):
    with pytest.raises(NotReady, match=r"no scheduler leads queue 'default': not ready within 0.01 s"):
        async with LocalStack(Config(), StackSettings(options=SIM, quiet=True, ready_timeout_s=0.01)):
            pass


async def test_a_worker_that_can_never_load_its_model_is_quoted(temp):
    settings = StackSettings(options=EngineOptions("nowhere:Nothing"), quiet=True)
    with pytest.raises(ConfigError, match="nowhere"):
        async with LocalStack(Config(), settings):
            pass


async def goes_on_without_some_workers(stack: LocalStack) -> None:
    """Wait anew, for another worker that does not come."""
    late = Kept("late", ["worker"], os.environ, None, final=())
    stack._workers.append(late)
    stack._settings = dataclasses.replace(stack._settings, ready_timeout_s=0.1)
    with structlog.testing.capture_logs() as logs:
        await stack._ready(_Before(frozenset(), frozenset()))
    assert logs[-1]["missing"] == ["late"]
    stack._workers.remove(late)


async def test_a_given_redis_is_used_and_survives(temp, redis_url):
    config = Config(redis_url=redis_url, queue="other")
    async with LocalStack(config, StackSettings(options=SIM, quiet=True)) as stack:
        assert stack.workers == [f"{os.uname().nodename.split('.')[0]}-{os.getpid()}-w0"]
        folder = stack.private_folder("model")
        assert folder.is_relative_to(temp)
        await goes_on_without_some_workers(stack)
    assert not folder.exists()
    with Client(redis_url, queue="other") as client:
        assert client.workers() == []


async def test_a_stack_hands_back_the_value_of_work_done_on_it(monkeypatch):
    stack = LocalStack(Config(), StackSettings(options=SIM))
    monkeypatch.setattr(stack, "wait", asyncio.Event().wait)
    assert await stack.during(asyncio.sleep(0, "done")) == "done"


async def test_without_a_redis_program_a_stack_says_what_to_install_and_leaves_nothing(temp, monkeypatch):
    monkeypatch.setenv("STOKER_REDIS_SERVER", "/nowhere/redis-server")
    with pytest.raises(RedisUnavailable, match="STOKER_REDIS_SERVER"):
        async with LocalStack(Config(), StackSettings(options=SIM)):
            pass


async def deaf(event: asyncio.Event) -> None:
    """Lose the first cancellation, as a wait that is cancelled when it ends may."""
    with contextlib.suppress(asyncio.CancelledError):
        await event.wait()
    await event.wait()


async def test_a_first_reason_to_end_cancels_until_that_is_heard_and_the_next_ones_hurry(monkeypatch):
    monkeypatch.setattr(interrupt, "CANCEL_AGAIN_S", 0.01)
    stack = LocalStack(Config(), StackSettings(options=SIM))
    hurried: list[bool] = []
    monkeypatch.setattr(stack, "hurry", lambda: hurried.append(True))
    task = asyncio.create_task(deaf(asyncio.Event()))
    await asyncio.sleep(0)
    end = interrupt.Interrupt(stack, task)
    end(signal.SIGINT)
    end(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert end.reason is signal.SIGINT
    assert hurried == [True]


async def test_work_on_a_stack_that_does_not_hear_its_cancellation_is_cancelled_again(monkeypatch):
    monkeypatch.setattr(interrupt, "CANCEL_AGAIN_S", 0.01)
    stack = LocalStack(Config(), StackSettings(options=SIM))

    async def broken() -> None:
        raise StackError("broken")

    monkeypatch.setattr(stack, "wait", broken)
    with pytest.raises(StackError, match="broken"):
        await stack.during(deaf(asyncio.Event()))


def test_a_long_folder_for_temporary_files_is_passed_over_because_sockets_have_short_paths(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "long/" * 20)
    assert short_temp() == "/tmp"


# --- one process ------------------------------------------------------------------------------------------------------


def printing(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Make kept processes run this code instead of a command."""
    real = asyncio.create_subprocess_exec

    async def run(program: str, *_arguments: str, **options: object) -> asyncio.subprocess.Process:
        return await real(program, "-I", "-S", "-c", code, **options)

    monkeypatch.setattr(kept.asyncio, "create_subprocess_exec", run)


async def test_a_process_that_ends_for_good_is_not_started_again_and_its_complaint_is_quoted(monkeypatch):
    printing(monkeypatch, "print('noise'); print('stoker: model: no'); raise SystemExit(2)")
    with tempfile.TemporaryFile("a+b") as output:
        process = Kept("w0", ["worker"], os.environ, output, final=(2,))
        assert await process.run() == 2
        assert process.last_words() == "model: no"


async def test_a_process_that_does_not_end_is_killed(monkeypatch, short_tmp):
    ready = short_tmp / "ready"
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    printing(monkeypatch, code)
    with ready.open("a+b") as output:
        process = Kept("w0", ["worker"], os.environ, output, final=())
        running = asyncio.create_task(process.run())
        await until(lambda: ready.read_text() == "up\n")
        await process.stop(0.1)
        assert await running == -signal.SIGKILL


async def test_a_process_told_to_stop_before_it_was_started_is_not_started(monkeypatch):
    process = Kept("w0", ["worker"], os.environ, None, final=())
    running = asyncio.create_task(process.run())
    await process.stop(10)
    assert await running == 0
    assert process.last_words() == ""


def test_a_process_that_dies_over_and_over_is_started_ever_more_slowly():
    assert [restart_delay(failures) for failures in range(9)] == [0, 0, 1, 2, 4, 8, 16, 30, 30]


def test_a_process_whose_starter_is_gone_already_ends_at_once():
    process = subprocess.run([sys.executable, "-P", "-m", "stoker_ops.tied", "1", "worker"], check=False, timeout=20)
    assert process.returncode == -signal.SIGKILL


def test_where_the_kernel_cannot_tie_processes_a_thread_looks_at_the_parent(python, short_tmp):
    tied = "import time, stoker_ops.tied as t; t._ask_the_kernel = lambda: False; t.tie({}); print(flush=True)"
    tied += "; time.sleep(600)"
    code = f"""
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", {tied!r}.format(os.getpid())], stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid, flush=True)
    time.sleep(600)
    """
    starter = python("-c", textwrap.dedent(code))
    child = int(starter.stdout.readline())
    assert not process_is_gone(child)
    starter.kill()
    wait_until(lambda: process_is_gone(child))


def test_a_watched_parent_that_is_another_one_ends_this_process(monkeypatch):
    ended: list[bool] = []
    monkeypatch.setattr(tied, "_end", lambda: ended.append(True))
    monkeypatch.setattr(tied, "_ask_the_kernel", lambda: False)
    monkeypatch.setattr(tied, "PARENT_CHECK_S", 0.01)
    tied.tie(1)
    # Once by looking, once by the thread.
    wait_until(lambda: ended == [True, True])


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "workers", "share", "devices"),
    [
        (EngineOptions("demo"), None, False, ["cuda:0", "cuda:1"]),
        (EngineOptions("demo"), 1, False, ["cuda:0"]),
        (EngineOptions("demo"), 3, True, ["cuda:0", "cuda:1", "cuda:0"]),
        (EngineOptions("demo", tensor_parallel=2), None, False, ["cuda:0"]),
        (EngineOptions("demo", tensor_parallel=2), 2, True, ["cuda:0", "cuda:0"]),
        (EngineOptions("demo", device="cpu"), 3, False, ["cpu", "cpu", "cpu"]),
        (EngineOptions("sim"), 3, False, ["auto", "auto", "auto"]),
    ],
)
async def test_each_worker_gets_a_gpu_unless_another_device_is_named(monkeypatch, options, workers, share, devices):
    monkeypatch.setattr(gpus, "count_gpus", lambda: asyncio.sleep(0, 2))
    assert await gpus.pick_devices(options, workers, share=share) == devices


async def test_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(gpus, "count_gpus", lambda: asyncio.sleep(0, 2))
    with pytest.raises(ConfigError, match="3 were asked for, each on a GPU of its own, but torch finds 2"):
        await gpus.pick_devices(EngineOptions("demo"), 3)
    with pytest.raises(ConfigError, match="1 were asked for, each on 3 GPUs of its own, but torch finds 2"):
        await gpus.pick_devices(EngineOptions("demo", tensor_parallel=3), None)


async def test_without_gpus_there_is_one_worker_or_as_many_as_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    assert await gpus.pick_devices(EngineOptions("demo"), None) == ["auto"]
    assert await gpus.pick_devices(EngineOptions("demo"), 2) == ["auto", "auto"]


@pytest.mark.parametrize(("answer", "count"), [("print(3)", 3), ("raise SystemExit(1)", 0)])
async def test_where_a_device_file_lies_torch_is_asked_how_many_gpus_it_finds(monkeypatch, tmp_path, answer, count):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "_ASK_TORCH", answer)
    monkeypatch.setattr(gpus.importlib.util, "find_spec", lambda name: True)
    assert await gpus.count_gpus() == count


def test_a_flag_of_the_engine_reaches_the_workers_as_a_flag() -> None:
    options = EngineOptions("m", engine="openai", base_url="http://127.0.0.1:1/v1", send_token_ids=True)
    words = arguments_of(options)
    assert words[words.index("--base-url") + 1] == "http://127.0.0.1:1/v1"
    assert "--send-token-ids" in words
    assert "True" not in words
    assert "--send-token-ids" not in arguments_of(EngineOptions("m"))


def test_the_words_that_a_worker_is_given_mean_the_options_to_it(tmp_path) -> None:
    numbers = {"max_num_seqs": 2, "max_num_batched_tokens": 3, "kv_cache_tokens": 4, "max_model_len": 5}
    texts = {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "KEY", "tokenizer": str(tmp_path), "profile": "zero"}
    flags = {"send_token_ids": True, "server_timeout": 6.0, "tensor_parallel": 7}
    options = EngineOptions(
        "m", engine="openai", device="cpu", task="embed", pooling="last", **numbers, **texts, **flags
    )
    unsaid = EngineOptions("m")
    assert [f.name for f in dataclasses.fields(options) if getattr(options, f.name) == getattr(unsaid, f.name)] == [
        "model",
        "dtype",
    ]
    taken = worker.make_context("worker", arguments_of(options)).params
    assert {name: taken[name] for name in dataclasses.asdict(options)} == dataclasses.asdict(options)
