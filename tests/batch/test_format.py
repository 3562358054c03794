"""Lines of batch files, both ways: what is taken, what is refused and by which code, and what an answer looks like."""

from __future__ import annotations

import base64
import json
import struct
from array import array
from typing import Any

import pytest

from stoker.batch.format import CHAT_TOKENS, Defaults, Entry, Parser, Problem, answer_line, error_line
from stoker.errors import RequestFailed
from stoker.request import InferenceRequest, InferenceResponse, RequestPriority, Timings, Usage
from stoker.store.reads import Card

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def parser(kind: str = "jsonl", any_model: bool = False, **defaults: Any) -> Parser:
    return Parser("in.jsonl", "b", 0, kind, RequestPriority.BATCH, Defaults(**defaults), any_model)


def line(body: Any = None, url: str = COMPLETIONS, **more: Any) -> bytes:
    body = {"prompt": "hi"} if body is None else body
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body} | more).encode()


def entry(data: bytes, **defaults: Any) -> Entry:
    parsed = parser(**defaults).parse(3, data, 60.0)
    assert isinstance(parsed, Entry), parsed
    return parsed


def problem(data: bytes, **more: Any) -> Problem:
    parsed = parser(**more).parse(3, data, 60.0)
    assert isinstance(parsed, Problem), parsed
    return parsed


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_a_completion_becomes_a_request_under_the_batchs_own_id() -> None:
    got = entry(line({"prompt": "hi", "max_tokens": 5, "temperature": 0, "stop": "x", "seed": 1, "top_p": 0.5}))
    request = got.request
    assert (got.custom_id, got.url, request.request_id) == ("a", COMPLETIONS, "b-3-0")
    assert (request.prompt, request.max_tokens, request.temperature, request.stop) == ("hi", 5, 0, ("x",))
    assert (request.seed, request.top_p, request.priority, request.timeout) == (1, 0.5, "batch", 60.0)


def test_token_ids_and_a_list_of_one_prompt_are_prompts() -> None:
    assert entry(line({"prompt": [1, 2]})).request.prompt_tokens == [1, 2]
    assert entry(line({"prompt": ["hi"]})).request.prompt == "hi"


def test_a_conversation_keeps_its_messages_and_joins_parts_of_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": 7}
    request = entry(line(body, CHAT)).request
    assert request.messages == [{"role": "user", "content": "ab"}]
    assert request.max_tokens == 7


def test_plain_lines_have_the_fields_of_a_request() -> None:
    got = entry(b'{"prompt": "hi", "max_tokens": 4, "metadata": {"k": 1}}')
    assert (got.custom_id, got.url, got.request.metadata) == ("line-3", COMPLETIONS, {"k": 1})
    assert entry(b'{"custom_id": "x", "messages": [{"role": "user", "content": "hi"}]}').url == CHAT
    assert entry(b'{"inputs": {"image": 1}}').request.inputs == {"image": 1}


def test_a_line_may_have_an_affinity_key_which_openai_calls_prompt_cache_key() -> None:
    assert entry(b'{"prompt": "hi", "affinity_key": "s"}').request.affinity_key == "s"
    assert entry(line({"prompt": "hi", "prompt_cache_key": "s"})).request.affinity_key == "s"
    assert problem(line({"prompt": "hi", "prompt_cache_key": 7})).param == "affinity_key"


def test_a_line_of_a_text_file_is_a_prompt() -> None:
    got = parser("text").parse(7, b'{"not": "json" here\r\n', None)
    assert isinstance(got, Entry)
    assert (got.custom_id, got.request.prompt) == ("line-7", '{"not": "json" here')


@pytest.mark.parametrize("data", [line() + b"\r\n", line() + b"\n", line(), b"  " + line()])
def test_ends_of_lines_do_not_matter(data: bytes) -> None:
    assert entry(data).request.prompt == "hi"


def test_a_byte_order_mark_is_passed_over_in_the_first_line_alone() -> None:
    assert isinstance(parser().parse(1, b"\xef\xbb\xbf" + line(), None), Entry)
    assert problem(b"\xef\xbb\xbf" + line()).code == "invalid_json"


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_a_line_goes_before_the_file_the_file_before_the_model_and_the_model_before_openai() -> None:
    model = {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    request = entry(line(), sampling=model).request
    assert (request.temperature, request.top_p, request.top_k, request.max_tokens) == (0.6, 0.9, 20, 16)
    assert entry(line(), sampling=model, file={"temperature": 0.1}).request.temperature == 0.1
    own = entry(line({"prompt": "hi", "temperature": 0}), sampling=model, file={"temperature": 0.1})
    assert own.request.temperature == 0
    assert entry(line()).request.temperature == 1.0


def test_a_conversation_without_a_limit_gets_what_fits() -> None:
    body = {"messages": [{"role": "user", "content": "x" * 100}]}
    assert entry(line(body, CHAT)).request.max_tokens == CHAT_TOKENS
    assert entry(line(body, CHAT), context=400).request.max_tokens == 400 - 100 - 64
    assert entry(line(body, CHAT), context=100).request.max_tokens == 16


def test_defaults_come_from_the_models_card() -> None:
    card = Card("id", {"name": "m", "task": "embed", "context": 9, "sampling": {"top_k": 3}})
    assert Defaults.of({"max_tokens": 2}, card) == Defaults({"max_tokens": 2}, "m", "embed", 9, {"top_k": 3})
    assert Defaults.of({}, None) == Defaults()


# --- what is refused --------------------------------------------------------------------------------------------------

UNSUPPORTED: dict[str, Any] = {
    "n": 2,
    "best_of": 3,
    "echo": True,
    "stream": True,
    "logprobs": 0,
    "presence_penalty": 0.5,
    "frequency_penalty": 1,
    "logit_bias": {"5": 1},
    "suffix": "x",
    "tools": [{"type": "function"}],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "guided_json": {},
    "unheard_of": 1,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_no_engine_honours_is_refused_by_name(name: str) -> None:
    got = problem(line({"prompt": "hi", name: UNSUPPORTED[name]}))
    assert (got.code, got.param, got.custom_id) == ("unsupported_parameter", name, "a")
    assert got.message.startswith(f"in.jsonl:3: {name}: ")


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1, "stream": False, "logprobs": None, "tools": [], "tool_choice": "none", "user": "u"},
        {"response_format": {"type": "text"}, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
    ],
)
def test_what_asks_for_nothing_is_taken(neutral: dict[str, Any]) -> None:
    assert entry(line({"prompt": "hi"} | neutral)).request.prompt == "hi"


@pytest.mark.parametrize("value", [True, 1.5, "1"])
def test_a_true_is_no_one(value: object) -> None:
    assert problem(line({"prompt": "hi", "n": value})).code == "unsupported_parameter"


def test_several_prompts_a_line_are_refused() -> None:
    assert problem(line({"prompt": ["a", "b"]})).code == "unsupported_parameter"


BAD: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"\n", "empty_line", ""),
    "blank": (b"  \t\r\n", "empty_line", ""),
    "no json": (b"{oops}\n", "invalid_json", ""),
    "cut short": (line()[:-3], "invalid_json", ""),
    "nan": (b'{"prompt": NaN}', "invalid_json", ""),
    "deep": (b"[" * 100_000, "invalid_json", ""),
    "a list": (b"[1]\n", "invalid_line", ""),
    "a number": (b"5\n", "invalid_line", ""),
    "latin-1": (b'{"prompt": "\xe4"}', "invalid_utf8", ""),
    "no custom_id": (b'{"url": "/v1/completions", "body": {"prompt": "x"}}', "missing_custom_id", "custom_id"),
    "number as custom_id": (line(custom_id=5), "invalid_custom_id", "custom_id"),
    "empty custom_id": (line(custom_id=""), "invalid_custom_id", "custom_id"),
    "long custom_id": (line(custom_id="x" * 513), "invalid_custom_id", "custom_id"),
    "surrogate": (b'{"custom_id": "\\ud800", "prompt": "x"}', "invalid_custom_id", "custom_id"),
    "method": (line(method="GET"), "invalid_method", "method"),
    "url": (line(url="/v1/images"), "invalid_url", "url"),
    "body": (line(body=[]), "invalid_line", "body"),
    "unknown field": (line(priority=1), "invalid_line", "priority"),
    "empty prompt": (line({"prompt": ""}), "invalid_request", "prompt"),
    "no prompt": (line({"max_tokens": 3}), "invalid_request", "prompt"),
    "no messages": (line({"messages": []}, CHAT), "invalid_request", "messages"),
    "message": (line({"messages": ["hi"]}, CHAT), "invalid_request", "messages[0]"),
    "image": (
        line({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, CHAT),
        "unsupported_parameter",
        "messages[0].content",
    ),
    "max_tokens": (line({"prompt": "x", "max_tokens": 0}), "invalid_request", "max_tokens"),
    "temperature": (line({"prompt": "x", "temperature": "hot"}), "invalid_request", "temperature"),
    "plain field": (b'{"prompt": "x", "max_token": 1}', "invalid_request", "max_token"),
    "plain unsupported": (b'{"prompt": "x", "tools": []}', "unsupported_parameter", "tools"),
    "own priority": (b'{"prompt": "x", "priority": "high"}', "unsupported_parameter", "priority"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_an_error_that_names_file_line_and_field(name: str) -> None:
    data, code, param = BAD[name]
    got = problem(data)
    assert (got.code, got.param or "") == (code, param)
    assert got.message.startswith("in.jsonl:3: ")
    assert got.number == 3


def test_a_line_for_another_model_is_refused_unless_that_does_not_matter() -> None:
    body = {"prompt": "hi", "model": "gpt-x"}
    got = problem(line(body), model="demo")
    assert (got.code, got.param) == ("model_not_found", "model")
    assert "demo" in got.message
    assert isinstance(parser(any_model=True, model="demo").parse(1, line(body), None), Entry)
    assert entry(line(body | {"model": "demo"}), model="demo").request.prompt == "hi"


EMBEDDINGS = "/v1/embeddings"


@pytest.mark.parametrize("task", ["generate", "classify", "custom", ""])
def test_embeddings_need_a_queue_whose_model_embeds(task: str) -> None:
    got = problem(line({"input": "some text"}, EMBEDDINGS), task=task)
    assert (got.code, got.param) == ("unsupported_endpoint", "url")
    assert f"the task of this one's is {task or 'unknown'}" in got.message


@pytest.mark.parametrize("url", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("task", ["embed", "classify"])
def test_a_model_that_encodes_completes_nothing(task: str, url: str) -> None:
    assert problem(line({"prompt": "hi"}, url), task=task).code == "unsupported_endpoint"


@pytest.mark.parametrize("given", ["some text", ["some text"]])
def test_a_text_to_embed_is_a_prompt_without_defaults_of_generation(given: Any) -> None:
    request = entry(line({"input": given, "model": "m"}, EMBEDDINGS), task="embed", sampling={"top_k": 3}).request
    assert (request.prompt, request.temperature, request.top_k) == ("some text", 0.0, None)


@pytest.mark.parametrize("given", [[5, 6], [[5, 6]]])
def test_token_ids_are_embedded_too(given: Any) -> None:
    assert entry(line({"input": given}, EMBEDDINGS), task="embed").request.prompt_tokens == [5, 6]


@pytest.mark.parametrize("given", [["a", "b"], [[1], [2]]])
def test_several_texts_a_line_are_refused(given: Any) -> None:
    got = problem(line({"input": given}, EMBEDDINGS), task="embed")
    assert (got.code, got.param) == ("unsupported_parameter", "input")


@pytest.mark.parametrize(
    ("more", "code"),
    [({"encoding_format": "hex"}, "invalid_request"), ({"dimensions": 8}, "unsupported_parameter")],
)
def test_vectors_of_another_form_are_refused_by_name(more: dict[str, Any], code: str) -> None:
    got = problem(line({"input": "a"} | more, EMBEDDINGS), task="embed")
    assert (got.code, got.param) == (code, next(iter(more)))


def test_a_file_of_texts_is_embedded_or_classified_as_the_queue_does() -> None:
    assert entry(b'{"prompt": "hi"}', task="embed").url == EMBEDDINGS
    assert entry(b'{"prompt": "hi"}', task="classify").url == ""
    text = parser("text", task="embed").parse(1, b"hi\n", None)
    assert isinstance(text, Entry)
    assert (text.url, text.request.temperature) == (EMBEDDINGS, 0.0)


# --- out --------------------------------------------------------------------------------------------------------------


def answer(url: str, packed: bool = False, **more: Any) -> dict[str, Any]:
    response = InferenceResponse(
        "b-3-0",
        "succeeded",
        finish_reason="stop",
        usage=Usage(3, 2),
        timings=Timings(1.0, 2.0, 3.0),
        attempts=1,
        worker="w",
        **more,
    )
    request = InferenceRequest(request_id="b-3-0", prompt="hi")
    data = answer_line(Entry(3, "a", url, request, 10, packed), "demo", response)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    return json.loads(data)


def test_a_completion_is_answered_as_openai_does() -> None:
    got = answer(COMPLETIONS, text="hello\nthere", token_ids=[5, 6], metadata={"k": 1})
    assert (got["id"], got["custom_id"], got["error"]) == ("b-3-0", "a", None)
    assert (got["response"]["status_code"], got["response"]["request_id"]) == (200, "b-3-0")
    body = got["response"]["body"]
    assert (body["object"], body["model"], body["metadata"]) == ("text_completion", "demo", {"k": 1})
    assert body["choices"] == [{"index": 0, "text": "hello\nthere", "finish_reason": "stop", "logprobs": None}]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert (body["stoker"]["token_ids"], body["stoker"]["worker"], body["stoker"]["attempts"]) == ([5, 6], "w", 1)


def test_a_conversation_is_answered_with_a_message() -> None:
    body = answer(CHAT, text="héllo")["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "héllo"}


def test_a_users_model_is_answered_with_its_output() -> None:
    assert answer("", output={"label": 1})["response"]["body"]["output"] == {"label": 1}
    assert answer("", output=array("f", [0.5]))["response"]["body"]["output"] == [0.5]
    assert answer("", output=b"raw")["response"]["body"]["output"] == "b'raw'"


def test_a_vector_is_answered_as_openai_does() -> None:
    body = answer(EMBEDDINGS, output=array("f", [0.5, -0.25]))["response"]["body"]
    assert (body["object"], body["model"]) == ("list", "demo")
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    [packed] = answer(EMBEDDINGS, packed=True, output=array("f", [0.5, -0.25]))["response"]["body"]["data"]
    assert struct.unpack("<2f", base64.b64decode(packed["embedding"])) == (0.5, -0.25)


def test_an_answer_without_a_vector_is_no_embedding() -> None:
    with pytest.raises(RequestFailed, match="no vector"):
        answer(EMBEDDINGS, text="hello")


def test_an_error_has_no_response() -> None:
    got = json.loads(error_line("b-3-0", parser().problem(3, "a", "request_failed", str(RequestFailed("x", "y", 1)))))
    assert (got["id"], got["custom_id"], got["response"]) == ("b-3-0", "a", None)
    assert (got["error"]["code"], got["error"]["line"]) == ("request_failed", 3)
