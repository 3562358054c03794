"""RQ's side of batch files: its queue, what may run from it, and jobs under names that are taken once."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from rq import Queue
from rq.exceptions import DuplicateJobError
from rq.job import Job
from rq.registry import clean_registries
from rq.serializers import JSONSerializer

from stoker.batch import jobs
from stoker.config import Config
from stoker.errors import StokerError
from stoker.store.foreign import ForeignClient, batch_client, check_no_cluster, translated

RESULT_TTL_S = 3600
FAILURE_TTL_S = 86_400
NO_LIMIT = -1

RUN, SWEEP = "stoker.batch.jobs.run", "stoker.batch.jobs.sweep"
ALLOWED: dict[str, Callable[..., object]] = {RUN: jobs.run, SWEEP: jobs.sweep}
"""All that a job may call. Whoever can write to Redis can name any other function."""


class NotAllowed(StokerError):
    """A job names a function that is none of ours; nothing was imported."""


class BatchJob(Job):
    """A job that imports nothing: not its function, nor callbacks, and that tells no address of its end."""

    @property
    def func(self) -> Callable[..., object]:
        """The function that the job names, if it is one of ours; raises `NotAllowed`."""
        name = self.func_name
        if name not in ALLOWED:
            raise NotAllowed(f"job {self.id!r} calls {str(name)[:80]!r}, which is no function of batch files")
        return ALLOWED[name]

    @property
    def success_callback(self) -> None:
        """None."""

    @property
    def failure_callback(self) -> None:
        """None."""

    @property
    def stopped_callback(self) -> None:
        """None."""

    def send_webhooks(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


def queue_name(config: Config) -> str:
    """Return the name of the RQ queue for batches of a queue; each has one of its own."""
    return f"stoker-batch-{config.queue}"


def make_queue(config: Config, client: ForeignClient) -> Queue:
    """Return the RQ queue."""
    return Queue(queue_name(config), connection=client, job_class=BatchJob, serializer=JSONSerializer)


class RunQueue:
    """Enqueues runs of batches, and looks after RQ's registries. Every method raises `RedisUnavailable`."""

    def __init__(self, config: Config) -> None:
        """Use a client of its own; raises `ConfigError` on a cluster."""
        self._config = config
        self._client = batch_client(config)
        check_no_cluster(config, self._client)
        self._queue = make_queue(config, self._client)

    def waits(self, batch_id: str, number: int) -> bool:
        """Whether a run waits in RQ's queue for a worker that is free."""
        with translated(self._config, "look at RQ's queue"):
            return self._client.lpos(self._queue.key, run_id(batch_id, number)) is not None

    def enqueue_run(self, batch_id: str, number: int) -> bool:
        """Enqueue a batch's run; False if a job of that name is there already."""
        return self._enqueue(RUN, [batch_id], run_id(batch_id, number), f"batch {batch_id}")

    def enqueue_sweep(self, slot: int) -> bool:
        """Enqueue the sweep of a time slot, once, however many supervisors there are."""
        mark = f"{zlib.crc32(self._config.queue.encode()):08x}"
        return self._enqueue(SWEEP, [], f"sweep-{mark}-{slot}", "sweep")

    def _enqueue(self, function: str, arguments: list[str], job_id: str, description: str) -> bool:
        with translated(self._config, "enqueue a job"):
            try:
                self._queue.enqueue_call(
                    function,
                    args=arguments,
                    timeout=NO_LIMIT,
                    result_ttl=RESULT_TTL_S,
                    failure_ttl=FAILURE_TTL_S,
                    job_id=job_id,
                    description=description,
                    unique=True,
                )
            except DuplicateJobError:
                return False
        return True

    def clean(self) -> None:
        """Let RQ notice what its killed workers left."""
        with translated(self._config, "clean RQ's registries"):
            clean_registries(self._queue)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def run_id(batch_id: str, number: int) -> str:
    """Return the name of the job that is a batch's run."""
    return f"{batch_id}-run{number}"
