"""What requests cost is learned from what workers count, and foretold for a full fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from random import Random

import pytest

from stoker.forecast import Forecast
from stoker.store.records import WorkerRecord
from stoker_scheduler.prices import StepPrices
from stoker_scheduler.service_time import CAUTION, FEWEST, ServiceTimes

WORKER = WorkerRecord(inc="w:1-x", worker="w", rows=8, capacity=100_000, budget=512, mode="continuous", cache="paged")
PRICES = {"steps": 5000.0, "prompt_tokens": 30.0, "row_steps": 200.0, "token_steps": 1.0}
PROMPT, ANSWER = 100, 50


def heartbeats(n: int, prices: dict[str, float], answer: int = ANSWER, seed: int = 1) -> Iterator[dict[str, int]]:
    """Give the running totals of a worker that did so many heartbeats' work, of a varying number of rows."""
    random = Random(seed)
    grown = []
    for _ in range(n):
        rows, steps = random.randint(1, 8), random.randint(20, 60)
        finished = max(1, rows * steps // answer) if answer else rows * steps
        work = {
            "steps": steps,
            "row_steps": rows * steps,
            "prompt_tokens": finished * random.randint(PROMPT // 2, 3 * PROMPT // 2),
            "token_steps": rows * steps * (PROMPT + answer // 2),
            "finished": finished,
            "generation_tokens": finished * answer,
        }
        grown.append(work | {"busy_us": round(sum(prices[name] * work[name] for name in prices))})
    return accumulate(grown, lambda one, other: {name: one[name] + other[name] for name in one})


class Learner:
    """Prices and times that are learned from the same records."""

    def __init__(self) -> None:
        self.prices = StepPrices()
        self.times = ServiceTimes(self.prices)

    def observe(self, workers: list[WorkerRecord]) -> None:
        self.prices.observe(workers)
        self.times.observe(workers)


def learned(n: int = 30, workers: int = 1, prices: dict[str, float] = PRICES, **more: int) -> Forecast | None:
    """Return what is foretold for a fleet after so many heartbeats of its first worker."""
    learner = Learner()
    idle = [replace(WORKER, inc=f"o{i}:1-x") for i in range(1, workers)]
    fleet = [WORKER, *idle]
    for figures in [{}, *heartbeats(n, prices, **more)]:
        fleet = [replace(WORKER, figures=figures), *idle]
        learner.observe(fleet)
    learner.times.dispatched([(PROMPT, more.get("answer", ANSWER))] * 100)
    return learner.times.forecast(fleet)


def test_a_full_worker_is_foretold_by_what_its_steps_cost() -> None:
    forecast = learned()
    assert forecast is not None
    step_us = 5000 + 8 * (200 + (PROMPT + ANSWER / 2) + 30 * PROMPT / ANSWER)
    assert forecast.tokens_per_s == pytest.approx(CAUTION * 8 / (step_us * ANSWER) * 1e6 * (PROMPT + ANSWER), rel=0.02)
    assert forecast.base_us == pytest.approx(2 * step_us, rel=0.02)
    assert forecast.answer_us == pytest.approx(step_us, rel=0.02)
    # A twentieth of a step here, which is less than what the fit takes for noise: no more than its size is learned.
    assert 3 < forecast.prompt_us < 300


def test_a_padded_batch_is_a_step() -> None:
    forecast = learned(answer=0)
    assert forecast is not None
    step_us = 5000 + 5.12 * (200 + 31 * PROMPT)
    assert forecast.tokens_per_s == pytest.approx(CAUTION * 5.12 / step_us * 1e6 * PROMPT, rel=0.1)
    assert (forecast.prompt_us, forecast.answer_us) == (0, 0)


def test_nothing_is_foretold_of_too_little() -> None:
    assert learned(FEWEST) is not None
    assert learned(FEWEST - 2) is None
    assert Learner().times.forecast([]) is None


def test_a_worker_of_which_nothing_is_known_counts_like_the_others() -> None:
    one, three = learned(), learned(workers=3)
    assert one is not None
    assert three is not None
    assert three.tokens_per_s == pytest.approx(3 * one.tokens_per_s)


def test_a_worker_that_takes_no_work_counts_for_nothing() -> None:
    learner = Learner()
    for figures in [{}, *heartbeats(30, PRICES)]:
        learner.observe([replace(WORKER, figures=figures, drained=True)])
    learner.times.dispatched([(PROMPT, ANSWER)])
    assert learner.times.forecast([replace(WORKER, drained=True)]) is None


def test_answers_shorter_than_asked_for_make_a_token_asked_for_cheaper() -> None:
    learner = Learner()
    for figures in [{}, *heartbeats(30, PRICES)]:
        worker = replace(WORKER, figures=figures)
        learner.observe([worker])
    learner.times.dispatched([(PROMPT, 4 * ANSWER)])
    cheap, dear = learner.times.forecast([worker]), learned()
    assert cheap is not None
    assert dear is not None
    assert cheap.answer_us == pytest.approx(dear.answer_us / 4, rel=0.02)


def test_prices_that_change_are_learned_anew() -> None:
    learner, slower = Learner(), {name: 3 * price for name, price in PRICES.items()}
    totals: dict[str, int] = {}
    for prices, n in ((PRICES, 100), (slower, 300)):
        start = dict(totals)
        for figures in heartbeats(n, prices):
            totals = {name: start.get(name, 0) + number for name, number in figures.items()}
            learner.observe([replace(WORKER, figures=totals)])
    learner.times.dispatched([(PROMPT, ANSWER)])
    now, then = learner.times.forecast([replace(WORKER, figures=totals)]), learned()
    assert now is not None
    assert then is not None
    assert now.tokens_per_s == pytest.approx(then.tokens_per_s / 3, rel=0.1)


def test_a_worker_that_starts_again_is_learned_anew() -> None:
    learner = Learner()
    for figures in [{}, *heartbeats(30, PRICES)]:
        learner.observe([replace(WORKER, figures=figures)])
    learner.times.dispatched([(PROMPT, ANSWER)])
    again = replace(WORKER, inc="w:2-y")
    learner.observe([again])
    assert learner.times.forecast([again]) is None


# --- how quick workers are --------------------------------------------------------------------------------------------


def scaled(factor: float) -> dict[str, float]:
    return {name: factor * price for name, price in PRICES.items()}


def test_a_worker_twice_as_fast_has_twice_the_speed_however_little_it_does() -> None:
    learner = Learner()
    learner.times.dispatched([(PROMPT, ANSWER)])
    idle, busy = list(heartbeats(40, scaled(0.5), seed=2)), list(heartbeats(40, PRICES))
    for lately, figures in enumerate(busy):
        # The fast one does a quarter of the other's work.
        learner.observe([replace(WORKER, figures=figures), replace(WORKER, inc="f:1-x", figures=idle[lately // 4])])
    slow, fast = learner.times.speeds["w:1-x"], learner.times.speeds["f:1-x"]
    assert fast.tokens_per_s == pytest.approx(2 * slow.tokens_per_s, rel=0.1)
    assert fast.answer_s == pytest.approx(slow.answer_s / 2, rel=0.1)
    assert slow.answer_s == pytest.approx(0.005, rel=0.1)


def test_a_worker_without_a_step_has_the_median_prices_and_its_own_room() -> None:
    learner = Learner()
    fleet = [replace(WORKER, inc=f"{name}:1-x", worker=name) for name in "abc"]
    for beats in zip(*(heartbeats(30, scaled(factor)) for factor in (1, 2, 5)), strict=True):
        learner.observe([replace(one, figures=figures) for one, figures in zip(fleet, beats, strict=True)])
    alike, small = replace(WORKER, inc="new:1-x"), replace(WORKER, inc="small:1-x", rows=2)
    learner.times.observe([*fleet, alike, small])
    speeds = learner.times.speeds
    assert speeds["new:1-x"].tokens_per_s == pytest.approx(speeds["b:1-x"].tokens_per_s, rel=0.05)
    assert speeds["small:1-x"].tokens_per_s < speeds["new:1-x"].tokens_per_s / 2


def test_before_anything_is_measured_all_are_alike_and_who_leaves_is_forgotten() -> None:
    learner = Learner()
    learner.observe([WORKER, replace(WORKER, inc="o:1-x")])
    assert learner.times.speeds["w:1-x"] == learner.times.speeds["o:1-x"]
    learner.observe([WORKER])
    assert set(learner.times.speeds) == {"w:1-x"}


def test_answers_shorter_than_asked_for_make_own_steps_shorter() -> None:
    found = {}
    for asked in (ANSWER, 4 * ANSWER):
        learner = Learner()
        learner.times.dispatched([(PROMPT, asked)])
        for figures in [{}, *heartbeats(30, PRICES)]:
            learner.observe([replace(WORKER, figures=figures)])
        found[asked] = learner.times.speeds["w:1-x"].answer_s
    assert found[4 * ANSWER] == pytest.approx(found[ANSWER] / 4, rel=0.05)
