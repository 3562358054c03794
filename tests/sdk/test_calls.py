"""The pure part of the clients: names, requests, and the chunks of token streams."""

from __future__ import annotations

import dataclasses
import os
from array import array
from typing import Any

import pytest

from stoker import Config
from stoker._calls import (
    MOST_FORMS,
    ONLY_LIFE,
    Encoder,
    Forms,
    Names,
    TokenReader,
    as_request,
    fitting,
    full_pause,
    unique,
)
from stoker.errors import InvalidRequest
from stoker.request import Chunk, InferenceRequest, InferenceResponse, Restarted
from stoker.store.codec import Submission
from stoker.store.reads import Card, TokenRecord

ONE, TWO = TokenRecord("1-0", 1, 0, [5], "a"), TokenRecord("2-0", 1, 1, [6, 7], "bc")
END = TokenRecord("9-0", 0, 0, [], "", "succeeded")


def feed(*records: TokenRecord) -> tuple[TokenReader, list[Chunk]]:
    reader = TokenReader()
    return reader, [chunk for chunk in map(reader.feed, records) if chunk]


def test_names_are_unique_and_a_forked_child_gives_others() -> None:
    before = unique()
    receiver, sender = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(sender, unique().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    of_child = os.read(receiver, 100).decode()
    os.close(receiver)
    os.close(sender)
    after = unique()
    assert after[:10] == before[:10] != of_child[:10]
    assert len({before, after, of_child}) == 3


def test_names_that_have_counted_to_their_end_go_on_behind_another_prefix() -> None:
    names = Names()
    given = [names() for _ in range(62**3 + 1)]
    assert len(set(given)) == len(given)
    assert {len(name) for name in given} == {13}
    assert [len({name[:10] for name in some}) for some in (given[:-1], given)] == [1, 2]


def test_a_string_is_a_prompt_and_a_list_is_token_ids() -> None:
    assert as_request("hi", {"max_tokens": 3}) == InferenceRequest(prompt="hi", max_tokens=3)
    assert as_request([1, 2], {}) == InferenceRequest(prompt_tokens=[1, 2])


def test_keywords_change_a_whole_request() -> None:
    request = InferenceRequest(prompt="hi", stop=["x"])
    assert as_request(request, {"max_tokens": 3}) == InferenceRequest(prompt="hi", stop=["x"], max_tokens=3)
    assert as_request(request, {}) is request


def encoder(**fields: Any) -> Encoder:
    card = Card("i", {"mode": "continuous", "context": 64, "vocabulary": 100_000})
    wishes = {"displace": True, "check_deadline": False}
    return Encoder(fields, forms=Forms("c", Config(max_age_s=100)), card=card, bytes_per_token=4.0, **wishes)


def test_a_prompt_may_not_be_given_twice() -> None:
    error = encoder(prompt="ho")("hi")
    assert isinstance(error, InvalidRequest)
    assert error.field == "prompt"


EVERYTHING = {
    "max_tokens": 3,
    "priority": "low",
    "timeout": 9.5,
    "tenant": "a",
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 4,
    "seed": 5,
    "stop": "x",
    "ignore_eos": True,
    "stream": True,
    "sheddable": True,
    "affinity_key": "s",
    "metadata": {"a": [1, None]},
}


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}, EVERYTHING], ids=["none", "one", "all"])
@pytest.mark.parametrize("item", ["héllo, there", [1, 2], (3, 4), [70_000, 1], array("H", [5, 6]), array("i", [7])])
def test_bare_prompts_are_encoded_as_whole_requests_are(item: Any, fields: dict[str, Any]) -> None:
    name = "prompt" if isinstance(item, str) else "prompt_tokens"
    whole = encoder()(InferenceRequest(request_id="r", **{name: item}, **fields))
    bare = encoder(request_id="r", **fields)(item)
    assert isinstance(whole, Submission)
    nonce = whole.nonce.encode()
    assert bare == dataclasses.replace(whole, nonce=bare.nonce, header=whole.header.replace(nonce, bare.nonce.encode()))


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 0}, {"timeout": 101.0}, {"metadata": {1: 2}}])
@pytest.mark.parametrize(
    "item", ["", "\ud800", [], [1, True], [1, 2.0], [-1, 5], [1 << 32], [100_000], [1] * 64, 7, "fine"]
)
def test_bare_prompts_are_refused_as_whole_requests_are(item: Any, fields: dict[str, Any]) -> None:
    name = "prompt" if isinstance(item, str) else "prompt_tokens"
    try:
        whole: object = encoder()(as_request(None, {name: item, **fields}))
    except InvalidRequest as error:
        whole = error
    bare = encoder(**fields)(item)
    assert (type(bare), str(bare) if isinstance(bare, InvalidRequest) else "") == (
        type(whole),
        str(whole) if isinstance(whole, InvalidRequest) else "",
    )


def test_what_is_remembered_of_keywords_is_taken_for_no_others() -> None:
    forms = Forms("c", Config())

    def encoded(**fields: Any) -> Submission | InvalidRequest:
        wishes = {"displace": False, "check_deadline": True}
        return Encoder(fields, forms=forms, card=None, bytes_per_token=4.0, **wishes)("hi")

    metadata = {"a": 1}
    for fields in ({"max_tokens": 1}, {"max_tokens": 2}, {"seed": 1}, {"metadata": metadata}, {"tenant": "t"}):
        assert isinstance(encoded(**fields), Submission)
    assert isinstance(encoded(max_tokens=True), InvalidRequest)
    before = encoded(metadata=metadata)
    metadata["a"] = 2
    after = encoded(metadata=metadata)
    assert isinstance(before, Submission)
    assert isinstance(after, Submission)
    assert before.body != after.body
    for number in range(200):
        found = encoded(tenant=f"t{number}")
        assert isinstance(found, Submission)
        assert f"|t{number}|".encode() in found.header
    assert len(forms._known) <= MOST_FORMS


@pytest.mark.parametrize(("largest", "fits"), [(65_534, True), (65_535, False), (65_536, False), (1 << 31, False)])
def test_token_ids_are_held_against_the_vocabulary_however_they_are_packed(largest: int, fits: bool) -> None:
    for vocabulary, refused in ((65_535, not fits), (65_536, largest > 65_535), (1 << 31, largest == 1 << 31)):
        card = Card("i", {"vocabulary": vocabulary})
        encoding = Encoder(
            {}, forms=Forms("c", Config()), card=card, bytes_per_token=4.0, displace=False, check_deadline=True
        )
        assert isinstance(encoding([1, largest, 2]), InvalidRequest) == refused
        assert isinstance(encoding(InferenceRequest(prompt_tokens=[1, largest, 2])), InvalidRequest) == refused


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 1000, 32_000, 65_535])
def test_a_token_id_is_refused_from_the_vocabulary_on_whatever_its_upper_byte(vocabulary: int) -> None:
    encoding = Encoder(
        {},
        forms=Forms("c", Config()),
        card=Card("i", {"vocabulary": vocabulary}),
        bytes_per_token=4.0,
        displace=False,
        check_deadline=True,
    )
    near = range(max(0, vocabulary - 300), min(vocabulary + 300, 65_536))
    refused = [token for token in near if isinstance(encoding([token, 0]), InvalidRequest)]
    assert refused == [token for token in near if token >= vocabulary]


def test_who_gave_no_id_gets_one_a_request_and_who_gave_one_a_nonce() -> None:
    first, second = map(encoder(), ["a", "a"])
    assert (first.id != second.id, first.nonce, second.nonce) == (True, ONLY_LIFE, ONLY_LIFE)
    again, then = map(encoder(request_id="r"), ["a", "a"])
    assert (again.id, then.id, again.nonce != then.nonce) == ("r", "r", True)


def test_groups_are_cut_by_bytes_too() -> None:
    big = Submission("a", "n", b"", bytes(5 << 20))
    assert fitting([big] * 4) == 1
    assert fitting([Submission("a", "n", b"", bytes(100))] * 512) == 512
    assert fitting([Submission("a", "n", b"", bytes(20 << 20))] * 2) == 1


def test_waiting_for_room_ends_with_the_deadline() -> None:
    assert full_pause(2.0, None, 10.0) == 2.0
    assert full_pause(2.0, 10.5, 10.0) == 0.5
    assert full_pause(2.0, 10.0, 10.0) is None


def test_tokens_come_as_chunks_in_order() -> None:
    reader, chunks = feed(ONE, TWO, END)
    assert chunks == [Chunk("a", [5], 1, 0), Chunk("bc", [6, 7], 1, 1)]
    assert reader.ended
    assert reader.after == "9-0"


def test_a_record_that_was_written_twice_is_read_once() -> None:
    _, chunks = feed(ONE, ONE, TWO, TWO, ONE)
    assert [chunk.text for chunk in chunks] == ["a", "bc"]


def test_a_later_attempt_that_begins_again_is_a_restart() -> None:
    _, chunks = feed(ONE, TWO, TokenRecord("3-0", 2, 0, [5], "a"), TokenRecord("4-0", 2, 1, [6], "b"), TWO)
    assert chunks[2:] == [Restarted("a", [5], 2, 0), Chunk("b", [6], 2, 1)]
    assert type(chunks[2]) is Restarted


def test_tokens_of_an_attempt_that_was_taken_back_are_dropped() -> None:
    _, chunks = feed(ONE, TokenRecord("3-0", 2, 0, [5], "a"), TWO)
    assert [(chunk.attempt, chunk.text) for chunk in chunks] == [(1, "a"), (2, "a")]


def test_a_later_attempt_that_goes_on_is_no_restart() -> None:
    _, chunks = feed(ONE, TokenRecord("3-0", 2, 1, [6], "b"))
    assert chunks[1] == Chunk("b", [6], 2, 1)
    assert type(chunks[1]) is Chunk


def test_the_first_tokens_seen_are_no_restart_whatever_their_attempt() -> None:
    _, chunks = feed(TokenRecord("3-0", 2, 0, [5], "a"))
    assert type(chunks[0]) is Chunk


@pytest.mark.parametrize(
    ("records", "rest"),
    [
        ((ONE, TWO), None),
        ((ONE,), Chunk("bc", [6, 7], 1, 1)),
        ((), Chunk("abc", [5, 6, 7], 1, 0)),
        ((TokenRecord("1-0", 1, 0, [9], "z"),), Restarted("abc", [5, 6, 7], 1, 0)),
    ],
    ids=["complete", "end missing", "nothing streamed", "another attempt won"],
)
def test_the_final_answer_completes_what_was_streamed(records: tuple[TokenRecord, ...], rest: Chunk | None) -> None:
    reader, _ = feed(*records)
    found = reader.rest(InferenceResponse("r", "succeeded", text="abc", token_ids=[5, 6, 7], attempts=1))
    assert found == rest
    assert type(found) is type(rest)
