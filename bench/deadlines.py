"""How many of the accepted are on time when more is offered than can be done.

    python bench/deadlines.py --seconds 60

A stack of real processes with one `sim` worker. First its capacity is measured, from which the scheduler learns what a
request costs; then 1.2 times as much is offered, each request with a time to live. Those that the forecast says cannot
be finished in time are refused at once; what counts is the share of the others that were, and that none was begun after
its deadline.
"""

from __future__ import annotations

import argparse

from figures import Bar, save, verdicts
from loads import capacity, offered, request, stack

from stoker import Client, DeadlineInfeasible, Job

BAR = 0.99
OVERLOAD = 1.2
TIMEOUT_S = 3.0
PATIENCE_S = 30.0


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=15)
    options = parser.parse_args()
    with stack() as config, Client(config=config) as client:
        rate = capacity(client, options.warm_up)
        made = offered(client, OVERLOAD * rate, options.seconds, lambda _: request(timeout=TIMEOUT_S))
        jobs = [job for job in made if isinstance(job, Job)]
        refused = [error for error in made if isinstance(error, DeadlineInfeasible)]
        responses = list(client.as_completed(jobs, timeout=PATIENCE_S))
    assert len(jobs) + len(refused) == len(made), [error for error in made if not isinstance(error, Job)][:3]
    good = sum(one.status == "succeeded" and (one.timings.e2e_ms or 0) <= 1000 * TIMEOUT_S for one in responses)
    late = sum((one.timings.queue_ms or 0) > 1000 * TIMEOUT_S for one in responses)
    figures = {"capacity": rate, "offered": len(made), "refused": len(refused), "accepted": len(jobs), "late": late}
    figures |= {"on time": good, "done a second": good / options.seconds}
    for name, value in figures.items():
        print(f"{name:16}{value:10,.1f}")
    bars = [Bar("deadlines-on-time", good / len(jobs), BAR), Bar("deadlines-begun-in-time", 1 - late / len(jobs), 1.0)]
    save("deadlines", [{name: float(value) for name, value in figures.items()}], bars, "figures")
    verdicts(bars)


if __name__ == "__main__":
    main()
