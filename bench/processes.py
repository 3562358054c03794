"""The processes of a stack, for benchmarks of the whole: nothing here imports torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

from stoker import Client, Config

STOKER = (sys.executable, "-c", "from stoker.cli import main; main()")
READY_S = 120
NOTHING_MORE: Mapping[str, str] = MappingProxyType({})


@contextmanager
def serving(url: str, queue: str, worker: Sequence[str], more: Mapping[str, str] = NOTHING_MORE) -> Iterator[Config]:
    """Run a scheduler and a worker on one torch thread for the time of a block; gives the queue's settings.

    `more` are variables of their environment.
    """
    settings = {**more, "STOKER_REDIS_URL": url, "STOKER_QUEUE": queue, "STOKER_METRICS": "0", "OMP_NUM_THREADS": "1"}
    commands = (["scheduler"], ["worker", "--name", queue, *worker])
    processes = [
        subprocess.Popen([*STOKER, *command, "--log-level", "error"], env=os.environ | settings) for command in commands
    ]
    config = Config(redis_url=url, queue=queue)
    try:
        with Client(config=config) as client:
            deadline = time.monotonic() + READY_S
            while not client.workers():
                assert processes[1].poll() is None, "the worker ended"
                assert time.monotonic() < deadline, f"no worker within {READY_S} s"
                time.sleep(0.1)
        yield config
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)
