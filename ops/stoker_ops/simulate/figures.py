"""What a replay says about a fleet: the fields that `stoker simulate --json` prints."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker_ops.simulate.run import COMPLETED, DISPLACED, EXPIRED, REFUSED, Fate, Run
from stoker_ops.simulate.setup import Setup
from stoker_ops.simulate.traces import Arrival

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Objective:
    """A request is served well if its first token comes within `ttft_ms`, and each later one in `tpot_ms` on average.

    In padded batches, which have no tokens, the whole answer must come within `ttft_ms`.
    """

    ttft_ms: float
    tpot_ms: float

    def met(self, fate: Fate, output_tokens: int) -> bool:
        """Return whether a completed request was served well."""
        ttft_s, rest_s = fate.first_s - fate.queued_s, fate.ended_s - fate.first_s
        return ttft_s * 1000 <= self.ttft_ms and rest_s * 1000 <= self.tpot_ms * max(0, output_tokens - 1)


def figures(run: Run, arrivals: Sequence[Arrival], setup: Setup, objective: Objective) -> dict[str, Any]:
    """Return all figures of one replay. Rates are over the time from the first arrival to the last answer."""
    pairs = list(zip(arrivals, run.fates, strict=True))
    completed = [(arrival, fate) for arrival, fate in pairs if fate.outcome == COMPLETED]
    seconds = max(run.ended_s - run.began_s, 1e-9)
    good = sum(objective.met(fate, arrival.output_tokens) for arrival, fate in completed)
    tally = run.tally
    padded = setup.mode == "padded"
    tokens = sum(arrival.prompt_tokens + (0 if padded else arrival.output_tokens) for arrival, _ in completed)
    return {
        "requests": len(pairs),
        "completed": run.outcomes[COMPLETED],
        "expired": run.outcomes[EXPIRED],
        "refused": run.outcomes[REFUSED],
        "displaced": run.outcomes[DISPLACED],
        "preempted": run.preempted,
        "padding_efficiency": _share(tally.useful, tally.paid),
        "batch_fill": _share(tally.useful, tally.offered),
        "utilization": tally.busy_ms / 1000 / seconds / setup.workers,
        "goodput_rps": good / seconds,
        **_latencies([fate for _, fate in completed]),
        "decision_us_per_request": run.decision_s * 1e6 / max(1, run.dispatched),
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "batches": run.batches,
        "fairness": fairness(pairs),
        "affinity": affinity(pairs),
        "token_shares": _token_shares(completed, len(setup.profiles)),
        "classes": _groups(completed, lambda arrival: str(arrival.priority)),
        "tenants": _groups(completed, lambda arrival: arrival.tenant) if any(one.tenant for one in arrivals) else {},
    }


def fairness(pairs: Iterable[tuple[Arrival, Fate]]) -> float:
    """Return Jain's index over tenants of the share of their time in which their requests were served; 1 is fairest."""
    shares: dict[str, list[float]] = defaultdict(list)
    for arrival, fate in pairs:
        if fate.outcome == COMPLETED and fate.ended_s > fate.queued_s:
            shares[arrival.tenant].append((fate.ended_s - fate.begun_s) / (fate.ended_s - fate.queued_s))
    means = [sum(values) / len(values) for values in shares.values()]
    squares = sum(mean * mean for mean in means)
    return sum(means) ** 2 / (len(means) * squares) if squares else 1.0


def affinity(pairs: Iterable[tuple[Arrival, Fate]]) -> float | None:
    """Return the share of the requests with a key that ran where the one of the same key before had; None: no key."""
    homes: dict[str, int] = {}
    kept = []
    for arrival, fate in pairs:
        if arrival.affinity_key and fate.worker >= 0:
            if arrival.affinity_key in homes:
                kept.append(homes[arrival.affinity_key] == fate.worker)
            homes[arrival.affinity_key] = fate.worker
    return sum(kept) / len(kept) if kept else None


def _token_shares(completed: Sequence[tuple[Arrival, Fate]], profiles: int) -> list[float]:
    """Return what part of the tokens the workers of each profile did."""
    tokens = [0] * profiles
    for arrival, fate in completed:
        tokens[fate.worker % profiles] += arrival.prompt_tokens + arrival.output_tokens
    return [_share(one, sum(tokens)) for one in tokens]


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99, by the nearest rank; None where there are no values."""
    ordered = sorted(values)
    ranks = {name: max(0, math.ceil(share * len(ordered)) - 1) for name, share in SHARES.items()}
    return {name: ordered[rank] if ordered else None for name, rank in ranks.items()}


def _latencies(fates: Sequence[Fate]) -> dict[str, dict[str, float | None]]:
    return {
        "queue_ms": percentiles((fate.begun_s - fate.queued_s) * 1000 for fate in fates),
        "ttft_ms": percentiles((fate.first_s - fate.queued_s) * 1000 for fate in fates),
        "e2e_ms": percentiles((fate.ended_s - fate.queued_s) * 1000 for fate in fates),
    }


def _groups(completed: Iterable[tuple[Arrival, Fate]], key: Callable[[Arrival], str]) -> Mapping[str, Any]:
    fates: dict[str, list[Fate]] = defaultdict(list)
    for arrival, fate in completed:
        fates[key(arrival)].append(fate)
    return {name: {"completed": len(found), **_latencies(found)} for name, found in sorted(fates.items())}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
