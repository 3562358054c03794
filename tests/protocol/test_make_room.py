"""make_room: rows are asked for, their credit is free at once, and the worker hands them back."""

from __future__ import annotations

import pytest

from protocol.rig import A, Added, B, C, H, Queue, changes, member, ok
from stoker.store import reads
from stoker.store import scripts as s


def batch(q: Queue, *ids: str) -> str:
    """Start requests of class batch on A; gives their delivery."""
    q.submit(*ids, priority="batch")
    return q.start(A, *ids)


def ask(q: Queue, *items: tuple[str, str], token: str | None = None, inc: str = A) -> list[str]:
    return q.store.run(s.make_room(q.token if token is None else token, inc, items))


def test_a_row_that_is_asked_for_costs_nothing_from_then_on(q: Queue) -> None:
    delivery = batch(q, "a", "b")
    before = q.before()
    assert ask(q, ("a", delivery)) == ["OK", "ASKED"]
    assert changes(before, q.dump()) == {
        f"work:{A}": {"a": {"cost": 0}},
        "credit": {A: 7},
        f"stream:{A}": {"bells": [f"leave a {delivery}"]},
        "events": Added([q.event("make_room", q.token, f"a ask {delivery} {A}")]),
    }


@pytest.mark.parametrize("name", ["high", "normal", "low", "batch"])
def test_a_member_has_its_class_and_a_row_of_any_but_critical_is_asked(q: Queue, name: str) -> None:
    q.submit("a", priority=name)
    delivery = q.start(A, "a")
    assert q.dump()[f"work:{A}"] == {"a": member(delivery, state="R", since=q.now, name=name)}
    assert ask(q, ("a", delivery)) == ["OK", "ASKED"]


def test_asking_again_changes_nothing_and_is_answered_alike(q: Queue) -> None:
    delivery = batch(q, "a")
    ask(q, ("a", delivery))
    before = q.before()
    assert ask(q, ("a", delivery)) == ["OK", "ASKED"]
    assert changes(before, q.dump()) == {}


def test_one_call_asks_for_each_once(q: Queue) -> None:
    delivery = batch(q, "a", "b")
    assert ask(q, ("a", delivery), ("b", delivery), ("a", delivery)) == ["OK", "ASKED", "ASKED", "ASKED"]
    assert q.dump()["credit"] == {A: 0}


def test_whoever_does_not_lead_asks_for_nothing(q: Queue) -> None:
    delivery = batch(q, "a")
    before = q.before()
    assert ask(q, ("a", delivery), token="0:other:1") == ["FENCED"]
    assert changes(before, q.dump()) == {}


def test_critical_requests_and_suspects_keep_their_rows(q: Queue) -> None:
    q.submit("a", priority="critical")
    delivery = q.start(A, "a")
    q.register(B)
    q.register(C)
    q.submit("s", priority="batch")
    q.start(B, "s")
    q.lose(B, "crash", "s")
    suspect = q.start(C, "s")
    before = q.before()
    assert ask(q, ("a", delivery)) == ["OK", "SPARED"]
    assert ask(q, ("s", suspect), inc=C) == ["OK", "SPARED"]
    assert changes(before, q.dump()) == {}


def test_a_row_under_another_delivery_or_cancelled_is_gone(q: Queue) -> None:
    delivery = batch(q, "a", "b")
    q.cancel("b")
    before = q.before()
    assert ask(q, ("a", "0-x-1"), ("b", delivery), ("nobody", delivery)) == ["OK", "GONE", "GONE", "GONE"]
    assert changes(before, q.dump()) == {}


def test_a_preempted_row_is_spared_for_twice_as_long_each_time(q: Queue) -> None:
    delivery = batch(q, "a")
    for seconds in (1, 2, 4):
        assert ask(q, ("a", delivery)) == ["OK", "ASKED"]
        q.hand_back(A, ("a", delivery))
        delivery = q.start(A, "a")
        q.tick(seconds * H - 1, A)
        assert ask(q, ("a", delivery)) == ["OK", "SPARED"]
        q.now += 1


@pytest.mark.parametrize("begun", [True, False], ids=["running", "not begun"])
def test_a_row_that_was_asked_for_goes_back_uncharged_and_notes_why(q: Queue, begun: bool) -> None:
    q.submit("a", priority="batch")
    delivery = q.start(A, "a") if begun else q.dispatch(A, "a")
    ask(q, ("a", delivery))
    assert q.hand_back(A, ("a", delivery)) == "OK"
    flight, dump = q.dump()["flight:a"], q.dump()
    assert (flight["state"], flight["failures"], flight["losses"]) == ("Q", 0, 0)
    assert flight["history"] == (f"{A},preempted" if begun else "")
    assert dump["credit"] == {A: 0}
    assert dump["counts"]["preempted"] == 1


def test_its_room_is_given_away_before_it_left(q: Queue) -> None:
    ids = [f"r{i}" for i in range(8)]
    delivery = batch(q, *ids)
    q.submit("urgent")
    assert q.offer(A, "urgent").words == ("FULL",)
    ask(q, (ids[0], delivery))
    assert q.offer(A, "urgent").words == ("TOOK",)
    bells = q.store.read(reads.doorbells(q.keys, A, own=False, block_ms=10, count=10))
    assert [bell.leave for bell in bells] == [((ids[0], delivery),), ()]


def test_a_corrected_cost_does_not_take_the_room_again(q: Queue) -> None:
    delivery = batch(q, "a")
    ask(q, ("a", delivery))
    q.beat(A, costs={("a", delivery): 9})
    assert q.dump()["credit"] == {A: 0}


def test_a_row_that_ends_before_it_leaves_is_answered(q: Queue) -> None:
    delivery = batch(q, "a")
    ask(q, ("a", delivery))
    assert q.settle(A, ok("a", delivery)) == ["OK"]
    assert q.dump()["credit"] == {A: 0}
