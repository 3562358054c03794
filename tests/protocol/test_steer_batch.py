"""steer_batch: cancel, pause, resume and retry, whether a run is there or not."""

from __future__ import annotations

import pytest

from protocol.batches import LEASE, WINDOW, create, due, end, lease, steer
from protocol.rig import Queue, changes


@pytest.mark.parametrize(("word", "want"), [("cancel", "cancel"), ("pause", "pause"), ("resume", "run")])
def test_a_run_is_told_what_is_wanted(q: Queue, word: str, want: str) -> None:
    create(q)
    lease(q)
    assert steer(q, word) == ("OK", "running")
    assert lease(q, epoch=1).want == want
    before = q.before()
    assert steer(q, word) == ("OK", "running")
    assert changes(before, q.dump()) == {}


def test_a_cancelled_batch_cannot_be_paused_or_resumed(q: Queue) -> None:
    create(q)
    lease(q)
    steer(q, "cancel")
    before = q.before()
    assert steer(q, "pause") == ("OK", "running")
    assert steer(q, "resume") == ("OK", "running")
    assert changes(before, q.dump()) == {}


def test_a_batch_that_nobody_runs_is_paused_at_once_and_resumed(q: Queue) -> None:
    create(q)
    assert steer(q, "pause") == ("OK", "paused")
    assert due(q) == []
    assert q.dump()["lapses"] == {"b": q.now + WINDOW}
    assert steer(q, "resume") == ("OK", "queued")
    assert due(q) == ["b"]
    assert lease(q).want == "run"


def test_a_paused_batch_that_is_cancelled_gets_a_run_to_write_its_lines(q: Queue) -> None:
    create(q)
    steer(q, "pause")
    assert steer(q, "cancel") == ("OK", "queued")
    assert due(q) == ["b"]
    assert lease(q).want == "cancel"


def test_a_lapsed_run_counts_as_none(q: Queue) -> None:
    create(q)
    lease(q)
    q.now += LEASE
    assert steer(q, "pause") == ("OK", "paused")


@pytest.mark.parametrize("word", ["cancel", "pause", "resume"])
def test_what_is_over_stays_over(q: Queue, word: str) -> None:
    create(q)
    lease(q)
    end(q)
    before = q.before()
    assert steer(q, word) == ("ENDED", "completed")
    assert changes(before, q.dump()) == {}


def test_a_failed_batch_can_be_resumed(q: Queue) -> None:
    create(q)
    lease(q)
    end(q, state="failed", why="disk full")
    assert steer(q, "resume") == ("OK", "queued")
    assert due(q) == ["b"]
    assert "why" not in q.dump()["batch:b"]


@pytest.mark.parametrize("ended", ["completed", "cancelled", "expired", "failed"])
def test_a_retry_is_a_new_round_with_a_new_window_once(q: Queue, ended: str) -> None:
    create(q)
    lease(q)
    end(q, state=ended)
    q.now += 10
    assert steer(q, "retry", 0) == ("OK", "queued")
    after = q.dump()["batch:b"]
    assert (after["round"], after["deadline"], after["want"]) == (1, q.now + WINDOW, "run")
    before = q.before()
    assert steer(q, "retry", 0) == ("OK", "queued")
    assert changes(before, q.dump()) == {}
    assert lease(q, "r2").round == 1


def test_a_live_batch_is_not_retried(q: Queue) -> None:
    create(q)
    assert steer(q, "retry") == ("LIVE", "queued")


def test_an_unknown_batch_cannot_be_steered(q: Queue) -> None:
    assert steer(q, "cancel") == ("UNKNOWN", "")
