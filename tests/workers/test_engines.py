"""A model's name picks its engine, only that one is imported, and what cannot work is refused in plain words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import ConfigError
from stoker_workers.engine import Capacity
from stoker_workers.engines import kind_of, make_engine
from stoker_workers.engines.callable import CallableEngine
from stoker_workers.engines.sim import SimEngine


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("sim", "sim"),
        ("demo", "torch"),
        ("./models/llama", "torch"),
        (Path("sim"), "torch"),
        ("my_module:Model", "callable"),
        ("package.module:Model", "callable"),
    ],
)
def test_the_name_of_a_model_picks_the_kind(model: str | Path, kind: str) -> None:
    assert kind_of(model) == kind


def test_a_sim_takes_its_profile_and_limits() -> None:
    engine = make_engine("sim", profile="zero", max_num_seqs=3, max_num_batched_tokens=100, kv_cache_tokens=500)
    assert isinstance(engine, SimEngine)
    assert engine.capacity() == Capacity(rows=3, tokens=500, budget=100)
    assert not engine.raw


def test_a_class_takes_its_limits() -> None:
    engine = make_engine("my_module:Model", max_num_seqs=3, max_num_batched_tokens=100)
    assert isinstance(engine, CallableEngine)
    assert engine.capacity() == Capacity(rows=6, tokens=200, budget=100)
    assert engine.raw


@pytest.mark.torch
def test_the_demo_model_is_called_demo() -> None:
    engine = make_engine("demo", max_num_seqs=2)
    card = engine.load()
    assert (card.name, card.dtype, card.mode) == ("demo", "float32", "continuous")
    assert engine.capacity().tokens == 2 * card.context


@pytest.mark.torch
def test_a_folder_that_is_missing_is_refused_before_torch_looks_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder at .*nothing is downloaded"):
        make_engine(str(tmp_path / "gpt2")).load()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"device": "cuda:1"}, "TransformersCbEngine"),
        ({"device": "cuda:1", "engine": "torch"}, "TorchEngine"),
        ({"device": "cpu"}, "TorchEngine"),
        ({"device": "cpu", "engine": "transformers-cb"}, "TransformersCbEngine"),
        ({"device": "cpu", "tensor_parallel": 2}, "TransformersCbEngine"),
    ],
)
def test_a_folder_runs_with_transformers_own_batching_on_a_gpu_or_over_ranks(
    options: dict[str, Any], kind: str
) -> None:
    assert type(make_engine("demo", **options)).__name__ == kind


@pytest.mark.parametrize(("model", "engine"), [("demo", "torch"), ("sim", "auto"), ("my_module:Model", "auto")])
def test_an_engine_that_cannot_be_split_over_ranks_says_so(model: str, engine: str) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel: needs the engine transformers-cb, got "):
        make_engine(model, engine=engine, tensor_parallel=2)


def test_an_unknown_kind_is_refused_with_those_that_are_known() -> None:
    known = "auto, sim, torch, transformers-cb, callable, openai"
    with pytest.raises(ConfigError, match=f"engine: must be one of {known}, got 'vllm'"):
        make_engine("demo", engine="vllm")


@pytest.mark.parametrize("engine", ["torch", "transformers-cb"])
@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_torch_the_extra_to_install_is_named(
    monkeypatch: pytest.MonkeyPatch, missing: str, engine: str
) -> None:
    for module in [name for name in sys.modules if name.startswith("stoker_workers.engines.")]:
        monkeypatch.delitem(sys.modules, module)
    # None makes an import fail as if nothing was installed.
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf'the {engine} engine needs {missing}: pip install "stoker\[worker\]"'):
        make_engine("demo", engine=engine)


LIGHT = ["", ".engine", ".text", ".card", ".engines", ".engines.sim", ".engines.callable", ".engines.continuous"]


def test_nothing_but_the_torch_engine_imports_torch() -> None:
    code = f"""
import importlib, json, sys
for name in {LIGHT}:
    importlib.import_module("stoker_workers" + name)
print(json.dumps([name for name in ("torch", "transformers", "tokenizers", "numpy") if name in sys.modules]))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(output.stdout) == []
