"""What RQ's own users look with: `rq info`, and the dashboard that they run already."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import wait_until
from stoker.batch.rq_queue import RunQueue
from stoker.config import Config, environment_of

PROGRAMS = Path(sys.executable).parent
QUEUE = "stoker-batch-default"


@pytest.fixture
def worker(config: Config, short_tmp: Path) -> Iterator[str]:
    """One RQ worker of ours that has taken a job of ours; gives its name."""
    queue = RunQueue(config)
    queue.enqueue_run("b", 1)  # of a batch that is unknown: it ends at once
    command = [sys.executable, "-m", "stoker.batch.worker", str(os.getpid()), "info"]
    with (short_tmp / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment_of(config), stdout=log, stderr=log)
    try:
        wait_until(lambda: not queue.waits("b", 1), 30, what="the worker takes its job")
        yield f"stoker-{socket.gethostname().split('.')[0]}-{process.pid}"
    finally:
        process.kill()
        process.wait()
        queue.close()


@pytest.fixture
def dashboard(config: Config, short_tmp: Path) -> Iterator[Callable[[str], Any]]:
    """A running `rq-dashboard`; gives a function that reads what its pages show."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROGRAMS / "rq-dashboard", "--json", "-b", "127.0.0.1", "-p", str(port), "-u", str(config.redis_url)]
    with (short_tmp / "dashboard.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def page(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:  # it does not listen yet
            assert process.poll() is None, (short_tmp / "dashboard.log").read_text()
            return None

    try:
        wait_until(lambda: page("0/data/queues.json"), 60, what="the dashboard answers")
        yield page
    finally:
        process.kill()
        process.wait()


def test_rq_info_shows_our_queue_and_our_worker(worker: str, config: Config) -> None:
    info = [PROGRAMS / "rq", "info", "--raw", "-u", str(config.redis_url)]
    shown = subprocess.run(info, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(rf"^queue {QUEUE} 0, ", shown, re.MULTILINE)
    assert re.search(rf"^worker {worker} .* {QUEUE}\.", shown, re.MULTILINE)


def test_the_rq_dashboard_shows_our_queue_its_jobs_and_our_worker(worker: str, dashboard: Callable[[str], Any]) -> None:
    [queue] = dashboard("0/data/queues.json")["queues"]
    assert queue["name"] == QUEUE
    [shown] = dashboard("0/data/workers.json")["workers"]
    assert (shown["name"], shown["queues"]) == (worker, [QUEUE])
    finished = f"0/data/jobs/{QUEUE}/finished/8/asc/1.json"
    [job] = wait_until(lambda: dashboard(finished)["jobs"], 30, what="the job is shown as finished")
    page = dashboard(f"0/data/job/{job['id']}.json")
    assert (page["status"], page["origin"], page["description"]) == ("finished", QUEUE, "batch b")
