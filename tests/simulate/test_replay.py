"""Replays: every request ends once, times are in order, and the policy is that of a scheduler."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from stoker import RequestPriority
from stoker.config import Config
from stoker_ops.simulate.figures import Objective, fairness, figures, percentiles
from stoker_ops.simulate.policies import FifoBatcher, policies
from stoker_ops.simulate.replay import Replay
from stoker_ops.simulate.run import COMPLETED, DISPLACED, EXPIRED, REFUSED, Fate, Run
from stoker_ops.simulate.setup import H100_8B, Setup
from stoker_ops.simulate.traces import Arrival
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import DynamicBatcher
from stoker_scheduler.queue import RequestQueue
from stoker_workers.engines.sim import Profile

CONFIG = Config()
SETUP = Setup(
    mode="continuous",
    workers=2,
    profiles=[H100_8B],
    max_model_len=4096,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    kv_cache_tokens=8192,
)
PADDED = replace(SETUP, mode="padded", max_num_seqs=64, max_num_batched_tokens=4096)
OBJECTIVE = Objective(2000, 100)


def trace(size: int, seed: int = 1, per_s: float = 20.0, timeout: float | None = None) -> list[Arrival]:
    rng = random.Random(seed)
    at, found = 0.0, []
    for _ in range(size):
        at += rng.expovariate(per_s)
        prompt, output = rng.randint(1, 1500), rng.randint(0, 300)
        priority = rng.choice(list(RequestPriority))
        found.append(Arrival(at, prompt, output, output + rng.randint(0, 50), priority, rng.choice("ab"), timeout))
    return found


def replayed(arrivals: Sequence[Arrival], setup: Setup = SETUP, policy: str = "stoker") -> Run:
    return Replay(arrivals, setup, policies(CONFIG, setup.mode)[policy], CONFIG).to_end()


CASES = [(SETUP, name) for name in policies(CONFIG, "continuous")] + [
    (PADDED, name) for name in policies(CONFIG, "padded")
]


@pytest.mark.parametrize(("setup", "policy"), CASES, ids=lambda value: getattr(value, "mode", value))
@pytest.mark.parametrize("overload", [False, True], ids=["calm", "overloaded"])
def test_every_request_ends_once_and_its_times_are_in_order(setup: Setup, policy: str, overload: bool) -> None:
    timeout, cap = (3.0, 40) if overload else (None, None)
    arrivals = trace(300, per_s=200.0 if overload else 20.0, timeout=timeout)
    run = replayed(arrivals, replace(setup, max_waiting=cap), policy)
    assert all(fate.outcome in (COMPLETED, EXPIRED, REFUSED) for fate in run.fates)
    assert sum(run.outcomes.values()) == len(arrivals)
    assert all(run.outcomes[name] == sum(fate.outcome == name for fate in run.fates) for name in run.outcomes)
    for arrival, fate in zip(arrivals, run.fates, strict=True):
        assert fate.queued_s == pytest.approx(arrival.at_s, abs=1e-6)
        if fate.outcome == COMPLETED:
            assert fate.queued_s < fate.begun_s < fate.first_s <= fate.ended_s
        assert (fate.outcome == REFUSED) == (fate.outcome != EXPIRED and fate.begun_s != fate.begun_s)
    if not overload:
        assert run.outcomes[COMPLETED] == len(arrivals)


def test_the_same_trace_gives_the_same_run() -> None:
    first, again = replayed(trace(200)), replayed(trace(200))
    assert first.fates == again.fates
    assert (first.batches, first.ended_s) == (again.batches, again.ended_s)


def test_the_policy_is_made_of_the_objects_of_a_scheduler() -> None:
    for mode in ("continuous", "padded"):
        ours = policies(CONFIG, mode)["stoker"]
        assert type(ours.queue) is RequestQueue
        assert type(ours.batcher) is DynamicBatcher
        assert type(ours.balancer) is LoadBalancer


def test_a_request_alone_takes_its_overhead_and_its_steps() -> None:
    run = replayed([Arrival(5.0, 100, 11, 11)])
    fate = run.fates[0]
    first_ms = 7 + 100 * 0.032 + 0.02
    rest_ms = sum(7 + 0.02 + (100 + token) * 0.00005 for token in range(1, 11))
    assert fate.begun_s - 5.0 == pytest.approx(0.001)
    assert fate.first_s - fate.begun_s == pytest.approx(first_ms / 1000, rel=1e-6)
    assert fate.ended_s - fate.first_s == pytest.approx(rest_ms / 1000, rel=1e-6)


def test_a_better_class_passes_what_waits_and_fifo_lets_nothing_pass() -> None:
    waits = [Arrival(place / 1000, 1000, 200, 200, RequestPriority.LOW) for place in range(60)]
    urgent = Arrival(1.0, 1000, 200, 200, RequestPriority.HIGH)
    arrivals = [*waits, urgent]
    ours, fifo = replayed(arrivals).fates[-1], replayed(arrivals, policy="fifo").fates
    assert ours.begun_s < 3
    assert fifo[-1].begun_s == max(fate.begun_s for fate in fifo)


def test_a_tenants_flood_keeps_another_tenant_waiting_no_longer_than_its_turn() -> None:
    flood = [Arrival(0.0, 1000, 200, 200, tenant="flood") for _ in range(300)]
    calm = [Arrival(1.0 + place, 1000, 200, 200, tenant="calm") for place in range(10)]
    arrivals = sorted([*flood, *calm], key=lambda arrival: arrival.at_s)
    waits = {}
    for name, shown in (
        ("shared", arrivals),
        ("alone", calm),
        ("nobody named", [replace(a, tenant="") for a in arrivals]),
    ):
        fates = replayed(shown).fates
        mine = [
            fate
            for arrival, fate in zip(arrivals if name != "alone" else calm, fates, strict=True)
            if arrival.tenant == "calm"
        ]
        waits[name] = max(fate.begun_s - fate.queued_s for fate in mine)
    assert waits["shared"] < waits["alone"] + 2.0 < waits["nobody named"]


def test_the_figures_of_each_tenant_stand_beside_those_of_all() -> None:
    arrivals = trace(50)
    found = figures(replayed(arrivals), arrivals, SETUP, OBJECTIVE)
    assert {name: one["completed"] for name, one in found["tenants"].items()} == {
        name: sum(arrival.tenant == name for arrival in arrivals) for name in "ab"
    }
    unnamed = [replace(arrival, tenant="") for arrival in arrivals]
    assert figures(replayed(unnamed), unnamed, SETUP, OBJECTIVE)["tenants"] == {}


def test_what_waits_past_its_deadline_expires_then() -> None:
    arrivals = [Arrival(place / 1000, 1000, 200, 200, timeout=1.0) for place in range(200)]
    run = replayed(arrivals)
    waited = [fate for fate in run.fates if fate.begun_s != fate.begun_s]
    assert waited
    assert all(fate.outcome == EXPIRED for fate in waited)
    assert all(fate.ended_s - fate.queued_s == pytest.approx(1.0, abs=2e-3) for fate in waited)
    assert all(fate.outcome == EXPIRED for fate in run.fates if fate.ended_s - fate.queued_s > 1.0 + 1e-6)


def test_what_no_worker_could_hold_and_what_is_above_the_cap_is_refused() -> None:
    run = replayed([Arrival(0, 4090, 6, 6), Arrival(0, 4090, 7, 7)])
    assert [fate.outcome for fate in run.fates] == [COMPLETED, REFUSED]
    arrivals = [Arrival(0, 10, 5, 5) for _ in range(9)]
    assert replayed(arrivals, replace(SETUP, max_waiting=4)).outcomes == {COMPLETED: 4, REFUSED: 5}


@pytest.mark.untraced
def test_of_those_whose_deadlines_are_checked_nearly_all_are_on_time() -> None:
    takes_s = replayed(trace(600, per_s=5000.0)).ended_s
    # Of 1.2 times the capacity a sixth is left over in the end: twice as long to wait as they have.
    arrivals = trace(600, per_s=1.2 * 600 / takes_s, timeout=takes_s / 12)
    arrivals = [replace(one, priority=RequestPriority.HIGH, tenant="") for one in arrivals]
    free, checked = replayed(arrivals), replayed(arrivals, replace(SETUP, check_deadlines=True))
    accepted = len(arrivals) - checked.outcomes[REFUSED]
    assert checked.outcomes[REFUSED] > 0
    assert checked.outcomes[COMPLETED] >= 0.99 * accepted
    assert checked.outcomes[COMPLETED] >= free.outcomes[COMPLETED]


def test_no_worker_ever_holds_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    deliver = Replay._deliver

    def watched(self: Replay, *given: object) -> None:
        deliver(self, *given)  # type: ignore[arg-type]  # passed on
        seen.extend(zip(self._held_rows, self._held_tokens, strict=True))

    monkeypatch.setattr(Replay, "_deliver", watched)
    replayed(trace(300, per_s=200))
    assert max(rows for rows, _ in seen) == SETUP.max_num_seqs
    assert max(tokens for _, tokens in seen) <= SETUP.kv_cache_tokens


def test_closed_batches_are_slower_and_waiting_for_the_longest_slower_still() -> None:
    arrivals = [replace(one, at_s=place / 1e6) for place, one in enumerate(trace(200))]
    ends = {name: replayed(arrivals, policy=name).ended_s for name in ("stoker", "static", "longest")}
    assert ends["stoker"] < ends["static"] < ends["longest"]


def test_padded_batches_by_length_carry_less_padding_than_in_order_of_arrival() -> None:
    arrivals = [replace(one, at_s=place / 1e6) for place, one in enumerate(trace(400))]
    found = {
        name: figures(replayed(arrivals, PADDED, name), arrivals, PADDED, OBJECTIVE) for name in ("stoker", "fifo")
    }
    assert found["stoker"]["padding_efficiency"] > 0.9 > found["fifo"]["padding_efficiency"]
    assert found["stoker"]["tokens_per_s"] > 1.2 * found["fifo"]["tokens_per_s"]


def test_fifo_batches_are_the_front_of_the_queue() -> None:
    batcher = policies(CONFIG, "padded")["fifo"].batcher
    assert isinstance(batcher, FifoBatcher)
    run = replayed([Arrival(place / 1e6, 1000, 0, 0) for place in range(10)], replace(PADDED, workers=1), "fifo")
    assert run.batches == 3
    begun = [fate.begun_s for fate in run.fates]
    assert begun == sorted(begun)


def test_figures_are_those_of_the_fates() -> None:
    arrivals = [Arrival(0, 10, 3, 3), Arrival(0, 10, 3, 3), Arrival(0, 10, 3, 3)]
    run = replayed(arrivals)
    run.fates[0] = Fate(COMPLETED, 0.0, 0.5, 1.0, 1.15)
    run.fates[1] = Fate(COMPLETED, 0.0, 1.0, 2.5, 2.6)  # its first token is late
    run.fates[2] = Fate(COMPLETED, 0.0, 1.5, 1.6, 2.0)  # its other tokens are
    found = figures(run, arrivals, SETUP, OBJECTIVE)
    assert found["goodput_rps"] * found["seconds"] == pytest.approx(1)
    assert found["queue_ms"] == {"p50": 1000, "p95": 1500, "p99": 1500}
    assert found["ttft_ms"]["p50"] == 1600
    assert found["e2e_ms"]["p99"] == 2600
    assert found["classes"]["normal"]["completed"] == 3


def test_percentiles_are_by_the_nearest_rank() -> None:
    assert percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_fairness_is_one_for_equal_tenants_and_less_where_one_waits() -> None:
    served = (Arrival(0, 1, 1, 1, tenant="a"), Fate(COMPLETED, 0, 0.1, 0.2, 1.0))
    waited = (Arrival(0, 1, 1, 1, tenant="b"), Fate(COMPLETED, 0, 0.9, 0.95, 1.0))
    assert fairness([served, (replace(served[0], tenant="b"), served[1])]) == pytest.approx(1)
    assert fairness([served, waited]) == pytest.approx((0.9 + 0.1) ** 2 / (2 * (0.9**2 + 0.1**2)))


def test_at_the_cap_a_better_request_takes_the_place_of_the_worst_where_it_may() -> None:
    setup = replace(SETUP, workers=1, max_num_seqs=1, max_waiting=3)
    ranks = ("normal", "low", "high", "normal", "low", "normal", "critical")
    arrivals = [Arrival(place / 100, 10, 50, 50, RequestPriority(rank)) for place, rank in enumerate(ranks)]
    outcomes = [fate.outcome for fate in replayed(arrivals, setup).fates]
    assert outcomes == [COMPLETED] * 4 + [REFUSED] * 3
    outcomes = [fate.outcome for fate in replayed(arrivals, replace(setup, displace=True)).fates]
    assert outcomes == [COMPLETED, DISPLACED, COMPLETED, COMPLETED, REFUSED, DISPLACED, COMPLETED]


def test_a_place_that_was_taken_is_free_again_once_its_request_has_ended() -> None:
    setup = replace(SETUP, workers=1, max_num_seqs=1, max_waiting=1, displace=True)
    ranks = ("normal", "low", "normal")  # the third takes the place of the second
    arrivals = [
        Arrival(10 * turn + place / 100, 10, 50, 50, RequestPriority(rank))
        for turn in range(3)
        for place, rank in enumerate(ranks)
    ]
    outcomes = [fate.outcome for fate in replayed(arrivals, setup).fates]
    assert outcomes == [COMPLETED, DISPLACED, COMPLETED] * 3


# --- offline beside interactive -------------------------------------------------------------------------------------

BESIDE = replace(SETUP, workers=1, max_num_seqs=32, max_num_batched_tokens=8192, kv_cache_tokens=131_072)


def interactive(seconds: float) -> list[Arrival]:
    """Four requests a second."""
    rng = random.Random(1)
    return [
        Arrival(number / 4, rng.randint(100, 300), 100, 100, RequestPriority.NORMAL, "users")
        for number in range(int(4 * seconds))
    ]


def offline(number: int, prompt: int = 128) -> list[Arrival]:
    return [Arrival(0.0, prompt, 256, 256, RequestPriority.BATCH, "batch")] * number


def first_tokens_ms(run: Run, arrivals: Sequence[Arrival]) -> list[float]:
    fates = [fate for one, fate in zip(arrivals, run.fates, strict=True) if one.tenant == "users"]
    return sorted((fate.first_s - fate.queued_s) * 1000 for fate in fates)


def test_interactive_requests_hardly_feel_the_batch_beside_them() -> None:
    alone = interactive(20)
    beside = sorted([*alone, *offline(100, prompt=1000)], key=lambda one: one.at_s)
    run = replayed(beside, BESIDE)
    assert run.outcomes[COMPLETED] == len(beside)
    wanted, found = first_tokens_ms(replayed(alone, BESIDE), alone), first_tokens_ms(run, beside)
    middle, late = len(found) // 2, int(0.95 * len(found))
    assert found[middle] <= 1.2 * wanted[middle]
    assert found[late] <= 2 * wanted[late]
    config = Config(reserve_idle_s=0)
    ungated = Replay(beside, BESIDE, policies(config, "continuous")["stoker"], config).to_end()
    assert first_tokens_ms(ungated, beside)[late] > 5 * wanted[late]


def test_a_burst_after_an_idle_time_takes_rows_of_the_batch_which_all_end() -> None:
    burst = [Arrival(10.0, 200, 100, 100, RequestPriority.NORMAL, "users")] * 16
    beside = [*offline(400), *burst]
    run = replayed(beside, BESIDE)
    assert run.outcomes[COMPLETED] == len(beside)
    wanted, found = first_tokens_ms(replayed(burst, BESIDE), burst), first_tokens_ms(run, beside)
    assert found[8] <= 1.3 * wanted[8]
    kept = replace(policies(CONFIG, "continuous")["stoker"], preemption=None)
    assert first_tokens_ms(Replay(beside, BESIDE, kept, CONFIG).to_end(), beside)[8] > 2 * wanted[8]


def test_a_critical_request_takes_the_row_of_another_which_waits_again_and_ends() -> None:
    many = [Arrival(0.0, 200, 300, 300, tenant="users", timeout=60)] * 40
    arrivals = [*many, *(Arrival(2 + number / 2, 50, 10, 10, RequestPriority.CRITICAL) for number in range(4))]
    run = replayed(arrivals, BESIDE)
    assert run.outcomes[COMPLETED] == len(arrivals)
    assert all(fate.begun_s - fate.queued_s < 0.002 for fate in run.fates[len(many) :])
    alone = replayed(many, BESIDE).fates
    later = [fate.ended_s - other.ended_s for fate, other in zip(run.fates, alone, strict=False)]
    assert 0.2 < max(later) < 3
    kept = replace(policies(CONFIG, "continuous")["stoker"], preemption=None)
    waited = Replay(arrivals, BESIDE, kept, CONFIG).to_end().fates[len(many) :]
    assert max(fate.begun_s - fate.queued_s for fate in waited) > 0.1


def test_a_deadline_holds_for_a_preempted_request_that_waits_again() -> None:
    rows = [Arrival(0.0, 200, 300, 300, timeout=2.1)] * 32
    urgent = [Arrival(2.0, 50, 300, 300, RequestPriority.CRITICAL)] * 2
    run = replayed([*rows, *urgent], BESIDE)
    ended = sorted(fate.ended_s for fate in run.fates[:32] if fate.outcome == EXPIRED)
    assert ended[:2] == pytest.approx([2.1, 2.1], abs=0.002)


# --- workers that differ ----------------------------------------------------------------------------------------------

SLOW = Profile(**{name: 3 * price for name, price in asdict(H100_8B).items()})
MIXED = replace(SETUP, workers=4, profiles=[H100_8B, SLOW], max_num_seqs=32, kv_cache_tokens=65_536)


def mixed(arrivals: Sequence[Arrival], policy: str = "stoker") -> dict[str, Any]:
    run = Replay(arrivals, MIXED, policies(CONFIG, "continuous", mixed=True)[policy], CONFIG).to_end()
    return figures(run, arrivals, MIXED, OBJECTIVE)


def test_a_saturated_mixed_fleet_shares_the_tokens_by_speed() -> None:
    waits = [replace(arrival, at_s=0.0) for arrival in trace(600)]
    assert mixed(waits)["token_shares"] == pytest.approx([0.75, 0.25], abs=0.05)


def test_a_mixed_fleet_answers_sooner_than_in_turn_or_by_tokens_held() -> None:
    arrivals = [replace(one, priority=RequestPriority.HIGH) for one in trace(600, per_s=25.0)]
    found = {name: mixed(arrivals, name)["e2e_ms"] for name in ("stoker", "in turn", "least tokens")}
    for other in ("in turn", "least tokens"):
        assert found["stoker"]["p50"] < found[other]["p50"]
        assert found["stoker"]["p99"] < 0.8 * found[other]["p99"]


def test_a_key_keeps_its_worker_and_costs_no_more_than_the_slack() -> None:
    setup = replace(SETUP, workers=8)
    plain = [replace(one, priority=RequestPriority.HIGH) for one in trace(400, per_s=20.0)]
    keyed = [replace(one, affinity_key=f"s{number % 20}") for number, one in enumerate(plain)]
    found = [figures(replayed(arrivals, setup), arrivals, setup, OBJECTIVE) for arrivals in (plain, keyed)]
    assert found[0]["affinity"] is None
    assert found[1]["affinity"] > 0.5  # 1 in 8 by chance
    assert found[1]["e2e_ms"]["p50"] < found[0]["e2e_ms"]["p50"] + CONFIG.affinity_slack_ms
