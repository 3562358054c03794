"""The demo model behind the whole stack: what a client gets is what the model says."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from helpers import wait_until
from stack.batch_lines import read, write
from stack_processes import Stack
from stoker import Client, InferenceRequest, Restarted

PROMPTS = ["The with statement", "A class definition", "Lambda expressions", "If an exception", "héllo ✓", "The"]

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def served(shared_stack: Stack) -> Stack:
    """A scheduler, one worker with the demo model, and a batch worker."""
    shared_stack.scheduler()
    shared_stack.batch_worker()
    shared_stack.worker("worker", "--device", "cpu", model="demo")
    return shared_stack


@pytest.fixture
def client(served: Stack) -> Iterator[Client]:
    """A client of its queue."""
    with contextlib.closing(served.client()) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    """What the model's own `generate` makes of each prompt, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stoker_workers.demo import demo_model_path

    tokenizer = AutoTokenizer.from_pretrained(demo_model_path(), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, local_files_only=True).eval()
    answers = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            whole = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(whole, skip_special_tokens=True)
        answers.append({"token_ids": whole.tolist(), "text": text, "prompt_tokens": ids.shape[1]})
    return answers


def test_greedy_answers_equal_the_models_own_generate(client: Client, expected: list[dict[str, Any]]) -> None:
    answers = list(client.map(PROMPTS, max_tokens=24))
    assert expected == [
        {"token_ids": answer.token_ids, "text": answer.text, "prompt_tokens": answer.usage.prompt_tokens}
        for answer in answers
    ]


def test_greedy_answers_in_a_batch_file_equal_the_models_own_generate(
    client: Client, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    bodies = [{"prompt": prompt, "max_tokens": 24, "temperature": 0} for prompt in PROMPTS]
    bodies += [{"prompt": "word " * 3000, "max_tokens": 8}, {"prompt": "The", "max_tokens": 5000}]
    batch = client.batches.create(write(tmp_path / "in.jsonl", bodies))
    status = batch.wait(timeout=120)
    assert (status.state, status.succeeded, dict(status.errors)) == ("completed", 6, {"context_length_exceeded": 2})
    lines = read(tmp_path / "in.output.jsonl")
    answers = [lines[f"c{i}"]["response"]["body"] for i in range(len(PROMPTS))]
    assert expected == [
        {
            "token_ids": body["stoker"]["token_ids"],
            "text": body["choices"][0]["text"],
            "prompt_tokens": body["usage"]["prompt_tokens"],
        }
        for body in answers
    ]
    assert set(read(tmp_path / "in.errors.jsonl")) == {"c6", "c7"}


def test_a_conversation_in_a_batch_file_is_answered_by_the_models_template(client: Client, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "What is a tuple?"}], "max_tokens": 8, "temperature": 0}
    batch = client.batches.create(write(tmp_path / "in.jsonl", [body], "/v1/chat/completions"))
    assert batch.wait(timeout=120).state == "completed"
    [answer] = batch.results()
    message = answer["response"]["body"]["choices"][0]["message"]
    direct = client.submit(messages=body["messages"], max_tokens=8).result(timeout=60)
    assert message == {"role": "assistant", "content": direct.text}


def test_streamed_pieces_join_to_the_answer(served: Stack, client: Client) -> None:
    pieces = list(client.stream(prompt="The with statement", max_tokens=60, ignore_eos=True))
    whole = client.submit(prompt="The with statement", max_tokens=60, ignore_eos=True).result(timeout=60)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.token_ids] == whole.token_ids
    assert len(pieces) > 1


def test_a_stream_whose_worker_was_killed_goes_on_where_it_stood(served: Stack, client: Client) -> None:
    request = InferenceRequest(
        prompt="The with statement", max_tokens=300, temperature=0.8, seed=5, ignore_eos=True, stream=True
    )
    job = client.submit(request)
    stream = job.stream(timeout=120)
    chunks = [next(stream) for _ in range(3)]
    os.kill(served.child_of(served._processes["worker"]), signal.SIGKILL)
    chunks += stream
    undisturbed = client.submit(request).result(timeout=120)
    assert {chunk.attempt for chunk in chunks} == {1, 2}
    assert not any(isinstance(chunk, Restarted) for chunk in chunks)
    assert [chunk.offset for chunk in chunks] == [0, *accumulate(len(chunk.token_ids) for chunk in chunks[:-1])]
    assert "".join(chunk.text for chunk in chunks) == undisturbed.text == job.result(timeout=60).text
    assert [token for chunk in chunks for token in chunk.token_ids] == undisturbed.token_ids


def test_a_short_request_submitted_while_a_long_one_runs_ends_first(served: Stack, client: Client) -> None:
    long = client.submit(prompt="The with statement", max_tokens=1500, ignore_eos=True)
    wait_until(lambda: long.status() == "running", 20)
    short = client.submit(prompt="A class definition", max_tokens=4)
    assert short.result(timeout=30).text
    assert long.status() == "running"
    long.cancel()


def test_a_conversation_goes_through_the_models_template(served: Stack, client: Client) -> None:
    request = InferenceRequest(messages=[{"role": "user", "content": "What is a tuple?"}], max_tokens=8)
    answer = client.submit(request).result(timeout=60)
    plain = client.submit(prompt="What is a tuple?", max_tokens=8).result(timeout=60)
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens


def test_a_prompt_over_the_context_is_refused_naming_the_limit(served: Stack, client: Client) -> None:
    answer = client.submit(prompt="word " * 3000, max_tokens=8).response(timeout=60)
    assert answer.status == "failed"
    assert "2048" in str(answer.error)
