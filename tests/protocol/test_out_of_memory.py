"""A Redis at its memory limit takes nothing new, and every script that drains the queue still passes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from protocol import batches
from protocol.rig import A, B, H, Queue, T, changes, ok, settlement
from stoker.errors import RedisUnavailable
from stoker.store import scripts as s
from stoker.store.batches import remove_batch_file
from stoker_ops.embedded import EmbeddedRedis, ServerBinary, start

REFUSED = {"submit", "retry_dead", "create_batch", "write_batch_file"}
"""The scripts that put a request, or a batch of them and its files, into the queue."""


@pytest.fixture(scope="module")
def small_server(server_binary: ServerBinary) -> Iterator[EmbeddedRedis]:
    """A server of its own, for its settings change."""
    directory = tempfile.mkdtemp(prefix="stoker-t-", dir="/tmp")
    with start(directory, ephemeral=True, server=server_binary, extra_args=("--appendonly", "no")) as server:
        yield server


@pytest.fixture
def q(small_server: EmbeddedRedis) -> Iterator[Queue]:
    """A queue with a leader, no grace any more, and the worker `A`; its script cache is empty."""
    queue = Queue(small_server.url)
    queue.redis.flushall()
    queue.now = queue.now
    queue.lead()
    queue.tick(4 * H)
    queue.register(A)
    yield queue
    queue.store.close()
    queue.redis.close()


@contextmanager
def out_of_memory(q: Queue) -> Iterator[None]:
    """Let Redis be over its limit, with no script in its cache."""
    q.redis.script_flush()
    q.redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        q.redis.config_set("maxmemory", 0)


def _run(call: s.Call[object]) -> Callable[[Queue], object]:
    return lambda q: q.store.run(call)


def _running(q: Queue, **request: object) -> str:
    q.submit("a", **request)
    return q.start(A, "a")


def _delayed(q: Queue) -> None:
    q.settle(A, settlement("a", _running(q), "retry"))
    q.now += 60 * 1_000_000


def _buried(q: Queue) -> None:
    q.settle(A, settlement("a", _running(q), "failure"))


def _submitted(q: Queue) -> None:
    q.submit("a")


def _late(q: Queue) -> None:
    q.submit("a", timeout=1)
    q.tick(2 * H)


def _handed_over(q: Queue) -> None:
    q.submit("a")
    q.dispatch(A, "a")


def _reported(q: Queue) -> None:
    _running(q)
    q.report(A, "crash", "a")


def _lapsed(q: Queue) -> None:
    q.now += 2 * T


def _leased(q: Queue) -> None:
    batches.create(q)
    batches.lease(q)


def _nothing(_: Queue) -> None:
    pass


SCENARIOS: dict[str, tuple[Callable[[Queue], object], Callable[[Queue], object], object]] = {
    "beat": (_handed_over, lambda q: q.beat(A, capacity=5, costs={("a", "1-1-1"): 3}).word, "OK"),
    "enqueue_batch": (batches.create, batches.enqueue, 1),
    "lease_batch": (batches.create, lambda q: batches.lease(q).word, "HELD"),
    "end_batch": (_leased, batches.end, "OK"),
    "steer_batch": (_leased, lambda q: batches.steer(q, "cancel")[0], "OK"),
    "agree": (lambda q: q.store.run(s.deregister(A)), lambda q: q.store.run(s.agree(3)).word, "OK"),
    "begin": (_handed_over, lambda q: q.begin(A, "1-1-1", "a"), ["RUN"]),
    "cancel": (_submitted, lambda q: q.cancel("a"), "OK"),
    "deregister": (_nothing, _run(s.deregister(A)), "OK"),
    "dispatch": (_submitted, lambda q: q.offer(A, "a").words, ("TOOK",)),
    "drain": (_nothing, _run(s.drain("a", True)), "OK"),
    "expire": (_late, lambda q: q.expire(), ["a"]),
    "flush": (
        lambda q: _running(q, stream=True),
        _run(s.flush(A, [s.Published("a", "1-1-1", "n-a", 1, 0, b"H", "x")])),
        ["OK"],
    ),
    "hand_back": (_running, lambda q: q.hand_back(A, ("a", "1-1-1")), "OK"),
    "incarnate": (_nothing, _run(s.incarnate()), 1),
    "lead": (_lapsed, lambda q: q.lead("other:1").token, "2:other:1"),
    "make_room": (
        lambda q: _running(q, priority="batch"),
        lambda q: q.store.run(s.make_room(q.token, A, [("a", "1-1-1")])),
        ["OK", "ASKED"],
    ),
    "promote": (_delayed, lambda q: q.promote(), 1),
    "purge_dead": (_buried, _run(s.purge_dead(["a"])), 1),
    "reclaim": (_reported, lambda q: q.reclaim(A), 0),
    "remove_batch_file": (
        lambda q: batches.write(q, b"x"),
        lambda q: q.store.run(remove_batch_file("b", "out-1")),
        "OK",
    ),
    "refuse": (_submitted, lambda q: q.store.run(s.refuse(q.token, q.waiting("a"))), "OK"),
    "register": (_nothing, lambda q: q.register(B).word, "OK"),
    "report": (_running, lambda q: q.report(A, "crash", "a"), "OK"),
    "resign": (_nothing, lambda q: q.store.run(s.resign(q.token)), "OK"),
    "set_model": (lambda q: q.store.run(s.deregister(A)), _run(s.set_model("other", b"card")), "OK"),
    "set_tenant": (_nothing, _run(s.set_tenant("t", {"weight": "2"})), "OK"),
    "settle": (_running, lambda q: q.settle(A, ok("a", "1-1-1")), ["OK"]),
}


def test_every_script_is_named_here() -> None:
    assert set(SCENARIOS) | REFUSED == set(s.script_names())


@pytest.mark.parametrize("script", sorted(SCENARIOS))
def test_the_script_passes_and_writes_all_it_has_to(q: Queue, script: str) -> None:
    prepare, act, answer = SCENARIOS[script]
    prepare(q)
    before = q.before()
    with out_of_memory(q):
        assert act(q) == answer
    assert changes(before, q.dump()) != {}


def test_an_expiry_at_begin_passes(q: Queue) -> None:
    q.submit("a", timeout=1)
    delivery = q.dispatch(A, "a")
    q.now += 2 * H
    with out_of_memory(q):
        assert q.begin(A, delivery, "a") == ["LATE"]


def test_nothing_new_is_taken(q: Queue) -> None:
    before = q.before()
    with out_of_memory(q), pytest.raises(RedisUnavailable):
        q.submit("a")
    assert changes(before, q.dump()) == {}


def test_a_new_batch_is_not_taken_either(q: Queue) -> None:
    before = q.before()
    with out_of_memory(q), pytest.raises(RedisUnavailable):
        batches.create(q)
    assert changes(before, q.dump()) == {}


def test_an_empty_redis_takes_nothing_either(q: Queue) -> None:
    q.redis.delete(q.keys.generation)
    before = q.before()
    with out_of_memory(q), pytest.raises(RedisUnavailable):
        q.submit("a")
    assert changes(before, q.dump()) == {}


def test_what_was_taken_before_is_still_answered(q: Queue) -> None:
    q.submit("a", "b")
    q.cancel("b")
    with out_of_memory(q):
        assert q.submit("a", "b") == ["SAME", "DONE"]


def test_a_dead_letter_is_not_submitted_again(q: Queue) -> None:
    _buried(q)
    before = q.before()
    with out_of_memory(q), pytest.raises(RedisUnavailable):
        q.store.run(s.retry_dead("a", "b", "n-b", ""))
    assert changes(before, q.dump()) == {}


def test_a_whole_request_drains(q: Queue) -> None:
    q.submit("a", "b", "c", stream=True)
    with out_of_memory(q):
        delivery = q.start(A, "a", "b", "c")
        assert q.settle(A, ok("a", delivery), settlement("b", delivery, "failure")) == ["OK", "OK"]
        q.lose(A, "crash", "c")
    dump = q.dump()
    assert (dump["result:a"]["state"], dump["result:b"]["state"]) == ("succeeded", "failed")
    assert "c:3:4:x" in dump["lane:suspect"]
