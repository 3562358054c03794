"""When a child that shows nothing new is hung."""

from __future__ import annotations

from stoker_workers.progress import Progress


def counters(progress: int, *, steps: int = 0, busy_s: float = 0) -> dict[str, int]:
    return {"progress": progress, "steps": steps, "busy_us": int(busy_s * 1e6)}


def watched(progress: Progress, values: list[dict[str, int]]) -> list[bool]:
    return [progress.hung(value, float(second)) for second, value in enumerate(values)]


def test_a_child_that_stands_still_beyond_the_limit_is_hung() -> None:
    answers = watched(Progress(limit_s=3, interval_s=1, own_code=False), [counters(7)] * 6)
    assert answers == [False, False, False, False, True, True]


def test_any_progress_begins_anew() -> None:
    values = [counters(1)] * 4 + [counters(2)] * 4
    assert not any(watched(Progress(limit_s=3, interval_s=1, own_code=False), values))


def test_a_minute_is_allowed_when_nothing_is_set() -> None:
    answers = watched(Progress(limit_s=None, interval_s=1, own_code=False), [counters(1)] * 63)
    assert answers.index(True) == 61


def test_ten_usual_steps_are_allowed_when_that_is_longer() -> None:
    slow = counters(1, steps=2, busy_s=4)
    answers = watched(Progress(limit_s=3, interval_s=1, own_code=False), [slow] * 25)
    assert answers.index(True) == 21


def test_a_class_of_the_users_own_may_take_any_time() -> None:
    assert not any(watched(Progress(limit_s=None, interval_s=1, own_code=True), [counters(1)] * 1000))


def test_a_limit_that_is_set_holds_for_the_users_own_class_too() -> None:
    assert any(watched(Progress(limit_s=5, interval_s=1, own_code=True), [counters(1)] * 10))


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The whole machine was suspended for an hour."""
    progress = Progress(limit_s=10, interval_s=1, own_code=False)
    assert not progress.hung(counters(1), 0.0)
    assert not progress.hung(counters(1), 3600.0)
