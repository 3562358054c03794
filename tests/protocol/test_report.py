"""report: a child is dead, with its cause and crash set, so that its work can be taken back at once."""

from __future__ import annotations

import pytest

from protocol.rig import BELL_TTL, VOID_TTL, A, Added, B, Queue, changes
from stoker.store import scripts


def test_a_death_is_noted_with_its_cause_and_crash_set(q: Queue) -> None:
    before = q.before()
    assert q.report(A, "crash", "a", "b") == "OK"
    assert changes(before, q.dump()) == {
        "inc": {A: {"life": "dead", "cause": "crash", "crashed": "a b"}},
        "events": Added([q.event("report", A, f"- report {A} crash 2 a b")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_a_death_without_a_crash_set(q: Queue) -> None:
    before = q.before()
    assert q.report(A, "killed") == "OK"
    after = changes(before, q.dump())
    assert after["inc"] == {A: {"life": "dead", "cause": "killed"}}
    assert after["events"] == Added([q.event("report", A, f"- report {A} killed 0 ")])


@pytest.mark.parametrize("cause", ["crash", "killed"])
def test_the_first_report_counts(q: Queue, cause: str) -> None:
    q.report(A, "crash", "a")
    before = q.before()
    assert q.report(A, cause, "a", "b") == "OK"
    assert changes(before, q.dump()) == {}


def test_a_report_goes_over_superseded_so_that_the_crash_set_is_not_lost(q: Queue) -> None:
    q.register("a:2-y")
    q.report(A, "crash", "a")
    record = q.dump()["inc"][A]
    assert (record["life"], record["cause"], record["crashed"]) == ("dead", "crash", "a")


def test_a_report_of_one_that_is_not_there_is_ok(q: Queue) -> None:
    before = q.before()
    assert q.report(B, "crash", "a") == "OK"
    assert changes(before, q.dump()) == {}


def test_a_report_after_all_was_taken_back_changes_nothing(q: Queue) -> None:
    q.lose(A, "killed")
    before = q.before()
    assert q.report(A, "crash", "a") == "OK"
    assert changes(before, q.dump()) == {}


def test_a_death_of_the_quarantines_holder_is_said_to_be_one(q: Queue) -> None:
    """It was given crash suspects to find out: nothing speaks against the worker itself."""
    q.redis.set(q.key("quarantine"), f"{A}|1")
    assert q.store.run(scripts.report(A, "crash", ("a",))).quarantined
    assert not q.store.run(scripts.report(B, "crash", ())).quarantined


def test_an_obituary_is_kept_for_whoever_is_blamed(q: Queue) -> None:
    before = q.before()
    q.report(A, "crash", "a", obituary=b"its words")
    after = changes(before, q.dump())
    assert after[f"obituary:{A}"] == "its words"
    assert after["ttl"] == {"bell": BELL_TTL, f"obituary:{A}": VOID_TTL}
