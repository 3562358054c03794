"""A class that answers requests one by one: many at once, in pieces, and each with its own errors."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import wait_until
from stoker import ConfigError, InferenceRequest
from stoker_workers.engine import Admitted, Event, Failed, Finished, Full, Tokens, Work
from stoker_workers.engines.callable import CallableEngine

MODULE = '''
import asyncio
import sys

from stoker import InvalidRequest

class Talker:
    """Does what the inputs say; counts how many do it at once."""

    max_concurrency = 3
    parameters = ["max_tokens", "seed"]

    async def load(self, device):
        self.device, self.loop = device, asyncio.get_running_loop()
        self.running, self.most, self.cancelled, self.warm, self.seen = 0, 0, [], False, {}
        self.gate = asyncio.Event()

    async def warm_up(self):
        assert asyncio.get_running_loop() is self.loop
        self.warm = True

    async def generate(self, request):
        self.running += 1
        self.most = max(self.most, self.running)
        self.seen[request.request_id] = request
        try:
            for word in await self.words(request.inputs):
                yield word
        except asyncio.CancelledError:
            self.cancelled.append(request.request_id)
            raise
        finally:
            self.running -= 1

    async def words(self, what):
        match what:
            case "wait":
                await self.gate.wait()
                return ["done"]
            case "raise":
                raise ZeroDivisionError("one over nothing")
            case "refuse":
                raise InvalidRequest("inputs", "must be polite", what)
            case "number":
                return [7]
            case "surrogate":
                return ["\\ud800"]
            case "exit":
                sys.exit(5)
            case "give up":
                raise asyncio.CancelledError
        return [word + " " for word in what.split()] + [""]

class Whole:
    """Returns its answers, of any kind."""

    def load(self, device):
        pass

    async def generate(self, request):
        return {"text": "a text", "set": {1}, "dict": {"a": [1, None]}}.get(request.inputs)

class Both(Whole):
    def predict(self, batch):
        return batch

class NoConcurrency(Whole):
    max_concurrency = 0

class Unknown(Whole):
    parameters = ["logprobs"]

class BadLoad(Whole):
    async def load(self, device):
        raise FileNotFoundError("weights.bin")
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The user's module, in the current folder, and no thread of it at the end."""
    name = f"talker_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(threading.enumerate())
    yield name
    sys.modules.pop(name, None)
    wait_until(lambda: set(threading.enumerate()) <= before, what="no threads are left")


def load(target: str, **options: Any) -> CallableEngine:
    engine = CallableEngine(target, device="cpu", **options)
    engine.load()
    return engine


@pytest.fixture
def engine(module: str) -> Iterator[CallableEngine]:
    engine = load(f"{module}:Talker")
    yield engine
    engine.close()


def admit(engine: CallableEngine, *inputs: str) -> None:
    for what in inputs:
        work = Work(id=what.replace(" ", "-"), batch="b", inputs=what)
        assert isinstance(engine.admit(work), Admitted)


def finish(engine: CallableEngine) -> list[Event]:
    events: list[Event] = []
    wait_until(lambda: events.extend(engine.step()) or not engine.resident(), what="all is answered")
    return events


def test_pieces_are_streamed_and_empty_ones_left_out(engine: CallableEngine) -> None:
    admit(engine, "one two")
    assert finish(engine) == [
        Tokens("one-two", [], "one "),
        Tokens("one-two", [], "two "),
        Finished("one-two", "stop"),
    ]


def test_the_card_and_the_limits_are_those_of_the_class(module: str) -> None:
    engine = CallableEngine(f"{module}:Talker")
    card = engine.load()
    assert (card.mode, card.task) == ("continuous", "custom")
    assert engine.capacity().rows == 3
    assert engine.parameters == {"max_tokens", "seed"}
    few = load(f"{module}:Talker", max_num_seqs=2)
    assert few.capacity().rows == 2
    engine.close()
    few.close()


def test_load_and_warm_up_may_run_in_the_loop(engine: CallableEngine) -> None:
    engine.warm_up()
    assert (engine._model.warm, engine._model.device) == (True, "cpu")


def test_as_many_as_the_class_allows_run_at_once(engine: CallableEngine) -> None:
    for name in ("a", "b", "c"):
        assert isinstance(engine.admit(Work(id=name, batch="b", inputs="wait")), Admitted)
    assert engine.admit(Work(id="d", batch="b", inputs="wait")) == Full()
    wait_until(lambda: engine._model.running == 3)
    assert engine.scheduled() == engine.resident() == ["a", "b", "c"]
    assert engine.step() == []
    engine._model.loop.call_soon_threadsafe(engine._model.gate.set)
    assert {event.id for event in finish(engine) if isinstance(event, Finished)} == {"a", "b", "c"}
    assert engine._model.most == 3


def test_cancelling_ends_the_call_and_tells_nothing(engine: CallableEngine) -> None:
    admit(engine, "wait")
    wait_until(lambda: engine._model.running == 1)
    engine.cancel("wait")
    wait_until(lambda: engine._model.cancelled == ["wait"])
    assert engine.resident() == []
    assert engine.step() == []
    admit(engine, "one")
    assert finish(engine)[-1] == Finished("one", "stop")


def test_a_new_attempt_takes_the_place_of_the_old_one(engine: CallableEngine) -> None:
    admit(engine, "wait")
    wait_until(lambda: engine._model.running == 1)
    engine.admit(Work(id="wait", batch="c", inputs="again"))
    assert finish(engine) == [Tokens("wait", [], "again "), Finished("wait", "stop")]


@pytest.mark.parametrize(
    ("what", "failed"),
    [
        ("raise", Failed("raise", "generate raised ZeroDivisionError: one over nothing", "retry")),
        ("refuse", Failed("refuse", "inputs: must be polite", "invalid", "refuse")),
        ("number", Failed("number", "generate yielded int, not str", "failure")),
        ("give up", Failed("give-up", "generate cancelled itself", "retry")),
        (
            "surrogate",
            Failed(
                "surrogate",
                "generate yielded what cannot be sent: a piece is a string with a lone surrogate",
                "failure",
            ),
        ),
    ],
)
def test_an_error_stays_with_its_request(engine: CallableEngine, what: str, failed: Failed) -> None:
    admit(engine, what, "fine")
    events = finish(engine)
    assert [event for event in events if event.id == failed.id] == [failed]
    assert events[-1] == Finished("fine", "stop") or events[-2] == Finished("fine", "stop")


def test_what_ends_a_process_ends_it_here_too(engine: CallableEngine) -> None:
    admit(engine, "exit")
    with pytest.raises(SystemExit):
        finish(engine)


def test_the_request_comes_whole_and_always_with_a_seed(engine: CallableEngine) -> None:
    request = InferenceRequest(request_id="r", inputs="hi", max_tokens=5, metadata={"k": 1}, temperature=0.5)
    engine.admit(Work(id="r", batch="b", inputs="hi", request=request))
    finish(engine)
    seen = engine._model.seen["r"]
    assert (seen.max_tokens, seen.temperature, seen.metadata, seen.seed) == (5, 0.5, {"k": 1}, 0)


def test_answers_may_be_returned_whole(module: str) -> None:
    engine = load(f"{module}:Whole")
    admit(engine, "text", "dict", "none", "set")
    events = finish(engine)
    assert Tokens("text", [], "a text") in events
    assert Finished("dict", "stop", {"a": [1, None]}) in events
    assert Finished("none", "stop") in events
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert (failed.id, failed.kind) == ("set", "failure")
    assert "of type set" in failed.reason
    engine.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Both", "both predict"),
        ("NoConcurrency", "max_concurrency of .* must be an int of at least 1, got 0"),
        ("Unknown", "parameters of .* must be among .*, got 'logprobs'"),
        ("BadLoad", r"load\('cpu'\) raised FileNotFoundError: weights.bin"),
    ],
)
def test_a_class_that_cannot_work_is_refused_in_plain_words(module: str, name: str, said: str) -> None:
    engine = CallableEngine(f"{module}:{name}", device="cpu")
    with pytest.raises(ConfigError, match=said):
        engine.load()
    engine.close()
