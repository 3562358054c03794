"""lease_batch: one run at a time, and a later run's number is higher."""

from __future__ import annotations

import pytest

from protocol.batches import LEASE, WINDOW, create, due, end, enqueue, lease, state, steer
from protocol.rig import Queue, changes
from stoker.store.batches import Leased


def test_the_first_run_takes_it(q: Queue) -> None:
    create(q)
    q.now += 5
    before = q.before()
    assert lease(q) == Leased("HELD", 1, "run", 0, WINDOW - 5, 5, '{"a":1}')
    until = q.now + LEASE
    assert changes(before, q.dump()) == {
        "batch:b": {"state": "running", "holder": "r1", "host": "host", "epoch": 1, "until": until},
        "lapses": {"b": until},
    }


def test_taking_it_again_after_a_lost_reply_gives_the_same(q: Queue) -> None:
    create(q)
    assert lease(q) == lease(q)


def test_another_run_does_not_get_it(q: Queue) -> None:
    create(q)
    lease(q)
    before = q.before()
    q.now += LEASE - 1
    assert lease(q, "r2").word == "LOST"
    assert changes(before, q.dump()) == {}


def test_renewing_notes_progress_and_hears_what_is_wanted(q: Queue) -> None:
    create(q)
    lease(q)
    steer(q, "cancel")
    q.now += LEASE - 1
    assert lease(q, epoch=1, progress='{"done":3}').want == "cancel"
    assert q.dump()["batch:b"]["progress"] == '{"done":3}'
    assert q.dump()["lapses"] == {"b": q.now + LEASE}


def test_a_lapsed_lease_goes_to_the_next_run_and_the_old_one_is_fenced(q: Queue) -> None:
    create(q)
    lease(q)
    q.now += LEASE
    assert lease(q, "r2").epoch == 2
    before = q.before()
    assert lease(q, epoch=1).word == "LOST"
    assert changes(before, q.dump()) == {}


def test_a_run_that_was_away_keeps_what_nobody_took(q: Queue) -> None:
    create(q)
    lease(q)
    q.now += 3 * LEASE
    enqueue(q)
    assert lease(q, epoch=1).word == "HELD"
    assert lease(q, "r2").word == "LOST"


def test_a_fenced_run_does_not_come_back_when_its_successor_left(q: Queue) -> None:
    create(q)
    lease(q)
    q.now += LEASE
    lease(q, "r2")
    end(q, "r2", "queued")
    assert lease(q, epoch=1).word == "LOST"
    assert lease(q, "r3").epoch == 3


@pytest.mark.parametrize("ended", ["completed", "cancelled", "expired", "failed", "paused"])
def test_what_is_over_or_paused_is_not_taken(q: Queue, ended: str) -> None:
    create(q)
    lease(q)
    steer(q, "pause")
    end(q, state=ended)
    assert state(q) == ended
    before = q.before()
    assert lease(q, "r2").word == "LOST"
    assert changes(before, q.dump()) == {}


def test_an_unknown_batch_has_no_lease(q: Queue) -> None:
    before = q.before()
    assert lease(q).word == "UNKNOWN"
    assert changes(before, q.dump()) == {}
    assert due(q) == []
