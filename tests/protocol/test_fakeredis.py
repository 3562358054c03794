"""The scripts need nothing that fakeredis lacks, so that tests of clients and commands can do without a server."""

from __future__ import annotations

import fakeredis
import pytest

from protocol.rig import A, Queue, changes, ok, settlement
from stoker.config import Config
from stoker.request import InferenceRequest
from stoker.store import codec, reads
from stoker.store import scripts as s
from stoker.store.connection import Store


@pytest.fixture
def q() -> Queue:
    """A queue in a fake Redis, with a leader and the worker `A`."""
    queue = Queue(client=fakeredis.FakeRedis())
    queue.lead()
    queue.register(A)
    return queue


def test_a_request_goes_all_the_way(q: Queue) -> None:
    assert q.submit("a", "b", timeout=5) == ["ACCEPTED", "ACCEPTED"]
    assert q.submit("a") == ["SAME"]
    delivery = q.dispatch(A, "a", "b")
    [bell] = q.read(A)
    assert (bell.delivery, bell.ids) == (delivery, ("a", "b"))
    assert q.begin(A, delivery, "a", "b") == ["RUN", "RUN"]
    assert q.beat(A).word == "OK"
    assert q.settle(A, ok("a", delivery), settlement("b", delivery, "failure")) == ["OK", "OK"]
    generation, [first, second] = q.store.read(reads.outcomes(q.keys, ["a", "b"]))
    assert generation == "g"
    assert first is not None
    assert second is not None
    assert (first.status, first.body, second.status) == ("succeeded", b"done", "failed")
    assert [outcome.id for outcome in q.store.read(reads.wakeups(q.keys, "c", 0.01))] == ["a", "b"]
    assert q.dump()["credit"] == {A: 0}


def test_a_worker_dies_and_another_one_finishes(q: Queue) -> None:
    q.submit("a", stream=True)
    q.start(A, "a")
    q.lose(A, "crash", "a")
    q.register("b:1-x")
    delivery = q.start("b:1-x", "a")
    tokens = s.Published("a", delivery, "n-a", 2, 0, b"H\x01\x00", "x")
    assert q.store.run(s.flush("b:1-x", [tokens])) == ["OK"]
    assert q.store.run(s.flush("b:1-x", [tokens])) == ["OK"]
    assert q.settle("b:1-x", ok("a", delivery, attempt=2)) == ["OK"]
    assert len(q.dump()["tokens:a:n-a"]) == 2


def test_every_other_script_runs_too(q: Queue) -> None:
    q.submit("a", "b", "c", "d", timeout=500)
    delivery = q.start(A, "a", "b")
    assert q.settle(A, settlement("a", delivery, "retry")) == ["OK"]
    assert q.hand_back(A, ("b", delivery)) == "OK"
    q.now += 10**9
    assert q.promote() == 1
    assert q.expire() == []
    assert q.store.run(s.refuse(q.token, q.waiting("d"))) == "OK"
    assert q.store.run(s.retry_dead("d", "e", "n-e", "c")) == "OK"
    assert q.store.run(s.purge_dead(["d"])) == 0
    assert q.cancel("c") == "OK"
    assert q.store.run(s.incarnate()) == 1
    assert q.store.run(s.drain("a", True)) == "OK"
    assert q.store.run(s.deregister(A)) == "OK"
    assert q.store.run(s.set_tenant("t", {"weight": "2"})) == "OK"
    assert q.store.run(s.set_model("", b"")) == "OK"
    assert q.store.run(s.resign(q.token)) == "OK"


def test_the_real_clock_runs_too() -> None:
    config = Config(events=True)
    store = Store(config, client=fakeredis.FakeRedis())
    assert store.run(s.lead("s:1", "", "g", config)).word == "LEADER"
    request = codec.encode(InferenceRequest(prompt="hi"), request_id="a", nonce="n", reply="c", config=config)
    assert store.run(s.submit("g", 10**9, [request]))[1] == [s.Accepted("ACCEPTED")]


def test_calls_repeated_change_nothing_there_either(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.settle(A, ok("a", delivery))
    before = q.before()
    assert q.submit("a") == ["DONE"]
    assert q.cancel("a") == "DONE"
    assert changes(before, q.dump()) == {}
