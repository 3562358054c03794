"""What reaches a real worker past the SDK, by the submit script: refused by its field, and the same child lives on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from redis.exceptions import ResponseError

from helpers import wait_until
from stack_processes import Stack
from stoker import Client
from stoker.errors import InvalidRequest, PayloadTooLarge, UnsupportedParameter
from stoker.store import scripts
from stoker.store.codec import Submission
from stoker.store.connection import Store
from stoker.store.pack import pack_tokens

MOST_BYTES = 1 << 30
TOKENS = {"prompt_tokens": pack_tokens([1, 2, 3])}
numbers = itertools.count()


def body(core: Any, metadata: Any = None) -> bytes:
    packed: bytes = msgpack.packb([core, metadata])
    return packed


def header(size: int, **changes: str) -> bytes:
    fields = {"version": "1", "nonce": "n", "digest": "d", "class": "normal", "tenant": "", "timeout": "0"}
    fields |= {"term": "60000000", "tail": "3:16:x", "bytes": str(size), "reply": "", "stream": "0", "link": "", "": ""}
    return "|".join((fields | changes).values()).encode()


BODIES = [
    # what, the body, the field named, its limit, what was given
    ("no prompt at all", body({}), "prompt", "exactly one of prompt_tokens, prompt, messages and inputs", None),
    ("two prompts", body(TOKENS | {"prompt": "a"}), "prompt", "exactly one of", "2 list items"),
    ("an empty prompt", body({"prompt": ""}), "prompt", "non-empty string", ""),
    ("a prompt that is no text", body({"prompt": 7}), "prompt", "non-empty string", 7),
    ("an unknown field", body(TOKENS | {"max_token": 2}), "max_token", "did you mean max_tokens?", 2),
    ("a name of 1 MB", body(TOKENS | {"x" * 900_000: 2}), "x" * 100, "is no field of a request", 2),
    ("a field of bytes", body(TOKENS | {b"n": 2}), "b'n'", "is no field of a request", 2),
    ("token ids that are not packed", body({"prompt_tokens": [1, 2]}), "prompt_tokens", "packed token ids", "list"),
    ("half a token id", body({"prompt_tokens": b"H\x01"}), "prompt_tokens", "packed token ids", "bytes"),
    ("no token ids", body({"prompt_tokens": b"H"}), "prompt_tokens", "non-empty list", "0 list items"),
    (
        "a token past the vocabulary",
        body({"prompt_tokens": pack_tokens([70_000])}),
        "prompt_tokens",
        "from 0 to 65535",
        70_000,
    ),
    ("no tokens asked for", body(TOKENS | {"max_tokens": 0}), "max_tokens", "integer from 1", 0),
    ("a negative number of tokens", body(TOKENS | {"max_tokens": -5}), "max_tokens", "integer from 1", -5),
    ("a bool for a number", body(TOKENS | {"max_tokens": True}), "max_tokens", "integer from 1", True),
    ("a float for a number", body(TOKENS | {"max_tokens": 1.5}), "max_tokens", "integer from 1", 1.5),
    ("more than the context", body(TOKENS | {"max_tokens": 1 << 22}), "max_tokens", "must be at most 131072", 1 << 22),
    ("more than the cache holds", body(TOKENS | {"max_tokens": 1500}), "max_tokens", "cache of 1000 tokens", 1500),
    ("NaN", body(TOKENS | {"temperature": float("nan")}), "temperature", "finite number", None),
    ("infinity", body(TOKENS | {"top_p": float("inf")}), "top_p", "over 0 and at most 1", float("inf")),
    ("an empty stop string", body(TOKENS | {"stop": [""]}), "stop", "non-empty string", ""),
    ("a map for stops", body(TOKENS | {"stop": {"a": 1}}), "stop", "1 to 16 strings", None),
    ("a message without content", body({"messages": [{"role": "user"}]}), "messages[0]", "role and content", None),
    ("metadata that is no map", body(TOKENS, metadata=[1]), "metadata", "must be a mapping", "1 list items"),
    ("more than one answer", body(TOKENS | {"n": 2}), "n", "not honoured", 2),
    ("tools", body(TOKENS | {"tools": []}), "tools", "not honoured", "0 list items"),
    ("logprobs", body(TOKENS | {"logprobs": True}), "logprobs", "not honoured", True),
    ("more than a payload may have", body({"prompt": "x" * 2_000_000}), "request", "at most 1048576 bytes", 2_000_015),
    ("an array that claims 4 G items", b"\xdd\xff\xff\xff\xff", "payload", "plain msgpack value", 5),
    ("a map that claims 4 G items", b"\xdf\xff\xff\xff\xff", "payload", "plain msgpack value", 5),
    ("a string that claims 4 GB", b"\xdb\xff\xff\xff\xff", "payload", "plain msgpack value", 5),
    ("a million levels", b"\x91" * 1_000_000 + b"\xc0", "payload", "plain msgpack value", 1_000_001),
    ("nested claims", b"\xdd\x00\x04\x00\x00" * 500, "payload", "plain msgpack value", 2500),
    ("a million empty maps", b"\x94" + (b"\xdd\x00\x03\xff\xff" + b"\x80" * 262_136) * 4, "payload", "msgpack", None),
    ("an extension type", msgpack.packb(msgpack.ExtType(5, b"x")), "payload", "plain msgpack value", 3),
    ("an empty extension type", b"\xc7\x00\x05", "payload", "extension type 5", 3),
    ("a time stamp", msgpack.packb(msgpack.Timestamp(1)), "payload", "plain msgpack value", 6),
    ("bad UTF-8", b"\xa2\xff\xfe", "payload", "utf-8", 3),
    ("trailing bytes", body(TOKENS) + b"\x00", "payload", "extra data", None),
    ("no body", b"", "payload", "plain msgpack value", 0),
    ("a pickle", b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.", "payload", "msgpack value", 20),
    ("a number for a key", msgpack.packb([{1: 2}, None]), "payload", "map key", None),
    ("no pair", msgpack.packb([{}]), "payload", "must be [request, metadata] or", "list"),
    ("a number for an affinity key", msgpack.packb([TOKENS, None, 7]), "affinity_key", "non-empty string", 7),
]
KINDS = dict.fromkeys(("n", "tools", "logprobs"), UnsupportedParameter) | {"request": PayloadTooLarge}

HEADERS = [
    # what, the change, what the script says
    ("another version", {"version": "9"}, "BADHEADER"),
    ("no such class", {"class": "urgent"}, "BADHEADER"),
    ("the suspects' lane", {"class": "suspect"}, "BADHEADER"),
    ("a nonce with a blank", {"nonce": "a b"}, "BADHEADER"),
    ("a nonce with a new line", {"nonce": "a\nb"}, "BADHEADER"),
    ("a digest with a colon", {"digest": "a:b"}, "BADHEADER"),
    ("a tenant with a colon", {"tenant": "a:b"}, "BADHEADER"),
    ("a long tenant", {"tenant": "x" * 129}, "BADHEADER"),
    ("a negative timeout", {"timeout": "-1"}, "BADHEADER"),
    ("a timeout in words", {"timeout": "nan"}, "BADHEADER"),
    ("an infinite timeout", {"timeout": "9" * 320}, "BADHEADER"),
    ("a timeout over the maximum age", {"timeout": str(86_400 * 10**6 + 1)}, "BADHEADER"),
    ("a term that is infinite", {"term": "9" * 320}, "BADHEADER"),
    ("a term that makes scores inexact", {"term": "9" * 16}, "BADHEADER"),
    ("a tail with more than an affinity", {"tail": "1:16:x0123456gs"}, "BADHEADER"),
    ("a tail that is too long", {"tail": "1:16:x" + "0" * 32}, "BADHEADER"),
    ("a prompt of 10^30 tokens", {"tail": f"{10**30}:16:x"}, "BADHEADER"),
    ("another size than the body has", {"bytes": "1"}, "BADHEADER"),
    ("a reply channel with a colon", {"reply": "a:b"}, "BADHEADER"),
    ("a stream of 2", {"stream": "2"}, "BADHEADER"),
    ("a header that is too long", {"reply": "c" * 500}, "BADHEADER"),
]
IDS = {"no id": "", "an id with a blank": "a b", "with a colon": "a:b", "with a bar": "a|b", "too long": "x" * 129}


@pytest.fixture
def client(served: Stack) -> Iterator[Client]:
    with served.client() as client:
        yield client


@pytest.fixture
def store(served: Stack) -> Iterator[Store]:
    store = Store(served.config)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def the_child_lives(served: Stack) -> Iterator[None]:
    """Fail a test after which another child serves, something is still held, or no good request is answered."""
    before = served.incarnation("one")
    assert before
    yield
    assert served.incarnation("one") == before
    with served.client() as client:
        assert client.submit(prompt_tokens=[1, 2], max_tokens=2).result(timeout=60).usage.completion_tokens == 2
    wait_until(lambda: not served.held("one"), 30, what="nothing is held")


def submit(store: Store, request_id: str, data: bytes, **changes: str) -> str:
    item = Submission(request_id, "n", header(len(data), **changes), data)
    _, [answer] = store.run(scripts.submit("g", MOST_BYTES, [item]))
    return answer.word


@pytest.mark.parametrize(("data", "field", "limit", "value"), [row[1:] for row in BODIES], ids=[r[0] for r in BODIES])
def test_a_bad_body_fails_as_the_sdk_would_have_refused_it(
    store: Store, client: Client, data: bytes, field: str, limit: str, value: object
) -> None:
    name = f"bad-{next(numbers)}"
    assert submit(store, name, data) == "ACCEPTED"
    response = client.job(name).response(timeout=60)
    assert (response.status, response.attempts) == ("failed", 1)
    error = response.error
    assert isinstance(error, InvalidRequest), error
    assert type(error) is KINDS.get(field, InvalidRequest)
    assert error.field.startswith(field)
    assert limit in error.limit
    assert value is None or (type(error.value), error.value) == (type(value), value)
    assert client.dead_letters() == []


@pytest.mark.parametrize(("changes", "said"), [row[1:] for row in HEADERS], ids=[row[0] for row in HEADERS])
def test_a_bad_header_is_not_accepted(store: Store, client: Client, changes: dict[str, str], said: str) -> None:
    before = client.stats()["counts"]["submitted"]
    with pytest.raises(ResponseError, match=said):
        submit(store, f"bad-{next(numbers)}", body(TOKENS), **changes)
    assert client.stats()["counts"]["submitted"] == before


@pytest.mark.parametrize("request_id", IDS.values(), ids=IDS.keys())
def test_a_bad_id_is_not_accepted(store: Store, request_id: str) -> None:
    with pytest.raises(ResponseError, match="BADID of request 1"):
        submit(store, request_id, body(TOKENS))


def test_the_same_id_with_another_digest_is_a_conflict(store: Store) -> None:
    assert submit(store, "twice", body(TOKENS)) == "ACCEPTED"
    assert submit(store, "twice", body(TOKENS), digest="other") == "CONFLICT"


def test_good_requests_beside_bad_ones_are_answered(store: Store, client: Client) -> None:
    good = client.submit_many([[1, 2]] * 20)
    bad = [f"bad-{next(numbers)}" for _ in range(20)]
    for name in bad:
        submit(store, name, b"\xc1")
    assert {job.response(timeout=60).status for job in good} == {"succeeded"}  # type: ignore[union-attr]  # all are jobs
    assert {client.job(name).response(timeout=60).status for name in bad} == {"failed"}
