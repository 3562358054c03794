"""set_model: the queue's model changes once no worker of another one is registered."""

from __future__ import annotations

import pytest

from protocol.rig import GONE, A, Queue, changes
from stoker.store import scripts as s


def set_model(q: Queue, identity: str, card: bytes = b"card") -> str:
    """Replace the card."""
    return q.store.run(s.set_model(identity, card))


def test_a_queue_without_workers_takes_a_new_card(q: Queue) -> None:
    q.store.run(s.deregister(A))
    before = q.before()
    assert set_model(q, "other") == "OK"
    assert changes(before, q.dump()) == {"card": "other|card"}
    before = q.before()
    assert set_model(q, "other") == "OK"
    assert changes(before, q.dump()) == {}


@pytest.mark.parametrize("identity", ["other", ""])
def test_a_worker_of_another_model_keeps_its_card(q: Queue, identity: str) -> None:
    before = q.before()
    assert set_model(q, identity) == "BUSY"
    assert changes(before, q.dump()) == {}


def test_one_that_is_dead_but_not_yet_taken_back_keeps_the_card_too(q: Queue) -> None:
    q.report(A, "killed")
    assert set_model(q, "other") == "BUSY"
    q.reclaim(A)
    assert set_model(q, "other") == "OK"


def test_the_card_of_the_same_model_may_change_under_its_workers(q: Queue) -> None:
    before = q.before()
    assert set_model(q, "m", b"\x81\xa1k\x02") == "OK"
    assert set(changes(before, q.dump())) == {"card"}


def test_an_empty_identity_forgets_the_card_for_the_next_worker_to_fix(q: Queue) -> None:
    q.store.run(s.deregister(A))
    before = q.before()
    assert set_model(q, "") == "OK"
    assert changes(before, q.dump()) == {"card": GONE}
    assert q.register("b:1-x", identity="third").word == "OK"
    assert q.dump()["card"].startswith("third|")


def test_workers_of_the_old_model_are_refused_afterwards(q: Queue) -> None:
    q.store.run(s.deregister(A))
    set_model(q, "other")
    assert q.register("a:2-y").word == "OTHER_MODEL"
