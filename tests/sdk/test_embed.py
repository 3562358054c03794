"""Vectors and labels as they come back to a client."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from stoker._calls import as_texts, classification_of, over_card, vector_of
from stoker.errors import InvalidRequest, RequestCancelled, RequestFailed, UnsupportedParameter
from stoker.request import Classification, InferenceRequest, InferenceResponse
from stoker.store.codec import Outcome, encode_answer, encode_failure, response_of
from stoker.store.pack import pack_floats, unpack_floats
from stoker.store.reads import Card

JOY = {"label": "joy", "score": 0.75, "scores": {"joy": 0.75, "fear": 0.25}, "logits": [1.5, 0.25]}


def came(body: bytes, status: str = "succeeded") -> InferenceResponse:
    return response_of(Outcome(status, "n", "d", "r1", 0, 1, 2, 1, "", "w:1-a", "", body))


def answered(output: Any) -> InferenceResponse:
    return came(encode_answer(output=output))


def test_a_vector_travels_as_its_bytes_and_comes_back_the_same() -> None:
    vector = array("f", [0.1, -2.5, 3e-38, 1e30])
    body = encode_answer(output=vector)
    assert b"\xc4\x11f" + vector.tobytes() in body
    assert vector_of(came(body)) == vector
    assert vector_of(came(body)).typecode == "f"


def test_packing_leaves_the_vector_as_it_was() -> None:
    vector = array("f", [1.0, 2.0])
    assert pack_floats(vector)[1:] == b"\x00\x00\x80?\x00\x00\x00@"
    assert vector.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("data", ["f", b"", b"H\x01\x00\x01\x00", b"f\x01", [1.0]])
def test_what_is_no_packed_vector_is_refused(data: object) -> None:
    with pytest.raises(InvalidRequest, match="vector: must be packed floats"):
        unpack_floats(data)


def test_a_list_of_a_users_own_model_is_a_vector_too() -> None:
    assert vector_of(answered([0.5, 2])) == array("f", [0.5, 2])


@pytest.mark.parametrize("output", [None, "text", {"a": 1}, ["a"], 7])
def test_an_answer_that_is_no_vector_fails(output: Any) -> None:
    with pytest.raises(RequestFailed, match="answered no vector"):
        vector_of(answered(output))


def test_a_classification_has_its_fields() -> None:
    assert classification_of(answered(JOY)) == Classification("joy", 0.75, {"joy": 0.75, "fear": 0.25}, [1.5, 0.25])


@pytest.mark.parametrize("output", [None, "joy", {"label": "joy"}, JOY | {"more": 1}, [0.5]])
def test_an_answer_that_is_no_classification_fails(output: Any) -> None:
    with pytest.raises(RequestFailed, match="answered no classification"):
        classification_of(answered(output))


def test_a_requests_own_error_goes_first() -> None:
    with pytest.raises(RequestCancelled):
        vector_of(came(b"", "cancelled"))


@pytest.mark.parametrize("kind", [InvalidRequest, UnsupportedParameter])
def test_a_refusal_comes_back_as_what_it_was(kind: type[InvalidRequest]) -> None:
    error = came(encode_failure("no", kind("stop", "is not honoured", "x")), "failed").error
    assert (type(error), str(error)) == (kind, "stop: is not honoured, got 'x'")


@pytest.mark.parametrize("texts", ["one text", InferenceRequest(prompt="one")])
def test_a_single_text_is_no_list_of_texts(texts: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be a list of texts"):
        as_texts(texts)


def test_only_a_model_that_generates_needs_room_for_max_tokens() -> None:
    card = {"context": 64, "vocabulary": 100}
    assert over_card([1] * 60, 16, Card("i", card | {"mode": "padded"})) is None
    assert over_card([1] * 60, 16, Card("i", card | {"mode": "continuous"})) is not None
    assert over_card([1] * 65, 16, Card("i", card | {"mode": "padded"})) is not None
