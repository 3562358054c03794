"""What the scheduler's policy is worth, by the simulator: batches, scaling, and what deciding costs.

    python bench/simulated.py --trace bench/data/trace.csv
    python bench/simulated.py --trace azure_conv.csv --parts padded,reordering,continuous,scaling,overload
    python bench/simulated.py --trace azure_conv.csv --parts mixed,affinity,speed
    python bench/simulated.py --trace azure_conv.csv --parts depth

Times of requests are virtual and the same in every run; those of `speed` and `depth` are processor time of this
machine, the median of `--rounds`. Each line ends with its bar.

- padded: all requests wait; useful tokens over the budget, and over the padded tokens, at 32,768 tokens a batch; at
  8,192 the fill over that of a packer that sees a whole window of the same size at once and has no order to keep.
- reordering: tokens/s over those of batches in order of arrival; and at a rate that both can serve, how much longer
  than in order of arrival requests wait.
- continuous: tokens/s over those of closed batches, whose rows leave when they are done or with the longest.
- scaling: tokens/s of N workers with N times the load over N times those of one.
- mixed: two workers and two that are three times as slow, at several rates: answers and goodput over those of workers
  taken in turn, and of whoever holds the fewest tokens.
- affinity: how many requests of 400 keys keep their worker of 16, and what that costs, by `affinity_slack_ms`.
- overload: how long requests wait when for ten minutes ten times as much comes as one worker can do, one in a hundred
  of it critical, and as much may wait as can be done in `CAP_S`. For a minute before, the critical ones are alone.
- speed: simulated requests a second, and what deciding costs a request; beside them, how quick the machine was.
- depth: what deciding costs a request with a million waiting, over that with 1,000 (takes about 2 GB).
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import compress, cycle
from pathlib import Path
from typing import Any

from figures import Bar, update, verdicts

from stoker.config import Config
from stoker.request import RequestPriority
from stoker.store.records import Waiting
from stoker_ops.simulate.figures import Objective, figures, percentiles
from stoker_ops.simulate.policies import policies
from stoker_ops.simulate.replay import Replay
from stoker_ops.simulate.run import Fate, Run
from stoker_ops.simulate.setup import H100_8B, Setup
from stoker_ops.simulate.traces import Arrival, read_trace, shaped
from stoker_scheduler.batcher import WINDOW_BUDGETS
from stoker_workers.engines.sim import Profile

CONFIG = Config()
CONTINUOUS = Setup(
    mode="continuous",
    workers=1,
    profiles=[H100_8B],
    max_model_len=131_072,
    max_num_seqs=64,
    max_num_batched_tokens=8192,
    kv_cache_tokens=524_288,
)
PADDED = replace(CONTINUOUS, mode="padded", max_num_seqs=512)
BUDGETS = (32_768, 8192)
OVERLOAD, CRITICAL_SHARE = 10, 0.01
QUIET_S, OVERLOAD_S, CAP_S = 60.0, 600.0, 10.0
FLEETS = (1, 2, 4, 16, 64, 256)


def replay(arrivals: Sequence[Arrival], setup: Setup, policy: str = "stoker") -> tuple[Run, dict[str, Any]]:
    """Run a trace; returns what happened, and its figures."""
    run = Replay(arrivals, setup, policies(CONFIG, setup.mode)[policy], CONFIG).to_end()
    return run, figures(run, arrivals, setup, Objective(2000, 100))


def saturated(arrivals: Sequence[Arrival], repeat: int = 1) -> list[Arrival]:
    """Return the trace with all requests waiting from the start."""
    return shaped(arrivals, repeat=repeat, rate=None, max_tokens=None, timeout=None)


def offline_fill(lengths: Sequence[int], budget: int, rows: int) -> float:
    """Return the fill of the fewest batches for windows of these lengths: each time, as many of the longest as fit."""
    batches = tokens = 0
    window: list[int] = []
    for length in (length for length in lengths if length <= budget):
        window.append(length)
        if sum(window) < WINDOW_BUDGETS * budget:
            continue
        window.sort(reverse=True)
        tokens += sum(window)
        while window:
            del window[: min(rows, budget // window[0])]
            batches += 1
    return tokens / (batches * budget) if batches else float("nan")


def padded(arrivals: Sequence[Arrival]) -> Iterator[Bar]:
    """Print, and give, fill and efficiency of padded batches."""
    for budget in BUDGETS:
        setup = replace(PADDED, max_num_batched_tokens=budget)
        _, found = replay(saturated(arrivals), setup)
        if budget == BUDGETS[0]:
            yield Bar(f"fill at {budget}", found["batch_fill"], 0.88)
            yield Bar(f"padding efficiency at {budget}", found["padding_efficiency"], 0.97)
        else:
            best = offline_fill([one.prompt_tokens for one in arrivals], budget, setup.max_num_seqs // 2)
            print(f"fill at {budget}: {found['batch_fill']:.3f}, offline {best:.3f}")
            yield Bar(f"fill at {budget} of offline", found["batch_fill"] / best, 0.95)


def reordering(arrivals: Sequence[Arrival]) -> Iterator[Bar]:
    """Print, and give, what choosing by length gains, and what it delays."""
    setup = replace(PADDED, max_num_batched_tokens=BUDGETS[0])
    fast, slow = (replay(saturated(arrivals), setup, name)[1] for name in ("stoker", "fifo"))
    print(f"padded tokens/s over FIFO: {fast['tokens_per_s'] / slow['tokens_per_s']:.2f}")
    # Half of what FIFO can do, so that neither queue grows.
    rate = arrivals[-1].at_s / slow["seconds"] / 2
    calm = shaped(arrivals, repeat=1, rate=rate, max_tokens=None, timeout=None)
    ours, fifo = (replay(calm, setup, name) for name in ("stoker", "fifo"))
    pairs = zip(ours[0].fates, fifo[0].fates, strict=True)
    later = sorted((one.begun_s - other.begun_s) * 1000 for one, other in pairs)
    p50, p99 = statistics.median(later), later[-len(later) // 100]
    print(f"a request begins later than with FIFO: p50 {p50:.1f} ms, p99 {p99:.1f}")
    waits = [found["queue_ms"]["p99"] for _, found in (ours, fifo)]
    print(f"p99 of the wait: {waits[0]:.1f} ms, with FIFO {waits[1]:.1f}")
    yield Bar("p99 of the wait over FIFO's, ms", waits[0] - waits[1], CONFIG.max_queue_delay_ms, at_most=True)


def continuous(arrivals: Sequence[Arrival]) -> Iterator[Bar]:
    """Print, and give, what continuous batching gains."""
    found = {
        name: replay(saturated(arrivals), CONTINUOUS, name)[1]["tokens_per_s"]
        for name in ("stoker", "static", "longest")
    }
    print(f"continuous over static batches to the longest: {found['stoker'] / found['longest']:.2f}")
    yield Bar("continuous over static batches", found["stoker"] / found["static"], 1.3)


def scaling(arrivals: Sequence[Arrival]) -> Iterator[Bar]:
    """Print, and give, tokens/s of fleets while requests wait, each with as much load for a worker."""
    one = 0.0
    for workers in FLEETS:
        load = saturated(arrivals[:200], workers)
        run, found = replay(load, replace(CONTINUOUS, workers=workers))
        rate = tokens_per_s(load, run)
        one = one or rate
        share = run.decision_s / found["seconds"]
        print(
            f"{workers} workers: deciding {found['decision_us_per_request']:.0f} us a request, {share:.0%} of the time"
        )
        yield Bar(f"scaling to {workers}", rate / one / workers, 0.97)


def overload(arrivals: Sequence[Arrival]) -> Iterator[Bar]:
    """Print, and give, how long critical requests wait beside too many others, and how long those."""
    # A padded worker that holds anything longer than two budgets holds as many of what is shorter.
    padded = replace(PADDED, max_num_batched_tokens=BUDGETS[0], max_model_len=BUDGETS[0])
    for setup in (CONTINUOUS, padded):
        _, full = replay(saturated(arrivals[:3000]), setup)
        rate = full["completed"] / full["seconds"]
        load, cap = flood(arrivals, rate), int(CAP_S * rate)
        run, found = replay(load, replace(setup, max_waiting=cap, displace=True))
        counts = (f"{found[name]:,} {name}" for name in ("completed", "refused", "displaced", "preempted"))
        print(f"{setup.mode}: {rate:.1f} requests/s can be done, {len(load):,} came; {', '.join(counts)}")
        yield Bar(f"{setup.mode}: share with an outcome", sum(run.outcomes.values()) / len(load), 1)
        critical = [one.priority == RequestPriority.CRITICAL for one in load]
        quiet, _ = replay(list(compress(load, critical)), setup)
        yield critical_waits(setup, compress(run.fates, critical), quiet.fates)
        others = (fate for fate, first in zip(run.fates, critical, strict=True) if not first)
        yield from other_waits(setup, cap, [fate for fate in others if fate.begun_s >= 0])


def flood(arrivals: Sequence[Arrival], rate: float) -> list[Arrival]:
    """Return requests of these sizes: critical ones at a tenth of the rate; after `QUIET_S` others at ten times it."""
    rng, at_s, load = random.Random(1), 0.0, []
    for one in cycle(arrivals):
        at_s += rng.expovariate(OVERLOAD * rate)
        if at_s > QUIET_S + OVERLOAD_S:
            break
        if rng.random() < CRITICAL_SHARE:
            load.append(replace(one, at_s=at_s, priority=RequestPriority.CRITICAL))
        elif at_s > QUIET_S:
            load.append(replace(one, at_s=at_s))
    return load


def critical_waits(setup: Setup, loud: Iterable[Fate], quiet: Iterable[Fate]) -> Bar:
    """Print the 99th percentiles of the critical requests beside the flood and alone; returns how the waits stand."""
    loud, quiet = list(loud), list(quiet)
    full_ms = setup.profiles[0].step_ms(setup.max_num_batched_tokens, 0, 0)
    unit = "step" if setup.mode == "continuous" else "batch"
    ttft = [percentiles((fate.first_s - fate.queued_s) * 1000 for fate in fates)["p99"] for fates in (loud, quiet)]
    wait = [percentiles((fate.begun_s - fate.queued_s) * 1000 for fate in fates)["p99"] for fates in (loud, quiet)]
    print(f"critical p99, beside the flood and alone: wait {wait[0]:.1f} and {wait[1]:.1f} ms, ", end="")
    print(f"first token {ttft[0]:.0f} and {ttft[1]:.0f} ms; a full {unit} takes {full_ms:.0f} ms")
    beyond = (wait[0] - wait[1]) / full_ms
    return Bar(f"{setup.mode}: critical p99 of the wait beyond alone, over a full {unit}", beyond, 1, at_most=True)


def other_waits(setup: Setup, cap: int, fates: Sequence[Fate]) -> Iterator[Bar]:
    """Print, and give, how long the others waited at most, and who passed them, of those that began.

    A padded batch takes out of order: whoever comes may have to let all go first that wait together, and then all that
    wait with it.
    """
    begun = sorted(fate.begun_s for fate in fates)
    worst_s = max(fate.begun_s - fate.queued_s for fate in fates)
    slowest_s = max(later - earlier for earlier, later in zip(begun, begun[cap:], strict=False))
    mean_s = cap * (begun[-1] - begun[0]) / len(begun)
    print(f"the cap of {cap} drains in {mean_s:.1f} s on average, in {slowest_s:.1f} at its slowest; ", end="")
    print(f"longest wait {worst_s:.1f} s")
    caps = 1 if setup.mode == "continuous" else 2
    held = worst_s / slowest_s / caps
    yield Bar(f"{setup.mode}: longest wait over {caps} x the cap at its slowest", held, 1, at_most=True)
    if setup.mode == "continuous":
        yield Bar("most that passed one of their class", most_passed(fates), 0, at_most=True)


def most_passed(fates: Sequence[Fate]) -> int:
    """Return by how many that came later a request was passed at most."""
    came: list[float] = []
    most = 0
    for fate in sorted(fates, key=lambda fate: (fate.begun_s, fate.queued_s)):
        most = max(most, len(came) - bisect_right(came, fate.queued_s))
        insort(came, fate.queued_s)
    return most


def tokens_per_s(load: Sequence[Arrival], run: Run) -> float:
    """Return the tokens/s until nothing waited any more; how evenly a fleet then ends is the trace's doing."""
    dry_s = max(fate.begun_s for fate in run.fates)
    done = (one for one, fate in zip(load, run.fates, strict=True) if fate.ended_s <= dry_s)
    return sum(one.prompt_tokens + one.output_tokens for one in done) / dry_s


def mixed(arrivals: Sequence[Arrival]) -> None:
    """Print what placement by speed is worth, at the trace's rate times so much."""
    slow = Profile(**{name: 3 * price for name, price in asdict(H100_8B).items()})
    setup = replace(CONTINUOUS, workers=4, profiles=[H100_8B, slow])
    chosen = ("stoker", "in turn", "least tokens")
    for rate in (1.0, 4.0, 5.0, 6.0):
        load = shaped(arrivals[:3000], repeat=1, rate=rate, max_tokens=None, timeout=None)
        for name in chosen:
            policy = policies(CONFIG, setup.mode, mixed=True)[name]
            found = figures(Replay(load, setup, policy, CONFIG).to_end(), load, setup, Objective(2000, 100))
            print(f"rate x {rate:g}, {name}: {brief(found)}, fast ones {found['token_shares'][0]:.2f} of the tokens")


def affinity(arrivals: Sequence[Arrival]) -> None:
    """Print how often a key's request finds its worker again, and what that costs."""
    setup, rng = replace(CONTINUOUS, workers=16), random.Random(1)
    keyed = [replace(one, affinity_key=str(rng.randrange(400))) for one in arrivals[:4000]]
    for rate in (8.0, 20.0):
        load = shaped(keyed, repeat=1, rate=rate, max_tokens=None, timeout=None)
        for slack_ms in (0, 250, 500, 1000, 2000):
            config = Config(affinity_slack_ms=slack_ms)
            run = Replay(load, setup, policies(config, setup.mode)["stoker"], config).to_end()
            found = figures(run, load, setup, Objective(2000, 100))
            print(f"rate x {rate:g}, slack {slack_ms} ms: kept {found['affinity']:.2f}, {brief(found)}", flush=True)


def brief(found: Mapping[str, Any]) -> str:
    """Return the figures of a user: goodput, first token and whole answer (p50, p99)."""
    times = (f"{name} {found[name]['p50']:,.0f}, {found[name]['p99']:,.0f}" for name in ("ttft_ms", "e2e_ms"))
    return f"goodput {found['goodput_rps']:.2f}/s, " + ", ".join(times)


def speed(arrivals: Sequence[Arrival], rounds: int) -> Iterator[Bar]:
    """Print, and give, how fast the simulator is, and what deciding costs, idle and with 1,000 waiting."""
    calm = shaped(arrivals[:5000], repeat=1, rate=1.0, max_tokens=None, timeout=None)
    loads = {"calm": calm, "1,000 waiting": saturated(arrivals[:1000])}
    rates: dict[str, list[float]] = {name: [] for name in loads}
    costs: dict[str, list[float]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, load in loads.items():
            began = time.process_time()
            run = Replay(load, CONTINUOUS, policies(CONFIG, "continuous")["stoker"], CONFIG).to_end()
            rates[name].append(len(load) / (time.process_time() - began))
            costs[name].append(run.decision_s * 1e6 / run.dispatched)
    print(f"a loop of a thousand additions: {additions_us():.0f} us")
    for name in loads:
        yield Bar(f"us to decide a request, {name}", statistics.median(costs[name]), 20, at_most=True)
    for name in loads:
        yield Bar(f"simulated requests/s, {name}", statistics.median(rates[name]), 20_000)


class _Enough(Exception):
    """So many requests were handed out as were to be looked at."""


class Part(Replay):
    """The beginning of a replay."""

    MOST = 5000

    def _dispatch(self, heads: dict[str, list[Waiting]], depth: int, now_us: float) -> int:
        if self.run.dispatched >= self.MOST:
            raise _Enough
        return super()._dispatch(heads, depth, now_us)


def deep(arrivals: Sequence[Arrival], rounds: int) -> Iterator[Bar]:
    """Print, and give, what a million waiting make of the cost of a decision."""
    cost = {1000: [], 1_000_000: []}
    for waiting in (1000, 1_000_000, 1000):
        at_once = [replace(one, at_s=0.0) for one in arrivals[:1000]] * (waiting // 1000)
        for _ in range(rounds if waiting == 1000 else 1):
            part = Part(at_once, CONTINUOUS, policies(CONFIG, "continuous")["stoker"], CONFIG)
            with contextlib.suppress(_Enough):
                part.to_end()
            cost[waiting].append(part.run.decision_s * 1e6 / part.run.dispatched)
    few, many = (statistics.median(found) for found in cost.values())
    print(f"us to decide a request: {few:.1f} with 1,000 waiting, {many:.1f} with a million")
    yield Bar("a million waiting over 1,000", many / few, 1.3, at_most=True)


def additions_us() -> float:
    """Return how long a loop of a thousand additions takes now: how quick this machine is, with what else it does."""
    began, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return (time.process_time() - began) * 1000


PARTS: dict[str, Callable[[Sequence[Arrival]], Iterator[Bar]]] = {
    "padded": padded,
    "reordering": reordering,
    "continuous": continuous,
    "scaling": scaling,
    "overload": overload,
}
TABLES: dict[str, Callable[[Sequence[Arrival]], None]] = {"mixed": mixed, "affinity": affinity}


def bars(part: str, arrivals: Sequence[Arrival], rounds: int) -> Iterator[Bar]:
    """Give what a part holds to a bar."""
    if part in TABLES:
        TABLES[part](arrivals)
    elif part in ("speed", "depth"):
        yield from (speed if part == "speed" else deep)(arrivals, rounds)
    else:
        yield from PARTS[part](arrivals)


def main() -> None:
    """Print the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--parts", default=",".join([*PARTS, *TABLES, "speed", "depth"]))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    arrivals, held = read_trace(options.trace), []
    for part in options.parts.split(","):
        for bar in bars(part, arrivals, options.rounds):
            held.append(bar)
            verdicts([bar])
    update(f"simulated-{options.trace.stem}", held, f"python bench/simulated.py --trace {options.trace.name}")


if __name__ == "__main__":
    main()
