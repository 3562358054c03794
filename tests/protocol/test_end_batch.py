"""end_batch: a run leaves, and says how the batch stands."""

from __future__ import annotations

import pytest

from protocol.batches import KEPT, LEASE, WINDOW, create, due, end, lease, state, steer
from protocol.rig import GONE, Queue, changes
from stoker.store.batches import end_batch


def held(q: Queue) -> None:
    create(q)
    lease(q)


@pytest.mark.parametrize("ended", ["completed", "cancelled", "expired", "failed"])
def test_an_ended_batch_is_kept_for_a_while(q: Queue, ended: str) -> None:
    held(q)
    q.now += 5
    before = q.before()
    assert end(q, state=ended, why="why") == "OK"
    assert changes(before, q.dump()) == {
        "batch:b": {
            "state": ended,
            "progress": "{}",
            "why": "why",
            "holder": "",
            "last": "r1",
            "until": 0,
            "ended": q.now,
        },
        "batches": {"b": q.now + KEPT * 1_000_000},
        "lapses": GONE,
        "ttl": {"batch:b": KEPT},
    }


def test_without_progress_what_the_run_said_before_stays(q: Queue) -> None:
    held(q)
    lease(q, epoch=1, progress='{"done":3}')
    q.store.run(end_batch("b", "r1", "failed", "", "why"))
    assert q.dump()["batch:b"]["progress"] == '{"done":3}'


def test_ending_again_changes_nothing(q: Queue) -> None:
    held(q)
    end(q)
    before = q.before()
    assert end(q) == "OK"
    assert changes(before, q.dump()) == {}


def test_a_run_that_lost_the_lease_ends_nothing(q: Queue) -> None:
    held(q)
    q.now += LEASE
    lease(q, "r2")
    before = q.before()
    assert end(q) == "LOST"
    assert changes(before, q.dump()) == {}


def test_a_paused_batch_is_looked_at_again_when_its_window_ends(q: Queue) -> None:
    held(q)
    steer(q, "pause")
    assert end(q, state="paused") == "OK"
    assert (state(q), q.dump()["lapses"]) == ("paused", {"b": q.now + WINDOW})


@pytest.mark.parametrize("word", ["resume", "cancel"])
def test_what_was_asked_while_the_run_paused_is_not_forgotten(q: Queue, word: str) -> None:
    held(q)
    steer(q, "pause")
    steer(q, word)
    end(q, state="paused")
    assert (state(q), due(q)) == ("queued", ["b"])


def test_a_run_that_is_stopped_leaves_the_batch_to_the_next_at_once(q: Queue) -> None:
    held(q)
    end(q, state="queued")
    assert due(q) == ["b"]
    assert lease(q, "r2").epoch == 2


def test_an_unknown_batch_has_no_end(q: Queue) -> None:
    assert end(q) == "UNKNOWN"
