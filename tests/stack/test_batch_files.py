"""Batch files on real processes: what the model says, and each line once whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from helpers import wait_until
from stack.batch_lines import read, write
from stack_processes import Stack
from stoker import Client, RedisUnavailable
from stoker.batch.sdk import Batch
from stoker_ops.embedded import ServerBinary, start

PROMPTS = ["The with statement", "A class definition", "Lambda expressions", "If an exception", "héllo ✓", "The"]


@pytest.fixture(scope="module")
def demo(shared_stack: Stack) -> Stack:
    """A scheduler, a worker with the demo model, and a batch worker."""
    shared_stack.scheduler()
    shared_stack.batch_worker()
    shared_stack.worker("worker", "--device", "cpu", model="demo")
    return shared_stack


@pytest.fixture
def client(demo: Stack) -> Iterator[Client]:
    """A client of its queue."""
    with contextlib.closing(demo.client()) as client:
        yield client


@pytest.mark.torch
def test_greedy_answers_equal_the_models_own_generate(client: Client, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stoker_workers.demo import demo_model_path

    bodies = [{"prompt": prompt, "max_tokens": 24, "temperature": 0} for prompt in PROMPTS]
    bodies += [{"prompt": "word " * 3000, "max_tokens": 8}, {"prompt": "The", "max_tokens": 5000}]
    batch = client.batches.create(write(tmp_path / "in.jsonl", bodies))
    status = batch.wait(timeout=120)
    assert (status.state, status.succeeded, dict(status.errors)) == ("completed", 6, {"context_length_exceeded": 2})
    answers = read(tmp_path / "in.output.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path(), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, local_files_only=True).eval()
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            whole = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        body = answers[f"c{i}"]["response"]["body"]
        assert body["stoker"]["token_ids"] == whole.tolist()
        assert body["choices"][0]["text"] == tokenizer.decode(whole, skip_special_tokens=True)
        assert body["usage"]["prompt_tokens"] == ids.shape[1]
    assert set(read(tmp_path / "in.errors.jsonl")) == {"c6", "c7"}


@pytest.mark.torch
def test_a_conversation_is_answered_by_the_models_template(client: Client, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "What is a tuple?"}], "max_tokens": 8, "temperature": 0}
    batch = client.batches.create(write(tmp_path / "in.jsonl", [body], "/v1/chat/completions"))
    assert batch.wait(timeout=120).state == "completed"
    [answer] = batch.results()
    message = answer["response"]["body"]["choices"][0]["message"]
    direct = client.submit(messages=body["messages"], max_tokens=8).result(timeout=60)
    assert message == {"role": "assistant", "content": direct.text}


# --- kills ------------------------------------------------------------------------------------------------------------


class Killed:
    """A stack on a Redis with an append-only file, of which everything may be killed."""

    def __init__(self, server: ServerBinary, folder: Path) -> None:
        self._server, self._folder = server, folder
        self.redis = start(folder / "r", ephemeral=False, server=server)
        self.stack = Stack(self.redis.url, folder)
        self.scheduler = self.stack.scheduler()
        self.worker = self.stack.worker("w0", "--max-num-seqs", "8")
        self.stack.worker("w1", "--max-num-seqs", "8")
        self.runner = self.stack.batch_worker("batch-worker", "--runs", "1")

    def end(self) -> None:
        self.stack.end()
        self.redis.stop()

    def kill_redis(self) -> None:
        with redis.Redis.from_url(self.redis.url) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.redis.running, 10)
        self.redis.stop()
        self.redis = start(self._folder / "r", ephemeral=False, server=self._server)

    def kill_scheduler(self) -> None:
        self.scheduler.kill()
        self.scheduler = self.stack.scheduler("another")

    def kill_worker(self) -> None:
        os.kill(self.stack.child_of(self.worker), signal.SIGKILL)

    def kill_rq_worker(self) -> None:
        os.kill(self._horse()[0], signal.SIGKILL)

    def kill_work_horse(self) -> None:
        os.kill(self._horse()[1], signal.SIGKILL)

    def _horse(self) -> tuple[int, int]:
        def found() -> tuple[int, int] | None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                worker = children(self.runner.pid)[0]
                return worker, children(worker)[0]
            return None

        return wait_until(found, 30, what="a work horse runs")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def killed(server_binary: ServerBinary, short_tmp: Path) -> Iterator[Killed]:
    killed = Killed(server_binary, short_tmp)
    yield killed
    killed.end()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.chaos
def test_each_line_is_there_once_after_everything_was_killed(killed: Killed, tmp_path: Path) -> None:
    bodies = [{"prompt": [i % 1000 + 1, 2, 3], "max_tokens": 4} for i in range(6000)]
    with killed.stack.client() as client:
        batch = client.batches.create(write(tmp_path / "in.jsonl", bodies), max_in_flight=64)
        kills: list[Callable[[], None]] = [
            killed.kill_work_horse,
            killed.kill_worker,
            killed.kill_redis,
            killed.kill_rq_worker,
            killed.kill_scheduler,
            killed.kill_work_horse,
        ]
        for kill in kills:
            before = wait_until(lambda: done(batch), 60, what="some lines are done")
            what = f"more than {before} lines are done before {kill.__name__}"
            wait_until(lambda before=before: done(batch) > before, 60, what=what)
            kill()
        wait_until(lambda: state(batch) == "completed", 120, what="the batch is whole", poll=0.2)
    answers = read(tmp_path / "in.output.jsonl")
    assert set(answers) == {f"c{i}" for i in range(6000)}
    assert not (tmp_path / "in.errors.jsonl").exists()


def done(batch: Batch) -> int:
    with contextlib.suppress(RedisUnavailable):
        return batch.status().done
    return 0


def state(batch: Batch) -> str:
    with contextlib.suppress(RedisUnavailable):
        return batch.status().state
    return ""
