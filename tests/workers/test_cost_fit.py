"""Prices out of counters."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import StokerError
from stoker_workers.cost_fit import COSTS, difference, fit
from stoker_workers.engines.sim import Profile

PRICE = st.floats(0, 20)


def samples_of(profile: Profile, count: int = 20, noise: float = 0.0) -> list[dict[str, int]]:
    """Counters as an engine of this profile would raise them, in bursts of many sizes."""
    numbers = random.Random(5)
    samples = []
    for _ in range(count):
        rows, prompt, steps = numbers.choice((1, 4, 16)), numbers.choice((16, 128, 512)), numbers.choice((8, 64))
        sample = {
            "steps": steps,
            "prompt_tokens": rows * prompt,
            "row_steps": rows * steps,
            "token_steps": rows * (steps - 1) * (prompt + steps // 2),
        }
        spent_ms = sum(getattr(profile, price) * sample[counter] for price, counter in COSTS.items())
        samples.append(sample | {"busy_us": round(1000 * spent_ms * numbers.uniform(1 - noise, 1 + noise))})
    return samples


@given(base=st.floats(0.1, 20), prefill=PRICE, row=PRICE, resident=st.floats(0, 0.01))
def test_prices_of_a_made_up_engine_are_found(base: float, prefill: float, row: float, resident: float) -> None:
    profile = Profile(base_ms=base, prefill_ms=prefill, row_ms=row, resident_ms=resident)
    found = fit(samples_of(profile))
    for price in COSTS:
        # Counters are whole microseconds.
        assert getattr(found.profile, price) == pytest.approx(getattr(profile, price), rel=0.01, abs=0.01)
    assert found.largest_error < 0.001


def test_a_price_of_zero_stays_zero_where_noise_would_make_it_negative() -> None:
    profile = Profile(base_ms=5, prefill_ms=0.05, row_ms=0, resident_ms=0)
    found = fit(samples_of(profile, noise=0.05))
    assert found.profile.base_ms == pytest.approx(5, rel=0.1)
    assert found.profile.row_ms < 0.1
    assert found.profile.resident_ms < 0.001
    assert 0.005 < found.median_error < 0.05


def test_moments_in_which_the_machine_is_slow_count_as_much_as_others() -> None:
    profile = Profile(base_ms=5, prefill_ms=0.05, row_ms=0.5, resident_ms=0)
    samples = samples_of(profile, 40)
    slow = [sample | {"busy_us": 3 * sample["busy_us"]} for sample in samples]
    assert fit([*samples, *slow]).profile.base_ms == pytest.approx(10, rel=0.001)


def test_what_always_goes_together_is_counted_once() -> None:
    sample = {"steps": 10, "prompt_tokens": 0, "row_steps": 10, "token_steps": 0, "busy_us": 20_000}
    found = fit([sample] * 6).profile
    assert found.base_ms + found.row_ms == pytest.approx(2)


def test_an_engine_that_did_too_little_has_no_profile() -> None:
    idle = {"steps": 0, "prompt_tokens": 0, "row_steps": 0, "token_steps": 0, "busy_us": 0}
    with pytest.raises(StokerError, match="at least 5 samples with steps are needed, got 4"):
        fit([*samples_of(Profile(), 4), idle, idle])


def test_a_difference_has_the_counters_of_a_fit_alone() -> None:
    before = dict.fromkeys((*COSTS.values(), "busy_us", "finished"), 3)
    after = {name: number + index for index, (name, number) in enumerate(before.items())}
    assert list(difference(before, after).values()) == [0, 1, 2, 3, 4]
