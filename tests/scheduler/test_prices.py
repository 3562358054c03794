"""Prices of steps: what beats say wins over what was believed, and beats that say nothing leave it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from stoker.store.records import WorkerRecord
from stoker_scheduler.prices import PRIOR, Prices, StepPrices

TRUE = Prices(20.0, 0.05, 0.4, 0.001)


def beats(shape: Callable[[int], tuple[int, int, int]], number: int = 60, noise: float = 0.0) -> Prices:
    """Feed beats of 50 steps, of so many prompt tokens, rows and resident tokens each; gives the prices found."""
    dice, found = random.Random(1), StepPrices()
    figures = {"steps": 0, "prompt_tokens": 0, "row_steps": 0, "token_steps": 0, "busy_us": 0}
    for beat in range(number):
        prompt, rows, tokens = shape(beat)
        ms = TRUE.base_ms + TRUE.prefill_ms * prompt + TRUE.row_ms * rows + TRUE.resident_ms * tokens
        grown = {"steps": 50, "prompt_tokens": 50 * prompt, "row_steps": 50 * rows, "token_steps": 50 * tokens}
        grown["busy_us"] = round(50_000 * ms * (1 + dice.uniform(-noise, noise)))
        figures = {name: value + grown[name] for name, value in figures.items()}
        record = WorkerRecord(
            inc="w:1-1", worker="w", rows=64, capacity=10, budget=10, mode="continuous", cache="paged", figures=figures
        )
        found.observe([record])
        found.observe([record])  # the same beat, seen by another tick
    return found.of("w:1-1")


def test_a_worker_of_which_nothing_is_known_has_the_usual_ratios() -> None:
    assert StepPrices().of("w:1-1") == PRIOR


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_beats_of_different_shapes_tell_all_prices(noise: float) -> None:
    dice = random.Random(2)
    found = beats(lambda _: (dice.randrange(200), dice.randrange(64), dice.randrange(20_000)), 200, noise)
    assert found.base_ms == pytest.approx(TRUE.base_ms, rel=0.15)
    assert found.prefill_ms == pytest.approx(TRUE.prefill_ms, rel=0.3)
    assert found.row_ms == pytest.approx(TRUE.row_ms, rel=0.15)
    assert found.resident_ms == pytest.approx(TRUE.resident_ms, rel=0.15)


def test_steps_that_are_all_alike_take_what_was_measured_and_keep_the_believed_ratios() -> None:
    found = beats(lambda _: (10, 8, 1000))
    step_ms = found.base_ms + 10 * found.prefill_ms + 8 * found.row_ms + 1000 * found.resident_ms
    assert step_ms == pytest.approx(20 + 0.5 + 3.2 + 1, rel=0.02)
    assert found.base_ms / found.row_ms == pytest.approx(PRIOR.base_ms / PRIOR.row_ms, rel=0.5)


def test_no_price_is_negative() -> None:
    dice = random.Random(3)
    found = beats(lambda _: (dice.randrange(3), 1, 1), noise=0.9)
    assert min(found.base_ms, found.prefill_ms, found.row_ms, found.resident_ms) >= 0
