"""Each engine tells want of memory in one way, and is as good as new once the rows of the failed step are gone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from answers import run, work
from helpers import wait_until
from stoker_workers.engine import Engine, Finished, OutOfMemory, Work
from stoker_workers.engines.callable import CallableEngine

WANT = "CUDA out of memory. Tried to allocate 20.00 GiB"


class Failing:
    """Calls what it stands before, unless memory is to be short."""

    def __init__(self, call: Callable[..., Any], error: Exception) -> None:
        self.call, self.error, self.short = call, error, False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.short:
            self.short = False
            raise self.error
        return self.call(*arguments, **options)


def load_generating(kind: str) -> tuple[Engine, Any]:
    """Return an engine over the demo model, and the module whose forward it calls."""
    from stoker_workers.demo import demo_model_path

    if kind == "torch":
        from stoker_workers.engines.torch import TorchEngine

        engine = TorchEngine(demo_model_path(), device="cpu", kv_cache_tokens=2048)
        engine.load()
        return engine, engine._loaded[0]._model
    from stoker_workers.engines.transformers_cb import TransformersCbEngine

    packed = TransformersCbEngine(
        demo_model_path(), max_num_seqs=12, max_num_batched_tokens=64, kv_cache_tokens=2048, device="cpu"
    )
    packed.load()
    return packed, packed._loaded[0].model


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["torch", "transformers-cb"])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_rows_that_are_admitted_again_answer_as_if_memory_had_sufficed(
    kind: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    torch.set_num_threads(1)
    engine, module = load_generating(kind)
    works = [work("a", range(3, 30), 12), work("b", range(40, 140), 12), work("c", [9, 8], 12)]
    wanted = run(engine, *works)
    forward = Failing(module.forward, torch.OutOfMemoryError(WANT))
    monkeypatch.setattr(module, "forward", forward)
    for each in works:
        engine.admit(each)
    for _ in range(steps):
        engine.step()
    forward.short = True
    with pytest.raises(OutOfMemory, match=WANT):
        engine.step()
    for name in engine.resident():
        engine.cancel(name)
    assert run(engine, *works[:2]) == {name: wanted[name] for name in "ab"}
    assert run(engine, works[2])["c"] == wanted["c"]
    engine.close()


@pytest.mark.torch
def test_an_encoder_tells_it_and_runs_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from stoker_workers.engines.encoder import EncoderEngine
    from workers.models import make_bert

    engine = EncoderEngine(make_bert(tmp_path / "bert"), task="embed", device="cpu")
    engine.load()
    monkeypatch.setattr(engine._model, "run", run_batch := Failing(engine._loaded[1].run, torch.OutOfMemoryError(WANT)))
    engine.admit(work("a", [3, 4]))
    run_batch.short = True
    with pytest.raises(OutOfMemory):
        engine.step()
    assert engine.resident() == ["a"]
    assert isinstance(engine.step()[0], Finished)


MODULE = '''
class OutOfMemoryError(RuntimeError):
    """As torch calls it."""

ERRORS = {
    "oom": OutOfMemoryError("CUDA out of memory"),
    "memory": MemoryError(),
    "sticky": RuntimeError("CUDA error: device-side assert triggered"),
}

class Batched:
    def load(self, device):
        pass

    def predict(self, batch):
        for item in batch:
            if item in ERRORS:
                raise ERRORS[item]
        return batch

class OneByOne:
    def load(self, device):
        pass

    async def generate(self, request):
        if request.inputs in ERRORS:
            raise ERRORS[request.inputs]
        return {"echo": request.inputs}
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"tight_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.mark.parametrize("kind", ["Batched", "OneByOne"])
@pytest.mark.parametrize(("what", "raised"), [("oom", OutOfMemory), ("memory", OutOfMemory), ("sticky", RuntimeError)])
def test_what_a_class_of_the_user_raises_for_want_of_memory_or_of_a_device_is_the_engines_own(
    module: str, kind: str, what: str, raised: type[Exception]
) -> None:
    engine = CallableEngine(f"{module}:{kind}", device="cpu")
    engine.load()
    engine.admit(Work(id="fine", batch="b", inputs="fine"))
    engine.admit(Work(id="bad", batch="b", inputs=what))
    events: list[Any] = []
    with pytest.raises(raised):
        wait_until(lambda: events.extend(engine.step()), what="it is raised")
    engine.cancel("bad")
    if raised is OutOfMemory:
        wait_until(lambda: events.extend(engine.step()) or events, what="the other request is answered")
        assert [event.id for event in events] == ["fine"]
    engine.close()
