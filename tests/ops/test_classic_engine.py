"""The classic engine: a model in, answers out, and a stack behind it that ends with its caller."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import marked_processes, process_is_gone, wait_until
from stoker import (
    ConfigError,
    DistributedServingEngine,
    InferenceRequest,
    InvalidRequest,
    RequestExpired,
    RequestPriority,
    ResultTimeout,
    StokerError,
)
from stoker._model_folder import is_loaded_model, save_model, tokenizer_for
from stoker.engine import _Busy
from stoker_workers.demo import demo_model_path

Python = Callable[..., subprocess.Popen[str]]

# As the classic example has it: no main guard, no end; a start by multiprocessing would run it over and over.
EXAMPLE = """
import asyncio
from stoker import DistributedServingEngine, InferenceRequest, RequestPriority

async def main():
    engine = DistributedServingEngine(model, num_gpus=1, **options)
    request = InferenceRequest(
        request_id="req_001", prompt_tokens=tokens, max_tokens=100, priority=RequestPriority.NORMAL
    )
    request_id = await engine.submit_request(request)
    response = await engine.get_response(request_id)
    stats = await engine.get_stats()
    print(request_id, response.status, len(response.token_ids), response.worker)
    print(stats["metrics"]["avg_latency_ms"] > 0, stats["metrics"]["requests_per_second"] > 0)

print("once")
asyncio.run(main())
"""

LOADED = """
import sys, weakref
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
held = weakref.ref(model)
tokens, options = [5, 6, 7, 8], {}
"""
LET_GO = """
import gc
del model
gc.collect()
print("the model was let go" if held() is None else "somebody holds the model")
"""


def sim(**options: object) -> DistributedServingEngine:
    return DistributedServingEngine("sim", profile="zero", **options)  # type: ignore[arg-type]  # tests give what fits


def hello(**fields: object) -> InferenceRequest:
    return InferenceRequest(**{"prompt_tokens": [1, 2, 3], "max_tokens": 4} | fields)


# --- as users have it -------------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.usefixtures("unmeasured")
def test_the_classic_example_runs_a_loaded_model_from_a_script_without_a_main_guard(
    python: Python, short_tmp: Path
) -> None:
    script = short_tmp / "classic.py"
    script.write_text(LOADED + EXAMPLE + LET_GO)
    process = python(str(script), str(demo_model_path()))
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    lines = out.splitlines()
    # Twice would mean that something imported the script again.
    assert lines[0] == "once"
    assert lines[1].startswith("req_001 succeeded ")
    assert lines[2:] == ["True True", "the model was let go"]


@pytest.mark.usefixtures("unmeasured")
def test_the_classic_example_runs_from_standard_input(python: Python, temp: Path) -> None:
    process = python("-")
    source = "model, tokens, options = 'sim', [5, 6, 7, 8], {'profile': 'zero'}\n" + EXAMPLE
    out, errors = process.communicate(source, timeout=60)
    assert process.returncode == 0, errors
    assert out.startswith("once\nreq_001 succeeded 100 w")
    assert out.endswith("True True\n")
    assert errors == ""


@pytest.mark.usefixtures("unmeasured")
def test_kill_9_of_the_caller_leaves_nothing_also_when_it_serves_a_class_from_beside_its_script(
    python: Python, short_tmp: Path, temp: Path
) -> None:
    (short_tmp / "mine.py").write_text(
        "class Model:\n def load(self, device): pass\n def predict(self, batch): return [item * 2 for item in batch]"
    )
    code = """
    import asyncio, time
    from stoker import DistributedServingEngine, InferenceRequest
    engine = DistributedServingEngine("mine:Model")
    async def main():
        print((await engine.get_response(await engine.submit_request(InferenceRequest(inputs=21)))).output, flush=True)
    asyncio.run(main())
    time.sleep(600)
    """
    (short_tmp / "script.py").write_text(textwrap.dedent(code))
    caller = python(str(short_tmp / "script.py"), cwd="/")
    assert caller.stdout is not None
    assert caller.stdout.readline() == "42\n"
    assert list(temp.iterdir())
    caller.kill()
    wait_until(lambda: not marked_processes(str(short_tmp)), 15, what="no process is left")


@pytest.mark.usefixtures("unmeasured")
def test_ctrl_c_while_the_stack_starts_ends_the_caller_and_the_stack(
    python: Python, short_tmp: Path, temp: Path
) -> None:
    code = """
    import asyncio, signal
    from stoker import DistributedServingEngine
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell inherit it ignored
    engine = DistributedServingEngine("sim", profile="zero")
    async def main():
        await engine.start()
        await asyncio.sleep(600)  # should the stack be ready sooner than the signal
    print("starting", flush=True)
    asyncio.run(main())
    """
    caller = python("-c", textwrap.dedent(code))
    assert caller.stdout is not None
    assert caller.stdout.readline() == "starting\n"
    wait_until(lambda: len(marked_processes(str(short_tmp))) > 1, 20, what="the stack starts")
    caller.send_signal(signal.SIGINT)
    assert caller.wait(20) == -signal.SIGINT
    wait_until(lambda: not marked_processes(str(short_tmp)), 15, what="no process is left")


# --- one engine, looked at closely ------------------------------------------------------------------------------------


async def test_an_engine_answers_as_a_job_does_and_counts(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_REDIS_URL", "redis://10.255.255.1:6379/0")  # somebody else's, and not meant
    engine = sim(num_gpus=2)
    # All of these wait for the one start.
    ids = await asyncio.gather(*(engine.submit_request(hello(priority=RequestPriority.HIGH)) for _ in range(20)))
    responses = await asyncio.gather(*map(engine.get_response, ids))
    assert [response.request_id for response in responses] == ids
    assert {len(response.token_ids or ()) for response in responses} == {4}
    assert await engine.get_response(ids[0]) == responses[0]

    late = await engine.submit_request(hello(timeout=0.000001))
    with pytest.raises(RequestExpired):
        await engine.get_response(late)
    slow = await engine.submit_request(hello(max_tokens=100_000))
    with pytest.raises(ResultTimeout):
        await engine.get_response(slow, timeout=0.01)
    with pytest.raises(InvalidRequest, match="vocabulary of 65536"):
        await engine.submit_request(hello(prompt_tokens=[65_536]))

    stats = await engine.get_stats()
    metrics = stats["metrics"]
    assert metrics["succeeded"] >= 20
    assert metrics["p50_latency_ms"] <= metrics["p95_latency_ms"] <= metrics["p99_latency_ms"]
    assert set(metrics["utilization_by_worker"]) == {"w0", "w1"}
    assert 0 <= metrics["utilization"] <= 1
    assert stats["queue"]["name"] == "default"

    await engine.close()
    await engine.close()
    for verb in (engine.start, engine.get_stats):
        with pytest.raises(StokerError, match="closed"):
            await verb()


@pytest.mark.usefixtures("unmeasured")
def test_an_engine_can_be_used_from_one_event_loop_after_another_and_ends_when_it_is_dropped(
    temp: Path, short_tmp: Path
) -> None:
    engine = sim()
    request_id = asyncio.run(engine.submit_request(hello()))
    assert asyncio.run(engine.get_response(request_id)).usage.completion_tokens == 4
    processes = marked_processes(str(short_tmp))
    assert processes
    del engine
    gc.collect()
    assert all(process_is_gone(pid) for pid in processes)


async def test_a_stack_that_ends_by_itself_says_why(
    temp: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_RETRY_TIMEOUT_S", "0.5")
    async with sim() as engine:
        [worker] = [pid for pid, command in marked_processes(str(short_tmp)).items() if "--name w0" in command]
        os.kill(worker, signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: engine._stack.failure, 20)
        with pytest.raises(StokerError, match="w0 ended with code 0"):
            await engine.submit_request(hello())


async def test_an_engine_that_cannot_start_says_why_and_every_await_does(temp: Path) -> None:
    engine = DistributedServingEngine("/nowhere")
    for verb in (engine.start(), engine.submit_request(hello())):
        with pytest.raises(ConfigError, match="model: no folder at /nowhere"):
            await verb
    await engine.close()


async def test_a_model_that_cannot_be_written_is_an_error_of_the_start(temp: Path) -> None:
    def save_pretrained(folder: Path) -> None:
        raise OSError("no space left")

    model = SimpleNamespace(save_pretrained=save_pretrained, config={}, name_or_path="")
    with pytest.raises(StokerError, match="cannot be started: no space left"):
        await DistributedServingEngine(model).start()


# --- its arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", 0), "num_gpus: must be an integer of at least 1, got 0"),
        (("demo", True), "num_gpus"),
        ((7,), "model: must be a folder.* got a int"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistributedServingEngine(*arguments)  # type: ignore[arg-type]  # that is the test


def test_a_folder_is_meant_where_it_lies_now_and_a_class_where_the_script_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert DistributedServingEngine("llama")._stack._settings["options"]["model"] == str(tmp_path / "llama")
    assert DistributedServingEngine(Path("llama"))._stack._settings["worker_path"] == []
    mine = DistributedServingEngine("mine:Model")._stack._settings
    assert (mine["options"]["model"], mine["worker_path"]) == ("mine:Model", [str(tmp_path)])


@pytest.mark.torch
def test_a_model_without_a_tokenizer_gets_one_of_numbers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from stoker_workers.engine import Tokens, Work
    from stoker_workers.engines import make_engine

    config = transformers.LlamaConfig(
        vocab_size=500, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    assert is_loaded_model(model)
    assert tokenizer_for(model, None) is None
    folder = save_model(model, None, tmp_path)
    assert folder == tmp_path / "LlamaForCausalLM"
    assert (folder / "model.safetensors").is_file()
    engine = make_engine(folder, device="cpu")
    engine.load()
    assert engine.encode("7 499 0") == [7, 499, 0]
    engine.admit(Work(id="a", batch="b", prompt=[1, 2], max_tokens=5, ignore_eos=True))
    events = [event for _ in range(5) for event in engine.step() if isinstance(event, Tokens)]
    ids = [token for event in events for token in event.token_ids]
    assert "".join(event.text for event in events).split() == [str(token) for token in ids]


async def test_without_a_tokenizer_text_is_refused_and_says_what_to_give() -> None:
    model = SimpleNamespace(save_pretrained=print, config={}, name_or_path="")
    engine = DistributedServingEngine(model)
    with pytest.raises(InvalidRequest, match="prompt_tokens: must be given, for the model came without a tokenizer="):
        await engine.submit_request(hello(prompt_tokens=None, prompt="hello"))


@pytest.mark.torch
def test_a_tokenizer_may_be_an_object_or_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_model_path())
    assert tokenizer_for(model, None) == demo_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_path())
    assert tokenizer_for(model, tokenizer) is tokenizer
    for given in (tokenizer, str(demo_model_path())):
        folder = save_model(model, given, tmp_path / type(given).__name__)
        assert (folder / "tokenizer.json").read_bytes() == (demo_model_path() / "tokenizer.json").read_bytes()
    assert not transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.enable_progress_bar()


def test_utilization_is_a_share_of_the_time_since_the_last_look() -> None:
    busy = _Busy()
    busy.start(100.0)
    worker = {"worker": "w0", "inc": "w0:1-a", "state": "live", "figures": {"busy_us": 1_000_000}}
    dead = worker | {"inc": "w1:2-b", "worker": "w1", "state": "dead"}
    assert busy.shares([worker, dead], 102.0) == {"w0": 0.5}
    assert busy.shares([worker | {"figures": {"busy_us": 1_500_000}}], 103.0) == {"w0": 0.5}
    assert busy.shares([worker | {"inc": "w0:3-c", "figures": {}}], 104.0) == {"w0": 0.0}
