"""A user's own class is served batch by batch, and its mistakes stay with the request that met them."""

from __future__ import annotations

import enum
import hashlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import ConfigError, InvalidRequest
from stoker_workers.engine import Admitted, Failed, Finished, Full, Invalid, Work
from stoker_workers.engines.callable import CallableEngine
from stoker_workers.engines.outputs import check_output

MODULE = '''
import math

class Echo:
    """Returns what comes in; told what to do by the inputs themselves."""

    version = "3"

    def load(self, device):
        self.device = device
        self.batches = []

    def cost(self, inputs):
        if inputs == "no cost":
            raise KeyError("cost of what?")
        return inputs["cost"] if isinstance(inputs, dict) else 1

    def predict(self, batch):
        self.batches.append(batch)
        if "crash" in batch:
            raise ZeroDivisionError("the whole batch")
        if "lose one" in batch:
            return batch[1:]
        if "no list" in batch:
            return {"not": "a list"}
        return [self.answer(item) for item in batch]

    def answer(self, item):
        special = {"fail": ValueError("this one"), "nan": [1.0, math.nan], "set": {"a": {1}}}
        return special.get(item, item) if isinstance(item, str) else item

class Free:
    def load(self, device):
        pass

    def predict(self, batch):
        return [len(item) for item in batch]

class NoPredict:
    def load(self, device):
        pass

class BadLoad(Free):
    def load(self, device):
        raise FileNotFoundError("weights.bin")

class NeedsArguments(Free):
    def __init__(self, size):
        pass

function = len
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The user's module, in the current folder."""
    # A name of its own for each test, for Python imports a module once.
    name = f"user_model_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def engine(module: str) -> CallableEngine:
    engine = CallableEngine(f"{module}:Echo", device="cpu", max_num_seqs=4, max_num_batched_tokens=20)
    engine.load()
    return engine


def admit(engine: CallableEngine, *inputs: Any, batch: str = "b") -> None:
    for item in inputs:
        name = str(len(engine.resident()))
        assert isinstance(engine.admit(Work(id=f"{batch}{name}", batch=batch, inputs=item)), Admitted)


def batches(engine: CallableEngine) -> list[list[Any]]:
    while engine.resident():
        engine.step()
    seen: list[list[Any]] = engine._model.batches
    return seen


def test_the_card_names_the_class_and_its_version(module: str) -> None:
    card = CallableEngine(f"{module}:Echo").load()
    assert (card.name, card.mode, card.context, card.vocabulary) == (f"{module}:Echo", "padded", 0, 0)
    assert card.identity == CallableEngine(f"{module}:Echo").load().identity
    assert card.identity != CallableEngine(f"{module}:Free").load().identity


def test_the_device_is_handed_to_load(engine: CallableEngine) -> None:
    assert engine._model.device == "cpu"


def test_one_step_answers_one_batch_in_order(engine: CallableEngine) -> None:
    admit(engine, "x", [1, 2.5, None], {"cost": 1, "deep": {"true": True}})
    assert engine.step() == [
        Finished("b0", "stop", "x"),
        Finished("b1", "stop", [1, 2.5, None]),
        Finished("b2", "stop", {"cost": 1, "deep": {"true": True}}),
    ]
    assert engine.resident() == []
    assert engine.step() == []


def test_deliveries_are_not_mixed_and_run_in_order_of_arrival(engine: CallableEngine) -> None:
    admit(engine, "a", "b", batch="first")
    admit(engine, "c", batch="second")
    admit(engine, "d", batch="first")
    assert engine.scheduled() == ["first0", "first1", "first3"]
    assert batches(engine) == [["a", "b", "d"], ["c"]]


def test_a_batch_is_cut_where_rows_times_the_longest_exceed_the_budget(engine: CallableEngine) -> None:
    items = [{"cost": cost} for cost in (4, 5, 6, 7, 3)]
    admit(engine, *items)
    # 3 x 6 = 18 fit; with the fourth it would be 28. Then 2 x 7.
    assert batches(engine) == [items[:3], items[3:]]


def test_a_batch_has_at_most_max_num_seqs_inputs(engine: CallableEngine) -> None:
    admit(engine, *"abcdefgh")
    assert batches(engine) == [list("abcd"), list("efgh")]


def test_an_input_over_the_budget_runs_alone(engine: CallableEngine) -> None:
    admit(engine, {"cost": 1}, {"cost": 30}, {"cost": 2})
    assert batches(engine) == [[{"cost": 1}], [{"cost": 30}], [{"cost": 2}]]


def test_there_is_room_for_two_batches(engine: CallableEngine) -> None:
    capacity = engine.capacity()
    assert (capacity.rows, capacity.tokens, capacity.budget, capacity.cache) == (8, 40, 20, "paged")
    admit(engine, {"cost": 39})
    assert engine.admit(Work(id="x", batch="b", inputs={"cost": 2})) == Full()
    assert engine.admit(Work(id="x", batch="b", inputs={"cost": 1})) == Admitted(1)
    engine.step()
    admit(engine, *"abcdefg")
    assert engine.admit(Work(id="y", batch="b", inputs="h")) == Full()


def test_an_input_that_no_batch_could_hold_is_refused(engine: CallableEngine) -> None:
    answer = engine.admit(Work(id="x", batch="b", inputs={"cost": 41}))
    assert answer == Invalid("inputs", "may cost at most 40 tokens on this worker", 41)


def test_a_cancelled_input_is_not_run_and_its_room_is_free(engine: CallableEngine) -> None:
    admit(engine, {"cost": 40})
    engine.cancel("b0")
    engine.cancel("unknown")
    admit(engine, {"cost": 40})
    assert batches(engine) == [[{"cost": 40}]]


def test_another_attempt_at_a_request_takes_the_place_of_the_first(engine: CallableEngine) -> None:
    for batch in ("first", "second"):
        engine.admit(Work(id="a", batch=batch, inputs={"cost": 40}))
    assert batches(engine) == [[{"cost": 40}]]


def test_without_a_cost_every_input_costs_one(module: str) -> None:
    engine = CallableEngine(f"{module}:Free", max_num_seqs=10, max_num_batched_tokens=3)
    engine.load()
    assert [engine.admit(Work(id=str(i), batch="b", inputs="text")) for i in range(4)] == [Admitted(1)] * 4
    assert len(engine.step()) == 3
    assert engine.encode("a long text") == [0]


@pytest.mark.parametrize("cost", [0, -1, 1.5, True, "7"])
def test_a_cost_that_is_no_positive_int_is_refused(engine: CallableEngine, cost: object) -> None:
    answer = engine.admit(Work(id="x", batch="b", inputs={"cost": cost}))
    assert isinstance(answer, Invalid)
    assert "an int of at least 1" in answer.limit


def test_an_error_in_cost_is_the_fault_of_its_input(engine: CallableEngine) -> None:
    answer = engine.admit(Work(id="x", batch="b", inputs="no cost"))
    assert answer == Invalid("inputs", "cost() raised KeyError: 'cost of what?'")
    with pytest.raises(InvalidRequest, match="cost of what"):
        engine.encode("no cost")


def test_text_conversations_and_token_ids_arrive_as_inputs(engine: CallableEngine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    engine.admit(Work(id="prompt", batch="b", prompt=engine.encode("text"), inputs="text"))
    engine.admit(Work(id="messages", batch="b", prompt=engine.encode_chat(messages), inputs=messages))
    engine.admit(Work(id="tokens", batch="b", prompt=(5, 6)))
    assert batches(engine) == [["text", messages, [5, 6]]]
    assert isinstance(engine.admit(Work(id="nothing", batch="b")), Invalid)


def test_an_exception_in_the_list_fails_its_item_alone(engine: CallableEngine) -> None:
    admit(engine, "fine", "fail")
    assert engine.step() == [Finished("b0", "stop", "fine"), Failed("b1", "ValueError: this one", "failure")]


def test_an_exception_raised_by_predict_lets_the_whole_batch_be_tried_again(engine: CallableEngine) -> None:
    admit(engine, "fine", "crash")
    reason = "predict raised ZeroDivisionError: the whole batch"
    assert engine.step() == [Failed("b0", reason, "retry"), Failed("b1", reason, "retry")]
    assert engine.resident() == []


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("lose one", "predict returned 1 outputs for 2 inputs"),
        ("no list", "predict returned dict instead of a list"),
    ],
)
def test_a_result_of_the_wrong_shape_fails_each_item_for_good(engine: CallableEngine, item: str, reason: str) -> None:
    admit(engine, "fine", item)
    assert engine.step() == [Failed("b0", reason, "failure"), Failed("b1", reason, "failure")]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("nan", "output[1] is nan, not a finite number"),
        ("set", "output['a'] is of type set; return None, bool, int, float, str, bytes, list or dict"),
    ],
)
def test_an_output_that_cannot_be_sent_fails_alone_and_says_where(
    engine: CallableEngine, item: str, problem: str
) -> None:
    admit(engine, "fine", item)
    events = engine.step()
    assert events[0] == Finished("b0", "stop", "fine")
    assert events[1] == Failed("b1", f"predict returned what cannot be sent: {problem}", "failure")


class Colour(enum.Enum):
    RED = 1


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "output",
    [
        None,
        True,
        -(1 << 63),
        (1 << 64) - 1,
        1.5,
        "é",
        b"\xff",
        (1, "a"),
        [1.0] * 1000,
        {"a": [{"b": None}]},
        [],
        deep(90),
    ],
)
def test_what_msgpack_carries_can_be_sent(output: object) -> None:
    assert check_output(output) is None


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (math.inf, "output is inf"),
        ([0.5] * 10 + [math.nan], "output[10] is nan"),
        ({1: "a"}, "output has a key of type int"),
        ({"\ud800": 1}, "a key of output is a string with a lone surrogate"),
        (["\ud800"], "output[0] is a string with a lone surrogate"),
        (1 << 64, "more than 64 bits"),
        ({"c": Colour.RED}, f"output['c'] is of type {__name__}.Colour"),
        (deep(200), "nested deeper than 100"),
    ],
)
def test_what_msgpack_cannot_carry_is_named(output: object, said: str) -> None:
    assert said in (check_output(output) or "")


def test_an_error_with_an_unreadable_message_still_has_a_reason(engine: CallableEngine) -> None:
    class Unreadable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    engine._model.answer = lambda item: Unreadable() if item == "a" else ValueError("\ud800" + "x" * 5000)
    admit(engine, "a", "b")
    first, second = engine.step()
    assert first == Failed("b0", "Unreadable: (its message cannot be read)", "failure")
    assert isinstance(second, Failed)
    assert len(second.reason.encode()) <= 1000


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module_here:Model", "no module 'no_such_module_here'"),
        ("json.nothing:Model", "no module 'json.nothing'"),
        ("{module}:Missing", "has no class Missing"),
        ("{module}:function", "has no class function"),
        ("{module}:NoPredict", "lacks predict()"),
        ("{module}:BadLoad", "FileNotFoundError: weights.bin"),
        ("{module}:NeedsArguments", "TypeError"),
        ("not a target", "must be module:Class"),
    ],
)
def test_a_class_that_cannot_be_served_is_refused_in_one_line(module: str, target: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^model: ") as raised:
        CallableEngine(target.format(module=module)).load()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "said"), [("import missing_dependency", "missing_dependency"), ("1 / 0", "ZeroDivisionError")]
)
def test_a_module_that_fails_to_import_says_why(module: str, tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / f"broken_{module}.py").write_text(source)
    with pytest.raises(ConfigError, match=f"importing broken_{module} failed: .*{said}"):
        CallableEngine(f"broken_{module}:Model").load()


@pytest.mark.parametrize("limits", [{"max_num_seqs": 0}, {"max_num_batched_tokens": 0}])
def test_limits_that_cannot_work_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        CallableEngine("json:JSONDecoder", **limits)


def test_a_closed_engine_holds_nothing(engine: CallableEngine) -> None:
    engine.warm_up()
    admit(engine, "a")
    engine.close()
    assert (engine.resident(), engine.step()) == ([], [])


def test_the_shipped_example_finds_the_topic_of_a_text() -> None:
    engine = CallableEngine("stoker_workers.examples.topics:TopicClassifier")
    engine.load()
    admit(engine, "What does the with statement do to a context manager?", "lambda functions", "zzzz", 7)
    outputs = [event.output if isinstance(event, Finished) else event for event in engine.step()]
    assert outputs[0]["topic"] in {"with", "context-managers"}
    assert outputs[1]["topic"] == "lambda"
    assert max(outputs[1]["scores"].values()) == outputs[1]["scores"]["lambda"]
    assert outputs[2] == {"topic": None, "scores": {}}
    assert outputs[3] == Failed("b3", "inputs: must be a text", "invalid", "int")
    assert engine.encode("three short words") == [0] * 3
