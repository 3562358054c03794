"""How soon a worker starts its child again."""

from __future__ import annotations

import pytest

from stoker_workers.backoff import BACKOFF_MAX_S, CALM_S, Backoff


def waits(*served_s: float, jitter: float = 0.0) -> list[float]:
    backoff = Backoff()
    return [backoff.next_s(served, blameless=False, jitter=jitter) for served in served_s]


def test_a_model_that_does_not_load_is_tried_after_1_2_4_and_up_to_60_seconds() -> None:
    assert waits(*[0.0] * 9) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert waits(*[0.0] * 5000)[-1] == BACKOFF_MAX_S


def test_a_child_that_served_is_started_again_at_once_but_not_when_it_dies_again_soon() -> None:
    assert waits(5, 5, 5, 5) == [0, 1, 2, 4]


def test_a_calm_life_makes_good_for_all_before() -> None:
    assert waits(5, 5, 5, CALM_S, 5, 5) == [0, 1, 2, 0, 0, 1]


def test_a_child_that_suspects_killed_is_started_again_at_once_and_counts_for_nothing() -> None:
    backoff = Backoff()
    assert [backoff.next_s(1, blameless=True, jitter=0) for _ in range(5)] == [0] * 5
    assert backoff.next_s(1, blameless=False, jitter=0) == 0


@pytest.mark.parametrize(("jitter", "expected"), [(0.0, [1, 2, 4]), (0.5, [0.75, 1.5, 3]), (1.0, [0.5, 1, 2])])
def test_up_to_half_of_a_wait_is_left_out_at_random(jitter: float, expected: list[float]) -> None:
    assert waits(0, 0, 0, jitter=jitter) == expected
