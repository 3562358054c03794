"""Requests that can never run: what each is, the field that is named, its limit, and what was given."""

from __future__ import annotations

import math
from typing import Any

import msgpack

from stoker.errors import InvalidRequest, PayloadTooLarge, UnsupportedParameter

LONG = "x" * 129
P = {"prompt": "hi"}
HUGE = 10**5000
DEEP: list[Any] = []
for _ in range(2000):
    DEEP = [DEEP]

BAD = [
    # what, the fields, the field named, its limit, the value given
    ("no prompt", {}, "prompt", "exactly one of prompt_tokens, prompt, messages and inputs", None),
    ("two prompts", {**P, "prompt_tokens": [1]}, "prompt", "exactly one of", ["prompt_tokens", "prompt"]),
    ("empty prompt", {"prompt": ""}, "prompt", "non-empty string", ""),
    ("bytes for a prompt", {"prompt": b"hi"}, "prompt", "non-empty string", b"hi"),
    ("a lone surrogate", {"prompt": "\ud800"}, "prompt", "valid Unicode", "\ud800"),
    ("no tokens", {"prompt_tokens": []}, "prompt_tokens", "non-empty list of token ids", []),
    ("a bool for a token", {"prompt_tokens": [1, True]}, "prompt_tokens", "token ids must be integers", True),
    ("a float for a token", {"prompt_tokens": [1, 2.0]}, "prompt_tokens", "token ids must be integers", 2.0),
    ("a negative token", {"prompt_tokens": [1, -2]}, "prompt_tokens", "from 0 to", -2),
    ("a token past the vocabulary", {"prompt_tokens": [1, 1000]}, "prompt_tokens", "vocabulary of 1000", 1000),
    ("a prompt past the context", {"prompt_tokens": [1] * 80}, "prompt_tokens", "context of 64", 96),
    ("max_tokens past the context", {"prompt_tokens": [1], "max_tokens": 64}, "max_tokens", "context of 64", 65),
    ("a text and max_tokens past it", {**P, "max_tokens": 64}, "max_tokens", "context of 64", 65),
    ("no messages", {"messages": []}, "messages", "non-empty list", []),
    (
        "a message without content",
        {"messages": [{"role": "user"}]},
        "messages[0]",
        "role and content",
        {"role": "user"},
    ),
    ("an input without a msgpack form", {"inputs": {1, 2}}, "inputs", "msgpack value", "set"),
    ("metadata without a msgpack form", {**P, "metadata": {"a": object()}}, "metadata", "msgpack value", "dict"),
    ("metadata with a number for a key", {**P, "metadata": {1: 2}}, "metadata", "not allowed for map key", "dict"),
    ("inputs that are too deep", {"inputs": DEEP}, "inputs", "msgpack value", "list"),
    ("inputs of too many items", {"inputs": [0] * (1 << 18) + [0]}, "inputs", "exceeds max_array_len", "list"),
    ("inputs of too many maps", {"inputs": [{}] * 70_000}, "inputs", "more than 65536 arrays and maps", "list"),
    ("an extension type", {"inputs": msgpack.ExtType(5, b"x")}, "inputs", "msgpack value", "ExtType"),
    ("zero tokens", {**P, "max_tokens": 0}, "max_tokens", "integer from 1", 0),
    ("a negative number of tokens", {**P, "max_tokens": -3}, "max_tokens", "integer from 1", -3),
    ("a number of 5,000 digits", {**P, "max_tokens": 10**5000}, "max_tokens", "integer from 1", HUGE),
    ("a string for max_tokens", {**P, "max_tokens": "4"}, "max_tokens", "integer from 1", "4"),
    ("a bool for max_tokens", {**P, "max_tokens": True}, "max_tokens", "integer from 1", True),
    ("a float for max_tokens", {**P, "max_tokens": 4.0}, "max_tokens", "integer from 1", 4.0),
    ("a temperature that is no number", {**P, "temperature": math.nan}, "temperature", "finite number", math.nan),
    ("an infinite temperature", {**P, "temperature": math.inf}, "temperature", "finite number", math.inf),
    ("top_p of 0", {**P, "top_p": 0.0}, "top_p", "over 0 and at most 1", 0.0),
    ("a negative seed", {**P, "seed": -1}, "seed", "integer from 0", -1),
    ("too many stops", {**P, "stop": ["x"] * 17}, "stop", "1 to 16 strings", ["x"] * 17),
    ("an empty stop", {**P, "stop": ""}, "stop", "non-empty string", ""),
    ("an unknown priority", {**P, "priority": "urgent"}, "priority", "one of critical, high", "urgent"),
    ("an infinite priority", {**P, "priority": math.inf}, "priority", "one of critical, high", math.inf),
    ("a list for a priority", {**P, "priority": ["high"]}, "priority", "one of critical, high", ["high"]),
    ("a number for a priority", {**P, "priority": math.nan}, "priority", "one of critical, high", math.nan),
    ("no time to live", {**P, "timeout": 0}, "timeout", "over 0", 0),
    ("a negative time to live", {**P, "timeout": -1.5}, "timeout", "over 0", -1.5),
    ("a time to live that is no float", {**P, "timeout": 10**400}, "timeout", "finite", 10**400),
    ("a time to live that is no number", {**P, "timeout": math.nan}, "timeout", "over 0", math.nan),
    ("an infinite time to live", {**P, "timeout": math.inf}, "timeout", "finite", math.inf),
    ("a time to live over the maximum age", {**P, "timeout": 1e6}, "timeout", "max_age_s (86400 s)", 1e6),
    ("an id with a space", {**P, "request_id": "a b"}, "request_id", "[A-Za-z0-9._~-]{1,128}", "a b"),
    ("an empty id", {**P, "request_id": ""}, "request_id", "[A-Za-z0-9._~-]{1,128}", ""),
    ("an id that is too long", {**P, "request_id": LONG}, "request_id", "[A-Za-z0-9._~-]{1,128}", LONG),
    ("an id with a newline", {**P, "request_id": "a\n"}, "request_id", "[A-Za-z0-9._~-]{1,128}", "a\n"),
    ("a tenant with a colon", {**P, "tenant": "a:b"}, "tenant", "[A-Za-z0-9._~-]{1,128}", "a:b"),
    ("a number for an affinity key", {**P, "affinity_key": 7}, "affinity_key", "non-empty string", 7),
    ("an empty affinity key", {**P, "affinity_key": ""}, "affinity_key", "non-empty string", ""),
    ("a long affinity key", {**P, "affinity_key": "x" * 257}, "affinity_key", "affinity_key_bytes (256)", "x" * 257),
    ("a string for a flag", {**P, "stream": "yes"}, "stream", "True or False", "yes"),
    ("an unknown field", {**P, "max_token": 3}, "max_token", "no field of a request; did you mean max_tokens?", 3),
    ("more than one answer", {**P, "n": 2}, "n", "not honoured", 2),
    ("tools", {**P, "tools": [{}]}, "tools", "not honoured", [{}]),
    ("logprobs", {**P, "logprobs": True}, "logprobs", "not honoured", True),
    ("more than a payload may have", {"prompt": "x" * (1 << 20)}, "request", "at most 1048576 bytes", None),
]
KINDS: dict[str, type[InvalidRequest]] = {
    "request": PayloadTooLarge,
    "n": UnsupportedParameter,
    "tools": UnsupportedParameter,
    "logprobs": UnsupportedParameter,
}
