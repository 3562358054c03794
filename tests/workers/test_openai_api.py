"""What is asked of an OpenAI-compatible server, and what its answers mean."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from stoker_workers.engine import Sampling, Work
from stoker_workers.engines.openai_api import Piece, ServerError, body_of, judge, read_event, read_piece


def piece(**content: Any) -> Piece:
    return read_piece(json.dumps(content).encode())


def test_a_text_is_asked_for_with_everything_said_that_servers_have_own_defaults_for() -> None:
    work = Work(id="a", batch="b", text="Hi", max_tokens=5, stop=("x",))
    assert body_of(work, "llama", "Hi") == {
        "model": "llama",
        "prompt": "Hi",
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_sampled_conversation_is_asked_for_with_its_seed() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = body_of(Work(id="a", batch="b", messages=messages, sampling=Sampling(temperature=0.5, seed=7)), "m", None)
    assert (body["messages"], body["temperature"], body["seed"]) == (messages, 0.5, 7)
    assert "prompt" not in body


@pytest.mark.parametrize(
    ("line", "data"),
    [
        (b"data: {}\r\n", b"{}"),
        (b"data:[DONE]\n", b"[DONE]"),
        (b": keep-alive\n", None),
        (b"event: x\n", None),
        (b"\n", None),
    ],
)
def test_only_data_lines_carry_events(line: bytes, data: bytes | None) -> None:
    assert read_event(line) == data


def test_pieces_of_both_endpoints_and_of_vllm_are_read() -> None:
    assert piece(choices=[{"text": "a", "finish_reason": None}]) == Piece("a")
    assert piece(choices=[{"delta": {"content": "a"}, "finish_reason": "length"}]) == Piece("a", None, "length")
    assert piece(choices=[{"delta": {"role": "assistant", "content": None}}]) == Piece()
    assert piece(choices=[{"text": "a", "token_ids": [5, 6]}]) == Piece("a", [5, 6])
    assert piece(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2}) == Piece("", None, None, 3, 2)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"choices": None},
        {"choices": ["a"]},
        {"choices": [{"text": 7, "finish_reason": 7, "token_ids": ["a"]}]},
        {"choices": [{"delta": "a", "token_ids": [-1]}], "usage": {"prompt_tokens": True, "completion_tokens": -1}},
        {"usage": {"prompt_tokens": 1 << 40}},
    ],
)
def test_what_has_another_type_is_taken_for_missing(content: dict[str, Any]) -> None:
    assert piece(**content) == Piece()


def test_a_lone_surrogate_becomes_a_replacement_character() -> None:
    assert piece(choices=[{"text": "a\ud800"}]).text.encode() == "a\ufffd".encode()
    assert piece(choices=[{"text": "\U0001f600"}]).text == "\U0001f600"


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000, b"1"])
def test_what_is_no_event_is_the_servers_fault(data: bytes) -> None:
    with pytest.raises(ServerError) as caught:
        read_piece(data)
    assert caught.value.blame == "server"


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        ("out of memory", "server"),
        ({"message": "engine died", "code": 500}, "server"),
        ({"message": "too long", "code": 400}, "request"),
        ({"message": "too long", "code": "400"}, "server"),
    ],
)
def test_an_error_in_the_stream_is_blamed_by_its_code(error: Any, blame: str) -> None:
    with pytest.raises(ServerError) as caught:
        piece(error=error)
    assert caught.value.blame == blame


@pytest.mark.parametrize(
    ("code", "blame"),
    [
        (302, "server"),
        (400, "request"),
        (401, "server"),
        (403, "server"),
        (404, "request"),
        (408, "server"),
        (413, "request"),
        (422, "request"),
        (429, "nobody"),
        (500, "server"),
        (502, "server"),
        (503, "server"),
    ],
)
def test_a_status_says_whose_fault_it_is(code: int, blame: str) -> None:
    error = judge(code, None, b"{}")
    assert (error.blame, error.status) == (blame, code)


def test_a_server_that_names_a_time_to_come_back_is_overloaded_not_broken() -> None:
    assert (judge(503, "7", b"").blame, judge(503, "7", b"").pause_s) == ("nobody", 7.0)
    assert 20 < judge(429, formatdate(time.time() + 30, usegmt=True), b"").pause_s <= 30
    assert [judge(429, text, b"").pause_s for text in ("99999", "soon", "-5", "0", None)] == [300.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "max_tokens is too large"}}', "max_tokens is too large"),
        (b'{"error": "too large"}', "too large"),
        (b'{"detail": "Unexpected fields"}', "Unexpected fields"),
        (b'{"message": "a\\nb\\u001b[31m"}', "a b [31m"),
        (b"<html>\xff", "<html>\ufffd"),
    ],
)
def test_the_servers_own_words_are_passed_on_on_one_line(body: bytes, message: str) -> None:
    assert str(judge(400, None, body)) == f"the model's server refuses it ({message})"


def test_an_answer_to_a_wrong_key_is_not_repeated() -> None:
    assert "sk-1" not in str(judge(401, None, b'{"error": {"message": "Incorrect API key provided: sk-1"}}'))
