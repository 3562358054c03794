"""Texts become vectors and labels through the whole stack, and a queue says what its model cannot do."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stack.batch_lines import read, write
from stack_processes import Stack
from stoker import AsyncClient, Classification, Client, InvalidRequest, ModelMismatch, UnsupportedParameter
from stoker.cli import main
from stoker_workers.engine import Finished, Work
from stoker_workers.engines import make_engine
from workers.models import LABELS, make_bert, make_classifier

pytestmark = pytest.mark.torch

PROMPTS = ["The with statement", "A class definition", "Lambda expressions", "If an exception", "héllo ✓", "The"]
TEXTS = [f"text {number} {'of some length ' * (number % 4)}"[:60] for number in range(150)]


def alone(engine: Any, text: str) -> Any:
    """What an engine in this process says of a text that shares no batch."""
    engine.admit(Work(id="a", batch="b", prompt=engine.encode(text)))
    [event] = engine.step()
    assert isinstance(event, Finished)
    return event.output


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT."""
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def bert(shared_stack: Stack, model_folder: Path) -> Stack:
    """A worker that embeds with it, and a scheduler."""
    shared_stack.scheduler()
    shared_stack.worker("worker", "--device", "cpu", "--max-num-seqs", "16", model=str(model_folder))
    return shared_stack


@pytest.fixture
def embedder(bert: Stack) -> Iterator[Client]:
    """A client of its queue."""
    with contextlib.closing(bert.client()) as client:
        yield client


def test_vectors_of_the_whole_stack_equal_those_of_single_texts(embedder: Client, model_folder: Path) -> None:
    engine = make_engine(model_folder, device="cpu")
    engine.load()
    vectors = embedder.embed(TEXTS, priority="low")
    assert len(vectors) == len(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert isinstance(vector, array)
        assert max(abs(a - b) for a, b in zip(vector, alone(engine, text), strict=True)) < 1e-4


async def test_the_awaited_client_embeds_token_ids_too(bert: Stack) -> None:
    async with AsyncClient(config=bert.config) as client:
        text, ids = await client.embed(["hi", [0, 75, 76, 2]])
    assert [len(text), len(ids)] == [32, 32]
    assert math.isclose(math.hypot(*ids), 1, rel_tol=1e-5)


def test_lines_of_embeddings_are_answered_with_the_vectors_that_embed_gives(
    bert: Stack, embedder: Client, tmp_path: Path
) -> None:
    bert.batch_worker()
    bodies: list[dict[str, Any]] = [{"input": text} for text in PROMPTS]
    bodies += [{"input": PROMPTS[0], "encoding_format": "base64"}, {"input": [5, 6, 7]}]
    bodies += [{"input": "word " * 3000}, {"input": PROMPTS[0], "temperature": 0.5}]
    batch = embedder.batches.create(write(tmp_path / "in.jsonl", bodies, "/v1/embeddings"))
    status = batch.wait(timeout=120)
    codes = {"context_length_exceeded": 1, "unsupported_parameter": 1}
    assert (status.state, status.succeeded, dict(status.errors)) == ("completed", 8, codes)
    answers = {name: line["response"]["body"] for name, line in read(tmp_path / "in.output.jsonl").items()}
    found = {name: body["data"][0]["embedding"] for name, body in answers.items()}
    packed = array("f", base64.b64decode(found.pop("c6")))
    assert list(packed) == pytest.approx(found["c0"], abs=1e-5)
    vectors = embedder.embed([*PROMPTS, [5, 6, 7]])
    for name, vector in zip([f"c{i}" for i in (*range(6), 7)], vectors, strict=True):
        assert found[name] == pytest.approx(list(vector), abs=1e-5)
    assert answers["c7"]["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert answers["c0"]["object"] == "list"


def test_what_an_encoder_does_not_do_is_refused_by_its_name(embedder: Client, bert: Stack) -> None:
    with pytest.raises(UnsupportedParameter, match="max_tokens: is not honoured"):
        embedder.embed(["a"], max_tokens=3)
    with pytest.raises(UnsupportedParameter, match="messages"):
        embedder.submit(messages=[{"role": "user", "content": "hi"}]).result(timeout=60)
    with pytest.raises(InvalidRequest, match=r"at most 64 tokens"):
        embedder.embed(["a", "b" * 100])
    with pytest.raises(InvalidRequest, match="prompt_tokens: must be at most the model's context of 64"):
        embedder.embed([[5] * 65])
    assert len(embedder.embed([[5] * 64])) == 1
    with pytest.raises(ModelMismatch, match="serves 'bert' to embed, not to classify"):
        embedder.classify(["a"])
    with pytest.raises(InvalidRequest, match="must be a list of texts"):
        embedder.embed("a single text")
    embeds = CliRunner().invoke(main, ["submit", "hi"], env={"STOKER_REDIS_URL": bert.url})
    assert embeds.exit_code == 0
    assert len(json.loads(embeds.stdout)) == 32


def test_a_classifiers_labels_come_with_their_scores(stack: Stack, client: Client, short_tmp: Path) -> None:
    folder = make_classifier(short_tmp / "model")
    stack.scheduler()
    stack.worker("worker", "--device", "cpu", model=str(folder))
    found = client.classify(TEXTS[:20])
    engine = make_engine(folder, device="cpu")
    engine.load()
    for text, one in zip(TEXTS, found, strict=False):
        single = Classification(**alone(engine, text))
        assert one.label == single.label
        assert list(one.scores) == list(LABELS.values())
        assert math.isclose(sum(one.scores.values()), 1, rel_tol=1e-6)
        assert max(abs(one.scores[label] - single.scores[label]) for label in LABELS.values()) < 1e-4


async def test_the_demo_model_embeds_when_it_is_asked_to(stack: Stack) -> None:
    stack.scheduler()
    stack.worker("worker", "--device", "cpu", "--task", "embed", "--pooling", "last", model="demo")
    async with AsyncClient(config=stack.config) as client:
        vectors = await client.embed(["The with statement", "Lambda expressions"])
        card = await client.queue_card()
        assert card is not None
        assert (card.task, card.padded) == ("embed", True)
        with pytest.raises(ModelMismatch):
            await client.classify(["a"])
    assert vectors[0] != vectors[1]


def test_a_model_that_generates_is_asked_for_no_vectors(stack: Stack, client: Client) -> None:
    stack.scheduler()
    stack.worker("worker", "--profile", "zero")
    with pytest.raises(ModelMismatch, match="run `stoker worker --task embed` on a queue of its own"):
        client.embed(["a"])
