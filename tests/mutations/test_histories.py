"""Short lives of a queue in which something goes wrong, and the history checker's word on each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import redis

from protocol.rig import A, B, C, H, L, Queue, T, ok, settlement
from stoker.store import scripts as s
from stoker_ops.history import HistoryChecker


def history(q: Queue) -> HistoryChecker:
    """Return a checker that has seen all of the queue's history."""
    checker = HistoryChecker(T)
    checker.feed_all(fields for _, fields in q.redis.xrange(q.keys.events))
    return checker


def assert_clean(q: Queue) -> None:
    assert history(q).violations == []


# --- who may act ----------------------------------------------------------------------------------------------------


def test_a_token_of_the_same_epoch_does_nothing(q: Queue) -> None:
    q.submit("a", "b")
    q.lose(A, "killed")
    q.register(B)
    other = q.token.partition(":")[0] + ":other:nonce"
    q.n += 1
    q.offer_again(B, "a", token=other)
    q.store.run(s.refuse(other, q.waiting("b")))
    assert_clean(q)
    assert history(q).totals() == {"submitted": 2, "live": 2}


def test_leaders_follow_each_other_in_rising_epochs(q: Queue) -> None:
    for scheduler in ("t:2", "u:3", "s:1"):
        q.now += L + 1
        assert q.lead(scheduler).word == "LEADER"
    assert_clean(q)


# --- whose row it is ------------------------------------------------------------------------------------------------


def test_an_incarnation_that_is_over_gets_nothing(q: Queue) -> None:
    q.submit("a")
    q.report(A, "killed")
    q.offer(A, "a")
    assert_clean(q)


def test_a_doorbell_of_an_attempt_that_moved_on_begins_nothing(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.dispatch(A, "a")
    q.cancel("a")
    q.redis.delete(q.key("result:a"))
    q.submit("a", nonce="n-2")
    q.dispatch(B, "a")
    q.begin(A, first, "a")
    assert_clean(q)


def test_who_took_leave_does_not_come_back(q: Queue) -> None:
    q.register(B)
    assert q.store.run(s.deregister(B)) == "OK"
    q.register(B)
    assert_clean(q)


# --- order ----------------------------------------------------------------------------------------------------------


def test_a_score_never_changes_on_any_way_back_into_the_lane(q: Queue) -> None:
    q.submit("a")
    q.now += 1
    q.hand_back(A, ("a", q.start(A, "a")))
    q.settle(A, settlement("a", q.start(A, "a"), "retry", attempt=2))
    q.tick(H, A)
    assert q.promote() == 1
    q.start(A, "a")
    q.lose(A, "killed")
    assert_clean(q)


def test_arrivals_keep_their_order_over_a_clock_set_back(q: Queue) -> None:
    q.submit("a")
    q.now -= 600_000_000
    q.submit("b")
    assert_clean(q)


# --- time -----------------------------------------------------------------------------------------------------------


def test_nothing_lapses_by_time_in_a_grace(q: Queue) -> None:
    q.submit("a", timeout=1)
    q.start(A, "a")
    q.now += 10 * H
    q.reclaim(A)
    q.expire()
    assert_clean(q)


def test_nothing_begins_after_its_deadline(q: Queue) -> None:
    q.submit("a", timeout=1)
    delivery = q.dispatch(A, "a")
    q.now += 1_000_000
    q.begin(A, delivery, "a")
    assert_clean(q)


def test_a_lost_doorbell_rings_again_after_a_lease(q: Queue) -> None:
    lose_the_doorbell_of_one(q)
    q.tick(4 * H, A)
    assert [bell.ids for bell in q.read(A)] == [("a",)]


def test_a_lost_doorbell_rings_again_after_a_clock_set_back(q: Queue) -> None:
    lose_the_doorbell_of_one(q)
    q.now -= 600_000_000
    q.tick(H, A)
    assert [bell.ids for bell in q.read(A)] == [("a",)]


def lose_the_doorbell_of_one(q: Queue) -> None:
    q.submit("a")
    q.dispatch(A, "a")
    q.redis.xtrim(q.keys.stream(A), maxlen=0)


# --- a caller may die in any call -----------------------------------------------------------------------------------


def test_every_request_ends_whatever_call_its_caller_dies_in(q: Queue) -> None:
    q.submit("a", "b")
    for inc, outcome in ((A, "retry"), (B, "ok"), (C, "ok"), ("d:2-x", "ok")):
        q.register(inc)
        serve(q, inc, outcome)
        q.lose(inc, "killed")
        q.tick(2 * H)
        unless_it_dies(q.promote)
    assert_clean(q)
    assert history(q).totals() == {"submitted": 2, "succeeded": 2}


def unless_it_dies(call: Callable[[], object]) -> None:
    """Make a call whose caller may die in the middle of it: what was planted as two calls says so by an error."""
    with contextlib.suppress(redis.ResponseError):
        call()


def serve(q: Queue, inc: str, outcome: str) -> None:
    """Hand all that waits to a worker; it begins what it holds, and settles that one after the other."""
    waiting = [member.decode().partition(":")[0] for member in q.redis.zrange(q.key("lane:normal"), 0, -1)]
    unless_it_dies(lambda: q.offer(inc, *waiting))
    for name, text in q.redis.hgetall(q.keys.work(inc)).items():
        request_id, delivery = name.decode(), text.decode().partition("|")[0]
        [begun] = q.begun(inc, delivery, request_id)
        end = ok if outcome == "ok" else lambda *words, **more: settlement(*words, "retry", **more)
        item = end(request_id, delivery, attempt=begun.attempt)
        unless_it_dies(lambda item=item: q.settle(inc, item))
