"""What a worker does with what it finds in Redis: it trusts nothing, and says what is wrong with which field."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from stoker import Config, InferenceRequest, InvalidRequest, PayloadTooLarge, UnsupportedParameter
from stoker.store.codec import decode_payload, encode
from stoker.store.pack import pack_tokens
from stoker.store.payloads import FORM_BYTES, MOST_FORMS, Payloads
from stoker.store.reads import TokenRecord
from stoker.store.scripts import Begun
from stoker_workers.engines.callable import CallableEngine
from stoker_workers.engines.sim import SimEngine, load_profile
from stoker_workers.intake import nonce_of, open_row, prompt_bytes

HEADER = b"1|nonce|digest|normal||0|60000000|3:16:x|10|reply|0||"
STAMP = b"1795533457829043"


def begun(body: bytes, header: bytes = HEADER, stamp: bytes = STAMP) -> Begun:
    return Begun("r1", "RUN", stamp + header + body, 1)


def body(core: Any, metadata: Any = None) -> bytes:
    return msgpack.packb([core, metadata])


TOKENS = {"prompt_tokens": pack_tokens([1, 2, 3])}
KNOWN = Payloads()
for good in ({}, {"max_tokens": 4}, {"temperature": 0.5}, {"stop": ["x"]}):
    KNOWN.decode("r0", begun(body(TOKENS | good)).payload, 1)


def opened(item: Begun, payloads: Payloads | None = None) -> Any:
    return open_row(item, "1-a-1", SimEngine(load_profile("zero")), lambda: 0.0, 4 << 20, payloads=payloads)


@pytest.mark.parametrize(
    ("item", "field"),
    [
        pytest.param(begun(body({})), "prompt", id="no prompt at all"),
        pytest.param(begun(body(TOKENS | {"prompt": "a"})), "prompt", id="two prompts"),
        pytest.param(begun(body({"prompt": ""})), "prompt", id="an empty prompt"),
        pytest.param(begun(body({"prompt": 7})), "prompt", id="a prompt that is no text"),
        pytest.param(begun(body(TOKENS | {"n": 2})), "n", id="an unknown field"),
        pytest.param(begun(body({"prompt_tokens": [1, 2]})), "prompt_tokens", id="token ids that are not packed"),
        pytest.param(begun(body({"prompt_tokens": b"H\x01"})), "prompt_tokens", id="half a token id"),
        pytest.param(begun(body({"prompt_tokens": b"H"})), "prompt_tokens", id="no token ids"),
        pytest.param(begun(body(TOKENS | {"max_tokens": 0})), "max_tokens", id="no tokens asked for"),
        pytest.param(begun(body(TOKENS | {"max_tokens": True})), "max_tokens", id="a bool for a number"),
        pytest.param(begun(body(TOKENS | {"max_tokens": 1.5})), "max_tokens", id="a float for a number"),
        pytest.param(begun(body(TOKENS | {"temperature": float("nan")})), "temperature", id="NaN"),
        pytest.param(begun(body(TOKENS | {"top_p": float("inf")})), "top_p", id="infinity"),
        pytest.param(begun(body(TOKENS | {"stop": [""]})), "stop", id="an empty stop string"),
        pytest.param(begun(body({"messages": [{"role": "user"}]})), "messages[0]", id="a message without content"),
        pytest.param(begun(body(TOKENS, metadata=[1])), "metadata", id="metadata that is no map"),
        pytest.param(begun(b"\xdd\xff\xff\xff\xff"), "payload", id="an array that claims 4 G items"),
        pytest.param(begun(b"\xdf\xff\xff\xff\xff"), "payload", id="a map that claims 4 G items"),
        pytest.param(begun(b"\x91" * 1_000_000 + b"\xc0"), "payload", id="a million levels"),
        pytest.param(begun(b"\xdd\x00\x3d\x09\x00" + b"\x80" * 4_000_000), "payload", id="4 M empty maps"),
        pytest.param(begun(msgpack.packb(msgpack.ExtType(5, b"x"))), "payload", id="an extension type"),
        pytest.param(begun(b"\xa2\xff\xfe"), "payload", id="bad UTF-8"),
        pytest.param(begun(body(TOKENS) + b"\x00"), "payload", id="trailing bytes"),
        pytest.param(begun(b""), "payload", id="no body"),
        pytest.param(begun(b"\x80\x04\x95."), "payload", id="a pickle"),
        pytest.param(begun(body(TOKENS), header=HEADER.replace(b"1|", b"9|", 1)), "header", id="another version"),
        pytest.param(begun(b"", header=b"1|nonce"), "header", id="half a header"),
        pytest.param(begun(body(TOKENS), header=HEADER.replace(b"normal", b"urgent")), "priority", id="no such class"),
        pytest.param(begun(body(TOKENS), header=HEADER.replace(b"|0|6", b"|x|6")), "header", id="a timeout in words"),
        pytest.param(begun(body(TOKENS), stamp=b"x" * 16), "header", id="no acceptance time"),
        pytest.param(begun(body(TOKENS), header=HEADER.replace(b"nonce", b"\xff")), "header", id="a nonce of no text"),
        pytest.param(begun(body(TOKENS)[:-1]), "payload", id="a cut body"),
        pytest.param(begun(body(TOKENS)[:20]), "payload", id="a cut prompt"),
        pytest.param(begun(body(TOKENS)[:2]), "payload", id="hardly a body"),
        pytest.param(begun(body({"prompt_tokens": b"X12"})), "prompt_tokens", id="packed numbers of no known kind"),
    ],
)
@pytest.mark.parametrize("payloads", [Payloads(), KNOWN], ids=["alone", "behind good ones"])
def test_what_encode_would_not_have_made_is_refused_by_its_field(item: Begun, field: str, payloads: Payloads) -> None:
    with pytest.raises(InvalidRequest) as caught:
        opened(item, payloads)
    assert caught.value.field == field


def test_an_id_that_may_not_stand_in_a_key_is_refused_however_well_its_form_is_known() -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        opened(Begun("r 1", "RUN", begun(body(TOKENS)).payload, 1), KNOWN)


def test_a_payload_over_the_limit_is_refused_however_well_its_form_is_known() -> None:
    with pytest.raises(PayloadTooLarge):
        KNOWN.decode("r1", begun(body(TOKENS)).payload, 1, 10)


def test_a_prompt_that_is_named_twice_is_read_as_msgpack_reads_it() -> None:
    payloads = Payloads()
    pairs = [msgpack.packb("prompt_tokens") + msgpack.packb(pack_tokens([number])) for number in (1, 2)]
    data = begun(b"\x92\x82" + b"".join(pairs) + b"\xc0").payload
    assert [payloads.decode("r1", data, 1).request.prompt_tokens for _ in range(2)] == [[2], [2]]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 9, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 7, "stop": ["a"], "ignore_eos": True},
        {"priority": "low", "tenant": "t", "timeout": 3, "affinity_key": "k"},
        {"stream": True},
        {"sheddable": True},
        {"metadata": {"k": 1}},
    ],
)
def test_requests_of_one_form_come_out_as_if_each_came_alone(fields: dict[str, Any]) -> None:
    payloads = Payloads()
    for number in range(3):
        for other in ({}, fields):
            request = InferenceRequest(prompt_tokens=[number, 70_000 * number], **other)
            sent = encode(request, request_id=f"r{number}", nonce=f"n{number}", reply="reply", config=Config())
            arguments = f"r{number}", b"%016d" % number + sent.header + sent.body, number
            assert payloads.decode(*arguments) == decode_payload(*arguments)


def test_metadata_are_nobody_elses() -> None:
    payloads = Payloads()
    data = begun(body(TOKENS, {"k": 1})).payload
    first, second = (payloads.decode("r1", data, 1).request.metadata for _ in range(2))
    assert first == second
    assert first is not second


def test_no_more_forms_are_remembered_than_so_many() -> None:
    payloads = Payloads()
    for number in range(2 * MOST_FORMS):
        payloads.decode("r1", begun(body(TOKENS | {"seed": number})).payload, 1)
        payloads.decode("r1", begun(body(TOKENS | {"stop": ["x" * 200] * 3, "seed": number})).payload, 1)
    assert 0 < len(payloads._known) <= MOST_FORMS
    assert max(len(form[-1]) for form in payloads._known) <= FORM_BYTES


def test_the_nonce_of_an_unreadable_payload_is_still_found() -> None:
    assert nonce_of(begun(b"\xc1")) == "nonce"
    assert nonce_of(Begun("r1", "RUN", b"short", 1)) == ""


@pytest.mark.parametrize(
    "request_",
    [
        InferenceRequest(prompt_tokens=[1, 70_000, 2]),
        InferenceRequest(prompt="héllo", stop=["a", "b"], seed=7, temperature=0.5, metadata={"k": [1]}),
        InferenceRequest(messages=[{"role": "user", "content": "hi"}], tenant="t", priority="low", timeout=3),
        InferenceRequest(inputs={"x": [1, None]}, stream=True, ignore_eos=True, top_k=3, top_p=0.5, max_tokens=9),
    ],
)
def test_a_request_comes_back_as_it_was_sent(request_: InferenceRequest) -> None:
    sent = encode(request_, request_id="r1", nonce="nonce", reply="reply", config=Config())
    row = opened(Begun("r1", "RUN", STAMP + sent.header + sent.body, 1))
    back = row.payload.request
    for name in (
        "prompt",
        "inputs",
        "stop",
        "seed",
        "temperature",
        "top_k",
        "top_p",
        "max_tokens",
        "tenant",
        "timeout",
    ):
        assert getattr(back, name) == getattr(request_, name), name
    assert list(back.prompt_tokens or ()) == list(request_.prompt_tokens or ())
    assert (back.priority, back.stream, back.metadata) == (request_.priority, request_.stream, request_.metadata)


def test_without_a_seed_every_attempt_gets_the_same_one() -> None:
    first, second = (opened(begun(body(TOKENS))).work.sampling.seed for _ in range(2))
    assert first == second > 0


def test_the_bytes_of_text_are_counted_only_where_tokens_were_estimated() -> None:
    assert prompt_bytes(opened(begun(body({"prompt": "héllo"})))) == 6
    assert prompt_bytes(opened(begun(body(TOKENS)))) == 0


@pytest.mark.parametrize(
    "parameter",
    [
        {"max_tokens": 4},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"top_k": 5},
        {"seed": 0},
        {"stop": ["x"]},
        {"ignore_eos": True},
    ],
)
def test_a_parameter_that_the_engine_does_not_honour_is_refused_by_its_name(parameter: dict[str, Any]) -> None:
    item = begun(body(TOKENS | parameter))
    assert opened(item).payload.id == "r1"
    with pytest.raises(UnsupportedParameter) as caught:
        open_row(item, "1-a-1", CallableEngine("my_module:Model"), lambda: 0.0, 4 << 20)
    assert [caught.value.field] == list(parameter)


def record(attempt: int, offset: int, text: str, end: str = "") -> TokenRecord:
    return TokenRecord("1-0", attempt, offset, [ord(letter) for letter in text], text, end)


def given(*records: TokenRecord) -> tuple[list[int], str, int]:
    row = open_row(begun(body(TOKENS)), "1-a-1", SimEngine(load_profile("zero")), lambda: 0.0, 4 << 20, records)
    assert row.token_ids == list(row.work.generated)
    return list(row.work.generated), "".join(row.texts), row.published


def test_an_answer_goes_on_behind_what_a_reader_has() -> None:
    assert given() == ([], "", 0)
    assert given(record(1, 0, "ab"), record(1, 2, "c")) == ([97, 98, 99], "abc", 3)
    resumed = given(record(1, 0, "ab"), record(2, 2, "c"), record(1, 2, "x"), record(2, 2, "c"), record(3, 3, "d"))
    assert resumed == ([97, 98, 99, 100], "abcd", 4)


def test_what_began_anew_is_continued_from_its_last_beginning() -> None:
    assert given(record(1, 0, "ab"), record(2, 0, "c"), record(2, 1, "d")) == ([99, 100], "cd", 2)


def test_an_answer_whose_beginning_is_gone_begins_anew() -> None:
    assert given(record(1, 2, "c"), record(1, 3, "d")) == ([], "", 0)


@pytest.mark.parametrize(("cost", "expected"), [(None, None), (19, None), (500, None), (8, 5), (4, 1), (3, None)])
def test_room_is_expected_as_the_scheduler_reserved_it(cost: int | None, expected: int | None) -> None:
    # The header says 3 tokens of prompt; max_tokens is 16.
    row = open_row(begun(body(TOKENS)), "1-a-1", SimEngine(load_profile("zero")), lambda: 0.0, 4 << 20, (), cost)
    assert row.work.expected == expected
