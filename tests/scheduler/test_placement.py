"""Where a request is done first: fair shares of workers that differ, two choices of many, homes of affinity keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.config import Config
from stoker.store.records import Waiting, WorkerRecord
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import DynamicBatcher
from stoker_scheduler.placement import HOMES, Homes, Place, Places, Speed, usual
from stoker_scheduler.round import Round

SLACK_MS = 250
CONFIG = Config(affinity_slack_ms=SLACK_MS, scan_workers=64)
FAST, SLOW = Speed(2000.0, 0.005), Speed(1000.0, 0.01)


def worker(name: str, **changes: int) -> WorkerRecord:
    fields = {"rows": 1000, "capacity": 1 << 30, "budget": 8192} | changes
    return WorkerRecord(inc=f"{name}:1-x", worker=name, mode="continuous", cache="paged", **fields)


def request(name: str, tokens: int = 100, answer: int = 0, affinity: int | None = None) -> Waiting:
    return Waiting(name, "normal", name, 0.0, tokens - answer, answer, True, affinity=affinity)


def places_of(speeds: Sequence[Speed], balancer: LoadBalancer | None = None, **changes: int) -> Places:
    fleet = [worker(f"w{number:03}", **changes) for number in range(len(speeds))]
    by_inc = {one.inc: speed for one, speed in zip(fleet, speeds, strict=True)}
    return (balancer or LoadBalancer(CONFIG)).places(fleet, by_inc)


def hand_out(places: Places, requests: Sequence[Waiting]) -> list[Place]:
    balancer, went = LoadBalancer(CONFIG), []
    for one in requests:
        place = balancer.choose(places, one, one.cost)
        assert place is not None
        place.give(one.cost)
        went.append(place)
    return went


def held(places: Places) -> list[int]:
    return [place.held_tokens for place in places]


# --- fair shares ------------------------------------------------------------------------------------------------------


def test_of_two_workers_one_twice_as_fast_gets_two_thirds_of_the_tokens() -> None:
    places = places_of([FAST, SLOW])
    hand_out(places, [request(str(number), 50 + number % 400, answer=40) for number in range(1000)])
    fast, slow = held(places)
    assert fast / (fast + slow) == pytest.approx(2 / 3, rel=0.05)


def test_an_idle_fleet_gives_a_request_to_the_worker_that_answers_sooner_whatever_its_rate() -> None:
    wide, quick = Speed(10_000.0, 0.02), Speed(1000.0, 0.005)
    [went] = hand_out(places_of([wide, quick]), [request("r", 100, answer=50)])
    assert went.record.worker == "w001"  # 0.1 s and 50 x 5 ms, against 0.01 s and 50 x 20 ms


def test_a_prompt_alone_goes_where_more_tokens_are_done() -> None:
    [went] = hand_out(places_of([Speed(10_000.0, 0.02), Speed(1000.0, 0.005)]), [request("r", 1000)])
    assert went.record.worker == "w000"


def test_an_idle_padded_fleet_gives_a_request_to_the_worker_whose_batch_ends_sooner() -> None:
    fleet = [replace(worker(name), mode="padded", cache="rect") for name in "ab"]
    known = {"a:1-x": Speed(2000.0, 0.5), "b:1-x": Speed(1000.0, 0.1)}
    [went] = hand_out(LoadBalancer(CONFIG).places(fleet, known), [request("r", 100)])
    assert went.record.worker == "b"


def test_a_worker_of_which_nothing_is_known_counts_like_the_median() -> None:
    fleet = [worker(name) for name in "abcd"]
    known = {"a:1-x": Speed(1.0, 0.3), "b:1-x": Speed(20.0, 0.1), "c:1-x": Speed(300.0, 0.2)}
    places = LoadBalancer(CONFIG).places(fleet, known)
    assert (places["d:1-x"].rate, places["d:1-x"].answer_s) == (20.0, 0.2)
    assert usual([]).tokens_per_s == 1.0


speeds = st.builds(Speed, st.floats(1.0, 1e5), st.floats(0.0, 0.1))
sizes = st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 500)), max_size=40)


@given(st.lists(speeds, min_size=1, max_size=6), sizes)
def test_no_request_would_be_done_sooner_elsewhere(fleet: list[Speed], asked: list[tuple[int, int]]) -> None:
    places, balancer = places_of(fleet), LoadBalancer(CONFIG)
    for number, (prompt, answer) in enumerate(asked):
        one = request(str(number), prompt + answer, answer)
        best_s = min(place.done_s(one.cost, answer) for place in places)
        place = balancer.choose(places, one, one.cost)
        assert place is not None
        assert place.done_s(one.cost, answer) == best_s
        place.give(one.cost)


@given(st.lists(st.floats(1.0, 50.0), min_size=2, max_size=6))
def test_full_queues_drain_together(rates: list[float]) -> None:
    places = places_of([Speed(rate) for rate in rates])
    hand_out(places, [request(str(number), 10) for number in range(200)])
    drains = [place.drain_s() for place in places]
    assert max(drains) - min(drains) <= 10 / min(rates) + 1e-6  # one request at the slowest


# --- two choices ------------------------------------------------------------------------------------------------------


def test_two_choices_keep_the_largest_load_of_256_workers_near_the_mean() -> None:
    places = places_of([Speed(100.0)] * 256)
    hand_out(places, [request(f"r{number}") for number in range(256 * 20)])
    rows = [place.held_rows for place in places]
    assert sum(rows) / len(rows) == 20
    assert max(rows) <= 20 + 4  # by one choice it would be about 20 + 15


def test_two_choices_give_workers_that_differ_their_shares() -> None:
    places = places_of([FAST, SLOW] * 128)
    hand_out(places, [request(f"r{number}") for number in range(256 * 20)])
    tokens = held(places)
    assert sum(tokens[::2]) / sum(tokens) == pytest.approx(2 / 3, rel=0.05)
    assert max(place.drain_s() for place in places) < 1.5 * sum(tokens) / (128 * 3000)


def test_few_fast_workers_among_many_slow_ones_get_their_share_of_two_choices() -> None:
    places = places_of([Speed(1000.0)] * 16 + [Speed(100.0)] * 240)
    hand_out(places, [request(f"r{number}") for number in range(4000)])
    tokens = held(places)
    assert sum(tokens[:16]) / sum(tokens) == pytest.approx(0.4, rel=0.1)


def test_the_two_choices_are_two_workers() -> None:
    # One has half of the rate, so it is drawn nearly always; it is also the busiest by far.
    places = places_of([Speed(64_000.0)] + [Speed(1000.0)] * 64)
    for _ in range(100):
        places["w000:1-x"].give(640_000)
    went = [LoadBalancer(CONFIG).choose(places, request(f"r{number}"), 100) for number in range(200)]
    assert sum(place is places["w000:1-x"] for place in went) <= 4


def test_a_choice_of_many_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    places = places_of([FAST] * 65)
    seen = Counter[str]()
    done_s = Place.done_s

    def counted(place: Place, cost: int, answer: int) -> float:
        seen[place.record.worker] += 1
        return done_s(place, cost, answer)

    monkeypatch.setattr(Place, "done_s", counted)
    hand_out(places, [request("r")])
    assert seen.total() == 2
    hand_out(places_of([FAST] * 64), [request("r")])
    assert seen.total() == 2 + 64


@given(st.integers(65, 90), st.data())
def test_two_choices_find_the_last_worker_that_has_room(size: int, data: st.DataObject) -> None:
    fleet = [worker(f"w{number:03}", rows=1) for number in range(size)]
    free = data.draw(st.integers(0, size - 1))
    places = LoadBalancer(CONFIG).places(fleet, {})
    for number, one in enumerate(fleet):
        if number != free:
            places[one.inc].give(10)
    [went] = hand_out(places, [request("r")])
    assert went.record is fleet[free]
    assert LoadBalancer(CONFIG).choose(places, request("s"), 100) is None


@given(st.permutations(range(70)), st.text("abc", min_size=1, max_size=5))
def test_the_same_state_and_request_are_always_the_same_choice(order: list[int], name: str) -> None:
    fleet = [worker(f"w{number:03}") for number in range(70)]
    known = {one.inc: Speed(1000.0 + number) for number, one in enumerate(fleet)}
    [first] = hand_out(LoadBalancer(CONFIG).places(fleet, known), [request(name)])
    [again] = hand_out(LoadBalancer(CONFIG).places([fleet[place] for place in order], known), [request(name)])
    assert first.record == again.record


# --- affinity ---------------------------------------------------------------------------------------------------------


def test_the_requests_of_a_key_go_to_one_worker_while_the_fleet_is_idle() -> None:
    speeds = [Speed(10_000.0, 0.01)] * 8
    homes = {
        hand_out(places_of(speeds), [request(f"{key}-{turn}", affinity=key)])[0].record.worker
        for key in (5, 6, 7)
        for turn in range(5)
    }
    assert len(homes) <= 3
    spread = {hand_out(places_of(speeds), [request("r", affinity=key)])[0].record.worker for key in range(200)}
    assert len(spread) == 8


@settings(deadline=None)
@given(
    st.integers(2, 80),
    st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 200), st.integers(0, 5)), max_size=60),
    st.lists(speeds, min_size=1, max_size=4),
)
def test_an_affinity_key_never_sends_a_request_where_it_is_done_later_than_the_slack(
    size: int, asked: list[tuple[int, int, int]], kinds: list[Speed]
) -> None:
    places, balancer = places_of([kinds[number % len(kinds)] for number in range(size)]), LoadBalancer(CONFIG)
    for number, (prompt, answer, key) in enumerate(asked):
        keyed = request(f"r{number}", prompt + answer, answer, affinity=key)
        without = balancer.choose(places, request(f"r{number}", prompt + answer, answer), keyed.cost)
        place = balancer.choose(places, keyed, keyed.cost)
        assert place is not None
        assert without is not None
        least_s = without.done_s(keyed.cost, answer)
        assert place.done_s(keyed.cost, answer) <= least_s + SLACK_MS / 1000
        place.give(keyed.cost)


def test_a_key_whose_homes_are_busy_goes_like_any_other_request() -> None:
    balancer = LoadBalancer(CONFIG)
    places = places_of([Speed(1000.0)] * 8, balancer)
    for place in list(places):
        if place.record.worker in _homes(8, 9):
            place.give(SLACK_MS + 1)
    place = balancer.choose(places, request("r", affinity=9), 100)
    assert place is not None
    assert place.record.worker not in _homes(8, 9)
    assert place is balancer.choose(places, request("r"), 100)


def test_a_slack_of_nothing_leaves_a_key_only_workers_that_are_equal() -> None:
    balancer = LoadBalancer(Config(affinity_slack_ms=0))
    places = places_of([Speed(1000.0)] * 4, balancer)
    home = places[f"{_homes(4, 9)[0]}:1-x"]
    assert balancer.choose(places, request("r", affinity=9), 100) is home
    home.give(1)
    assert balancer.choose(places, request("r", affinity=9), 100) is not home


def test_a_key_is_never_sent_to_a_worker_without_room_or_a_shut_one() -> None:
    home = _homes(4, 9)[0]
    fleet = [worker(f"w{number:03}", rows=1) for number in range(4)]
    balancer = LoadBalancer(CONFIG)
    places = balancer.places(fleet, {one.inc: Speed(1e6) for one in fleet}, shut={f"{home}:1-x"})
    place = balancer.choose(places, request("r", affinity=9), 100)
    assert place is not None
    assert place.record.worker == _homes(4, 9)[1]
    place.give(100)
    other = balancer.choose(places, request("s", affinity=9), 100)
    assert other is not None
    assert other.record.worker == _homes(4, 9)[2]


def _homes(size: int, key: int) -> Sequence[str]:
    return Homes().of(key, [worker(f"w{number:03}") for number in range(size)])


def test_a_worker_that_leaves_moves_only_its_own_keys() -> None:
    homes, fleet = Homes(), [worker(f"gpu{number}") for number in range(10)]
    before = {key: homes.of(key, fleet) for key in range(2000)}
    left = [one for one in fleet if one.worker != "gpu3"]
    for key, (first, second, *_) in before.items():
        assert homes.of(key, left)[0] == (second if first == "gpu3" else first)
    assert {key: homes.of(key, fleet) for key in range(2000)} == before


def test_keys_spread_evenly_over_workers_whatever_their_names() -> None:
    homes, fleet = Homes(), [worker(f"gpu{number}") for number in range(16)]
    counts = Counter(homes.of(key * 2_654_435_761 % 2**32, fleet)[0] for key in range(16_000))
    assert len(counts) == 16
    assert max(counts.values()) < 1.15 * 1000
    assert all(len(set(homes.of(key, fleet))) == HOMES for key in range(100))


# --- in a round -------------------------------------------------------------------------------------------------------


def batches_of(
    fleet: Sequence[WorkerRecord], waiting: Sequence[Waiting], speeds: Sequence[Speed]
) -> list[tuple[str, list[str]]]:
    hand = Round(
        waiting,
        fleet,
        balancer=LoadBalancer(CONFIG),
        batcher=DynamicBatcher(CONFIG),
        shut=set(),
        probing=set(),
        linger_us=50_000,
        now_us=0,
        speeds={one.inc: speed for one, speed in zip(fleet, speeds, strict=True)},
    )
    went = []
    while chosen := hand.next():
        went.append((chosen[0].worker, [one.id for one in chosen[1].requests]))
        hand.done(*chosen, more=True)
    return went


def test_a_burst_is_shared_by_speed_and_keeps_its_order_at_each_worker() -> None:
    fleet = [worker("a"), worker("b")]
    went = batches_of(fleet, [request(f"{number:03}") for number in range(90)], [Speed(2000.0), Speed(1000.0)])
    assert {name: len(ids) for name, ids in went} == {"a": 60, "b": 30}
    assert all(ids == sorted(ids) for _, ids in went)


def test_what_a_worker_was_to_get_goes_elsewhere_once_it_refuses() -> None:
    fleet = [worker("a", budget=200), worker("b")]
    hand = Round(
        [request(f"{number:03}") for number in range(8)],
        fleet,
        balancer=LoadBalancer(CONFIG),
        batcher=DynamicBatcher(CONFIG),
        shut=set(),
        probing=set(),
        linger_us=50_000,
        now_us=0,
    )
    first = hand.next()
    assert first is not None
    assert ([one.id for one in first[1].requests], first[0].worker) == (["000", "002"], "a")
    hand.done(*first, more=False)
    went = []
    while chosen := hand.next():
        went.append((chosen[0].worker, [one.id for one in chosen[1].requests]))
        hand.done(*chosen, more=True)
    assert went == [("b", ["001", "003", "005", "007", "004", "006"])]
    assert hand.fleet[1].held_rows == 6


def test_a_padded_burst_is_shared_by_speed() -> None:
    fleet = [replace(worker(name), mode="padded", cache="rect", budget=100_000) for name in "ab"]
    went = batches_of(fleet, [request(f"{number:03}") for number in range(90)], [Speed(2000.0), Speed(1000.0)])
    assert [(name, len(ids)) for name, ids in went] == [("a", 60), ("b", 30)]


def test_requests_of_one_key_in_a_burst_go_together() -> None:
    fleet = [worker(f"w{number:03}") for number in range(4)]
    waiting = [request(f"{number:03}", 10, affinity=number % 3) for number in range(30)]
    went = batches_of(fleet, waiting, [Speed(1e6)] * 4)
    for key in range(3):
        [home] = {name for name, ids in went if any(int(one) % 3 == key for one in ids)}
        assert home == _homes(4, key)[0]
