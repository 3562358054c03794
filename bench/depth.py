"""What a queue costs as it gets deeper: requests a second end to end, time in Redis' scripts, and submits.

    python bench/depth.py --depths 1000 100000 1000000 --rounds 5

For each depth a stack of its own, whose queue holds so many BATCH requests. Through it go bulks of HIGH requests (128
token ids in, 16 out, engines that take no time); before each, the backlog is filled up again. A round takes the depths
in turn. `filling` is the rate of submits of the backlog's last tenth.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from contextlib import ExitStack

from figures import Bar, alternating, ratio, save, table, verdicts
from fleet import MAX_TOKENS, PROMPT_TOKENS, Fleet, fleet

from stoker import Client, Config, InferenceRequest, StokerError

LIMITS = ("--max-num-seqs", "256", "--max-num-batched-tokens", "65536")
GROUP = 5000
SLOWER_BAR = 1.3
SCRIPT_BAR = 2.5


class Deep:
    """A stack with a backlog."""

    def __init__(self, stack: Fleet, client: Client, depth: int) -> None:
        """Fill its queue."""
        self._fleet, self._client, self._depth = stack, client, depth
        self._numbers = itertools.count()
        self.script_us: list[float] = []
        """Microseconds in scripts for each request of a bulk, a figure a bulk."""
        self._fill(depth * 9 // 10)
        began = time.perf_counter()
        self.filling = self._fill(depth) / (time.perf_counter() - began)

    def bulk(self, requests: int) -> float:
        """Return the requests a second of a bulk."""
        self._fill(self._depth)
        before, began = self._fleet.script_us(), time.perf_counter()
        for response in self._client.map(self._request("high") for _ in range(requests)):
            assert response.error is None, response.error
        seconds = time.perf_counter() - began
        self.script_us.append((self._fleet.script_us() - before) / requests)
        return requests / seconds

    def _fill(self, depth: int) -> int:
        """Submit until so many wait; gives how many were submitted."""
        missing = depth - self._client.stats()["queue"]["waiting"].get("batch", 0)
        for start in range(0, missing, GROUP):
            jobs = self._client.submit_many(self._request("batch") for _ in range(min(GROUP, missing - start)))
            assert not any(isinstance(job, StokerError) for job in jobs)
        return max(0, missing)

    def _request(self, priority: str) -> InferenceRequest:
        number = next(self._numbers)
        tokens = [(number * 31 + j) % 32_000 for j in range(PROMPT_TOKENS)]
        return InferenceRequest(prompt_tokens=tokens, max_tokens=MAX_TOKENS, priority=priority)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    deeps: dict[str, Deep] = {}
    with ExitStack() as stay:
        for depth in options.depths:
            stack = stay.enter_context(fleet(1, *LIMITS, max_waiting=2 * depth + 10_000))
            config = Config(redis_url=stack.url, max_waiting=2 * depth + 10_000)
            deeps[f"{depth:,} waiting"] = Deep(stack, stay.enter_context(Client(config=config)), depth)
        bulks = {name: functools.partial(deep.bulk, options.requests) for name, deep in deeps.items()}
        rounds = alternating(bulks, options.rounds)
    table(rounds)
    scripts = [{name: deep.script_us[number + 1] for name, deep in deeps.items()} for number in range(options.rounds)]
    table(scripts, "us in scripts a request")
    table([{name: deep.filling for name, deep in deeps.items()}], "filling, requests a second")
    least, *_, most = deeps
    bars = [
        Bar("depth", ratio(rounds, least, most), SLOWER_BAR, at_most=True),
        Bar("depth-scripts", ratio(scripts, most, least), SCRIPT_BAR, at_most=True),
    ]
    save("depth", rounds, bars)
    verdicts(bars)


if __name__ == "__main__":
    main()
