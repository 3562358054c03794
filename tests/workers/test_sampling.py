"""The next token follows the model's weights, and depends on seed and position alone."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from stoker_workers.engine import Sampling
from stoker_workers.engines.sampling import BROKEN, choose, uniform

pytestmark = pytest.mark.torch

WEIGHTS = [0.1, 0.4, 0.05, 0.25, 0.2]
LOGITS = torch.tensor([[math.log(weight) for weight in WEIGHTS]])
DRAWS = 4000


def draw(sampling: Sampling, count: int = DRAWS) -> Counter[int]:
    """Count the tokens of `count` positions."""
    tokens = choose(LOGITS.expand(count, -1), [sampling] * count, range(count))
    return Counter(tokens)


def test_temperature_zero_takes_the_best_token() -> None:
    assert draw(Sampling()) == {1: DRAWS}


def test_tokens_come_as_often_as_their_weights_say() -> None:
    counts = draw(Sampling(temperature=1.0, seed=7))
    assert [counts[token] / DRAWS for token in range(5)] == pytest.approx(WEIGHTS, abs=0.03)


def test_a_higher_temperature_evens_the_weights() -> None:
    counts = draw(Sampling(temperature=2.0, seed=7))
    roots = [math.sqrt(weight) for weight in WEIGHTS]
    assert [counts[token] / DRAWS for token in range(5)] == pytest.approx([r / sum(roots) for r in roots], abs=0.03)


def test_the_lowest_temperature_is_greedy_and_no_error() -> None:
    assert draw(Sampling(temperature=1e-300, seed=1), 50) == {1: 50}


def test_top_k_leaves_the_k_best() -> None:
    counts = draw(Sampling(temperature=1.0, top_k=2, seed=3))
    assert set(counts) == {1, 3}
    assert counts[1] / DRAWS == pytest.approx(0.4 / 0.65, abs=0.03)


def test_top_k_may_exceed_the_vocabulary() -> None:
    assert set(draw(Sampling(temperature=1.0, top_k=10_000, seed=3))) == set(range(5))


def test_top_p_leaves_the_smallest_set_that_reaches_it() -> None:
    assert set(draw(Sampling(temperature=1.0, top_p=0.64, seed=3))) == {1, 3}
    assert set(draw(Sampling(temperature=1.0, top_p=0.66, seed=3))) == {1, 3, 4}


def test_top_p_never_leaves_nothing() -> None:
    assert draw(Sampling(temperature=1.0, top_p=1e-9, seed=3), 50) == {1: 50}


def test_top_p_counts_within_what_top_k_left() -> None:
    # Of 0.4 and 0.25 alone the first has 0.615.
    assert draw(Sampling(temperature=1.0, top_k=2, top_p=0.61, seed=3), 200) == {1: 200}


def test_a_row_draws_the_same_whatever_the_others_ask_for() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 1000, generator=generator)
    samplings = [
        Sampling(),
        Sampling(temperature=0.8, seed=1),
        Sampling(temperature=1.3, seed=2, top_k=50),
        Sampling(temperature=1.0, seed=3, top_p=0.7),
        Sampling(temperature=0.5, seed=(1 << 63) - 1, top_p=0.9, top_k=5),
        Sampling(temperature=5.0, seed=0),
    ]
    positions = [0, 3, 17, 4, 100_000, 9]
    together = choose(logits, samplings, positions)
    alone = [choose(logits[row : row + 1], [samplings[row]], [positions[row]])[0] for row in range(6)]
    assert together == alone


def test_no_filter_and_one_that_keeps_all_draw_the_same() -> None:
    plain = [choose(LOGITS, [Sampling(temperature=1.0, seed=seed)], [0]) for seed in range(100)]
    assert [choose(LOGITS, [Sampling(temperature=1.0, seed=seed, top_k=5)], [0]) for seed in range(100)] == plain


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=1, top_p=0.9)])
def test_a_row_without_finite_logits_is_told_apart_from_its_neighbours(wrong: float, sampling: Sampling) -> None:
    logits = torch.cat([LOGITS, LOGITS, LOGITS])
    logits[1, 2] = wrong
    good = choose(LOGITS, [sampling], [4])[0]
    assert choose(logits, [sampling] * 3, [4] * 3) == [good, BROKEN, good]


def test_numbers_are_even_and_unlike_for_neighbouring_seeds_and_positions() -> None:
    numbers = [uniform(seed, position) for seed in range(60) for position in range(60)]
    assert len(set(numbers)) == 3600
    assert all(0 <= number < 1 for number in numbers)
    tenths = Counter(int(number * 10) for number in numbers)
    assert all(300 <= tenths[tenth] <= 420 for tenth in range(10))
