"""The bodies of OpenAI's endpoints: which parameters become fields of a request, and which are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker.errors import InvalidRequest, UnsupportedParameter

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

SAMPLING = ("temperature", "top_p", "top_k", "seed", "stop", "ignore_eos", "max_tokens")
"""Parameters that a request has under the same name; top_k and ignore_eos are vLLM's."""

RENAMED = {"prompt_cache_key": "affinity_key"}
"""Parameters that a request has under another name."""

IGNORED = frozenset({"user", "store", "service_tier", "safety_identifier"})
"""Parameters that are about accounts, not about the answer."""

READ_APART = frozenset({"prompt", "messages", "input"})
ENCODING_FORMATS = ("float", "base64")

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "stream": (False,),
    "stream_options": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Values of parameters that no engine honours, which ask for nothing; so does null."""


def body_fields(url: str, body: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """Return the fields of a request that a body asks for; `model` is the queue's, None for any.

    Raises `UnsupportedParameter` for what no engine here honours, and `InvalidRequest`.
    """
    fields: dict[str, Any] = {}
    for name, value in body.items():
        if name == "model":
            _check_model(value, model)
        elif name == "metadata":
            fields["metadata"] = value
        elif value is None or name in IGNORED | READ_APART or (name == "encoding_format" and url == EMBEDDINGS):
            continue
        elif name in SAMPLING or name in RENAMED:
            fields[RENAMED.get(name, name)] = value
        elif name == "max_completion_tokens" and url == CHAT:
            fields["max_tokens"] = value
        elif value not in NEUTRAL.get(name, ()) or (isinstance(value, bool) != _has_bool(name)):
            raise UnsupportedParameter(name, "is not honoured by any engine here", value)
    return fields | _PROMPTS[url](body)


def wants_base64(url: str, body: Mapping[str, Any]) -> bool:
    """Whether the vector that a body asks for is to be base64 of its float32; raises `InvalidRequest`."""
    value = body.get("encoding_format")
    if url != EMBEDDINGS or value is None:
        return False
    if value not in ENCODING_FORMATS:
        raise InvalidRequest("encoding_format", f"must be {' or '.join(ENCODING_FORMATS)}", value)
    return bool(value == "base64")


def _has_bool(name: str) -> bool:
    return any(isinstance(value, bool) for value in NEUTRAL.get(name, ()))


def _check_model(value: object, model: str | None) -> None:
    if model and value is not None and value != model:
        raise UnsupportedParameter(
            "model", f"this queue serves {model}; submit with any_model to take it anyway", value
        )


def _prompt(body: Mapping[str, Any]) -> dict[str, Any]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        raise UnsupportedParameter("prompt", "must be one prompt a line", prompt)
    if not isinstance(prompt, str | list):
        raise InvalidRequest("prompt", "must be a string or a list of token ids", prompt)
    return {"prompt": prompt} if isinstance(prompt, str) else {"prompt_tokens": prompt}


def _messages(body: Mapping[str, Any]) -> dict[str, Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages", "must be a non-empty list of {role, content}", messages)
    return {"messages": [_message(index, message) for index, message in enumerate(messages)]}


def _message(index: int, message: object) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidRequest(where, "must be an object with role and content", message)
    for name in message.keys() - {"role", "content"}:
        if message[name] is not None:
            raise UnsupportedParameter(f"{where}.{name}", "is not honoured by any engine here", message[name])
    return {"role": message.get("role"), "content": _content(where, message.get("content"))}


def _content(where: str, content: object) -> object:
    """Return a message's text; parts of text are joined, as templates do."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UnsupportedParameter(f"{where}.content", "parts must be text", part)
        texts.append(part["text"])
    return "".join(texts)


def _input(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("input")
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]
    if isinstance(given, list) and given and isinstance(given[0], str | list):
        raise UnsupportedParameter("input", "must be one text a line", given)
    if not isinstance(given, str | list) or not given:
        raise InvalidRequest("input", "must be a non-empty string or list of token ids", given)
    return {"prompt": given} if isinstance(given, str) else {"prompt_tokens": given}


_PROMPTS = {COMPLETIONS: _prompt, CHAT: _messages, EMBEDDINGS: _input}
