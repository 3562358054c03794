"""A folder's files say what its model is for, and how it makes one vector of a text's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import ConfigError
from stoker_workers.task import longest_text, pooling_of, task_of

TRANSFORMER = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}


def folder(path: Path, architecture: str | None = None, pooling: dict[str, Any] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps({"architectures": [architecture] if architecture else None}))
    if pooling is not None:
        (path / "modules.json").write_text(json.dumps([TRANSFORMER, POOLING]))
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "generate"),
        ("GPT2LMHeadModel", "generate"),
        ("BertModel", "embed"),
        ("XLMRobertaForMaskedLM", "embed"),
        ("BertForSequenceClassification", "classify"),
        (None, "generate"),
    ],
)
def test_the_architecture_says_what_a_model_is_for(tmp_path: Path, architecture: str | None, task: str) -> None:
    assert task_of(folder(tmp_path, architecture)) == task


def test_a_decoder_in_a_sentence_transformers_folder_embeds(tmp_path: Path) -> None:
    path = folder(tmp_path, "Qwen3ForCausalLM", {"pooling_mode_lasttoken": True})
    assert (task_of(path), pooling_of(path)) == ("embed", "last")


def test_what_is_asked_goes_before_what_the_folder_says(tmp_path: Path) -> None:
    path = folder(tmp_path, "LlamaForCausalLM", {"pooling_mode": "cls"})
    assert (task_of(path, "generate"), pooling_of(path, "mean")) == ("generate", "mean")


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_old_and_new_pooling_files_are_read(tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    assert pooling_of(folder(tmp_path, pooling=config)) == pooling


def test_without_a_word_the_mean_is_taken(tmp_path: Path) -> None:
    assert pooling_of(folder(tmp_path, "BertModel")) == "mean"


@pytest.mark.parametrize("config", [{"pooling_mode": "max"}, {"pooling_mode": ["mean", "cls"]}, {}])
def test_a_pooling_that_is_not_done_here_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="asks for the pooling"):
        pooling_of(folder(tmp_path, pooling=config))


@pytest.mark.parametrize(("task", "pooling"), [("rerank", "auto"), ("auto", "median")])
def test_an_unknown_task_or_pooling_is_refused_with_those_that_are_known(
    tmp_path: Path, task: str, pooling: str
) -> None:
    path = folder(tmp_path, "BertModel")
    with pytest.raises(ConfigError, match="must be auto, "):
        (task_of(path, task), pooling_of(path, pooling))


@pytest.mark.parametrize("content", ["not json", '{"a": 1}', "[1]"])
def test_a_broken_list_of_steps_is_named(tmp_path: Path, content: str) -> None:
    (folder(tmp_path, "BertModel") / "modules.json").write_text(content)
    with pytest.raises(ConfigError, match=r"modules\.json"):
        pooling_of(tmp_path)


def test_the_length_that_a_sentence_model_was_made_for_is_read(tmp_path: Path) -> None:
    assert longest_text(tmp_path) == 0
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    assert longest_text(tmp_path) == 256
