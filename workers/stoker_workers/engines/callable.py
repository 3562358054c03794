"""An engine around the user's own class: a function of a batch of inputs, or one that answers requests one by one.

The class is named on the worker's command line as `module:Class`, and nothing that comes over the wire is ever
imported. It takes no arguments and has

- `load(device: str) -> None`: called once, in the worker's process;
- either `predict(batch: list) -> list`: one output for each input, in order. An exception object in the list fails that
  item alone (an `InvalidRequest` says that it is the item's own fault); an exception raised fails the batch, whose
  requests are tried again. Where it says that memory ran out (torch's OutOfMemoryError, a MemoryError), half of the
  batch is tried again at once, the other half given back, and less is taken for a while; where it says that a CUDA
  device is of no more use, the process ends. Parameters such as max_tokens are refused: `predict` does not see them;
- or `async generate(request: InferenceRequest)`: runs for up to `max_concurrency` (64) requests at once. Returns an
  output, or yields strings, which are streamed; the attribute `parameters` says which of max_tokens, temperature,
  top_p, top_k, seed, stop and ignore_eos it honours (default: all), and the others are refused. A cancelled request's
  `generate` is cancelled; an exception is a failed attempt, an `InvalidRequest` the request's own fault. `load` and
  `warm_up` may then be async too, and run in the same loop;
- optionally `warm_up() -> None`: called after `load`, so that the first request pays nothing extra;
- optionally `cost(inputs) -> int`: how many tokens an input occupies, at least 1. Without it every input costs 1, and
  `max_num_batched_tokens` is a number of inputs;
- optionally an attribute `version: str`: a queue refuses workers whose model has another version.

An input is what the client sent as `inputs`; a `prompt` arrives as its string, `messages` as their list, and
`prompt_tokens` as a list of ints. Outputs are what msgpack carries: None, bool, int, finite float, str, bytes, and
lists and dicts (with str keys) of them; or an `array("f")`, a vector that `Client.embed` takes.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stoker.errors import ConfigError, InvalidRequest
from stoker_workers.engine import (
    GENERATION,
    Admitted,
    Capacity,
    Event,
    Failed,
    Finished,
    Full,
    Invalid,
    Mode,
    ModelCard,
    Work,
)
from stoker_workers.engine_faults import is_out_of_memory, is_sticky, telling_memory
from stoker_workers.engines.async_calls import AsyncCalls
from stoker_workers.engines.outputs import check_output, describe, invalid, type_name
from stoker_workers.engines.padded import Batches

TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
CONCURRENCY = 64


class CallableEngine:
    """Runs a user's class: one `step` is one call of `predict`, or what came of all calls of `generate` meanwhile.

    A batch for `predict` is what one delivery brought, in order of arrival, cut where rows x longest would exceed the
    budget. An input that costs more than the budget runs alone. While one batch runs, one more may be queued behind it.
    """

    raw = True
    resumes = False

    def __init__(
        self,
        target: str,
        *,
        device: str = "auto",
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int = 2048,
    ) -> None:
        """Name the class as `module:Class`; `device` is handed to its `load` as it is.

        `max_num_seqs` is by default 64 inputs a batch, or the class's own `max_concurrency`.
        """
        if not TARGET.fullmatch(target):
            raise ConfigError(f"model: must be module:Class, got {target!r}")
        self.parameters: frozenset[str] = frozenset()
        self._target = target
        self._device = device
        self._max_num_seqs = max_num_seqs
        self._model: Any = None
        # What `load` replaces by calls, if the class turns out to answer one by one.
        self._held: Batches | AsyncCalls = Batches(
            CONCURRENCY if max_num_seqs is None else max_num_seqs, max_num_batched_tokens
        )

    def load(self) -> ModelCard:
        """Import the class, make an instance and load it."""
        model_class = _import(self._target)
        self._model = _call_user(f"{self._target}()", model_class)
        if hasattr(model_class, "generate"):
            self._held = AsyncCalls(self._model.generate, self._concurrency())
            self.parameters = self._honoured()
        self._call(f"load({self._device!r})", self._model.load, self._device)
        version = getattr(self._model, "version", "")
        identity = hashlib.sha256(f"{self._target}\0{version}".encode()).hexdigest()
        mode: Mode = "padded" if isinstance(self._held, Batches) else "continuous"
        return ModelCard(
            name=self._target, identity=identity, dtype="none", vocabulary=0, context=0, mode=mode, task="custom"
        )

    def warm_up(self) -> None:
        """Let the class warm up, if it can: what an input looks like is known to it alone."""
        if hasattr(self._model, "warm_up"):
            self._call("warm_up()", self._model.warm_up)

    def encode(self, prompt: str) -> list[int]:
        """Return as many zeros as the text costs, for only their number counts; `InvalidRequest` when cost() fails."""
        return self._as_tokens("prompt", prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return as many zeros as the conversation costs."""
        return self._as_tokens("messages", [dict(message) for message in messages])

    def admit(self, work: Work) -> Admitted | Full | Invalid:
        """Take an input in: behind at most one batch, or to be answered at once."""
        if work.inputs is None and not work.prompt:
            return Invalid("inputs", "must not be None")
        try:
            cost = self._cost(_item(work))
        except Exception as error:  # whatever the user's code raises is about this input alone
            return Invalid("inputs", f"cost() raised {describe(error)}")
        if cost > self._held.capacity.tokens:
            return Invalid("inputs", f"may cost at most {self._held.capacity.tokens} tokens on this worker", cost)
        return self._held.admit(work, cost)

    def step(self) -> list[Event]:
        """Run one batch, or take what came of the calls."""
        if isinstance(self._held, AsyncCalls):
            return self._held.events()
        batch = self._held.next()
        if not batch:
            return []
        events = self._run(batch)
        for work in batch:
            self._held.drop(work.id)
        return events

    def scheduled(self) -> Sequence[str]:
        """Return the ids of the next batch, or of all that is being answered."""
        return [work.id for work in self._held.next()]

    def cancel(self, request_id: str) -> None:
        """Drop an input that waits, or end its call."""
        self._held.drop(request_id)

    def resident(self) -> Sequence[str]:
        """Return the ids of what waits or runs, in order of arrival."""
        return self._held.resident()

    def capacity(self) -> Capacity:
        """Return room for two batches, or for as many calls as may run."""
        return self._held.capacity

    def close(self) -> None:
        """Let go of the model and of what waits or runs."""
        self._held.clear()
        self._model = None

    def _run(self, batch: list[Work]) -> list[Event]:
        try:
            with telling_memory():
                outputs = self._model.predict([_item(work) for work in batch])
        except Exception as error:  # any error of the user's code fails its batch, never the worker
            if is_out_of_memory(error) or is_sticky(error):
                raise
            reason = f"predict raised {describe(error)}"
            return [Failed(work.id, reason, "retry") for work in batch]
        if not isinstance(outputs, list | tuple):
            reason = f"predict returned {type_name(outputs)} instead of a list"
            return [Failed(work.id, reason, "failure") for work in batch]
        if len(outputs) != len(batch):
            reason = f"predict returned {len(outputs)} outputs for {len(batch)} inputs"
            return [Failed(work.id, reason, "failure") for work in batch]
        return [_event(work.id, output) for work, output in zip(batch, outputs, strict=True)]

    def _concurrency(self) -> int:
        most = self._max_num_seqs or getattr(self._model, "max_concurrency", CONCURRENCY)
        if type(most) is not int or most < 1:
            raise ConfigError(f"model: max_concurrency of {self._target} must be an int of at least 1, got {most!r}")
        return most

    def _honoured(self) -> frozenset[str]:
        named = frozenset(getattr(self._model, "parameters", GENERATION))
        if unknown := sorted(map(str, named - GENERATION)):
            known = ", ".join(sorted(GENERATION))
            raise ConfigError(f"model: parameters of {self._target} must be among {known}, got {unknown[0]!r}")
        return named

    def _call(self, what: str, function: Any, *arguments: object) -> None:
        """Call the user's `function`; what is async runs in the loop of the calls."""
        run = self._held.run if isinstance(self._held, AsyncCalls) else None
        _call_user(f"{self._target}.{what}", function, *arguments, run=run)

    def _as_tokens(self, field: str, item: Any) -> list[int]:
        try:
            return [0] * self._cost(item)
        except Exception as error:  # as in `admit`
            raise InvalidRequest(field, f"cost() raised {describe(error)}") from error

    def _cost(self, item: Any) -> int:
        cost = getattr(self._model, "cost", None)
        if cost is None:
            return 1
        tokens = cost(item)
        if type(tokens) is not int or tokens < 1:
            raise ValueError(f"cost() must return an int of at least 1, got {tokens!r}")
        return tokens


def _event(request_id: str, output: Any) -> Event:
    if isinstance(output, BaseException):
        return invalid(request_id, output) or Failed(request_id, describe(output), "failure")
    if problem := check_output(output):
        return Failed(request_id, f"predict returned what cannot be sent: {problem}", "failure")
    return Finished(request_id, "stop", output)


def _item(work: Work) -> Any:
    return list(work.prompt) if work.inputs is None else work.inputs


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
        raise ConfigError(f"model: importing {module_name} failed: {describe(error)}") from error
    except Exception as error:  # a module runs any code
        raise ConfigError(f"model: importing {module_name} failed: {describe(error)}") from error
    model_class = getattr(module, class_name, None)
    if not isinstance(model_class, type):
        raise ConfigError(f"model: module {module_name} has no class {class_name}")
    answers = "generate" if hasattr(model_class, "generate") else "predict"
    lacking = [name for name in ("load", answers) if not callable(getattr(model_class, name, None))]
    if lacking:
        raise ConfigError(f"model: {target} lacks {' and '.join(f'{name}()' for name in lacking)}")
    if hasattr(model_class, "predict") and hasattr(model_class, "generate"):
        raise ConfigError(f"model: {target} has both predict() and generate(); it can be served by one of them")
    return model_class


def _call_user(what: str, function: Any, *arguments: object, run: Any = None) -> Any:
    try:
        result = function(*arguments)
        return run(result) if run and hasattr(result, "__await__") else result
    except Exception as error:
        raise ConfigError(f"model: {what} raised {describe(error)}") from error
