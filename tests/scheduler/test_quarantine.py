"""Which crash suspects run together next."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.store.records import SUSPECT, Waiting
from stoker_scheduler.batcher import Room
from stoker_scheduler.quarantine import half

CONVICTING_SOLOS = 2


def suspect(name: str, score: float = 0, tokens: int = 10) -> Waiting:
    return Waiting(name, SUSPECT, f"{name}:{tokens}:0:x", score, tokens, 0, True)


def room(*, mode: str = "continuous", cache: str = "paged", rows: int = 1000, tokens: int = 100_000) -> Room:
    return Room(mode=mode, cache=cache, rows=rows, capacity=tokens, budget=100, share=1000, idle=True)


def names(suspects: list[Waiting], groups: dict[str, str], where: Room | None = None) -> list[str]:
    return [request.id for request in half(suspects, groups, where or room()).requests]


@pytest.mark.parametrize(("size", "taken"), [(1, 1), (2, 1), (3, 2), (4, 2), (9, 5)])
def test_half_of_a_set_runs_rounded_up(size: int, taken: int) -> None:
    suspects = [suspect(f"s{i}", i) for i in range(size)]
    assert names(suspects, dict.fromkeys([s.id for s in suspects], "w:1-x")) == [f"s{i}" for i in range(taken)]


def test_a_set_is_never_mixed_with_another_one() -> None:
    suspects = [suspect("a1"), suspect("b1"), suspect("a2"), suspect("b2"), suspect("a3")]
    groups = {name: f"{name[0]}:1-x" for name in ("a1", "a2", "a3", "b1", "b2")}
    assert names(suspects, groups) == ["a1", "a2"]


def test_no_suspects_no_batch() -> None:
    assert half([], {}, room()).requests == ()


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        (room(rows=1), 1),
        (room(tokens=20), 2),
        (room(tokens=20, cache="rect"), 2),
        (room(tokens=5), 0),
        (room(mode="padded"), 3),
    ],
)
def test_what_the_worker_cannot_hold_goes_later(where: Room, taken: int) -> None:
    tokens = 30 if where.mode == "padded" else 10
    suspects = [suspect(f"s{i}", i, tokens) for i in range(8)]
    assert len(names(suspects, {}, where)) == taken


def test_a_worker_that_is_to_drain_first_is_taken_as_one_that_holds_nothing() -> None:
    """Else its longest row would keep suspects away from a rectangular cache for as long as it is busy."""
    busy = replace(room(cache="rect", tokens=100), held_rows=1, held_tokens=90, longest=90, idle=False)
    assert names([suspect("a")], {}, busy) == []
    assert names([suspect("a")], {}, busy.emptied()) == ["a"]


@given(st.integers(1, 200), st.data())
def test_one_culprit_among_n_takes_at_most_log2_n_plus_2_workers_with_it(size: int, data: st.DataObject) -> None:
    culprit = f"s{data.draw(st.integers(0, size - 1))}"
    suspects = [suspect(f"s{i}", i) for i in range(size)]
    groups = dict.fromkeys([s.id for s in suspects], "death 1")
    deaths, solos = 1, int(size == 1)
    while solos < CONVICTING_SOLOS:
        ran = names(suspects, groups)
        if culprit in ran:
            deaths += 1
            solos += len(ran) == 1
            groups.update(dict.fromkeys(ran, f"death {deaths}"))
        else:
            suspects = [request for request in suspects if request.id not in ran]
    assert deaths <= math.ceil(math.log2(size)) + 2
