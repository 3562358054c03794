"""An RQ worker for batch files: `python -P -m stoker.batch.worker PARENT`, started by the supervisor alone.

One process forks a work horse for each job, as RQ does. Nothing heavy is imported here: what a horse needs it has.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

from rq import Worker
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer

from stoker.batch import jobs
from stoker.batch.rq_queue import BatchJob, make_queue
from stoker.config import Config, load_config
from stoker.errors import RedisUnavailable
from stoker.log import configure
from stoker.store.foreign import batch_client, translated

PR_SET_PDEATHSIG = 1
PARENT_CHECK_S = 0.5
WORKER_TTL_S = 60
MONITORING_S = 10
MAINTENANCE_S = 30


class BatchWorker(Worker):
    """RQ's worker, whose work horse dies with it and hears SIGTERM: a batch is left in good order, not cut off."""

    job_class = BatchJob

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """Run a job in the forked process."""
        end_with(self.pid or os.getppid())
        super().main_work_horse(job, queue)

    def setup_work_horse_signals(self) -> None:
        """Have SIGTERM end the run at its next turn."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _stop)

    def handle_warm_shutdown_request(self) -> None:
        """Pass on that we are to end: RQ would wait for the job, and a batch may take days."""
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)


def _stop(number: int, frame: FrameType | None) -> None:
    jobs.stop.set()


def end_with(parent: int) -> None:
    """Make this process be killed when `parent` ends: a second run must not find this one still at work."""
    if sys.platform == "linux":
        libc: Any = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()
    # Looked at afterwards: a parent that ended before is seen here.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGKILL)


def work(config: Config) -> None:
    """Work until told to end. Raises `RedisUnavailable`."""
    client = batch_client(config, patient=True)
    with translated(config, "work on batch files"):
        worker = BatchWorker(
            # One queue a process: with several RQ pops a job before it is noted anywhere.
            [make_queue(config, client)],
            name=f"stoker-{socket.gethostname().split('.')[0]}-{os.getpid()}",
            connection=client,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL_S,
            job_monitoring_interval=MONITORING_S,
            maintenance_interval=MAINTENANCE_S,
            log_job_description=False,
        )
        worker.work(logging_level="WARNING", with_scheduler=False)


def main() -> int:
    """Tie this process to its parent, and work."""
    parent, level = sys.argv[1:]
    end_with(int(parent))
    configure(level)
    try:
        work(load_config())
    except RedisUnavailable as error:
        print(f"stoker: {error}", file=sys.stderr)  # noqa: T201  # to the supervisor's log
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
