"""resign: the lease ends at once, so that nobody waits for it to lapse."""

from __future__ import annotations

from protocol.rig import BELL_TTL, Added, Queue, changes
from stoker.store import scripts as s


def resign(q: Queue, token: str | None = None) -> str:
    """Give the lease up."""
    return q.store.run(s.resign(token or q.token))


def test_the_lease_ends_and_the_others_are_woken(q: Queue) -> None:
    before = q.before()
    assert resign(q) == "OK"
    assert changes(before, q.dump()) == {
        "leader": {"until": 0},
        "events": Added([q.event("resign", q.token, f"- resign {q.token}")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_resigning_again_changes_nothing(q: Queue) -> None:
    resign(q)
    before = q.before()
    assert resign(q) == "OK"
    assert changes(before, q.dump()) == {}


def test_a_standby_takes_over_at_once(q: Queue) -> None:
    resign(q)
    assert q.lead("other:1") == s.Lead("LEADER", "2:other:1", "g")


def test_whoever_resigned_may_lead_on_in_its_epoch(q: Queue) -> None:
    resign(q)
    assert q.lead() == s.Lead("LEADER", q.token, "g")


def test_one_who_does_not_lead_changes_nothing(q: Queue) -> None:
    before = q.before()
    assert resign(q, "1:other:1") == "OK"
    assert resign(q, "2:s:1") == "OK"
    assert changes(before, q.dump()) == {}


def test_without_any_leader_nothing_is_written(bare: Queue) -> None:
    before = bare.before()
    assert resign(bare, "1:s:1") == "OK"
    assert changes(before, bare.dump()) == {}
