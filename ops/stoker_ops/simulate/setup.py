"""The fleet that a trace is replayed on: its workers, their engines and records, and how quick they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stoker.config import Config
from stoker.store.records import WorkerRecord
from stoker_ops.simulate.engines import ContinuousEngine, PaddedEngine, VirtualEngine
from stoker_ops.simulate.policies import Policy
from stoker_ops.simulate.traces import Arrival
from stoker_scheduler.placement import Speed
from stoker_scheduler.prices import Prices
from stoker_scheduler.service_time import Sizes, speed_of
from stoker_workers.engine import Capacity
from stoker_workers.engines.sim import Profile
from stoker_workers.pacing import Pacer

H100_8B = Profile(base_ms=7.0, prefill_ms=0.032, row_ms=0.02, resident_ms=0.00005)
"""A model of 8 billion parameters in bfloat16 on one H100, out of the card's data sheet: see docs/simulate.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The fleet, and what a submit is held to. `overhead_ms` is from a submit or a settle to the tick that sees it.

    `max_waiting`: requests that may wait, None for no cap; `displace`: whether one that finds no room there takes the
    place of the one with the worst score. `check_deadlines`: refuse what can't be done in time. `profiles`: workers
    take them in turn.
    """

    mode: str
    workers: int
    profiles: Sequence[Profile]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    overhead_ms: float = 1.0
    max_waiting: int | None = None
    displace: bool = False
    check_deadlines: bool = False


def engine_of(setup: Setup, profile: Profile, policy: Policy, config: Config) -> VirtualEngine:
    """Return the engine of a worker."""
    if setup.mode == "padded":
        longest = min(setup.max_model_len, setup.kv_cache_tokens)
        return PaddedEngine(profile, setup.max_num_seqs, setup.max_num_batched_tokens, longest)
    capacity = Capacity(rows=setup.max_num_seqs, tokens=setup.kv_cache_tokens, budget=setup.max_num_batched_tokens)
    pacer = Pacer(config) if policy.reserve else None
    return ContinuousEngine(profile, capacity, to_longest=policy.to_longest, pacer=pacer)


def record_of(number: int, capacity: Capacity, mode: str) -> WorkerRecord:
    """Return the worker as a scheduler would read it."""
    name = f"w{number:03}"
    return WorkerRecord(
        inc=f"{name}:1-{number}",
        worker=name,
        rows=capacity.rows,
        capacity=capacity.tokens,
        budget=capacity.budget,
        mode=mode,
        cache=capacity.cache,
    )


def speeds_of(
    fleet: Sequence[WorkerRecord], prices: Mapping[str, Prices], arrivals: Sequence[Arrival]
) -> dict[str, Speed]:
    """Return how quick workers are, for a scheduler that knows their prices and the mean of the trace."""
    prompt, answer, asked = (
        sum(sizes) / len(arrivals)
        for sizes in zip(*((one.prompt_tokens, one.output_tokens, one.max_tokens) for one in arrivals), strict=True)
    )
    sizes = Sizes(prompt, max(1.0, answer), prompt, asked)
    return {record.inc: speed_of(record, prices[record.inc], sizes) for record in fleet}
