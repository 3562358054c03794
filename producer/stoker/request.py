"""What a client asks for, and what it gets back."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import operator
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker._records import unchecked
from stoker.config import check_name
from stoker.errors import InvalidRequest, StokerError, UnsupportedParameter
from stoker.store.pack import pack_tokens

MAX_TOKENS = 1 << 24
MAX_TOKEN_ID = 0xFFFF_FFFF
MAX_STOPS = 16
PROMPTS = ("prompt_tokens", "prompt", "messages", "inputs")
MAX_STOP_CHARS = 256

UNSUPPORTED = frozenset(
    {
        "best_of",
        "echo",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "min_p",
        "n",
        "presence_penalty",
        "prompt_logprobs",
        "repetition_penalty",
        "response_format",
        "suffix",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)
"""What other interfaces know and no engine here honours: refused by name, never ignored."""


class RequestPriority(enum.StrEnum):
    """The class of a request; its value is the name of its lane."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """One request: exactly one of `prompt_tokens`, `prompt`, `messages` and `inputs`, and how to answer it.

    `timeout` is the request's time to live in seconds from its acceptance. `sheddable`: while it waits in a full
    queue, a better one may take its place (`submit(displace=True)`). `affinity_key`: requests of
    one key (a session, a prompt's common beginning) go to one worker where that costs next to nothing. Raises
    `InvalidRequest` naming the field, its limit and the value given.
    """

    request_id: str | None = None
    prompt_tokens: Sequence[int] | None = None
    prompt: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    inputs: Any = None
    max_tokens: int = 16
    priority: RequestPriority = RequestPriority.NORMAL
    timeout: float | None = None
    tenant: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    ignore_eos: bool = False
    stream: bool = False
    sheddable: bool = False
    affinity_key: str | None = None
    metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        _check_names(self)
        _check_prompt(self)
        _check_sampling(self)
        _check_flags(self)


_NAMES = [field.name for field in dataclasses.fields(InferenceRequest)]
FIELDS = frozenset(_NAMES)

field_values: Callable[[InferenceRequest], tuple[Any, ...]] = operator.attrgetter(*_NAMES)
"""Returns the values of a request's fields, in order."""
checked_request = unchecked(InferenceRequest)
"""Makes a request of values that were checked before, in order."""


def unknown_field(name: str, value: object) -> InvalidRequest:
    """Return the error for a field that no request has; `UnsupportedParameter` for one that other interfaces know."""
    if name in UNSUPPORTED:
        return UnsupportedParameter(name, "is not honoured by any engine here", value)
    near = difflib.get_close_matches(name, FIELDS, n=1)
    return InvalidRequest(name, "is no field of a request" + (f"; did you mean {near[0]}?" if near else ""), value)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of one request by the clock of Redis, in milliseconds; None where the request never got that far.

    `queue_ms`: accepted to begun. `ttft_ms`: accepted to the first token. `e2e_ms`: accepted to settled.
    """

    queue_ms: float | None = None
    ttft_ms: float | None = None
    e2e_ms: float | None = None


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """The one outcome of a request. `error` is set exactly when `status` is not `succeeded`.

    `status`: succeeded, failed, expired or cancelled, as Redis has it; lost (Redis does not know the request) or
    refused (it was never accepted) where there is no outcome. `output`: what a model that generates no text returned;
    a vector is an `array("f")`, whose memory `numpy.asarray` shares.
    """

    request_id: str
    status: str
    text: str = ""
    token_ids: list[int] | None = None
    output: Any = None
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    attempts: int = 0
    worker: str | None = None
    metadata: Mapping[str, Any] | None = None
    error: StokerError | None = None

    def unwrap(self) -> InferenceResponse:
        """Return this response; raises its `error` when there is one."""
        if self.error is not None:
            raise self.error
        return self


@dataclass(frozen=True, slots=True)
class Classification:
    """What a classifier says of a text: its best `label` and that one's `score`, and `scores` and `logits` of all.

    Scores are probabilities (softmax, or sigmoid where several labels may be true); of a regression, the values.
    """

    label: str
    score: float
    scores: Mapping[str, float]
    logits: Sequence[float]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer: whole characters, the tokens behind them, and where they begin."""

    text: str
    token_ids: list[int]
    attempt: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Restarted(Chunk):
    """The answer starts anew: forget the text seen so far (a worker was lost and another one began again)."""


def _check_names(request: InferenceRequest) -> None:
    if request.request_id is not None:
        check_name("request_id", request.request_id)
    if request.tenant is not None:
        check_name("tenant", request.tenant)
    if request.affinity_key is not None:
        check_text("affinity_key", request.affinity_key)
    try:
        object.__setattr__(request, "priority", RequestPriority(request.priority))
    except ValueError:
        names = ", ".join(RequestPriority)
        raise InvalidRequest("priority", f"must be one of {names}", request.priority) from None


def _check_prompt(request: InferenceRequest) -> None:
    tokens, prompt, messages, inputs = request.prompt_tokens, request.prompt, request.messages, request.inputs
    if (tokens is None) + (prompt is None) + (messages is None) + (inputs is None) != len(PROMPTS) - 1:
        given = [name for name in PROMPTS if getattr(request, name) is not None]
        raise InvalidRequest("prompt", "give exactly one of prompt_tokens, prompt, messages and inputs", given or None)
    # Nothing but token ids can be in such an array.
    checked = isinstance(tokens, array) and tokens.typecode in "HI" and len(tokens) > 0
    if isinstance(tokens, array):
        tokens = tokens.tolist()
        object.__setattr__(request, "prompt_tokens", tokens)
    if tokens is not None and not checked:
        packed_prompt(tokens)
    if prompt is not None:
        check_text("prompt", prompt)
    if messages is not None:
        _check_messages(messages)


def packed_prompt(tokens: object) -> bytes:
    """Return a prompt's token ids as `pack_tokens` does.

    Raises `InvalidRequest` unless they are a non-empty sequence of ints that fit 32 unsigned bits.
    """
    # A list is told first: asking an abstract class takes long.
    if (
        not isinstance(tokens, list) and (not isinstance(tokens, Sequence) or isinstance(tokens, str | bytes))
    ) or not tokens:
        raise InvalidRequest("prompt_tokens", "must be a non-empty list of token ids", tokens)
    if operator.countOf(map(type, tokens), int) != len(tokens):
        wrong = next(token for token in tokens if type(token) is not int)
        raise InvalidRequest("prompt_tokens", "token ids must be integers", wrong)
    try:
        return pack_tokens(tokens)
    except OverflowError:
        bound = low if (low := min(tokens)) < 0 else max(tokens)
        limit = f"token ids must be from 0 to {MAX_TOKEN_ID}"
        raise InvalidRequest("prompt_tokens", limit, bound) from None


def check_text(name: str, text: object) -> None:
    """Raise `InvalidRequest` unless `text` is a non-empty string that has a UTF-8 form."""
    if not isinstance(text, str) or not text:
        raise InvalidRequest(name, "must be a non-empty string", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(name, "must be valid Unicode without lone surrogates", text) from None


def _check_messages(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InvalidRequest("messages", "must be a non-empty list of {role, content}", messages)
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InvalidRequest(f"messages[{index}]", "must have exactly role and content", message)
        for key in ("role", "content"):
            check_text(f"messages[{index}].{key}", message[key])


def _check_sampling(request: InferenceRequest) -> None:
    _check_int("max_tokens", request.max_tokens, 1, MAX_TOKENS)
    _check_float("temperature", request.temperature, 0, 100)
    _check_float("top_p", request.top_p, 0, 1, open_low=True)
    if request.top_k is not None:
        _check_int("top_k", request.top_k, 1, MAX_TOKENS)
    if request.seed is not None:
        _check_int("seed", request.seed, 0, (1 << 63) - 1)
    if request.timeout is not None:
        _check_float("timeout", request.timeout, 0, math.inf, open_low=True)
    if request.stop is not None:
        object.__setattr__(request, "stop", _check_stop(request.stop))


def _check_stop(stop: object) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Sequence) else ()
    if not 1 <= len(stops) <= MAX_STOPS:
        raise InvalidRequest("stop", f"must be a string or a list of 1 to {MAX_STOPS} strings", stop)
    for text in stops:
        check_text("stop", text)
        if len(text) > MAX_STOP_CHARS:
            raise InvalidRequest("stop", f"a stop string has at most {MAX_STOP_CHARS} characters", text)
    return stops


def _check_flags(request: InferenceRequest) -> None:
    for name in ("ignore_eos", "stream", "sheddable"):
        if type(getattr(request, name)) is not bool:
            raise InvalidRequest(name, "must be True or False", getattr(request, name))
    if request.metadata is not None and not isinstance(request.metadata, Mapping):
        raise InvalidRequest("metadata", "must be a mapping", request.metadata)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequest(name, f"must be an integer from {low} to {high}", value)


def _check_float(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    if type(value) is float and low < value < high < math.inf:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN fails every comparison, so it is refused here too; an integer may be larger than any float.
    if not number or not (low < value if open_low else low <= value) or not value <= min(high, sys.float_info.max):  # type: ignore[operator]  # number narrows it
        limit = f"over {low:g}" if open_low else f"at least {low:g}"
        raise InvalidRequest(
            name, f"must be a finite number {limit}" + ("" if math.isinf(high) else f" and at most {high:g}"), value
        )
