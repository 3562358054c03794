"""The demo model: small enough to ship, good enough to read, and made by a program that anybody can run again."""

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stoker_workers.demo import DEMO, PRIORITIES, SamplePrompt, demo_model_path, held_out_text, sample_prompts

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported: nothing here may ask the network

HELD_OUT_LOSS = 3.85
"""Nats per token, on topics that the shipped model never saw. Guessing evenly gives ln 1024 = 6.93."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(demo_model_path(), local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    torch = pytest.importorskip("torch")
    return load(torch, demo_model_path())


def load(torch: Any, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()


def generate(model: Any, tokenizer: Any, text: str, max_new_tokens: int) -> list[int]:
    inputs = tokenizer(text, return_tensors="pt")
    row = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[0]
    return list(row[inputs["input_ids"].shape[1] :].tolist())


def test_the_name_of_the_model_is_demo() -> None:
    assert DEMO == "demo"


def test_the_weights_are_small_enough_to_ship() -> None:
    weights = demo_model_path() / "model.safetensors"
    assert 1_000_000 < weights.stat().st_size < 4_000_000


def test_the_folder_holds_no_code_and_no_pickle() -> None:
    assert {file.suffix for file in demo_model_path().iterdir()} <= {".json", ".jinja", ".safetensors"}


@pytest.mark.torch
def test_the_folder_says_that_the_context_is_2048_tokens(model: Any, tokenizer: Any) -> None:
    assert model.config.max_position_embeddings == 2048
    assert tokenizer.model_max_length == 2048


@pytest.mark.torch
def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    for text in ("héllo wörld ✓", "  two  spaces , and a comma", "x = 1\n\n\ty\r\n", "日本語 🙂\x00"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.torch
def test_the_model_predicts_topics_it_never_saw(model: Any, tokenizer: Any) -> None:
    assert loss(model, tokenizer, window=512) < HELD_OUT_LOSS < 0.6 * math.log(1024)


@pytest.mark.torch
def test_far_positions_are_predicted_as_well_as_near_ones(model: Any, tokenizer: Any) -> None:
    assert loss(model, tokenizer, window=2048) < HELD_OUT_LOSS


def loss(model: Any, tokenizer: Any, window: int) -> float:
    import torch

    ids = tokenizer(held_out_text(), return_tensors="pt", verbose=False)["input_ids"][0]
    rows = [ids[start : start + window].unsqueeze(0) for start in range(0, len(ids) - window, window)]
    with torch.inference_mode():
        return sum(model(input_ids=row, labels=row).loss.item() for row in rows) / len(rows)


@pytest.mark.torch
def test_a_prompt_is_continued_with_readable_text(model: Any, tokenizer: Any) -> None:
    text = tokenizer.decode(generate(model, tokenizer, 'The "with" statement', 60), skip_special_tokens=True)
    assert len(re.findall(r"\b(the|a|an|is|of|to|and|in)\b", text)) >= 4, text


@pytest.mark.torch
def test_generation_can_stop_by_itself(model: Any, tokenizer: Any) -> None:
    import torch

    inputs = tokenizer("The value is", return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = model.generate(**inputs, max_new_tokens=64, do_sample=True, num_return_sequences=16)
    stopped = (rows == tokenizer.eos_token_id).any(dim=1)
    assert stopped.any()
    assert not stopped.all()


@pytest.mark.torch
def test_the_generation_config_names_the_special_tokens(model: Any, tokenizer: Any) -> None:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = [getattr(tokenizer, name) for name in names]
    assert [getattr(model.generation_config, name) for name in names] == ids
    assert [getattr(model.config, name) for name in names] == ids
    assert len(set(ids)) == 3


@pytest.mark.torch
def test_a_chat_becomes_plain_text_that_ends_where_the_answer_begins(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is a tuple?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "User:\nWhat is a tuple?\n\nAssistant:\n"


def test_about_a_hundred_sample_prompts_are_shipped() -> None:
    samples = sample_prompts()
    assert 90 <= len(samples) <= 120
    assert len({str(sample) for sample in samples}) == len(samples)
    assert set(Counter(sample.priority for sample in samples)) == set(PRIORITIES)
    assert {min(sample.max_tokens for sample in samples), max(sample.max_tokens for sample in samples)} == {8, 160}
    assert sum(sample.messages is not None for sample in samples) >= 5


@pytest.mark.torch
def test_the_sample_prompts_are_of_mixed_length_and_fit_the_context(tokenizer: Any) -> None:
    lengths = []
    for sample in sample_prompts():
        text = sample.prompt or tokenizer.apply_chat_template(
            sample.messages, tokenize=False, add_generation_prompt=True
        )
        lengths.append(len(tokenizer(text)["input_ids"]))
        assert lengths[-1] + sample.max_tokens <= 2048
    assert min(lengths) < 12
    assert max(lengths) > 400


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": None, "messages": None}, "needs either prompt or messages"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "not both"),
        ({"max_tokens": 0}, "at least 1"),
        ({"priority": "urgent"}, "got 'urgent'"),
    ],
)
def test_a_sample_prompt_that_could_not_be_submitted_is_refused(entry: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"prompt": "x", "messages": None, "max_tokens": 8, "priority": "normal"}
    with pytest.raises(ValueError, match=message):
        SamplePrompt(**(fields | entry))


@pytest.mark.torch
def test_a_few_steps_of_training_make_a_folder_that_loads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from stoker_workers.demo.train import Step, train

    steps: list[Step] = []
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train(tmp_path, steps=4, seed=7, progress=steps.append)

    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert 5 < steps[0].loss < 9
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    made = load(torch, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(generate(made, tokenizer, "The", 5)) > 0


@pytest.mark.long
@pytest.mark.torch
def test_the_same_seed_trains_the_same_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from stoker_workers.demo.train import train

    for name in ("one", "two"):
        train(tmp_path / name, steps=2, seed=3)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


@pytest.mark.torch
def test_what_a_held_out_topic_shares_with_others_is_not_trained_on() -> None:
    pytest.importorskip("transformers")
    from stoker_workers.demo.train import split

    shared = "one sentence of eight words stands in both"
    topics = {f"topic-{number:02}": f"Paragraph {number}\n\nwords of {number} alone" for number in range(12)}
    topics["topic-00"] += f"\n\n{shared}"
    topics["topic-01"] += f"\n\n{shared.replace(' ', chr(10), 1)}, with a tail"

    parts = split(topics)

    assert parts.held_out == [topics["topic-00"], topics["topic-10"]]
    assert len(parts.train) == 10
    assert ["Paragraph 1", "words of 1 alone"] in parts.train


@pytest.mark.torch
def test_a_topic_that_repeats_a_longer_one_is_trained_on_once() -> None:
    pytest.importorskip("transformers")
    from stoker_workers.demo.train import split

    topics = {
        "a": "held out",
        "part": "the second\npart",
        "whole": "the first part\n\nthe second part\n\nthe third part",
    }

    assert split(topics).train == [["the first part", "the second part", "the third part"]]


@pytest.mark.torch
def test_the_shipped_held_out_text_shares_no_sentence_with_the_training_text() -> None:
    pytest.importorskip("transformers")
    import pydoc_data.topics

    from stoker_workers.demo.train import split

    parts = split(pydoc_data.topics.topics)
    if "\n\n".join(parts.held_out).strip() != held_out_text().strip():
        pytest.skip("this CPython's documentation differs from the one that the model was made with")
    words = re.findall(r"\w+", held_out_text().lower())
    trained = {" ".join(run) for topic in parts.train for text in topic for run in runs(text)}
    assert not trained.intersection(" ".join(words[i : i + 8]) for i in range(len(words) - 7))


def runs(text: str) -> list[list[str]]:
    words = re.findall(r"\w+", text.lower())
    return [words[i : i + 8] for i in range(len(words) - 7)]
