"""The openai engine in front of a real server, `transformers serve`, with the demo model."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import wait_until
from stack_processes import Stack
from stoker import Client, InferenceRequest, InvalidRequest, Restarted
from stoker_workers.demo import demo_model_path

PROMPTS = ["The with statement", "A class definition", "Lambda expressions", "If an exception", "héllo ✓", "The"]

pytestmark = [pytest.mark.slow, pytest.mark.torch]


class ServedModel:
    """A process that serves the demo model."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = log
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COVERAGE_PROCESS_CONFIG": ""}
        command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, str(demo_model_path()), *options], env=environment, stdout=output, stderr=output
            )

    def wait(self) -> None:
        wait_until(self._answers, 120, what="the server answers", poll=0.2)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200
        return False

    def connections(self) -> int:
        """How many connections clients hold to it."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[2].endswith(f":{self.port:04X}") and row[3] == "01" for row in rows)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    server = ServedModel(tmp_path_factory.mktemp("serve") / "log")
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def front(stack: Stack, name: str, server: ServedModel, *options: str, model: str = "") -> None:
    stack.worker(name, "--engine", "openai", "--base-url", server.url, *options, model=model or str(demo_model_path()))


def test_greedy_answers_equal_the_models_own_generate(stack: Stack, client: Client, server: ServedModel) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stack.scheduler()
    front(stack, "worker", server, "--tokenizer", str(demo_model_path()))
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path(), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, local_files_only=True).eval()
    encoded = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]

    texts = list(client.map(PROMPTS, max_tokens=24))
    by_ids = list(client.map(encoded, max_tokens=24))
    for ids, answer, same in zip(encoded, texts, by_ids, strict=True):
        with torch.inference_mode():
            whole = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
        assert answer.text == same.text == tokenizer.decode(whole, skip_special_tokens=True)
        assert answer.usage.prompt_tokens == same.usage.prompt_tokens == len(ids)
        assert answer.usage.completion_tokens == len(whole)
        assert answer.token_ids is None


def test_a_conversation_goes_through_the_servers_template(stack: Stack, client: Client, server: ServedModel) -> None:
    from transformers import AutoTokenizer

    stack.scheduler()
    front(stack, "worker", server)
    messages = [{"role": "user", "content": "What is a tuple?"}]
    response = client.submit(messages=messages, max_tokens=8).result(timeout=60)
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path(), local_files_only=True)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert response.usage.prompt_tokens == len(prompt)
    assert response.text


@pytest.mark.long
def test_a_server_killed_in_mid_answer_loses_nothing(
    stack: Stack, client: Client, server: ServedModel, tmp_path: Path
) -> None:
    doomed = ServedModel(tmp_path / "log")
    try:
        doomed.wait()
        stack.scheduler()
        front(stack, "well", server, "--max-num-seqs", "2")
        expected = client.submit(prompt=PROMPTS[0], max_tokens=1000).result(timeout=120).text
        front(stack, "doomed", doomed, "--max-num-seqs", "2")
        jobs = client.submit_many([InferenceRequest(prompt=PROMPTS[0], max_tokens=1000, stream=True)] * 4)

        def answering() -> set[str]:
            """Those of the doomed server that readers saw text of."""
            streams = {key.split(":")[3] for key in stack.redis.keys(f"{stack.keys.prefix}tokens:*")}
            return stack.running("doomed") & streams

        struck = wait_until(answering, 60, what="a request of the doomed server has text out")
        doomed.kill()
        responses = {job.id: job.result(timeout=120) for job in jobs}
        assert {response.text for response in responses.values()} == {expected}
        assert {(responses[i].worker, responses[i].attempts) for i in struck} == {("well", 2)}
        for job in jobs:
            pieces = list(job.stream())
            restarts = [place for place, piece in enumerate(pieces) if isinstance(piece, Restarted)]
            assert len(restarts) == (job.id in struck)
            assert "".join(piece.text for piece in pieces[sum(restarts) :]) == expected
    finally:
        doomed.kill()


def test_what_the_server_refuses_fails_one_request(stack: Stack, client: Client, server: ServedModel) -> None:
    stack.scheduler()
    front(stack, "worker", server, model="another-model")
    with pytest.raises(InvalidRequest, match="Server is pinned to"):
        client.submit(prompt="Hi").result(timeout=60)


def test_cancel_closes_the_connection(stack: Stack, client: Client, server: ServedModel) -> None:
    stack.scheduler()
    front(stack, "worker", server)
    job = client.submit(prompt="The with statement", max_tokens=1900, stream=True)
    next(job.stream())
    assert server.connections() >= 1
    job.cancel()
    wait_until(lambda: server.connections() == 0, 20, what="no connection is left")
    assert client.submit(prompt="The", max_tokens=2).result(timeout=60).text
