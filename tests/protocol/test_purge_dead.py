"""purge_dead: dead letters are forgotten."""

from __future__ import annotations

from protocol.rig import GONE, A, Queue, changes, settlement
from stoker.store import scripts as s


def purge(q: Queue, *ids: str) -> int:
    """Forget dead letters."""
    return q.store.run(s.purge_dead(ids))


def _bury(q: Queue, *ids: str) -> None:
    q.submit(*ids)
    delivery = q.start(A, *ids)
    q.settle(A, *(settlement(i, delivery, "failure") for i in ids))


def test_named_letters_are_forgotten(q: Queue) -> None:
    _bury(q, "a", "b", "c")
    before = q.before()
    assert purge(q, "a", "c", "other") == 2
    assert changes(before, q.dump()) == {
        "dead": {"a": GONE, "c": GONE},
        "dead:a": GONE,
        "dead:c": GONE,
        "ttl": {"dead:a": GONE, "dead:c": GONE},
    }


def test_purging_again_changes_nothing(q: Queue) -> None:
    _bury(q, "a")
    purge(q, "a")
    before = q.before()
    assert purge(q, "a") == 0
    assert changes(before, q.dump()) == {}


def test_purging_nothing_is_nothing(q: Queue) -> None:
    before = q.before()
    assert purge(q) == 0
    assert changes(before, q.dump()) == {}


def test_results_of_purged_letters_stay(q: Queue) -> None:
    _bury(q, "a")
    purge(q, "a")
    assert q.dump()["result:a"]["state"] == "failed"


def test_a_letter_whose_text_has_expired_leaves_the_list(q: Queue) -> None:
    _bury(q, "a")
    q.redis.delete(q.keys.dead("a"))
    assert purge(q, "a") == 0
    assert "dead" not in q.dump()


def test_512_go_in_one_call(q: Queue) -> None:
    assert purge(q, *(f"r{i}" for i in range(512))) == 0
