"""What is kept from BATCH, and what is not: by itself, and in a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import DynamicBatcher
from stoker_scheduler.prices import Prices
from stoker_scheduler.queue import RequestQueue
from stoker_scheduler.reserve import BatchRoom, Reserve
from stoker_scheduler.round import Round

NOW = 1_000_000_000
S = 1_000_000
IDLE_S = 60
FREE = Prices(7.0, 0.0, 0.0, 0.0)
BY_ROW = Prices(10.1, 0.1, 0.1, 0.0)
CONFIG = Config(reserve_idle_s=IDLE_S, batch_slowdown=0.2)


def worker(
    name: str = "w", *, interactive: int = 0, batch: int = 0, rows: int = 64, mode: str = "continuous"
) -> WorkerRecord:
    return WorkerRecord(
        inc=f"{name}:1-1",
        worker=name,
        rows=rows,
        capacity=100 * rows,
        budget=8192,
        mode=mode,
        cache="paged",
        held_rows=interactive + batch,
        held_tokens=10 * (interactive + batch),
        batch_rows=batch,
        batch_tokens=10 * batch,
    )


def waiting(name: str, lane: str = "normal", *, prompt: int = 5, score: float = NOW + 3600 * S) -> Waiting:
    return Waiting(name, lane, name, score, prompt, 5, True)


def rooms(
    reserve: Reserve, workers: Sequence[WorkerRecord], now: int = NOW, prices: Prices = FREE
) -> dict[str, BatchRoom]:
    return dict(reserve.rooms(workers, lambda _: prices, now))


def test_without_interactive_requests_nothing_is_kept() -> None:
    reserve = Reserve(CONFIG)
    reserve.observe([worker(batch=64)], [waiting("b", "batch")], NOW)
    assert rooms(reserve, [worker(batch=64)]) == {}


def test_rows_that_interactive_requests_used_lately_stay_free() -> None:
    reserve = Reserve(CONFIG)
    reserve.observe([worker(interactive=16)], [], NOW)
    reserve.observe([worker()], [], NOW + 1)
    assert rooms(reserve, [worker()], NOW + 1)["w:1-1"].rows == 48


def test_what_waits_counts_like_what_runs_and_is_shared_by_the_workers() -> None:
    reserve = Reserve(CONFIG)
    fleet = [worker("w", interactive=2), worker("x")]
    reserve.observe(fleet, [waiting("a"), waiting("b"), waiting("c", "batch")], NOW)
    found = rooms(reserve, fleet)
    assert [found["w:1-1"].rows, found["x:1-1"].rows] == [61, 63]
    assert [found["w:1-1"].tokens, found["x:1-1"].tokens] == [6400 - 30, 6400 - 10]


@pytest.mark.parametrize(("after_s", "kept"), [(0, 32), (5, 12), (15, 2), (59, 1)])
def test_the_reserve_fades_when_interactive_requests_stay_away(after_s: int, kept: int) -> None:
    reserve = Reserve(CONFIG)
    reserve.observe([worker(interactive=32)], [], NOW)
    reserve.observe([worker()], [], NOW + after_s * S)
    assert rooms(reserve, [worker()], NOW + after_s * S)["w:1-1"].rows == 64 - kept


def test_after_the_idle_time_it_is_gone() -> None:
    reserve = Reserve(CONFIG)
    reserve.observe([worker(interactive=32)], [], NOW)
    assert rooms(reserve, [worker()], NOW + IDLE_S * S) == {}


def test_without_an_idle_time_there_is_no_reserve() -> None:
    reserve = Reserve(Config(reserve_idle_s=0))
    reserve.observe([worker(interactive=32)], [], NOW)
    assert rooms(reserve, [worker(interactive=32)]) == {}


def test_a_clock_that_is_set_back_does_not_keep_it_longer() -> None:
    reserve = Reserve(CONFIG)
    reserve.observe([worker(interactive=32)], [], NOW)
    reserve.observe([worker()], [], NOW // 2)
    assert rooms(reserve, [worker()], NOW // 2 + IDLE_S * S) == {}


def test_workers_of_padded_batches_are_left_out() -> None:
    reserve = Reserve(CONFIG)
    fleet = [worker(interactive=4, mode="padded")]
    reserve.observe(fleet, [], NOW)
    assert rooms(reserve, fleet) == {}


def test_rows_of_batch_make_a_step_longer_by_the_slowdown_at_most() -> None:
    reserve = Reserve(CONFIG)
    fleet = [worker(interactive=10)]
    reserve.observe(fleet, [], NOW)
    room = rooms(reserve, fleet, prices=BY_ROW)["w:1-1"]
    taken = 0
    while room.admits(10):
        room, taken = room.less(10), taken + 1
    # A step alone takes 10.1 + 10 x 0.1 = 11.1 ms; a fifth of it is 2.22 ms, 22 rows.
    assert taken == 22


def test_the_prompts_of_rows_that_follow_are_in_the_price_of_a_row() -> None:
    reserve, prices = Reserve(CONFIG), Prices(10.0, 0.1, 0.0, 0.0)
    fleet, queue = [worker(interactive=10)], [waiting("b", "batch", prompt=10)]
    reserve.observe(fleet, queue, NOW)
    room = rooms(reserve, fleet, prices=prices)["w:1-1"]
    # Twice as long a prompt as its answer: two tokens of a prompt, 0.2 ms, for each step of a row. 2 ms allow for 10.
    assert [room.ms, room.row_ms] == pytest.approx([2.0, 0.2])
    taken = 0
    while room.admits(10):
        room, taken = room.less(10), taken + 1
    assert taken in (9, 10)


@given(st.integers(0, 64), st.integers(0, 64), st.floats(0, 2), st.floats(0, 0.01))
def test_no_limit_is_exceeded_by_a_second_row(interactive: int, batch: int, row_ms: float, token_ms: float) -> None:
    reserve, prices = Reserve(CONFIG), Prices(10.0, 0.1, row_ms, token_ms)
    fleet = [worker(interactive=interactive, batch=batch, rows=128)]
    reserve.observe(fleet, [], NOW)
    found = rooms(reserve, fleet, prices=prices)
    assert bool(found) is bool(interactive)
    for room in found.values():
        held = batch
        while room.admits(10) and held < 200:
            room, held = room.less(10), held + 1
        extra_ms = held * row_ms + 7.5 * held * token_ms
        alone_ms = 10 + interactive * (row_ms + 7.5 * token_ms)
        assert held <= max(1, batch, 128 - interactive)
        assert held <= max(1, batch) or extra_ms <= 0.2 * alone_ms + 1e-9


# --- in a round -----------------------------------------------------------------------------------------------------


def hand_out(
    requests: Sequence[Waiting], fleet: Sequence[WorkerRecord], kept: dict[str, BatchRoom]
) -> tuple[dict[str, str], Round]:
    """Run a round; gives who went where."""
    lanes = {lane: [request for request in requests if request.lane == lane] for lane in ("normal", "batch")}
    order = RequestQueue(CONFIG).order(lanes, fleet)
    hand = Round(
        order.requests,
        fleet,
        balancer=LoadBalancer(CONFIG),
        batcher=DynamicBatcher(CONFIG),
        shut=set(),
        probing=set(),
        linger_us=50_000,
        now_us=NOW,
        rooms=kept,
    )
    went = {}
    while chosen := hand.next():
        went |= {request.id: chosen[0].worker for request in chosen[1].requests}
        hand.done(*chosen, more=True)
    return went, hand


def room_for(rows: int, *, held: int = 1) -> BatchRoom:
    return BatchRoom(rows, 10_000, 100.0, held, 0.0, 0.0)


def test_a_round_gives_batch_no_more_than_its_room() -> None:
    went, _ = hand_out(
        [waiting(f"b{i}", "batch", score=NOW + i + 1) for i in range(9)], [worker()], {"w:1-1": room_for(3)}
    )
    assert sorted(went) == ["b0", "b1", "b2"]


def test_what_is_held_back_hides_nothing_that_could_run() -> None:
    early = [waiting(f"b{i}", "batch", score=NOW + 1 + i) for i in range(5)]
    late = [waiting(f"n{i}", score=NOW + 100 + i) for i in range(5)]
    went, hand = hand_out([*early, *late], [worker()], {"w:1-1": room_for(2)})
    assert sorted(went) == ["b0", "b1", "n0", "n1", "n2", "n3", "n4"]
    assert hand.linger_us == 0
    assert hand.unplaced() == []


def test_batch_goes_to_the_worker_that_has_room_for_it() -> None:
    fleet = [worker("w"), replace(worker("x"), held_tokens=500)]
    went, _ = hand_out([waiting("b", "batch")], fleet, {"w:1-1": room_for(0), "x:1-1": room_for(1)})
    assert went == {"b": "x"}


def test_a_worker_without_batch_may_have_one_row() -> None:
    went, _ = hand_out([waiting("b", "batch"), waiting("c", "batch")], [worker()], {"w:1-1": room_for(0, held=0)})
    assert went == {"b": "w"}


def test_batch_that_waited_longer_than_its_window_is_held_back_no_more() -> None:
    went, _ = hand_out([waiting("b", "batch", score=NOW)], [worker()], {"w:1-1": room_for(0)})
    assert went == {"b": "w"}


def test_a_round_tells_which_interactive_requests_found_no_room() -> None:
    full = worker(interactive=2, batch=62)
    went, hand = hand_out([waiting("a"), waiting("b", "batch"), waiting("c")], [full], {"w:1-1": room_for(0)})
    assert went == {}
    assert [request.id for request in hand.unplaced()] == ["a", "c"]
