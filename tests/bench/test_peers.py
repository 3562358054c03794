"""What the comparison with other queues decides; nothing here is timed."""

from __future__ import annotations

from peers import best, without


def test_the_best_is_who_has_the_highest_median() -> None:
    rounds = [{"a, 1w": 10.0, "b, 1w": 9.0}, {"a, 1w": 1.0, "b, 1w": 8.0}, {"a, 1w": 2.0, "b, 1w": 7.0}]
    assert best(rounds, ["a, 1w", "b, 1w", "never ran, 1w"]) == "b, 1w"
    assert best(rounds, ["never ran, 1w"]) is None


def test_who_failed_once_has_no_figures_at_all() -> None:
    rounds = [{"saq, 1w": 5.0, "saq, 2w": 0.0, "rq, 1w": 3.0}, {"saq, 1w": 0.0, "saq, 2w": 0.0, "rq, 1w": 4.0}]
    assert without(rounds, ["saq"]) == [{"rq, 1w": 3.0}, {"rq, 1w": 4.0}]
