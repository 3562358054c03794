"""DynamicBatcher: which waiting requests go to a worker together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.batcher import BATCH_OVERHEAD, Batch, DynamicBatcher, Room

MS = 1000
S = 1_000_000
T = 1_700_000_000 * S  # a time by the clock of Redis
CONFIG = Config(max_queue_delay_ms=50, group=512)

PADDED = Room(mode="padded", cache="paged", rows=1000, capacity=20_000, budget=10_000, share=500, idle=True)
CONTINUOUS = replace(PADDED, mode="continuous", budget=1000)


def waiting(
    prompt: int, name: str, *, output: int = 0, lane: str = "high", at: float = T, exact: bool = True
) -> Waiting:
    return Waiting(name, lane, f"{name}:{prompt}:{output}:x", at, prompt, output, exact)


def line(*prompts: int, prefix: str = "", lane: str = "high", at: float = T) -> list[Waiting]:
    """Requests with these lengths, named by their place, each a microsecond after the one before."""
    return [waiting(prompt, f"{prefix}{i}", lane=lane, at=at + i) for i, prompt in enumerate(prompts)]


def form(requests: Sequence[Waiting], room: Room, now_us: int = T) -> Batch:
    return DynamicBatcher(CONFIG).form(requests, room, now_us=now_us)


def names(batch: Batch) -> list[str]:
    return [request.id for request in batch.requests]


def without(requests: Sequence[Waiting], batch: Batch) -> list[Waiting]:
    taken = set(names(batch))
    return [request for request in requests if request.id not in taken]


# Both modes


@pytest.mark.parametrize("room", [PADDED, CONTINUOUS])
def test_nothing_waiting_makes_no_batch(room: Room) -> None:
    assert form([], room) == Batch()


@pytest.mark.parametrize("room", [PADDED, CONTINUOUS])
def test_a_head_that_does_not_fit_stops_the_batch(room: Room) -> None:
    room = replace(room, held_rows=1, held_tokens=19_500)
    assert form(line(600, 10), room) == Batch()
    assert names(form(line(500, 10), replace(room, idle=True))) == ["0"]


@pytest.mark.parametrize("room", [PADDED, CONTINUOUS])
def test_a_batch_has_no_more_requests_than_its_share_the_free_rows_and_the_group(room: Room) -> None:
    many = line(*[10] * 90)
    assert len(form(many, replace(room, share=7)).requests) == 7
    assert len(form(many, replace(room, rows=10, held_rows=4)).requests) == 6
    grouped = DynamicBatcher(Config(group=5)).form(many, room, now_us=T)
    assert len(grouped.requests) == 5


@pytest.mark.parametrize("room", [PADDED, CONTINUOUS])
def test_a_request_reserves_its_prompt_and_its_longest_output(room: Room) -> None:
    assert form([waiting(10, "a", output=90)], room).costs == (100,)


def test_continuous_a_request_reserves_what_is_expected_of_its_answer() -> None:
    requests = [replace(waiting(10, "a", output=90), expected=40), replace(waiting(10, "b", output=20), expected=40)]
    assert form(requests, CONTINUOUS).costs == (50, 30)


@pytest.mark.parametrize("room", [PADDED, CONTINUOUS])
def test_an_estimate_reserves_no_more_than_the_largest_worker_has(room: Room) -> None:
    guess, known = waiting(90_000, "guess", exact=False), waiting(10, "known")
    assert form([guess], replace(room, largest=20_000)).costs == (20_000,)
    assert form([known, guess], replace(room, largest=9000)).costs[0] == 10


def test_padded_an_estimate_is_as_long_as_the_largest_worker_at_most() -> None:
    requests = [waiting(2900, "known"), waiting(90_000, "guess", exact=False)]
    assert form(requests, replace(PADDED, largest=3000)).costs == (2900, 3000)


def test_the_room_of_a_padded_worker_keeps_half_its_rows_for_the_batch_that_runs() -> None:
    worker = WorkerRecord(
        inc="a:1-x", worker="a", rows=64, capacity=20_000, budget=10_000, mode="padded", cache="paged", held_rows=3
    )
    assert Room.of(worker, share=512).share == 32
    assert Room.of(worker, share=8).share == 8
    assert Room.of(replace(worker, rows=1), share=8).share == 1
    assert Room.of(replace(worker, mode="continuous"), share=512).share == 512
    assert not Room.of(worker, share=512).idle
    assert Room.of(replace(worker, held_rows=0), share=512).idle


rooms = st.builds(
    Room,
    mode=st.sampled_from(["padded", "continuous"]),
    cache=st.sampled_from(["paged", "rect"]),
    rows=st.integers(0, 12),
    capacity=st.integers(0, 400),
    budget=st.integers(0, 200),
    share=st.integers(0, 12),
    largest=st.none() | st.integers(1, 400),
    held_rows=st.integers(0, 6),
    held_tokens=st.integers(0, 200),
    longest=st.integers(0, 60),
    idle=st.booleans(),
)
lengths = st.lists(
    st.tuples(st.integers(0, 150), st.integers(0, 60), st.sampled_from(["high", "low"]), st.booleans()), max_size=25
)


def made(drawn: Sequence[tuple[int, int, str, bool]]) -> list[Waiting]:
    return [
        waiting(prompt, str(i), output=output, lane=lane, at=T + i, exact=exact)
        for i, (prompt, output, lane, exact) in enumerate(drawn)
    ]


@pytest.mark.untraced
@settings(max_examples=400)
@given(lengths, rooms)
def test_no_limit_is_ever_exceeded(drawn: list[tuple[int, int, str, bool]], room: Room) -> None:
    requests = made(drawn)
    batch = form(requests, room)
    if not batch.requests:
        return
    rows, longest = room.held_rows + len(batch.requests), max(room.longest, *batch.costs)
    assert len(batch.requests) <= room.share
    assert rows <= room.rows
    if room.cache == "rect":
        assert rows * longest <= room.capacity
    else:
        assert room.held_tokens + sum(batch.costs) <= room.capacity
    if len(batch.requests) > 1 and room.mode == "padded":
        assert len(batch.requests) * max(batch.costs) <= room.budget
    if len(batch.requests) > 1 and room.mode == "continuous":
        assert sum(request.prompt_tokens for request in batch.requests) <= room.budget


@pytest.mark.untraced
@settings(max_examples=400)
@given(lengths, rooms)
def test_a_batch_contains_the_head_keeps_the_order_and_says_the_truth(
    drawn: list[tuple[int, int, str, bool]], room: Room
) -> None:
    requests = made(drawn)
    batch = form(requests, room)
    places = [requests.index(request) for request in batch.requests]
    assert places == sorted(set(places))
    assert len(batch.costs) == len(places)
    assert 0 <= batch.fill <= 1
    assert 0 <= batch.efficiency <= 1
    if places:
        assert places[0] == 0
        assert batch.linger_us == 0
        assert all(cost <= request.cost for cost, request in zip(batch.costs, batch.requests, strict=True))
    if places and room.mode == "continuous":
        assert places == list(range(len(places)))
    if len(places) > 1 and room.mode == "padded":
        assert batch.fill == pytest.approx(len(places) * max(1, *batch.costs) / room.budget)


@pytest.mark.untraced
@given(lengths.filter(len), rooms)
def test_an_idle_worker_that_can_hold_the_head_gets_a_batch(
    drawn: list[tuple[int, int, str, bool]], room: Room
) -> None:
    requests = made(drawn)
    room = replace(room, held_rows=0, held_tokens=0, longest=0, idle=True)
    cost = requests[0].cost if requests[0].exact else min(requests[0].cost, room.largest or 10**9)
    fits = min(room.rows, room.share) > 0 and cost <= room.capacity
    assert bool(form(requests, room).requests) == fits


# Continuous


def test_continuous_keeps_the_order_whatever_the_lengths() -> None:
    assert names(form(line(10, 500, 20, 400, 30), CONTINUOUS)) == ["0", "1", "2", "3", "4"]


def test_nothing_overtakes_a_request_that_does_not_fit_the_tokens() -> None:
    room = replace(CONTINUOUS, capacity=100)
    assert names(form(line(60, 50, 10), room)) == ["0"]


def test_nothing_overtakes_a_request_that_does_not_fit_the_rectangle() -> None:
    room = replace(CONTINUOUS, cache="rect", capacity=100, held_rows=1, longest=20)
    assert names(form(line(10, 20, 30, 10), room)) == ["0", "1"]
    assert names(form(line(30, 10, 20, 10), room)) == ["0", "1"]


def test_prompts_sum_to_one_step_and_outputs_do_not_count() -> None:
    requests = [waiting(400, str(i), output=5000) for i in range(3)]
    batch = form(requests, replace(CONTINUOUS, capacity=100_000))
    assert names(batch) == ["0", "1"]
    assert batch.fill == 0.8
    assert names(form(line(500, 500, 1), CONTINUOUS)) == ["0", "1"]


def test_a_prompt_above_the_budget_goes_alone() -> None:
    batch = form(line(1500, 10), CONTINUOUS)
    assert names(batch) == ["0"]
    assert batch.fill == 1.0
    assert names(form(line(10, 1500), CONTINUOUS)) == ["0"]


def test_continuous_never_lingers() -> None:
    assert names(form(line(1), replace(CONTINUOUS, idle=False, held_rows=1))) == ["0"]


# Padded, the choice of lengths


def test_the_nearest_lengths_fill_up_behind_the_head() -> None:
    batch = form(line(1000, 10, 5000, 990, 20, 1010, 9000, 1000), replace(PADDED, budget=4040))
    assert names(batch) == ["0", "3", "5", "7"]
    assert batch.efficiency == pytest.approx(4000 / 4040)
    assert batch.fill == 1.0


def test_no_request_is_padded_beyond_the_budget() -> None:
    assert names(form(line(10, 6000), PADDED)) == ["0"]
    assert names(form(line(4000, 5000), PADDED)) == ["0", "1"]


def test_a_short_request_is_not_padded_to_a_long_one_to_save_it_a_batch() -> None:
    assert names(form(line(10, 5000), PADDED)) == ["0"]
    assert names(form(line(1000, *[100] * 200), PADDED)) == ["0"]


def test_a_few_very_long_rows_do_not_pad_a_batch_of_short_ones() -> None:
    batch = form(line(*[100] * 60, 1000, 1000), PADDED)
    assert names(batch) == [str(i) for i in range(60)]


def test_a_little_padding_is_worth_a_fuller_batch() -> None:
    batch = form(line(100, *[120] * 80), PADDED)
    assert len(batch.requests) > 70


def test_of_equal_lengths_the_oldest_go_first() -> None:
    assert names(form(line(*[1000] * 30), PADDED)) == [str(i) for i in range(10)]
    assert names(form(line(1000, *[990] * 7), replace(PADDED, budget=4000))) == ["0", "1", "2", "3"]


def cost_of_the_best_cut(lengths: Sequence[int], room: Room) -> int:
    """What the batches of a window cost at the least, whatever their sizes."""
    fixed, costs = round(BATCH_OVERHEAD * room.budget), [0]
    for end, longest in enumerate(sorted(lengths), 1):
        most = min(end, room.share, room.budget // longest)
        costs.append(min(costs[end - size] + size * longest for size in range(1, most + 1)) + fixed)
    return costs[-1]


@pytest.mark.parametrize("seed", range(5))
def test_the_batches_of_a_window_cost_little_more_than_the_best_cut_in_order_of_length(seed: int) -> None:
    rng = random.Random(seed)
    drawn = [min(9000, 1 + int(rng.lognormvariate(6.5, 1.0))) for _ in range(200)]
    requests, paid = line(*drawn), 0
    while requests:
        batch = form(requests, PADDED)
        paid += len(batch.costs) * max(batch.costs) + round(BATCH_OVERHEAD * PADDED.budget)
        requests = without(requests, batch)
    assert paid <= 1.02 * cost_of_the_best_cut(drawn, PADDED)


def test_a_request_above_the_budget_runs_alone() -> None:
    batch = form(line(15_000, 10, 15_000), PADDED)
    assert names(batch) == ["0"]
    assert (batch.fill, batch.efficiency) == (1.0, 1.0)


def test_a_request_above_the_budget_joins_no_other() -> None:
    assert names(form(line(9000, 10_001, 900), PADDED)) == ["0"]


def test_free_tokens_of_a_paged_cache_end_a_padded_batch() -> None:
    room = replace(PADDED, capacity=3500)
    assert names(form(line(1000, 1000, 1000, 1000), room)) == ["0", "1", "2"]


def test_a_rectangular_cache_ends_a_padded_batch() -> None:
    room = replace(PADDED, cache="rect", capacity=3000, held_rows=1, longest=800)
    assert names(form(line(1000, 1000, 1000), room)) == ["0", "1"]
    assert names(form(line(500, 500, 500, 500), room)) == ["0", "1"]


# Padded, the class of the head first


def burst(high: Sequence[int], normal: Sequence[int]) -> list[Waiting]:
    return line(*high, prefix="h", lane="high") + line(*normal, prefix="n", lane="normal", at=T + 60 * S)


def test_lengths_that_fit_better_do_not_go_before_the_class_of_the_head() -> None:
    batch = form(burst([1000, 800, 1000, 900, 1000], [1000] * 50), replace(PADDED, budget=5000))
    assert names(batch) == ["h0", "h1", "h2", "h3", "h4"]


def test_the_rows_that_a_class_leaves_go_to_the_next() -> None:
    batch = form(burst([1000, 900], [10, 2000, 950, 1000, 980]), replace(PADDED, budget=4000))
    assert names(batch) == ["h0", "h1", "n3", "n4"]


def test_the_next_class_takes_no_more_than_the_free_tokens() -> None:
    batch = form(burst([1000], [1000] * 9), replace(PADDED, capacity=3500))
    assert names(batch) == ["h0", "n0", "n1"]


def test_rows_stay_free_rather_than_be_all_padding() -> None:
    batch = form(burst([1000, 900], [1] * 50), PADDED)
    assert names(batch) == ["h0", "h1"]


def test_a_long_request_of_the_head_class_does_not_pad_the_short_ones() -> None:
    batch = form(burst([100, 9900], [100] * 200), PADDED)
    assert "h1" not in names(batch)
    assert len(batch.requests) == 100


def test_lengths_go_before_the_class_of_the_head_when_its_batch_would_be_nearly_empty() -> None:
    batch = form(burst([10], [20] * 600), PADDED)
    assert names(batch)[0] == "h0"
    assert len(batch.requests) == 101  # of 601 in rows of 20 tokens, beside a batch of 500


def test_a_burst_of_a_better_class_is_served_in_little_more_than_its_own_batches() -> None:
    rng = random.Random(7)
    requests = burst([rng.randint(100, 2000) for _ in range(100)], [rng.randint(100, 2000) for _ in range(1500)])
    batcher, room, batches = DynamicBatcher(CONFIG), replace(PADDED, budget=32_768, capacity=65_536), 0
    while any(request.lane == "high" for request in requests):
        requests = without(requests, batcher.form(requests, room, now_us=T + batches * 100 * MS))
        batches += 1
    assert batches <= 8  # 105,000 tokens are 4 full batches; by lengths alone it takes 38


# Padded, waiting for a better batch

BUSY = replace(PADDED, idle=False, held_rows=1, held_tokens=5000)


def test_an_idle_worker_gets_what_there_is() -> None:
    assert names(form(line(100), PADDED)) == ["0"]


def test_a_busy_worker_gets_a_full_batch_at_once() -> None:
    assert len(form(line(*[1000] * 12), BUSY).requests) == 10


def test_a_batch_for_a_busy_worker_waits_to_become_better() -> None:
    batch = form(line(100), BUSY)
    assert batch.requests == ()
    assert 45 * MS < batch.linger_us <= 50 * MS


def test_the_wait_is_over_when_it_was_said_to_be() -> None:
    requests = line(*[1000] * 6)  # 0.6 of the rows: a third of the floor is missing
    linger_us = form(requests, BUSY).linger_us
    assert linger_us == pytest.approx(50 * MS / 3, rel=0.01)
    assert form(requests, BUSY, T + linger_us - 1).linger_us == 1
    assert len(form(requests, BUSY, T + linger_us).requests) == 6


def test_nothing_waits_longer_than_the_delay() -> None:
    assert names(form(line(100), BUSY, T + 50 * MS)) == ["0"]


def test_padding_makes_a_full_batch_wait_too() -> None:
    requests = line(1000, *[500] * 9)
    assert form(requests, replace(BUSY, share=10, budget=10_000)).linger_us > 0


@pytest.mark.parametrize(
    ("lane", "window_s"), [("critical", 0), ("high", 0), ("normal", 60), ("low:acme", 600), ("batch", 3600)]
)
def test_the_wait_is_counted_from_the_arrival_and_not_from_the_score(lane: str, window_s: int) -> None:
    requests = line(100, lane=lane, at=T + window_s * S)
    assert form(requests, BUSY, T).linger_us > 0
    assert names(form(requests, BUSY, T + 50 * MS)) == ["0"]


def test_a_request_from_before_a_clock_was_set_back_does_not_wait_for_it() -> None:
    assert names(form(line(100, at=T + 3600 * S), BUSY, T)) == ["0"]


def test_suspects_do_not_linger() -> None:
    assert names(form(line(100, lane="suspect", at=T), BUSY, T)) == ["0"]


def test_a_busy_worker_gets_no_third_batch_out_of_what_two_leave() -> None:
    full = line(*[1000] * 50)
    assert form(full, replace(BUSY, held_tokens=10_001)) == Batch()
    assert form(full, replace(BUSY, held_rows=501)) == Batch()
    assert len(form(full, replace(BUSY, held_tokens=10_000, held_rows=500)).requests) == 10
    rect = replace(BUSY, cache="rect", held_rows=10)
    assert form(full, replace(rect, longest=1001)) == Batch()
    assert len(form(full, replace(rect, longest=1000)).requests) == 10


# Padded, the bound on reordering


def test_while_a_generation_can_fill_a_batch_nothing_that_came_later_is_taken() -> None:
    rng = random.Random(3)
    batcher = DynamicBatcher(CONFIG)
    requests, now_us = line(*(rng.randint(10, 4000) for _ in range(300))), T
    while sum(request.cost for request in requests if request.score < T + 300) >= PADDED.budget:
        batch = batcher.form(requests, PADDED, now_us=now_us)
        assert all(request.score < T + 300 for request in batch.requests)
        requests = without(requests, batch)
        now_us += 100 * MS
        requests += line(*(rng.randint(10, 4000) for _ in range(10)), prefix=f"{now_us}-", at=now_us)


def test_newcomers_within_the_delay_may_join_a_generation() -> None:
    batcher = DynamicBatcher(CONFIG)
    first = line(1000, *[100] * 200)
    assert names(batcher.form(first, PADDED, now_us=T)) == ["0"]
    joined = first + line(*[1000] * 9, prefix="soon", at=T + 50 * MS)
    assert len(batcher.form(joined, PADDED, now_us=T + 50 * MS).requests) == 10
    late = joined + line(*[1000] * 9, prefix="late", at=T + 51 * MS)
    batch = batcher.form(late, PADDED, now_us=T + 51 * MS)
    assert "soon0" in names(batch)
    assert not any(name.startswith("late") for name in names(batch))


def test_better_scored_requests_join_a_generation_at_any_time() -> None:
    batcher = DynamicBatcher(CONFIG)
    old = line(*[1000] * 50, lane="normal", at=T + 60 * S)
    batcher.form(old, PADDED, now_us=T)
    urgent = line(*[1000] * 3, prefix="urgent", at=T + 2 * S)
    batch = batcher.form(urgent + old, PADDED, now_us=T + 2 * S)
    assert names(batch)[:3] == ["urgent0", "urgent1", "urgent2"]


def test_critical_before_the_merge_is_served_though_its_score_lies_behind_the_generation() -> None:
    batcher = DynamicBatcher(CONFIG)
    old = line(*[1000] * 50, at=T)
    batcher.form(old, PADDED, now_us=T)
    urgent = line(1000, 1000, prefix="urgent", lane="critical", at=T + 2 * S)
    batch = batcher.form(urgent + old, PADDED, now_us=T + 2 * S)
    assert names(batch)[:2] == ["urgent0", "urgent1"]


def test_critical_of_all_lengths_goes_together_while_others_wait_as_far_as_it_fits() -> None:
    urgent = line(100, 3000, 2000, 2500, prefix="urgent", lane="critical")
    others = line(*[2900] * 20, *[90] * 20, at=T + 10)
    assert names(form(urgent + others, PADDED)) == ["urgent0", "urgent1", "urgent2"]
    assert names(form(urgent[:2] + others, PADDED)) == ["urgent0", "urgent1", "0"]


def test_critical_alone_is_cut_by_length_like_all() -> None:
    assert names(form(line(100, 3000, 2000, lane="critical"), PADDED)) == ["0"]


def test_what_is_left_of_a_generation_heads_the_next_one() -> None:
    batcher = DynamicBatcher(CONFIG)
    batcher.form(line(*[1000] * 10), PADDED, now_us=T)
    left = line(9000, 100, prefix="left")
    fresh = line(*[100] * 200, prefix="fresh", at=T + 1 * S)
    batch = batcher.form(left + fresh, PADDED, now_us=T + 1 * S)
    assert names(batch) == ["left0"]
    batch = batcher.form([left[1], *fresh], PADDED, now_us=T + 1 * S)
    assert names(batch)[0] == "left1"
    assert len(batch.requests) == 100


def test_requests_above_the_budget_do_not_keep_a_generation_open() -> None:
    batcher = DynamicBatcher(CONFIG)
    old = line(100, 15_000, 15_000)
    batcher.form(old, PADDED, now_us=T)
    fresh = line(*[100] * 200, prefix="fresh", at=T + 1 * S)
    assert len(batcher.form(old + fresh, PADDED, now_us=T + 1 * S).requests) == 100


def test_only_the_window_is_looked_at() -> None:
    batcher = DynamicBatcher(CONFIG)
    assert batcher.window_tokens(PADDED) >= 16 * PADDED.budget
    assert batcher.window_tokens(replace(CONTINUOUS, held_tokens=5000)) == 15_000
    filler = [8000] * (batcher.window_tokens(PADDED) // 8000)
    requests = line(1000, *filler, *[8000] * 64, *[1000] * 9)
    assert names(batcher.form(requests, PADDED, now_us=T)) == ["0"]


def saturated(room: Room, *, count: int, seed: int) -> tuple[float, float, float]:
    """Mean efficiency by tokens, mean fill, and the most budgets of later requests that passed one, of a long queue.

    Lengths are those of conversations: log-normal, 1,155 tokens in and 211 out on average.
    """
    rng = random.Random(seed)
    queue = [
        waiting(
            min(14_000, 1 + int(rng.lognormvariate(6.55, 1.0))),
            str(i),
            output=min(1500, 1 + int(rng.lognormvariate(4.85, 1.0))),
            at=T + i * 2 * MS,
        )
        for i in range(count)
    ]
    batcher, now_us = DynamicBatcher(CONFIG), T + count * 2 * MS
    window: list[Waiting] = []
    tokens, batches, taken, passed = 0, [], [0] * count, 0.0
    while True:
        while queue and tokens < batcher.window_tokens(room):
            tokens += queue[0].cost
            window.append(queue.pop(0))
        if not queue:
            break
        batch = batcher.form(window, room, now_us=now_us)
        window, tokens, now_us = without(window, batch), tokens - sum(batch.costs), now_us + 70 * MS
        passed = max(passed, max(sum(taken[int(request.id) :]) for request in batch.requests) / room.budget)
        for request in batch.requests:
            taken[int(request.id)] = request.cost
        batches.append(batch)
    padded = [sum(batch.costs) / batch.efficiency for batch in batches]
    return (
        sum(sum(batch.costs) for batch in batches) / sum(padded),
        sum(batch.fill for batch in batches) / len(batches),
        passed,
    )


@pytest.mark.untraced
@pytest.mark.parametrize("seed", [1, 2])
def test_a_long_queue_of_conversations_is_batched_with_little_padding_in_full_batches(seed: int) -> None:
    room = replace(PADDED, budget=32_768, capacity=65_536)
    efficiency, fill, passed = saturated(room, count=4000, seed=seed)
    assert efficiency >= 0.96
    assert fill >= 0.9
    assert passed <= 64  # the window


def test_a_small_budget_pads_little_too() -> None:
    efficiency, fill, passed = saturated(replace(PADDED, budget=8192, capacity=16_384), count=2000, seed=3)
    assert efficiency >= 0.965
    assert fill >= 0.72  # one row of 5,000 tokens leaves no room for another
    assert passed <= 64
