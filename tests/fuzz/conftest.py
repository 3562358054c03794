"""Fuzzing: the same tests with few cases in the normal suite and with many in `make fuzz`, by Hypothesis' profiles.

`pytest tests/fuzz --hypothesis-profile=fuzz --hypothesis-seed=1` repeats a run; the number of cases stands at its end.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fuzz.cases import CASES
from protocol.rig import Queue
from stoker_ops.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def queue(redis_server: EmbeddedRedis) -> Iterator[Queue]:
    """A queue with a clock that stands still, on the server of this test process; each case empties it."""
    queue = Queue(redis_server.url)
    yield queue
    queue.store.close()
    queue.redis.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was tried."""
    if CASES:
        terminalreporter.write_line(f"fuzz: {sum(CASES.values()):,} cases")
        for name, number in sorted(CASES.items()):
            terminalreporter.write_line(f"  {number:>7,} {name}")
