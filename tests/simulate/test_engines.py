"""Virtual engines: the times of the sim engine, without its steps."""

from __future__ import annotations

import random

import pytest

from stoker_ops.simulate.engines import ContinuousEngine, PaddedEngine, Row, Tally
from stoker_workers.engine import Admitted, Capacity, Finished, Tokens, Work
from stoker_workers.engines import sim
from stoker_workers.engines.sim import Profile, SimEngine

PROFILE = Profile(base_ms=5, prefill_ms=0.02, row_ms=0.05, resident_ms=0.001)
LIMITS = Capacity(rows=8, tokens=4000, budget=100)

Load = list[tuple[float, int, int]]
"""When a request arrives (ms), its prompt and its answer, in tokens."""


def load(seed: int, size: int) -> Load:
    rng = random.Random(seed)
    return sorted((rng.uniform(0, 400), rng.randint(1, 250), rng.randint(1, 30)) for _ in range(size))


def by_the_sim_engine(arrivals: Load, monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[float, float]]:
    """When each request had its first token and its end, on a clock that counts what the engine sleeps."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds * 1000

    monkeypatch.setattr(sim.time, "sleep", sleep)
    engine = SimEngine(PROFILE, max_num_seqs=LIMITS.rows, max_num_batched_tokens=LIMITS.budget, kv_cache_tokens=4000)
    first: dict[str, float] = {}
    end: dict[str, float] = {}
    left = list(enumerate(arrivals))
    while left or engine.resident():
        if not engine.resident():
            now = max(now, left[0][1][0])
        while left and left[0][1][0] <= now:
            place, (_, prompt, answer) = left.pop(0)
            work = Work(id=str(place), batch="b", prompt=[1] * prompt, max_tokens=answer, ignore_eos=True)
            assert isinstance(engine.admit(work), Admitted)
        for event in engine.step():
            if isinstance(event, Tokens):
                first.setdefault(event.id, now)
            elif isinstance(event, Finished):
                end[event.id] = now
    return {int(name): (first[name], end[name]) for name in end}


def by_the_virtual_engine(arrivals: Load, engine: ContinuousEngine, tally: Tally) -> dict[int, tuple[float, float]]:
    first: dict[int, float] = {}
    end: dict[int, float] = {}
    left = [
        (at, Row(place, prompt, answer, prompt + answer, "b")) for place, (at, prompt, answer) in enumerate(arrivals)
    ]
    ends_at: float | None = None
    while left or ends_at is not None:
        if left and (ends_at is None or left[0][0] <= ends_at):
            at, row = left.pop(0)
            engine.give(row)
            ends_at = engine.begin(at) if ends_at is None else engine.cut(at)
            continue
        assert ends_at is not None
        begun, done = engine.end(tally)
        first |= {row.place: ends_at for row in begun}
        end |= {row.place: ends_at for row in done}
        ends_at = engine.begin(ends_at)
    return {place: (first[place], end[place]) for place in end}


@pytest.mark.parametrize("seed", range(8))
def test_tokens_and_ends_come_when_those_of_the_sim_engine_do(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = load(seed, 8)
    expected = by_the_sim_engine(arrivals, monkeypatch)
    found = by_the_virtual_engine(arrivals, ContinuousEngine(PROFILE, LIMITS), Tally())
    assert set(found) == set(expected) == set(range(8))
    for place, times in expected.items():
        assert found[place] == pytest.approx(times, rel=1e-9)


def test_a_step_costs_what_the_profile_says() -> None:
    engine, tally = ContinuousEngine(PROFILE, LIMITS), Tally()
    engine.give(Row(0, 40, 3, 43, "b"))
    assert engine.begin(100) == pytest.approx(100 + 5 + 40 * 0.02 + 0.05)
    engine.end(tally)
    assert engine.begin(200) == pytest.approx(200 + 2 * 5.05 + (41 + 42) * 0.001)
    assert [row.place for row in engine.end(tally)[1]] == [0]
    assert (tally.paid, tally.useful, tally.offered) == (3, 3, 3 * LIMITS.rows)


def test_rows_that_run_to_the_longest_end_together_and_count_as_waste() -> None:
    engine, tally = ContinuousEngine(PROFILE, LIMITS, to_longest=True), Tally()
    found = by_the_virtual_engine_all_at_once(engine, tally, [2, 10])
    assert found[0] == found[1]
    assert tally.useful == 12
    assert tally.paid == 20


def by_the_virtual_engine_all_at_once(engine: ContinuousEngine, tally: Tally, answers: list[int]) -> dict[int, float]:
    for place, answer in enumerate(answers):
        engine.give(Row(place, 10, answer, 10 + answer, "b"))
    ended: dict[int, float] = {}
    now = 0.0
    while (ends_at := engine.begin(now)) is not None:
        now = ends_at
        ended |= {row.place: now for row in engine.end(tally)[1]}
    return ended


def test_a_padded_batch_costs_its_rows_times_its_longest_and_the_next_waits_behind_it() -> None:
    engine, tally = PaddedEngine(PROFILE, 8, 1000, 5000), Tally()
    for place, (length, batch) in enumerate([(100, "a"), (60, "a"), (500, "b")]):
        engine.give(Row(place, length, 1, length, batch))
    assert engine.begin(0) == pytest.approx(5 + 200 * 0.02 + 2 * 0.05)
    assert engine.cut(1) == engine.cut(0)
    assert [row.place for row in engine.end(tally)[1]] == [0, 1]
    assert engine.begin(0) == pytest.approx(5 + 500 * 0.02 + 0.05)
    assert [row.place for row in engine.end(tally)[0]] == [2]
    assert engine.begin(0) is None
    assert (tally.useful, tally.paid, tally.offered) == (660, 700, 2000)


def test_a_prompt_above_the_budget_is_no_part_of_the_fill() -> None:
    engine, tally = PaddedEngine(PROFILE, 8, 1000, 5000), Tally()
    engine.give(Row(0, 4000, 1, 4000, "a"))
    engine.begin(0)
    engine.end(tally)
    assert (tally.useful, tally.paid, tally.offered) == (0, 0, 0)
    assert tally.busy_ms == pytest.approx(5 + 80 + 0.05)
