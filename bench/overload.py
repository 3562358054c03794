"""What becomes of critical requests, and of all others, when ten times as much comes as can be done.

    python bench/overload.py --seconds 60

A stack of real processes with one `sim` worker, whose queue takes what it can do in `CAP_S`. Critical requests come at
a tenth of the capacity, once alone and once while sheddable normal ones come at ten times the capacity; critical ones
may displace those. What counts: their 99th percentile of the time in the queue against that alone and one step; that
every request that was accepted has its outcome; and the longest wait of the others against the longest time in which so
many of them as the cap allows began one after the other: the cap over the drain rate where that was lowest. Those that
gave their row to a critical one are left out of both, for Redis keeps when they began last.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence

from figures import Bar, save, verdicts
from loads import ANSWER, ROWS, capacity, offered, request, stack

from stoker import Client, Config, InferenceRequest, InferenceResponse, Job, QueueFull
from stoker.store import reads
from stoker.store.codec import Outcome
from stoker.store.connection import Store

CAP_S = 4.0
PATIENCE_S = 60.0
GROUP = 512


def p99(responses: Sequence[InferenceResponse]) -> float:
    """Return the 99th percentile of the time in the queue, in milliseconds."""
    return statistics.quantiles([one.timings.queue_ms or 0.0 for one in responses], n=100)[-1]


def outcomes_of(config: Config, ids: Sequence[str]) -> list[Outcome]:
    """Return what Redis has of requests that ended."""
    store = Store(config)
    found: list[Outcome] = []
    for start in range(0, len(ids), GROUP):
        found += filter(None, store.read(reads.outcomes(store.keys, ids[start : start + GROUP]))[1])
    store.close()
    return found


def slowest_ms(outcomes: Sequence[Outcome], cap: int) -> float:
    """Return in how many milliseconds `cap` of them began one after the other, where that took longest."""
    begun = sorted(one.begun_us or 0 for one in outcomes)
    return max(later - earlier for earlier, later in zip(begun, begun[cap:], strict=False)) / 1000


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=10)
    options = parser.parse_args()
    with stack() as config, Client(config=config) as plain:
        rate = capacity(plain, options.warm_up)
        alone = offered(plain, rate / 10, options.seconds, lambda _: request(priority="critical"))
        quiet = [job.response(PATIENCE_S) for job in alone if isinstance(job, Job)]
        limits = config.model_copy(update={"max_waiting": int(CAP_S * rate)})
        with Client(config=limits) as client:
            made = offered(client, 10 * rate, options.seconds, one_of_a_hundred_is_critical, displace=True)
            jobs = [job for job in made if isinstance(job, Job)]
            responses = list(client.as_completed(jobs, timeout=PATIENCE_S))
        ended = outcomes_of(config, [job.id for job in jobs])
    assert all(isinstance(one, Job | QueueFull) for one in made), [one for one in made if not isinstance(one, Job)][:3]
    critical = {job.id for number, job in enumerate(made) if isinstance(job, Job) and number % 100 == 0}
    loud = [one for one in responses if one.request_id in critical and one.status == "succeeded"]
    others = [one for one in ended if one.id not in critical and one.status == "succeeded"]
    unmoved = [one for one in others if one.attempts == 1]
    worst_ms = max((one.begun_us or 0) - one.accepted_us for one in unmoved) / 1000
    cap_ms, step_ms = slowest_ms(unmoved, limits.max_waiting), 1000 * ROWS / rate / ANSWER
    figures = {"capacity": rate, "offered": len(made), "refused": len(made) - len(jobs)}
    figures |= {**Counter(one.status for one in responses), "preempted": len(others) - len(unmoved)}
    figures |= {"critical": len(critical), "critical lost": len(critical) - len(loud)}
    figures |= {"p99 alone, ms": p99(quiet), "p99, ms": p99(loud), "step, ms": step_ms}
    figures |= {"worst wait, ms": worst_ms, "cap at its slowest, ms": cap_ms}
    for name, value in figures.items():
        print(f"{name:24}{value:12,.1f}")
    bars = [
        Bar("overload-critical-p99", (p99(quiet) + step_ms) / p99(loud), 1.0),
        Bar("overload-outcomes", len(responses) / len(jobs), 1.0),
        Bar("overload-worst-wait", cap_ms / worst_ms, 1.0),
    ]
    save("overload", [{name: float(value) for name, value in figures.items()}], bars, "figures")
    verdicts(bars)


def one_of_a_hundred_is_critical(number: int) -> InferenceRequest:
    """Return the critical request among a hundred, or one of the others."""
    return request(priority="critical") if number % 100 == 0 else request(sheddable=True)


if __name__ == "__main__":
    main()
