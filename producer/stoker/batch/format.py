"""Lines of batch files, both ways: what a line asks for, and what its answer or its error looks like. No I/O.

A line is OpenAI's (`custom_id`, `method`, `url`, `body`), or the fields of a request (`{"prompt": ...}`), or, in a text
file, a prompt. Answers and errors are OpenAI's: `{id, custom_id, response, error}`.
"""

from __future__ import annotations

import base64
import json
import re
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stoker._calls import check_fields, vector_of
from stoker.batch.parameters import CHAT, COMPLETIONS, EMBEDDINGS, body_fields, wants_base64
from stoker.errors import InvalidRequest, PayloadTooLarge, RequestExpired, StokerError, UnsupportedParameter, shorten
from stoker.request import InferenceRequest, InferenceResponse, RequestPriority
from stoker.store.pack import little_floats
from stoker.store.reads import Card

Kind = Literal["jsonl", "text"]

MAX_CUSTOM_ID = 512
FRAME = frozenset({"custom_id", "method", "url", "body"})
CHAT_TOKENS = 1024
"""The most tokens of a conversation's answer where nothing says how many; OpenAI's default is no limit."""

COMPLETION_TOKENS = 16
TOO_LONG = re.compile(r"max_tokens must (be at most|fit)|the model's context of|must have at most \d+ tokens")
"""What client and workers say of a prompt that does not fit the model, or not with its answer."""

TEMPLATE_TOKENS = 64
"""Room for what a chat template puts around the messages."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line has no answer. `param` names the field at fault, where there is one."""

    number: int
    custom_id: str | None
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that can be sent; `size` is its length in bytes.

    `base64`: whether its answer, a vector, is to be base64 of its little-endian float32.
    """

    number: int
    custom_id: str
    url: str
    request: InferenceRequest
    size: int
    base64: bool = False


@dataclass(frozen=True, slots=True)
class Defaults:
    """What stands for a field that a line leaves out: the file's own, then the model's, then OpenAI's."""

    file: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    task: str = ""
    context: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Mapping[str, Any], card: Card | None) -> Defaults:
        """Return the defaults of a file on the queue whose model has this card."""
        facts = card.fields if card else {}
        return cls(
            file=file,
            model=str(facts.get("name", "")),
            task=card.task if card else "",
            context=int(facts.get("context", 0)),
            sampling=facts.get("sampling") or {},
        )

    @property
    def encodes(self) -> bool:
        """Whether the model makes vectors or labels of texts, and generates none."""
        return self.task in ("embed", "classify")

    def complete(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a line with what it left out; an encoder has no defaults of generation."""
        if self.encodes:
            return dict(self.file) | fields
        given = {"temperature": 1.0} | dict(self.sampling) | dict(self.file) | fields
        if "max_tokens" not in given:
            given["max_tokens"] = self._most_tokens(given.get("messages"))
        return given

    def _most_tokens(self, messages: Any) -> int:
        if messages is None:
            return COMPLETION_TOKENS
        # A token has at least one byte: so much fits, whatever the tokenizer.
        taken = TEMPLATE_TOKENS + sum(len(message["content"].encode()) for message in messages)
        return max(COMPLETION_TOKENS, min(CHAT_TOKENS, self.context - taken)) if self.context else CHAT_TOKENS


@dataclass(frozen=True, slots=True)
class Parser:
    """Makes requests of lines. `source` is the file's name in messages; ids are `<batch>-<line>-<round>`."""

    source: str
    batch: str
    round: int
    kind: Kind
    priority: RequestPriority
    defaults: Defaults
    any_model: bool = False

    def request_id(self, number: int) -> str:
        """Return the id of a line's request: the same whenever the file is resumed, another in each retry."""
        return f"{self.batch}-{number}-{self.round}"

    def parse(self, number: int, line: bytes, timeout: float | None) -> Entry | Problem:
        """Return what a line asks for, with `timeout` seconds to live; or why it cannot be sent."""
        custom_id: str | None = None
        packed = False
        try:
            text = _text(line, number)
            if not text:
                return self.problem(number, None, "empty_line", "the line is empty")
            if self.kind == "text":
                custom_id, fields = f"line-{number}", {"prompt": text}
                url = self._plain_url(fields)
            else:
                value = _object(text)
                custom_id = _custom_id(value, number)
                url, fields, packed = self._fields(value)
            return Entry(number, custom_id, url, self._request(number, fields, timeout), len(line), packed)
        except UnicodeDecodeError as error:
            return self.problem(number, None, "invalid_utf8", f"not valid UTF-8 at byte {error.start + 1}")
        except _Bad as error:
            return self.problem(number, custom_id or error.custom_id, error.code, str(error), error.param)
        except InvalidRequest as error:
            return self.refused(number, custom_id, error)

    def problem(self, number: int, custom_id: str | None, code: str, message: str, param: str | None = None) -> Problem:
        """Return an error of a line; its message names the file and the line."""
        return Problem(number, custom_id, code, f"{self.source}:{number}: {message}", param)

    def refused(self, number: int, custom_id: str | None, error: InvalidRequest) -> Problem:
        """Return the problem that an invalid request is."""
        return self.problem(number, custom_id, code_of(error), str(error), error.field)

    def _fields(self, value: dict[str, Any]) -> tuple[str, dict[str, Any], bool]:
        """Return the endpoint, the given fields of the request, and whether its vector is to be base64."""
        if not value.keys() & {"body", "url", "method"}:
            fields = {name: given for name, given in value.items() if name != "custom_id"}
            check_fields(fields)
            for name in ("request_id", "priority", "timeout", "stream"):
                if name in fields:
                    raise UnsupportedParameter(name, "is the batch's own, not a line's", fields[name])
            return self._plain_url(fields), fields, False
        url, body = _framed(value)
        self._check_endpoint(url)
        fields = body_fields(url, body, None if self.any_model else self.defaults.model)
        return url, fields, wants_base64(url, body)

    def _plain_url(self, fields: Mapping[str, Any]) -> str:
        """Return the endpoint whose form the answer to the fields of a request has, "" for none of OpenAI's."""
        if self.defaults.task == "embed":
            return EMBEDDINGS
        if self.defaults.encodes or "inputs" in fields:
            return ""
        return CHAT if "messages" in fields else COMPLETIONS

    def _check_endpoint(self, url: str) -> None:
        task = self.defaults.task
        if (url == EMBEDDINGS) == (task == "embed") and task != "classify":
            return
        needs = "embed" if url == EMBEDDINGS else "generate"
        message = f"{url}: needs a queue whose model is there to {needs}; the task of this one's is {task or 'unknown'}"
        raise _Bad("unsupported_endpoint", message, param="url")

    def _request(self, number: int, fields: dict[str, Any], timeout: float | None) -> InferenceRequest:
        given = fields if "inputs" in fields else self.defaults.complete(fields)
        return InferenceRequest(
            **given, request_id=self.request_id(number), priority=self.priority, timeout=timeout, stream=False
        )


class _Bad(Exception):
    """A line that is no request."""

    def __init__(self, code: str, message: str, *, custom_id: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.custom_id, self.param = code, custom_id, param


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Bad("invalid_json", f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise _Bad("invalid_line", f"must be a JSON object, got {shorten(value)}")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _text(line: bytes, number: int) -> str:
    return line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode().strip()


def custom_id_of(line: bytes, number: int, kind: Kind) -> str | None:
    """Return a line's custom id as `Parser.parse` finds it, None for a line without a valid one."""
    try:
        text = _text(line, number)
        if not text:
            return None
        return f"line-{number}" if kind == "text" else _custom_id(_object(text), number)
    except (UnicodeDecodeError, _Bad):
        return None


def _custom_id(value: dict[str, Any], number: int) -> str:
    framed = bool(value.keys() & {"body", "url", "method"})
    if "custom_id" not in value and not framed:
        return f"line-{number}"
    custom_id = value.get("custom_id")
    if custom_id is None:
        raise _Bad("missing_custom_id", "custom_id is missing", param="custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        limit = f"custom_id: must be a string of 1 to {MAX_CUSTOM_ID} characters, got {shorten(custom_id)}"
        raise _Bad("invalid_custom_id", limit, param="custom_id")
    try:
        custom_id.encode()
    except UnicodeEncodeError:
        raise _Bad("invalid_custom_id", "custom_id: must be valid Unicode", param="custom_id") from None
    return custom_id


def _framed(value: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return url and body of an OpenAI line."""
    for name in value.keys() - FRAME:
        raise _Bad("invalid_line", f"{name}: is no field of a line (custom_id, method, url, body)", param=name)
    if value.get("method", "POST") != "POST":
        raise _Bad("invalid_method", f"method: must be POST, got {shorten(value['method'])}", param="method")
    url, body = value.get("url"), value.get("body")
    if url not in (COMPLETIONS, CHAT, EMBEDDINGS):
        known = f"{COMPLETIONS}, {CHAT} or {EMBEDDINGS}"
        raise _Bad("invalid_url", f"url: must be {known}, got {shorten(url)}", param="url")
    if not isinstance(body, dict):
        raise _Bad("invalid_line", f"body: must be an object, got {shorten(body)}", param="body")
    return url, body


# --- out --------------------------------------------------------------------------------------------------------------


def code_of(error: StokerError) -> str:
    """Return the code of an error line."""
    if isinstance(error, PayloadTooLarge):
        return "payload_too_large"
    if isinstance(error, UnsupportedParameter):
        return "model_not_found" if error.field == "model" else "unsupported_parameter"
    if isinstance(error, InvalidRequest):
        return "context_length_exceeded" if TOO_LONG.search(error.limit) else "invalid_request"
    return "request_expired" if isinstance(error, RequestExpired) else "request_failed"


def error_line(request_id: str, problem: Problem) -> bytes:
    """Return the line of the errors file."""
    error = {"code": problem.code, "message": problem.message, "param": problem.param, "line": problem.number}
    return _dump({"id": request_id, "custom_id": problem.custom_id, "response": None, "error": error})


def answer_line(entry: Entry, model: str, response: InferenceResponse) -> bytes:
    """Return the line of the output file for a request that succeeded.

    Raises `RequestFailed` where a vector was asked for and something else answered.
    """
    if entry.url == EMBEDDINGS:
        body = _embedding(response, packed=entry.base64)
    else:
        body = {COMPLETIONS: _completion, CHAT: _chat}.get(entry.url, _output)(response)
        body["created"] = int(time.time())
    body["model"] = model
    if response.metadata is not None:
        body["metadata"] = response.metadata
    body["stoker"] = {
        "token_ids": response.token_ids,
        "worker": response.worker,
        "attempts": response.attempts,
        "queue_ms": response.timings.queue_ms,
        "e2e_ms": response.timings.e2e_ms,
    }
    wrapped = {"status_code": 200, "request_id": response.request_id, "body": body}
    return _dump({"id": response.request_id, "custom_id": entry.custom_id, "response": wrapped, "error": None})


def _usage(response: InferenceResponse) -> dict[str, int]:
    usage = response.usage
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": usage.total_tokens}


def _embedding(response: InferenceResponse, *, packed: bool) -> dict[str, Any]:
    vector = vector_of(response)
    embedding = base64.b64encode(little_floats(vector)).decode() if packed else vector.tolist()
    data = [{"object": "embedding", "index": 0, "embedding": embedding}]
    tokens = response.usage.prompt_tokens
    return {"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _completion(response: InferenceResponse) -> dict[str, Any]:
    choice = {"index": 0, "text": response.text, "finish_reason": response.finish_reason, "logprobs": None}
    body = {"id": f"cmpl-{response.request_id}", "object": "text_completion", "choices": [choice]}
    return body | {"usage": _usage(response)}


def _chat(response: InferenceResponse) -> dict[str, Any]:
    message = {"role": "assistant", "content": response.text}
    choice = {"index": 0, "message": message, "finish_reason": response.finish_reason, "logprobs": None}
    body = {"id": f"chatcmpl-{response.request_id}", "object": "chat.completion", "choices": [choice]}
    return body | {"usage": _usage(response)}


def _output(response: InferenceResponse) -> dict[str, Any]:
    body = {"id": response.request_id, "object": "stoker.output", "output": response.output}
    return body | {"usage": _usage(response)}


def _dump(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return text.encode("utf-8", "replace") + b"\n"


def _plain(value: object) -> object:
    # Outputs of a user's model may hold what JSON has no form for; its text is better than no line.
    return value.tolist() if isinstance(value, array) else str(value)
