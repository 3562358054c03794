"""An engine around the user's own class: any function from a batch of inputs to a list of outputs.

The class is named on the worker's command line as `module:Class`, and nothing that comes over the wire is ever
imported. It takes no arguments and has

- `load(device: str) -> None`: called once, in the worker's process;
- `predict(batch: list) -> list`: one output for each input, in order. An exception object in the list fails that item
  alone; an exception raised fails the batch, whose requests are tried again. Outputs are what msgpack carries: None,
  bool, int, finite float, str, bytes, and lists and dicts (with str keys) of them;
- optionally `cost(inputs) -> int`: how many tokens an input occupies, at least 1. Without it every input costs 1, and
  `max_num_batched_tokens` is a number of inputs;
- optionally an attribute `version: str`: a queue refuses workers whose model has another version.

An input is what the client sent as `inputs`; a `prompt` arrives as its string, `messages` as their list, and
`prompt_tokens` as a list of ints.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stoker.errors import ConfigError, InvalidRequest
from stoker_workers.engine import Admitted, Capacity, Event, Failed, Finished, Full, Invalid, ModelCard, Work

TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MAX_DEPTH = 100  # msgpack itself gives up at about 500 on one side and 1,000 on the other
_MAX_REASON = 1000
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


class CallableEngine:
    """Runs a user's class on batches: one `step` is one call of `predict`.

    A batch is what one delivery brought, in order of arrival, cut where rows x longest would exceed the budget. An
    input that costs more than the budget runs alone. While one batch runs, one more may be queued behind it.
    """

    raw = True
    resumes = False

    def __init__(
        self, target: str, *, device: str = "auto", max_num_seqs: int = 64, max_num_batched_tokens: int = 2048
    ) -> None:
        """Name the class as `module:Class`; `device` is handed to its `load` as it is."""
        if not TARGET.fullmatch(target):
            raise ConfigError(f"model: must be module:Class, got {target!r}")
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise ConfigError("max_num_seqs and max_num_batched_tokens: must be at least 1")
        self._target = target
        self._device = device
        self._max_num_seqs = max_num_seqs
        self._capacity = Capacity(
            rows=2 * max_num_seqs, tokens=2 * max_num_batched_tokens, budget=max_num_batched_tokens, cache="paged"
        )
        self._model: Any = None
        self._resident: dict[str, tuple[Work, int]] = {}
        self._occupied = 0

    def load(self) -> ModelCard:
        """Import the class, make an instance and load it."""
        model_class = _import(self._target)
        self._model = _call_user(f"{self._target}()", model_class)
        _call_user(f"{self._target}.load({self._device!r})", self._model.load, self._device)
        version = getattr(self._model, "version", "")
        identity = hashlib.sha256(f"{self._target}\0{version}".encode()).hexdigest()
        return ModelCard(name=self._target, identity=identity, dtype="none", vocabulary=0, context=0, mode="padded")

    def warm_up(self) -> None:
        """Do nothing: what an input looks like is known to the user's `load` alone."""

    def encode(self, prompt: str) -> list[int]:
        """Return as many zeros as the text costs, for only their number counts; `InvalidRequest` when cost() fails."""
        return self._as_tokens("prompt", prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return as many zeros as the conversation costs."""
        return self._as_tokens("messages", [dict(message) for message in messages])

    def admit(self, work: Work) -> Admitted | Full | Invalid:
        """Take an input in, behind at most one batch."""
        self.cancel(work.id)  # another attempt at the same request takes the place of the first
        if work.inputs is None and not work.prompt:
            return Invalid("inputs", "must not be None")
        try:
            cost = self._cost(_item(work))
        except Exception as error:  # whatever the user's code raises is about this input alone
            return Invalid("inputs", f"cost() raised {_describe(error)}")
        if cost > self._capacity.tokens:
            return Invalid("inputs", f"may cost at most {self._capacity.tokens} tokens on this worker", cost)
        if len(self._resident) >= self._capacity.rows or self._occupied + cost > self._capacity.tokens:
            return Full()
        self._resident[work.id] = (work, cost)
        self._occupied += cost
        return Admitted(cost)

    def step(self) -> list[Event]:
        """Run one batch."""
        batch = self._next_batch()
        if not batch:
            return []
        events = self._run(batch)
        for work in batch:
            self.cancel(work.id)
        return events

    def scheduled(self) -> Sequence[str]:
        """Return the ids of the next batch."""
        return [work.id for work in self._next_batch()]

    def cancel(self, request_id: str) -> None:
        """Drop an input that waits."""
        _, cost = self._resident.pop(request_id, (None, 0))
        self._occupied -= cost

    def resident(self) -> Sequence[str]:
        """Return the ids of what waits, in order of arrival."""
        return list(self._resident)

    def capacity(self) -> Capacity:
        """Return room for two batches."""
        return self._capacity

    def close(self) -> None:
        """Let go of the model and of what waits."""
        self._model = None
        self._resident.clear()
        self._occupied = 0

    def _run(self, batch: list[Work]) -> list[Event]:
        try:
            outputs = self._model.predict([_item(work) for work in batch])
        except Exception as error:  # any error of the user's code fails its batch, never the worker
            reason = f"predict raised {_describe(error)}"
            return [Failed(work.id, reason, "retry") for work in batch]
        if not isinstance(outputs, list | tuple):
            reason = f"predict returned {_type_name(outputs)} instead of a list"
            return [Failed(work.id, reason, "failure") for work in batch]
        if len(outputs) != len(batch):
            reason = f"predict returned {len(outputs)} outputs for {len(batch)} inputs"
            return [Failed(work.id, reason, "failure") for work in batch]
        return [_event(work.id, output) for work, output in zip(batch, outputs, strict=True)]

    def _as_tokens(self, field: str, item: Any) -> list[int]:
        try:
            return [0] * self._cost(item)
        except Exception as error:  # as in `admit`
            raise InvalidRequest(field, f"cost() raised {_describe(error)}") from error

    def _cost(self, item: Any) -> int:
        cost = getattr(self._model, "cost", None)
        if cost is None:
            return 1
        tokens = cost(item)
        if type(tokens) is not int or tokens < 1:
            raise ValueError(f"cost() must return an int of at least 1, got {tokens!r}")
        return tokens

    def _next_batch(self) -> list[Work]:
        batch: list[Work] = []
        longest = 0
        for work, cost in self._resident.values():
            if batch and work.batch != batch[0].batch:
                continue
            longest = max(longest, cost)
            too_large = (len(batch) + 1) * longest > self._capacity.budget
            if batch and (too_large or len(batch) == self._max_num_seqs):
                break
            batch.append(work)
        return batch


def check_output(output: Any) -> str | None:
    """Return what in `output` msgpack cannot carry and where it is, None if all is well."""
    return _check(output, "output", 0)


def _check(value: Any, where: str, depth: int) -> str | None:
    if depth > _MAX_DEPTH:
        return f"the output is nested deeper than {_MAX_DEPTH}"
    if value is None or isinstance(value, bool | bytes):
        return None
    if isinstance(value, int):
        return None if _INT_MIN <= value <= _INT_MAX else f"{where} is an int of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{where} is {value}, not a finite number"
    if isinstance(value, str):
        return _check_text(value, where)
    if isinstance(value, list | tuple):
        return _check_list(value, where, depth)
    if isinstance(value, dict):
        return _check_dict(value, where, depth)
    return f"{where} is of type {_type_name(value)}; return None, bool, int, float, str, bytes, list or dict"


def _check_text(value: str, where: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{where} is a string with a lone surrogate"
    return None


def _check_list(value: Sequence[Any], where: str, depth: int) -> str | None:
    # Vectors are the common large output: this passes them at the speed of C.
    if set(map(type, value)) == {float} and all(map(math.isfinite, value)):
        return None
    problems = (_check(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value))
    return next((problem for problem in problems if problem), None)


def _check_dict(value: Mapping[Any, Any], where: str, depth: int) -> str | None:
    for key, item in value.items():
        if not isinstance(key, str):
            return f"{where} has a key of type {_type_name(key)}; keys must be str"
        if problem := _check_text(key, f"a key of {where}") or _check(item, f"{where}[{key!r}]", depth + 1):
            return problem
    return None


def _event(request_id: str, output: Any) -> Event:
    if isinstance(output, BaseException):
        return Failed(request_id, _describe(output), "failure")
    if problem := check_output(output):
        return Failed(request_id, f"predict returned what cannot be sent: {problem}", "failure")
    return Finished(request_id, "stop", output)


def _item(work: Work) -> Any:
    return list(work.prompt) if work.inputs is None else work.inputs


def _describe(error: BaseException) -> str:
    """Return an error's type and message, short enough to store and always encodable."""
    try:
        message = str(error)
    except Exception:  # the user's own __str__
        message = "(its message cannot be read)"
    text = f"{type(error).__name__}: {message}"
    return text[:_MAX_REASON].encode(errors="replace").decode()


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _import(target: str) -> Any:
    """Return the class that `target` names, checked for what it must have."""
    module_name, _, class_name = target.partition(":")
    # As a user expects of `module:Class`: the current folder counts, but it hides no installed package.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"model: no module {error.name!r} in the current folder or installed") from None
        raise ConfigError(f"model: importing {module_name} failed: {_describe(error)}") from error
    except Exception as error:  # a module runs any code
        raise ConfigError(f"model: importing {module_name} failed: {_describe(error)}") from error
    model_class = getattr(module, class_name, None)
    if not isinstance(model_class, type):
        raise ConfigError(f"model: module {module_name} has no class {class_name}")
    lacking = [name for name in ("load", "predict") if not callable(getattr(model_class, name, None))]
    if lacking:
        raise ConfigError(f"model: {target} lacks {' and '.join(f'{name}()' for name in lacking)}")
    return model_class


def _call_user(what: str, function: Any, *arguments: object) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise ConfigError(f"model: {what} raised {_describe(error)}") from error
