"""When the cache is full, late rows make room and come back, and nobody sees anything of it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answers import Answer, collect, finish, run, work
from stoker_workers.engine import Admitted, Finished, Full, Sampling, Work
from stoker_workers.engines.kv_cache import BLOCK
from stoker_workers.engines.torch import TorchEngine
from workers.torch_rig import load, make_llama, prompts

pytestmark = pytest.mark.torch

BLOCKS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a real tokenizer."""
    return make_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TorchEngine:
    """An engine whose cache holds few rows."""
    return load(folder, max_num_seqs=8, max_num_batched_tokens=80, kv_cache_tokens=BLOCKS * BLOCK)


@pytest.fixture(scope="module")
def roomy(folder: Path) -> TorchEngine:
    """An engine with room for all."""
    return load(folder, max_num_seqs=8)


def check_blocks(engine: TorchEngine) -> None:
    used = [number for row in engine._resident.values() for number in row.table]
    _, cache = engine._loaded
    assert len(used) == len(set(used)) == BLOCKS - cache.free
    assert all(0 <= number < BLOCKS for number in used)
    assert all(len(keys) <= BLOCKS for keys, _ in cache._stores.values())
    assert [row for row in engine._resident.values() if row.table] == engine._decoding + [
        row for row in engine._waiting if row.table
    ]


def drive(engine: TorchEngine, works: list[Work], numbers: random.Random, cancelled: set[str]) -> dict[str, Answer]:
    """Let works join at random steps, and some leave; check at each step what is held."""
    answers: dict[str, Answer] = {}
    waiting = list(works)
    while waiting or engine.resident():
        while waiting and numbers.random() < 0.7 and isinstance(engine.admit(waiting[0]), Admitted):
            waiting.pop(0)
        collect(answers, engine.step())
        check_blocks(engine)
        for name in cancelled & set(engine.resident()):
            if numbers.random() < 0.1:
                engine.cancel(name)
                check_blocks(engine)
    return answers


def load_of(numbers: random.Random, count: int, expected: int) -> list[Work]:
    return [
        work(
            str(i),
            prompt,
            numbers.randint(1, 150),
            expected=expected,
            ignore_eos=True,
            sampling=Sampling(temperature=numbers.choice([0.0, 0.8]), seed=i, top_p=numbers.choice([0.9, 1.0])),
        )
        for i, prompt in enumerate(prompts(count, seed=numbers.randrange(1000), longest=100))
    ]


@pytest.mark.untraced
@settings(max_examples=3, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 40, 1000]))
def test_random_loads_stay_within_the_cache_and_answer_as_alone(
    engine: TorchEngine, roomy: TorchEngine, seed: int, expected: int
) -> None:
    numbers = random.Random(seed)
    works = load_of(numbers, 8, expected)
    cancelled = {each.id for each in works if numbers.random() < 0.2}
    answers = drive(engine, works, numbers, cancelled)
    for each in works:
        if each.id not in cancelled:
            assert answers[each.id] == run(roomy, each)[each.id]


def test_what_was_expected_too_small_is_preempted_and_goes_on(engine: TorchEngine, roomy: TorchEngine) -> None:
    works = [work(str(i), [10 + i] * 30, 130, expected=5, ignore_eos=True) for i in range(6)]
    before = engine.preemptions
    answers = run(engine, *works)
    assert engine.preemptions > before
    assert answers == run(roomy, *works)


def test_full_reservation_preempts_nobody(engine: TorchEngine) -> None:
    numbers = random.Random(5)
    before = engine.preemptions
    drive(engine, [replace(each, expected=None) for each in load_of(numbers, 12, 0)], numbers, set())
    assert engine.preemptions == before


def test_the_earliest_row_is_never_preempted_so_that_all_end(engine: TorchEngine) -> None:
    for i in range(6):
        assert isinstance(engine.admit(work(str(i), [9] * 40, 200, expected=1, ignore_eos=True)), Admitted)
    ends: list[str] = []
    while engine.resident():
        events = engine.step()
        assert ends or "0" in [event.id for event in events]
        ends += [event.id for event in events if isinstance(event, Finished)]
    assert ends == [str(i) for i in range(6)]


def test_nothing_joins_while_what_runs_has_outgrown_the_cache(engine: TorchEngine) -> None:
    for i in range(6):
        engine.admit(work(str(i), [9] * 10, 200, expected=1, ignore_eos=True))
    before = engine.preemptions
    while engine.preemptions == before:
        engine.step()
    assert engine.admit(work("new", [9], 1)) == Full()
    for i in range(6):
        engine.cancel(str(i))
    assert isinstance(engine.admit(work("new", [9], 1)), Admitted)
    finish(engine)
