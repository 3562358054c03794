"""Requests that a worker takes ahead: as many as it begins soon, the better class first, and none waits for ever."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from stoker.request import RequestPriority
from stoker_workers.ahead import AGED_S, LET_GO_S, Ahead, in_turn, overdue


def counters(*, steps: int, rows: int, ms: float, ended: int) -> dict[str, int]:
    """Return the totals after so many steps of so many rows, each of so many milliseconds."""
    return {
        "steps": steps,
        "row_steps": steps * rows,
        "busy_us": int(steps * ms * 1000),
        "finished": ended,
        "faults": 3,
    }


@dataclass
class Waiting:
    name: str
    priority: RequestPriority
    begun_s: float


@pytest.mark.parametrize(
    ("what", "totals", "expected"),
    [
        ("nothing has ended yet", counters(steps=9, rows=4, ms=20, ended=0), 0),
        ("a row lasts one step of 20 ms: two and a half rows after each other, but at most one a row", (1, 20), 8),
        ("a row lasts 10 steps of 10 ms", (10, 10), 4),
        ("a row lasts 200 steps of 20 ms", (200, 20), 0),
        ("a step takes no time", (1, 0), 8),
    ],
)
def test_a_worker_takes_ahead_what_it_begins_within_the_time(what: str, totals: object, expected: int) -> None:
    if isinstance(totals, tuple):
        steps_of_a_row, ms = totals
        totals = counters(steps=100 * steps_of_a_row, rows=8, ms=ms, ended=800)
    assert isinstance(totals, dict)
    assert Ahead(8, 50).observe(totals) == expected, what


def test_half_full_steps_say_as_well_how_long_a_row_lasts() -> None:
    full, half = Ahead(8, 50), Ahead(8, 50)
    assert full.observe(counters(steps=100, rows=8, ms=10, ended=80)) == 4
    assert half.observe(counters(steps=100, rows=4, ms=10, ended=40)) == 4


def test_what_was_learned_stays_while_nothing_runs() -> None:
    ahead, before = Ahead(8, 50), counters(steps=100, rows=8, ms=10, ended=80)
    assert [ahead.observe(before) for _ in range(9)] == [4] * 9


def test_rows_that_go_on_without_an_end_let_a_worker_take_nothing_ahead_soon() -> None:
    ahead = Ahead(8, 50)
    seen = [ahead.observe(counters(steps=100 + 100 * beat, rows=8, ms=10, ended=80)) for beat in range(4)]
    assert seen[0] == 4
    assert seen[-1] == 0


def test_longer_rows_are_noticed_within_some_heartbeats() -> None:
    ahead, before = Ahead(8, 50), counters(steps=1000, rows=8, ms=10, ended=800)
    seen = [ahead.observe(before)]
    for beat in range(1, 9):
        seen.append(ahead.observe(counters(steps=1000 + 100 * beat, rows=8, ms=10, ended=800 + 4 * beat)))
    assert seen[0] == 4
    assert seen[-1] == 0
    assert sorted(seen, reverse=True) == seen


def test_nothing_is_taken_ahead_where_the_time_is_none() -> None:
    assert Ahead(8, 0).observe(counters(steps=100, rows=8, ms=1, ended=800)) == 0


def test_the_better_class_goes_in_first_and_its_own_in_order() -> None:
    came = [("b", "batch"), ("n1", "normal"), ("c", "critical"), ("n2", "normal"), ("l", "low"), ("h", "high")]
    waiting = [Waiting(name, RequestPriority(priority), 0.0) for name, priority in came]
    assert [one.name for one in in_turn(waiting, AGED_S / 2)] == ["c", "h", "n1", "n2", "l", "b"]


def test_what_waited_for_long_goes_in_before_better_classes() -> None:
    waiting = [Waiting("late", RequestPriority.CRITICAL, 5.0), Waiting("old", RequestPriority.BATCH, 5.0 - AGED_S)]
    assert [one.name for one in in_turn(waiting, 5.0)] == ["old", "late"]


def test_what_is_too_much_goes_back_the_last_in_turn_first_once_it_has_waited() -> None:
    late = LET_GO_S + 5
    came = [("b", "batch", 5.0), ("n", "normal", 5.0), ("l", "low", late - 0.1), ("c", "critical", 5.0)]
    waiting = [Waiting(name, RequestPriority(priority), begun_s) for name, priority, begun_s in came]
    assert [one.name for one in overdue(waiting, 1, late)] == ["n", "b"]
    assert [one.name for one in overdue(waiting, 3, late)] == ["b"]
    assert overdue(waiting, 4, late) == []
    assert len(overdue(waiting, -1, late + 1)) == 4
