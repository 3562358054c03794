"""A folder that the torch engine cannot run is refused in one plain line, and no code from it is run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stoker.errors import ConfigError
from stoker_workers.demo import demo_model_path
from stoker_workers.engines.attention import Chunk, Decode, make_decode
from stoker_workers.engines.torch import TorchEngine
from stoker_workers.engines.torch_model import CausalModel

pytestmark = pytest.mark.torch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model, to spoil."""
    return shutil.copytree(demo_model_path(), tmp_path / "model")


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(folder: Path, **options: Any) -> str:
    """Return the one line with which the folder is refused."""
    with pytest.raises(ConfigError) as raised:
        TorchEngine(folder, **options).load()
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_cpu_runs_in_float32_whatever_the_folder_holds(folder: Path) -> None:
    assert load_file(folder / "model.safetensors")["model.norm.weight"].dtype == torch.float16
    engine = TorchEngine(folder, device="cpu")
    assert engine.load().dtype == "float32"


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(folder).endswith(f"lacks the weights of 1 tensors, {name} for one")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "only safetensors are read" in refusal(folder)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    code = "from pathlib import Path\nPath(__file__).with_name('was-run').touch()\n"
    (folder / "modeling_custom.py").write_text(code)
    change_config(
        folder,
        model_type="custom",
        auto_map={"AutoConfig": "modeling_custom.Config", "AutoModelForCausalLM": "modeling_custom.Model"},
    )
    assert "cannot be loaded" in refusal(folder)
    assert not list(folder.rglob("was-run"))


def test_a_broken_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "the tokenizer in" in refusal(folder)


def test_layers_of_an_unknown_kind_are_refused(folder: Path) -> None:
    change_config(folder, layer_types=["full_attention", "chunked_attention"] * 2)
    assert "layers of kind chunked_attention" in refusal(folder)


def test_the_tokenizers_end_token_counts_where_the_model_names_none(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    change_config(folder, eos_token_id=None)
    assert CausalModel(folder, torch.device("cpu"), "float32").eos == {2}


@pytest.mark.parametrize("device", ["gpu", "cuda:none"])
def test_an_unknown_device_is_refused(folder: Path, device: str) -> None:
    assert refusal(folder, device=device).startswith("device: must be auto, cpu, cuda or cuda:N")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    assert refusal(folder, device="cuda") == "device: cuda was asked for, but torch finds no CUDA device"


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    assert refusal(folder, dtype="int3") == "dtype: must be auto or one of float32, bfloat16, float16, got 'int3'"


def test_a_model_that_answers_otherwise_in_a_shared_cache_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_sighted(chunks: list[Chunk], *rest: Any) -> Decode | None:
        return make_decode([replace(chunk, start=chunk.start - 3) for chunk in chunks], *rest)

    monkeypatch.setattr("stoker_workers.engines.torch_model.make_decode", short_sighted)
    assert "in a shared cache" in refusal(folder)


def test_a_model_that_cannot_be_run_on_a_shared_cache_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a model does whose code reads the masks that it expects.
    monkeypatch.setattr("stoker_workers.engines.torch_model.make_decode", lambda chunks, windows, device: [None])
    assert "cannot be run by the torch engine" in refusal(folder)


def test_a_large_model_keeps_all_threads_and_a_small_one_takes_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    TorchEngine(folder).load()
    assert set_to == [1]
    monkeypatch.setattr("stoker_workers.engines.pretrained._SMALL_MODEL", 1000)
    TorchEngine(folder).load()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("stoker_workers.engines.pretrained._SMALL_MODEL", 1 << 60)
    TorchEngine(folder).load()
    assert set_to == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_runs_in_bfloat16_and_sizes_its_cache_by_free_memory(folder: Path) -> None:
    engine = TorchEngine(folder)
    assert engine.load().dtype == "bfloat16"
    engine.warm_up()
    assert engine.capacity().tokens > 0
