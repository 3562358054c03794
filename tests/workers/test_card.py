"""A model's card is read from its folder without torch, and tells two models apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.errors import ConfigError
from stoker_workers.card import card_of_folder, weight_files

CONFIG = {"vocab_size": 100, "max_position_embeddings": 64}


def write_weights(file: Path, data: bytes = b"\1\2\3\4") -> None:
    """Write the smallest file in the safetensors format."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    write_weights(path / "model.safetensors")
    return path


def test_a_card_says_what_the_folder_says(folder: Path) -> None:
    card = card_of_folder(folder, "float32", "continuous")
    assert (card.name, card.dtype, card.mode) == ("my-model", "float32", "continuous")
    assert (card.vocabulary, card.context) == (100, 64)
    assert len(card.identity) == 64
    assert card_of_folder(folder, "float32", "padded", "other").name == "other"


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        (
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 2},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
        ),
        ({"temperature": "hot", "top_p": 2, "top_k": 0}, {}),
        ({"temperature": True, "top_k": 5.0}, {}),
        ({}, {}),
    ],
)
def test_what_the_model_suggests_for_sampling_is_in_its_card(
    folder: Path, config: dict[str, object], sampling: dict[str, float]
) -> None:
    assert card_of_folder(folder, "float32").sampling == {}
    (folder / "generation_config.json").write_text(json.dumps(config))
    assert card_of_folder(folder, "float32").sampling == sampling


def test_the_same_model_elsewhere_has_the_same_identity(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert card_of_folder(copy, "float32").identity == card_of_folder(folder, "float32").identity


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "config.json").write_text(json.dumps({**CONFIG, "more": 1})),
        lambda path: (path / "tokenizer.json").write_text("{ }"),
        lambda path: (path / "chat_template.jinja").write_text("hello"),
        lambda path: (path / "generation_config.json").write_text('{"eos_token_id": 7}'),
        lambda path: write_weights(path / "model.safetensors", b"\1\2\3"),
        lambda path: write_weights(path / "model.safetensors", b"\1\2\3\5"),
    ],
)
def test_what_changes_answers_changes_the_identity(folder: Path, change: Callable[[Path], object]) -> None:
    before = card_of_folder(folder, "float32").identity
    change(folder)
    assert card_of_folder(folder, "float32").identity != before


def test_the_dtype_is_part_of_the_identity(folder: Path) -> None:
    assert card_of_folder(folder, "float32").identity != card_of_folder(folder, "bfloat16").identity


def test_a_large_file_is_sampled_to_its_end(folder: Path) -> None:
    data = bytearray(1_000_000)
    write_weights(folder / "model.safetensors", bytes(data))
    before = card_of_folder(folder, "float32").identity
    data[len(data) * 15 // 16 + 10] = 1
    write_weights(folder / "model.safetensors", bytes(data))
    assert card_of_folder(folder, "float32").identity != before


def test_the_weights_may_lie_in_several_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    for name in names:
        write_weights(folder / name)
    index = {"weight_map": {"b": names[1], "a": names[0], "c": names[0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in weight_files(folder)] == names
    card_of_folder(folder, "float32")
    (folder / names[1]).unlink()
    with pytest.raises(ConfigError, match=r"lacks model-2-of-2\.safetensors"):
        card_of_folder(folder, "float32")


@pytest.mark.parametrize("index", [{"weight_map": {"a": "../secret"}}, {"weight_map": {}}, {}])
def test_an_index_that_names_no_file_of_the_folder_is_refused(folder: Path, index: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder.parent / "secret").write_text("x")
    with pytest.raises(ConfigError, match="lacks"):
        card_of_folder(folder, "float32")


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"n_positions": 1024}, 1024),
        ({}, 0),
        ({"max_position_embeddings": None}, 0),
        ({"text_config": {"vocab_size": 7, "max_position_embeddings": 33}}, 33),
        ({"max_position_embeddings": 9, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, 9),
        (
            {
                "max_position_embeddings": 131_072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            4096,
        ),
        (
            {
                "max_position_embeddings": 131_072,
                "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 8192},
            },
            8192,
        ),
    ],
)
def test_the_context_is_found_where_models_keep_it(folder: Path, config: dict[str, object], context: int) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert card_of_folder(folder, "float32").context == context


def remove(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "no folder at"),
        (remove("config.json"), "lacks config.json"),
        (remove("model.safetensors"), "lacks model.safetensors .only safetensors are read."),
        (lambda path: (path / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda path: (path / "config.json").write_text("[]"), "config.json holds no JSON object"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 100), "is no safetensors file"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "is no safetensors file"),
    ],
)
def test_what_is_no_model_folder_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(folder)
    with pytest.raises(ConfigError, match=f"^model: .*{said}") as raised:
        card_of_folder(folder, "float32")
    assert "\n" not in str(raised.value)
