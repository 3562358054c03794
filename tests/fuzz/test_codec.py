"""Whatever bytes and values come: a value or the documented error, and memory in proportion."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
from hypothesis import strategies as st

from fuzz.cases import fuzz, mutated, words
from stoker import Config
from stoker._calls import as_request, response_from
from stoker.errors import InvalidRequest, StokerError
from stoker.request import FIELDS, InferenceRequest
from stoker.store import codec
from stoker.store.pack import pack_tokens, unpack, unpack_tokens
from stoker.store.payloads import Payloads
from stoker.store.reads import token_record

FIXED_BYTES = 8 << 20
STAMP = b"1795533457829043"
CONFIG = Config()

# --- values ---------------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | words
    | st.binary(max_size=8)
    | st.sampled_from([10**400, 1 << 64, math.inf, -0.0, object(), msgpack.Timestamp(1), msgpack.ExtType(5, b"")])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4),
    max_leaves=12,
)
fields = st.dictionaries(st.sampled_from([*sorted(FIELDS), "n", "tools", "max_token", "x"]), values, max_size=5)


@fuzz(3, given=fields, prompted=st.booleans())
def test_any_fields_make_a_request_that_a_worker_reads_back_or_are_refused(
    given: dict[str, Any], prompted: bool
) -> None:
    try:
        request = as_request(None, {"prompt": "hi", **given} if prompted else given)
        sent = codec.encode(request, request_id="a", nonce="n", reply="c", config=CONFIG)
    except InvalidRequest as error:
        assert error.field
        assert len(str(error)) < 1000
        return
    back = codec.decode_payload("a", STAMP + sent.header + sent.body, 1, CONFIG.payload_bytes).request
    for name in sorted(FIELDS - {"request_id", "timeout"}):
        assert same(getattr(back, name), getattr(request, name)), name
    # Sent in whole microseconds, at least one.
    assert back.timeout == (None if request.timeout is None else max(1, int(request.timeout * 1e6)) / 1e6)


def same(left: Any, right: Any) -> bool:
    """Whether a value came back: msgpack has one kind of list, and NaN is itself here."""
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right)


# --- bytes ----------------------------------------------------------------------------------------------------------

claims = st.sampled_from([b"\xdc", b"\xdd\x00", b"\xde", b"\xdf\x00", b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
pieces = (
    st.binary(max_size=12)
    | st.builds(lambda head, size: head + size, claims, st.binary(min_size=3, max_size=5))
    | st.builds(lambda byte, n: bytes([byte]) * n, st.integers(0, 255), st.integers(1, 2000))
    | st.sampled_from([b"\xdd\x00\x04\x00\x00" * 300, b"\x91" * 5000])
    | st.recursive(st.none() | st.integers(0, 99) | st.text(max_size=3), lambda v: st.lists(v, max_size=3)).map(
        msgpack.packb
    )
)


def alike(number: int, item: bytes, times: int) -> bytes:
    """Some equal arrays of equal items, well formed: what costs most for its bytes."""
    return bytes([0x90 + times]) + (b"\xdd" + number.to_bytes(4, "big") + item * number) * times


items = st.sampled_from([b"\x80", b"\x90", b"\x00", b"\xc0", b"\xa2ab", b"\xcd\x7f\xff", b"\x81\xa0\xc0", b"\xa0"])
large = st.builds(alike, st.integers(0, 1 << 18), items, st.integers(1, 4))


@fuzz(4, data=st.lists(pieces, max_size=4).map(b"".join) | large)
def test_any_bytes_are_one_value_or_refused_and_take_memory_in_proportion(data: bytes) -> None:
    tracemalloc.start()
    try:
        unpack(data)
    except InvalidRequest as error:
        assert error.field == "payload"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 24 * len(data) + FIXED_BYTES


GOOD = codec.encode(
    InferenceRequest(
        prompt_tokens=[1, 70_000], stop=["a"], seed=7, metadata={"k": [1]}, timeout=5, tenant="t", affinity_key="k"
    ),
    request_id="a",
    nonce="n",
    reply="c",
    config=CONFIG,
)


@fuzz(3, data=mutated(STAMP + GOOD.header + GOOD.body))
def test_a_changed_payload_is_a_request_or_refused(data: bytes) -> None:
    try:
        payload = codec.decode_payload("a", data, 1, CONFIG.payload_bytes)
    except InvalidRequest as error:
        assert unpack(codec.encode_failure(str(error), error))["field"]
    else:
        assert isinstance(payload.request, InferenceRequest)


SHARED = codec.encode(
    InferenceRequest(prompt_tokens=[1, 70_000], stop=["a"], seed=7, timeout=5, tenant="t", affinity_key="k"),
    request_id="a",
    nonce="n",
    reply="c",
    config=CONFIG,
)


@fuzz(3, data=mutated(STAMP + SHARED.header + SHARED.body))
def test_what_is_remembered_of_good_payloads_changes_nothing_for_others(data: bytes) -> None:
    payloads = Payloads()
    payloads.decode("a", STAMP + SHARED.header + SHARED.body, 1, CONFIG.payload_bytes)

    def found(decode: Callable[..., codec.Payload]) -> tuple[codec.Payload | None, str]:
        try:
            return decode("a", data, 1, CONFIG.payload_bytes), ""
        except InvalidRequest as error:
            return None, str(error)

    assert found(payloads.decode) == found(codec.decode_payload)


ANSWERS = [
    codec.encode_answer(text="hello", token_ids=[1, 2], prompt=3, completion=2, first_token_us=5, metadata={"a": 1}),
    codec.encode_answer(output={"scores": [0.5, 1.0]}),
    codec.encode_failure("no", InvalidRequest("prompt", "must be short", 5)),
    codec.encode_failure("it broke"),
]
HEAD = b"%s|n|d|a|1|2|3|1||one:1-x||%d|"
OUTCOMES = [HEAD % (state, len(body)) + body for body in ANSWERS for state in (b"succeeded", b"failed")]


def outcome_is_readable(data: bytes) -> None:
    try:
        outcome = codec.decode_outcome(data)
    except ValueError:
        return
    response = response_from(outcome)
    assert response.request_id == outcome.id
    assert response.error is None or isinstance(response.error, StokerError)


@fuzz(3, data=st.sampled_from(OUTCOMES).flatmap(mutated))
def test_a_changed_result_is_a_response_or_a_value_error(data: bytes) -> None:
    outcome_is_readable(data)


KEYS = st.sampled_from([*codec.ANSWER, "output", "metadata", "value", "x"])


@fuzz(2, body=st.dictionaries(KEYS, values.filter(lambda value: packable(value)), max_size=6) | st.binary(max_size=8))
def test_a_result_that_says_anything_is_a_response(body: Any) -> None:
    packed = msgpack.packb(body)
    for state in (b"succeeded", b"failed", b"expired", b"cancelled", b"other"):
        outcome_is_readable(HEAD % (state, len(packed)) + packed)


def packable(value: object) -> bool:
    try:
        msgpack.packb(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


@fuzz(1, ids=mutated(pack_tokens([1, 2, 70_000])), entry=st.text(max_size=4), text=st.binary(max_size=6))
def test_a_changed_piece_of_a_stream_is_a_record_or_a_value_error(ids: bytes, entry: str, text: bytes) -> None:
    try:
        assert all(0 <= token <= 0xFFFF_FFFF for token in unpack_tokens(ids))
        token_record(entry, {b"ids": ids, b"text": text})
    except ValueError:
        pass
