"""enqueue_batch: who finds a batch that nobody runs numbers its next run, once."""

from __future__ import annotations

from protocol.batches import LEASE, WINDOW, create, due, end, enqueue, lease, state, steer
from protocol.rig import Queue, changes


def test_the_next_run_is_numbered_and_given_time(q: Queue) -> None:
    create(q)
    before = q.before()
    assert enqueue(q) == 1
    assert changes(before, q.dump()) == {"batch:b": {"runs": 1, "by": "s1"}, "lapses": {"b": q.now + LEASE}}


def test_asking_again_after_a_lost_reply_gives_the_same_number(q: Queue) -> None:
    create(q)
    enqueue(q)
    before = q.before()
    assert enqueue(q) == 1
    assert changes(before, q.dump()) == {}


def test_of_two_who_look_one_numbers_it(q: Queue) -> None:
    create(q)
    assert enqueue(q, nonce="s1") == 1
    assert enqueue(q, nonce="s2") is None


def test_what_is_held_or_over_is_left_alone(q: Queue) -> None:
    create(q)
    lease(q)
    before = q.before()
    assert enqueue(q) is None
    assert changes(before, q.dump()) == {}
    end(q)
    assert enqueue(q) is None


def test_a_lapsed_run_gets_a_successor(q: Queue) -> None:
    create(q)
    enqueue(q)
    lease(q)
    q.now += LEASE
    assert due(q) == ["b"]
    assert enqueue(q, runs=1, nonce="s2") == 2
    assert state(q) == "queued"


def test_a_paused_batch_gets_a_run_only_when_its_window_has_ended(q: Queue) -> None:
    create(q)
    steer(q, "pause")
    assert enqueue(q) is None
    q.now += WINDOW
    assert enqueue(q, nonce="s2") == 1
    assert lease(q).left_us == 0


def test_what_is_no_longer_known_is_no_longer_looked_at(q: Queue) -> None:
    q.redis.zadd(q.key("lapses"), {"b": 0})
    assert enqueue(q) is None
    assert due(q) == []
