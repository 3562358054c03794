"""What becomes of critical requests, and of all others, when ten times as much comes as can be done.

    python bench/overload.py --seconds 60

A stack of real processes with one `sim` worker, whose queue takes what it can do in `CAP_S`. Critical requests come at
a tenth of the capacity, once alone and once while sheddable normal ones come at ten times the capacity; critical ones
may displace those. What counts: their 99th percentile of the time in the queue against that alone and one step, and
against that alone and one stay of a row (the worker is full, so that even the next in line waits for a row that ends);
that every request that was accepted has its outcome; and the longest wait of the admitted against the cap over the rate
at which they drained, beside the critical ones that passed them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence

from figures import Bar, save, verdicts
from loads import ANSWER, ROWS, capacity, offered, request, stack

from stoker import Client, InferenceRequest, InferenceResponse, Job, QueueFull

CAP_S = 4.0
PATIENCE_S = 60.0


def p99(responses: Sequence[InferenceResponse]) -> float:
    """Return the 99th percentile of the time in the queue, in milliseconds."""
    return statistics.quantiles([one.timings.queue_ms or 0.0 for one in responses], n=100)[-1]


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
            began = time.monotonic()
            made = offered(client, 10 * rate, options.seconds, one_of_a_hundred_is_critical, displace=True)
            jobs = [job for job in made if isinstance(job, Job)]
            responses = list(client.as_completed(jobs, timeout=PATIENCE_S))
            seconds = time.monotonic() - began
    refused = len(made) - len(jobs)
    assert all(isinstance(one, Job | QueueFull) for one in made), [one for one in made if not isinstance(one, Job)][:3]
    critical = {job.id for number, job in enumerate(made) if isinstance(job, Job) and number % 100 == 0}
    loud = [one for one in responses if one.request_id in critical and one.status == "succeeded"]
    begun = [one.timings.queue_ms or 0.0 for one in responses if one.status == "succeeded"]
    cap_ms = 1000 * limits.max_waiting / ((len(begun) - len(loud)) / seconds)
    step_ms = 1000 * ROWS / rate / ANSWER
    outcomes = Counter(one.status for one in responses)
    figures = {"capacity": rate, "offered": len(made), "refused": refused, **outcomes, "critical": len(critical)}
    figures |= {"critical lost": len(critical) - len(loud), "p99 alone, ms": p99(quiet), "p99, ms": p99(loud)}
    figures |= {"step, ms": step_ms, "worst wait, ms": max(begun), "cap, ms": cap_ms}
    for name, value in figures.items():
        print(f"{name:20}{value:12,.1f}")
    bars = [
        Bar("overload-critical-p99", (p99(quiet) + step_ms) / p99(loud), 1.0),
        Bar("overload-critical-p99-one-stay", (p99(quiet) + ANSWER * step_ms) / p99(loud), 1.0),
        Bar("overload-outcomes", len(responses) / len(jobs), 1.0),
        Bar("overload-worst-wait", cap_ms / max(begun), 1.0),
    ]
    save("overload", [{name: float(value) for name, value in figures.items()}], bars, "figures")
    verdicts(bars)


def one_of_a_hundred_is_critical(number: int) -> InferenceRequest:
    """Return the critical request among a hundred, or one of the others."""
    return request(priority="critical") if number % 100 == 0 else request(sheddable=True)


if __name__ == "__main__":
    main()
