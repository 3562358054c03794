"""The demo model behind the whole stack: what a client gets is what the model says."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from itertools import accumulate

import pytest

from helpers import wait_until
from stack_processes import Stack
from stoker import Client, InferenceRequest, Restarted

PROMPTS = ["The with statement", "A class definition", "Lambda expressions", "If an exception", "héllo ✓", "The"]

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def served(shared_stack: Stack) -> Stack:
    """A scheduler and one worker with the demo model."""
    shared_stack.scheduler()
    shared_stack.worker("worker", "--device", "cpu", model="demo")
    return shared_stack


@pytest.fixture
def client(served: Stack) -> Iterator[Client]:
    """A client of its queue."""
    with contextlib.closing(served.client()) as client:
        yield client


def test_greedy_answers_equal_the_models_own_generate(served: Stack, client: Client) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stoker_workers.demo import demo_model_path

    answers = list(client.map(PROMPTS, max_tokens=24))
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path(), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, local_files_only=True).eval()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            whole = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        assert answer.token_ids == whole.tolist()
        assert answer.text == tokenizer.decode(whole, skip_special_tokens=True)
        assert answer.usage.prompt_tokens == ids.shape[1]


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
