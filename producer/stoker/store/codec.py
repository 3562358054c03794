"""Requests and results as bytes: the header that the scripts read, the msgpack behind it, and back."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from stoker._records import unchecked
from stoker.config import LARGEST_PAYLOAD, Config
from stoker.errors import (
    InvalidRequest,
    PayloadTooLarge,
    RequestCancelled,
    RequestDisplaced,
    RequestError,
    RequestExpired,
    RequestFailed,
    UnsupportedParameter,
    shorten,
)
from stoker.request import (
    PROMPTS,
    InferenceRequest,
    InferenceResponse,
    RequestPriority,
    Timings,
    Usage,
    check_text,
    packed_prompt,
    unknown_field,
)
from stoker.store.pack import (
    check_readable,
    pack,
    pack_floats,
    pack_tokens,
    token_array,
    unpack,
    unpack_floats,
    unpack_tokens,
)

VERSION = "1"
STAMP = 16
HEADER_FIELDS = 12
FAILURE_BYTES = 16_384
DISPLACED = "displaced"
BYTES_PER_TOKEN = 4.0
"""The first guess for a text's tokens, until the queue has learned its model's own figure."""

DEFAULTS: dict[str, Any] = {
    "max_tokens": 16,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": None,
    "seed": None,
    "stop": None,
    "ignore_eos": False,
}
CORE = frozenset((*DEFAULTS, *PROMPTS))
"""What can change the answer."""
ANSWER: dict[str, type] = {
    "text": str,
    "finish_reason": str,
    "prompt": int,
    "completion": int,
    "token_ids": bytes,
    "first_token_us": int,
    "message": str,
    "kind": str,
    "field": str,
    "limit": str,
    "retry_after_ms": int,
}
"""What the body of a result may say of a request, besides `output`, `metadata` and the `value` that was wrong."""

_WINDOWS = {"normal": "window_normal_s", "low": "window_low_s", "batch": "window_batch_s"}
"""The settings that say W; it is 0 for the classes above."""

_response, _usage, _timings = unchecked(InferenceResponse), unchecked(Usage), unchecked(Timings)

_NIL = b"\xc0"
_NAMES = {name: pack(name) for name in PROMPTS}

KINDS = {kind.__name__: kind for kind in (InvalidRequest, UnsupportedParameter, PayloadTooLarge)}
FIELD_CHARS = 100
VALUE_CHARS = 200
NEXT_HIGHER = {"critical": "critical", "high": "high", "normal": "high", "low": "normal", "batch": "low"}


@dataclass(slots=True)
class Submission:
    """One request as `submit` takes it. `displace`: it may take the place of worse sheddable ones in a full queue.

    `check_deadline`: it is refused where it could not be finished by its deadline.
    """

    id: str
    nonce: str
    header: bytes
    body: bytes
    displace: bool = False
    check_deadline: bool = True


@dataclass(slots=True)
class Payload:
    """One request as a worker gets it back, not yet checked against a model."""

    id: str
    nonce: str
    stream: bool
    accepted_us: int
    attempt: int
    request: InferenceRequest


def class_windows_us(config: Config) -> dict[str, int]:
    """W of each class, in microseconds: how long later arrivals of the best class may pass a request."""
    return {priority: _window_us(priority, config) for priority in NEXT_HIGHER}


def class_term_us(priority: RequestPriority, timeout: float | None, config: Config, estimate: float = 0.0) -> int:
    """What a request's score adds to its arrival: its class's W; a deadline lifts by one class at most.

    `clamp(timeout - estimate, W[next higher class], W[class])`, in microseconds; `estimate` (seconds) of its service.
    """
    window = _window_us(priority, config)
    if timeout is None:
        return window
    return min(max(int((timeout - estimate) * 1e6), _window_us(NEXT_HIGHER[priority], config)), window)


def _window_us(priority: str, config: Config) -> int:
    name = _WINDOWS.get(priority)
    return int(getattr(config, name) * 1e6) if name else 0


class Prompt(NamedTuple):
    """What a request asks: which of `PROMPTS`, its value in msgpack, and how many tokens it has, exactly or about.

    `token_ids`: as `pack_tokens` has them, where they were just packed.
    """

    name: str
    packed: bytes
    tokens: int
    exact: bool
    token_ids: bytes = b""


class Form:
    """All of a request but its id and prompt on its way to Redis, worked out once for all requests that share it.

    `reply`: the channel of their wake-ups. Raises `InvalidRequest` for a timeout over the maximum age, for a too long
    affinity key, and for metadata that msgpack cannot hold or a worker would refuse to read.
    """

    __slots__ = ("_array", "_behind", "_header", "_map", "_most", "_sampling", "_wishes")

    def __init__(
        self,
        request: InferenceRequest,
        *,
        reply: str,
        config: Config,
        displace: bool = False,
        check_deadline: bool = True,
    ) -> None:
        timeout = request.timeout
        if timeout is not None and timeout > config.max_age_s:
            raise InvalidRequest("timeout", f"must be at most max_age_s ({config.max_age_s} s)", timeout)
        key = _affinity_key(request, config)
        metadata = _NIL if request.metadata is None else pack(request.metadata, "metadata")
        if request.metadata is not None and len(metadata) <= config.payload_bytes:
            check_readable(request.metadata, "metadata")
        sampling = _sampling(request)
        # The body is [core, metadata], or [core, metadata, affinity key]; the core the prompt, then what is no default.
        self._array, self._map = b"\x93" if key else b"\x92", bytes([0x81 + len(sampling)])
        self._sampling = b"".join(pack(name) + pack(value) for name, value in sampling.items())
        self._behind = metadata + pack(request.affinity_key) if key else metadata
        fields = (
            VERSION,
            "%s|%s",  # nonce and digest
            request.priority.value,
            request.tenant or "",
            str(max(1, int(timeout * 1e6)) if timeout else 0),
            str(class_term_us(request.priority, timeout, config)),
            f"%d:{request.max_tokens}:%s{affinity_digits(key)}{'s' if request.sheddable else ''}",
            "%d",  # bytes of the body
            reply,
            "1" if request.stream else "0",
            "",
            "",
        )
        self._header = "|".join(fields)
        self._most = config.payload_bytes
        self._wishes = displace, check_deadline

    def fill(self, request_id: str, nonce: str, prompt: Prompt) -> Submission:
        """Return the request with this prompt as `submit` takes it; raises `PayloadTooLarge` over `payload_bytes`."""
        core = self._map + _NAMES[prompt.name] + prompt.packed + self._sampling
        body = self._array + core + self._behind
        _check_size(body, self._most)
        digest = hashlib.blake2b(core, digest_size=8).hexdigest()
        header = self._header % (nonce, digest, prompt.tokens, "x" if prompt.exact else "e", len(body))
        return Submission(request_id, nonce, header.encode(), body, *self._wishes)


def encode(
    request: InferenceRequest,
    *,
    request_id: str,
    nonce: str,
    reply: str,
    config: Config,
    bytes_per_token: float = BYTES_PER_TOKEN,
    displace: bool = False,
    check_deadline: bool = True,
) -> Submission:
    """Return `request` as `submit` takes it.

    Raises what `Form` raises, `InvalidRequest` also for `inputs` that msgpack cannot hold or a worker would refuse to
    read, `PayloadTooLarge` over `payload_bytes`.
    """
    form = Form(request, reply=reply, config=config, displace=displace, check_deadline=check_deadline)
    submission = form.fill(request_id, nonce, _prompt_of(request, bytes_per_token))
    if request.inputs is not None:
        check_readable(request.inputs, "inputs")
    return submission


def _prompt_of(request: InferenceRequest, bytes_per_token: float) -> Prompt:
    tokens, exact = prompt_tokens(request, bytes_per_token)
    if request.prompt_tokens is not None:
        return Prompt("prompt_tokens", pack(pack_tokens(request.prompt_tokens)), tokens, exact)
    if request.prompt is not None:
        return Prompt("prompt", pack(request.prompt), tokens, exact)
    if request.messages is not None:
        return Prompt("messages", pack([dict(message) for message in request.messages]), tokens, exact)
    return Prompt("inputs", pack(request.inputs), tokens, exact)


def bare_prompt(value: str | Sequence[int], bytes_per_token: float) -> Prompt:
    """Return a text or token ids as a prompt; raises `InvalidRequest` for what `InferenceRequest` refuses as such."""
    if isinstance(value, str):
        check_text("prompt", value)
        return Prompt("prompt", pack(value), estimated_tokens(len(value.encode()), bytes_per_token), False)
    tokens = value.tolist() if isinstance(value, array) else value
    packed = packed_prompt(tokens)
    return Prompt("prompt_tokens", pack(packed), len(tokens), True, packed)


def _affinity_key(request: InferenceRequest, config: Config) -> bytes:
    key = (request.affinity_key or "").encode()
    if len(key) > config.affinity_key_bytes:
        limit = f"must be at most affinity_key_bytes ({config.affinity_key_bytes}) bytes of UTF-8, it has {len(key)}"
        raise InvalidRequest("affinity_key", limit, request.affinity_key)
    return key


def affinity_digits(key: bytes) -> str:
    """Return what stands for a key in a lane, where it takes the same few bytes however long it is."""
    return hashlib.blake2b(key, digest_size=4).hexdigest() if key else ""


def prompt_tokens(request: InferenceRequest, bytes_per_token: float) -> tuple[int, bool]:
    """Return the request's prompt tokens and whether that is exact; text is estimated from its bytes."""
    if request.prompt_tokens is not None:
        return len(request.prompt_tokens), True
    if request.inputs is not None:
        # What an input costs only the user's class knows; one token a request until its worker says more.
        return 1, False
    return estimated_tokens(text_bytes(request), bytes_per_token), False


def estimated_tokens(size: int, bytes_per_token: float) -> int:
    """Return about how many tokens a text of so many bytes has."""
    return max(1, round(size / bytes_per_token))


def text_bytes(request: InferenceRequest) -> int:
    """Return the bytes of the request's text, from which its tokens are estimated; 0 where it has none."""
    if request.prompt is not None:
        return len(request.prompt.encode())
    return sum(len(message["content"].encode()) for message in request.messages or ())


def _sampling(request: InferenceRequest) -> dict[str, Any]:
    """What besides the prompt can change the answer, where it is not what a worker takes anyway."""
    values = {name: getattr(request, name) for name in DEFAULTS}
    if values["stop"] is not None:
        values["stop"] = list(values["stop"])
    return {name: value for name, value in values.items() if value != DEFAULTS[name]}


def _check_size(body: bytes, most: int) -> None:
    if len(body) > most:
        raise PayloadTooLarge("request", f"encoded size must be at most {most} bytes", len(body))


def decode_payload(request_id: str, data: bytes, attempt: int, most_bytes: int = LARGEST_PAYLOAD) -> Payload:
    """Return what a client submitted; raises `InvalidRequest` for anything that `encode` would not have made.

    Below it `PayloadTooLarge` for a body of more than `most_bytes`, `UnsupportedParameter` for what no engine honours.
    """
    try:
        header, body = _split(data[STAMP:], HEADER_FIELDS)
        version, nonce, _, priority, tenant, timeout, _, tail, _, _, stream, _ = header
        accepted, lives = int(data[:STAMP]), int(timeout) / 1e6
    except (ValueError, OverflowError):
        raise InvalidRequest("header", "must have the fields of version 1", len(data)) from None
    if version != VERSION:
        raise InvalidRequest("header", f"must be of version {VERSION}", version)
    _check_size(body, most_bytes)
    value = unpack(body)
    if not isinstance(value, list) or len(value) not in (2, 3) or not isinstance(value[0], dict):
        raise InvalidRequest(
            "payload", "must be [request, metadata] or [request, metadata, affinity key]", type(value).__name__
        )
    core, metadata, *key = value
    unknown = core.keys() - CORE
    if unknown:
        name = min(unknown, key=str)
        raise unknown_field(str(name)[:FIELD_CHARS], core[name])
    if core.get("prompt_tokens") is not None:
        core["prompt_tokens"] = token_array(core["prompt_tokens"])
    request = InferenceRequest(
        request_id=request_id,
        priority=cast("RequestPriority", priority),
        tenant=tenant or None,
        timeout=lives or None,
        stream=stream == "1",
        sheddable=tail.endswith("s"),
        affinity_key=key[0] if key else None,
        metadata=metadata,
        **core,
    )
    return Payload(request_id, nonce, stream == "1", accepted, attempt, request)


def _split(data: bytes, fields: int) -> tuple[list[str], bytes]:
    """Return the `fields` texts before as many `|`, and the bytes behind them."""
    parts = data.split(b"|", fields)
    if len(parts) != fields + 1:
        raise ValueError(f"{fields} fields expected")
    body = parts[-1]
    return data[: len(data) - len(body) - 1].decode().split("|"), body


def encode_answer(
    *,
    text: str = "",
    token_ids: list[int] | None = None,
    output: Any = None,
    finish_reason: str = "stop",
    prompt: int = 0,
    completion: int = 0,
    first_token_us: int = -1,
    metadata: Any = None,
) -> bytes:
    """Return the body of a successful result; raises `InvalidRequest` when a client could not read `output`.

    An `output` that is an `array("f")` travels as its bytes, and is one again in the response.
    """
    answer: dict[str, Any] = {"text": text, "finish_reason": finish_reason, "prompt": prompt, "completion": completion}
    if token_ids is not None:
        answer["token_ids"] = pack_tokens(token_ids)
    if isinstance(output, array):
        answer["vector"] = pack_floats(output)
    elif output is not None:
        check_readable(output, "output")
        answer["output"] = output
    if first_token_us >= 0:
        answer["first_token_us"] = first_token_us
    if metadata is not None:
        answer["metadata"] = metadata
    return pack(answer, "output")


def encode_failure(message: str, error: InvalidRequest | None = None) -> bytes:
    """Return the body of a failed result, at most `FAILURE_BYTES`; `error` keeps kind, field, limit and value apart."""
    body: dict[str, Any] = {"message": _sendable(message[:2000])}
    if error is not None:
        plain = error.value is None or isinstance(error.value, bool | float)
        value = error.value if plain else _sendable(_short_value(error.value))
        field, limit = _sendable(error.field[:200]), _sendable(error.limit[:500])
        body |= {"kind": type(error).__name__, "field": field, "limit": limit, "value": value}
    return pack(body)


def _short_value(value: object) -> object:
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return value
    return value[:VALUE_CHARS] if isinstance(value, str) else shorten(value, VALUE_CHARS)


def _sendable(value: Any) -> Any:
    """Return a text without lone surrogates, which have no UTF-8; anything else as it is."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


@dataclass(slots=True)
class Outcome:
    """A result as it lies in Redis; `body` is None where a wake-up left it out for its size."""

    status: str
    nonce: str
    digest: str
    id: str
    accepted_us: int
    begun_us: int | None
    settled_us: int
    attempts: int
    reason: str
    inc: str
    history: str
    body: bytes | None

    @property
    def worker(self) -> str | None:
        """The name of the worker whose attempt counted."""
        return self.inc.rsplit(":", 1)[0] or None


def decode_outcome(data: bytes) -> Outcome:
    """Return the result in `data`, a value of `result:<id>` or an element of a wake-up; raises `ValueError`."""
    (status, nonce, digest, request_id, accepted, begun, settled, attempts, reason, inc, history, size), body = _split(
        data, 12
    )
    return Outcome(
        status,
        nonce,
        digest,
        request_id,
        int(accepted),
        int(begun) if begun else None,
        int(settled),
        int(attempts),
        reason,
        inc,
        history,
        body if len(body) == int(size) else None,
    )


def response_of(outcome: Outcome) -> InferenceResponse:
    """Return the outcome (with its body) as the client sees it; raises `InvalidRequest` for a body of another form."""
    body = _body(outcome)
    queue = None if outcome.begun_us is None else (outcome.begun_us - outcome.accepted_us) / 1000
    first = body.get("first_token_us")
    tokens, vector = body.get("token_ids"), body.get("vector")
    # In the order of their fields.
    return _response(
        outcome.id,
        outcome.status,
        body.get("text", ""),
        None if tokens is None else unpack_tokens(tokens, "token_ids"),
        body.get("output") if vector is None else unpack_floats(vector),
        body.get("finish_reason") or ("cancelled" if outcome.status == "cancelled" else None),
        _usage(body.get("prompt", 0), body.get("completion", 0)),
        _timings(
            queue,
            None if queue is None or first is None else queue + first / 1000,
            (outcome.settled_us - outcome.accepted_us) / 1000,
        ),
        outcome.attempts,
        outcome.worker,
        body.get("metadata"),
        None if outcome.status == "succeeded" else _error(outcome, body),
    )


def _body(outcome: Outcome) -> dict[str, Any]:
    body = unpack(outcome.body, "result") if outcome.body else {}
    if not isinstance(body, dict):
        raise InvalidRequest("result", "must be a map", type(body).__name__)
    for name, value in body.items():
        kind = ANSWER.get(name)
        if kind is not None and type(value) is not kind:
            raise InvalidRequest("result", f"{name} must be of type {kind.__name__}", type(value).__name__)
    return body


def _error(outcome: Outcome, body: dict[str, Any]) -> RequestError | InvalidRequest | None:
    match outcome.status:
        case "failed":
            return _failure(outcome, body)
        case "expired":
            return RequestExpired(outcome.id)
        case "cancelled":
            return RequestCancelled(outcome.id)
        case _:
            return None


def _failure(outcome: Outcome, body: dict[str, Any]) -> RequestError | InvalidRequest:
    if "field" in body:
        kind = KINDS.get(body.get("kind", ""), InvalidRequest)
        return kind(body["field"], body.get("limit", "is refused by the worker"), body.get("value"))
    if outcome.reason == DISPLACED:
        return RequestDisplaced(outcome.id, body.get("retry_after_ms", 0) / 1000)
    return RequestFailed(outcome.id, body.get("message") or outcome.reason, outcome.attempts)
