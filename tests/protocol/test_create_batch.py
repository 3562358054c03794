"""create_batch: a batch file is accepted, once under its id."""

from __future__ import annotations

from protocol.batches import KEPT, WINDOW, create, due, end, lease
from protocol.rig import Queue, changes


def test_a_new_batch_waits_for_somebody_to_run_it(q: Queue) -> None:
    before = q.before()
    assert create(q) == "CREATED"
    gone = q.now + WINDOW + KEPT * 1_000_000
    assert changes(before, q.dump()) == {
        "batch:b": q.dump()["batch:b"],
        "batches": {"b": gone},
        "lapses": {"b": 0},
        "ttl": {"batch:b": 3600 + KEPT, "batches": 3600 + KEPT},
    }
    assert q.dump()["batch:b"] == {
        "spec": '{"a":1}',
        "digest": "d",
        "state": "queued",
        "want": "run",
        "round": 0,
        "epoch": 0,
        "runs": 0,
        "created": q.now,
        "deadline": q.now + WINDOW,
        "window": WINDOW,
        "until": 0,
        "holder": "",
    }
    assert due(q) == ["b"]


def test_creating_it_again_changes_nothing(q: Queue) -> None:
    create(q)
    lease(q)
    before = q.before()
    assert create(q) == "SAME"
    assert create(q, digest="other") == "CONFLICT"
    assert changes(before, q.dump()) == {}


def test_an_ended_batch_is_still_the_same_batch(q: Queue) -> None:
    create(q)
    lease(q)
    end(q)
    assert create(q) == "SAME"
    assert due(q) == []


def test_files_that_exist_go_on_from_their_epoch_and_round(q: Queue) -> None:
    create(q, epoch=7, round_=2)
    leased = lease(q)
    assert (leased.epoch, leased.round) == (8, 2)


def test_there_is_room_for_so_many(q: Queue) -> None:
    q.redis.zadd(q.key("batches"), {f"x{i}": q.now + 10 for i in range(10_000)})
    assert create(q) == "FULL"
    q.now += 11
    assert create(q) == "CREATED"
    assert list(q.dump()["batches"]) == ["b"]
