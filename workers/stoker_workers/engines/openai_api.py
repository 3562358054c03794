"""The OpenAI API as bytes and values: what is asked, what is answered, and whose fault an error is. No I/O."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from stoker_workers.engine import Work

Blame = Literal["request", "server", "nobody"]

SHORTEST_PAUSE_S = 1.0
"""Before a server that did not take a request gets one again: given back at once, it would come back at once."""

LONGEST_PAUSE_S = 300.0
DONE = b"[DONE]"
_MAX_MESSAGE = 300
_MAX_COUNT = 1 << 31
_AUTH = (401, 403, 407)
_OVERLOADED = 429
_UNAVAILABLE = 503
_TIMED_OUT = 408


class ServerError(Exception):
    """Something went wrong at the server.

    `blame`: the request (it fails alone), the server (the attempt is charged and counts as a worker fault), or nobody
    (the server never took the request: given back uncharged). `pause_s`: how long the server asks to be left alone.
    """

    def __init__(self, reason: str, blame: Blame, *, status: int | None = None, pause_s: float = 0.0) -> None:
        """Say what happened."""
        super().__init__(reason)
        self.blame = blame
        self.status = status
        self.pause_s = pause_s


@dataclass(frozen=True, slots=True)
class Piece:
    """One event of an answer's stream. `token_ids` is None where the server does not say them."""

    text: str = ""
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def body_of(work: Work, model: str, prompt: str | list[int] | None) -> dict[str, Any]:
    """Return the JSON of a request: the conversation of `work`, or `prompt`.

    Stop strings are not among it: servers differ in whether the answer contains them.
    """
    sampling = work.sampling
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": work.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,  # said even where it is 1: servers have defaults of their own
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.temperature:
        body["seed"] = sampling.seed
    if work.messages is not None:
        body["messages"] = [dict(message) for message in work.messages]
    else:
        body["prompt"] = prompt
    return body


def read_event(line: bytes) -> bytes | None:
    """Return the data of a line of an event stream; None for comments, other fields and empty lines."""
    name, colon, value = line.strip().partition(b":")
    return value.strip() if colon and name == b"data" else None


def read_piece(data: bytes) -> Piece:
    """Return what an event says; raises `ServerError` for an error that it reports, and for what is no event."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ServerError("the server sent an event that is no JSON", "server") from None
    if not isinstance(content, dict):
        raise ServerError("the server sent an event that is no object", "server")
    if content.get("error"):
        raise _reported(content["error"])
    usage = content.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    reason = choice.get("finish_reason")
    if reason == "abort":
        raise ServerError("the server aborted the request", "server")
    return Piece(
        # A lone surrogate has no UTF-8 form.
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else "",
        _token_ids(choice.get("token_ids")),
        _short(reason, 32) if isinstance(reason, str) else None,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def judge(status: int, retry_after: str | None, body: bytes) -> ServerError:
    """Return whose fault an answer of this status is; `retry_after` is the header."""
    said = f"HTTP {status}"
    if status == _OVERLOADED or (status == _UNAVAILABLE and retry_after):
        pause = _seconds(retry_after)
        return ServerError(f"the server is overloaded ({said})", "nobody", status=status, pause_s=pause)
    if status in _AUTH:
        # Its message may repeat the key.
        return ServerError(f"the server refuses this worker's key ({said})", "server", status=status)
    if 300 <= status < 400:
        return ServerError(f"the server redirects ({said}), which is not followed", "server", status=status)
    if 400 <= status < 500 and status != _TIMED_OUT:
        return ServerError(f"the model's server refuses it ({_message(body)})", "request", status=status)
    return ServerError(f"the server failed ({said}: {_message(body)})", "server", status=status)


def _reported(error: Any) -> ServerError:
    """Return an error that came inside a stream; vLLM gives its status as `code`."""
    code = error.get("code") if isinstance(error, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    if isinstance(code, int) and 400 <= code < 500:
        return judge(code, None, json.dumps({"message": str(message)}).encode())
    return ServerError(f"the server broke the answer off ({_short(message, _MAX_MESSAGE)})", "server")


def _message(body: bytes) -> str:
    """Return what the body of an error says, shortened."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return _short(body.decode(errors="replace"), _MAX_MESSAGE)
    if isinstance(content, dict):
        content = content.get("error", content)
    if isinstance(content, dict):
        content = content.get("message") or content.get("detail") or content
    return _short(content, _MAX_MESSAGE)


def _short(value: Any, limit: int) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in str(value)[:limit])
    return text.encode(errors="replace").decode().strip()


def _seconds(retry_after: str | None) -> float:
    """Return the header's seconds, or those until its date, within bounds; the shortest pause for anything else."""
    text = (retry_after or "").strip()
    try:
        seconds = float(text) if text.isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        seconds = SHORTEST_PAUSE_S
    return min(max(seconds, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)


def _token_ids(value: Any) -> list[int] | None:
    if not isinstance(value, list):
        return None
    return value if all(type(token) is int and 0 <= token < 1 << 32 for token in value) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None
