"""Schedulers and workers of three shards on the three nodes of a cluster: who serves which, and what a kill costs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import wait_until
from redis_cluster import start_cluster
from stack.batch_lines import read, write
from stack_processes import Stack
from stoker import AsyncClient, Client, Config, ConfigError, InferenceRequest
from stoker.shards import shard_of
from stoker_ops.embedded import ServerBinary
from stoker_ops.local import LocalStack
from stoker_ops.settings import StackSettings
from stoker_workers.messages import EngineOptions

pytestmark = pytest.mark.slow

SHARDS = 3


class Sharded(Stack):
    """A stack whose queue has shards; its client and its view of the workers are those of all."""

    def __init__(self, url: str, logs: Path) -> None:
        super().__init__(url, logs, "redis://none")
        self.config = self.config.model_copy(update={"shards": SHARDS})
        self.environment["STOKER_SHARDS"] = str(SHARDS)

    def served(self) -> list[int]:
        """How many workers each shard has."""
        return [len(self.workers(shard)) for shard in range(SHARDS)]

    def workers(self, shard: int) -> list[str]:
        with Client(config=self.config.of(shard)) as client:
            return [record.worker for record in client.workers() if record.state == "live"]


@pytest.fixture
def stack(server_binary: ServerBinary, short_tmp: Path) -> Iterator[Sharded]:
    with start_cluster(server_binary, short_tmp) as cluster:
        stack = Sharded(cluster.url, short_tmp)
        try:
            yield stack
        finally:
            stack.end()


def test_workers_spread_over_the_shards_and_the_kill_of_one_loses_nothing(stack: Sharded) -> None:
    stack.scheduler()
    processes = {name: stack.worker(name, "--max-num-seqs", "4", wait=False) for name in ("a", "b", "c")}
    wait_until(lambda: stack.served() == [1, 1, 1], 60, what="each shard has a worker")
    with stack.client() as client:
        jobs = client.submit_many([InferenceRequest(prompt_tokens=[i + 1], max_tokens=30) for i in range(30)])
        jobs[0].result(timeout=60)
        orphaned = shard_of(jobs[-1].id, SHARDS)
        [victim] = stack.workers(orphaned)
        os.kill(processes[victim].pid, signal.SIGKILL)
        stack.worker("late", "--max-num-seqs", "4", wait=False)
        assert [len(job.result(timeout=60).token_ids) for job in jobs] == [30] * 30
        assert client.stats()["counts"]["succeeded"] == 30
    [chosen] = [json.loads(line) for line in stack.log("late").splitlines() if "shard chosen" in line]
    assert chosen["shard"] == orphaned


def test_another_number_ends_a_scheduler_and_a_worker_and_another_model_a_worker(stack: Sharded) -> None:
    stack.worker("first", "--shard", "0", wait=False)  # fixes the number, before any scheduler
    wait_until(lambda: stack.served() == [1, 0, 0], 60, what="the first shard has a worker")
    stack.scheduler()
    other = stack.worker("other", "--shard", "1", model="stack_models:Echo", wait=False)
    stack.environment["STOKER_SHARDS"] = "2"
    ended = [other, stack.scheduler("s"), stack.worker("w", wait=False)]
    assert [process.wait(60) for process in ended] == [2, 2, 2]
    assert "queue 'default' serves another model" in stack.log("other")
    for name in ("s", "w"):
        assert "shards: queue 'default' has 3, got 2" in stack.log(name)


@pytest.mark.usefixtures("no_stray_processes")
async def test_a_local_stack_has_a_worker_for_each_shard() -> None:
    config, settings = Config(shards=2, heartbeat_ms=200), StackSettings(options=EngineOptions("sim"), quiet=True)
    async with LocalStack(config, settings) as stack, AsyncClient(config=stack.config) as client:
        assert sorted(worker["shard"] for worker in (await client.stats())["workers"]) == [0, 1]
        jobs = await client.submit_many([[1]] * 4)
        assert {(await job.response(30)).status for job in jobs} == {"succeeded"}  # type: ignore[union-attr]


@pytest.mark.usefixtures("no_stray_processes")
async def test_the_batch_worker_of_a_local_stack_runs_a_file_on_both_shards(tmp_path: Path) -> None:
    config = Config(shards=2, heartbeat_ms=200)
    settings = StackSettings(options=EngineOptions("sim"), batch=True, quiet=True)
    source = write(tmp_path / "in.jsonl", [{"prompt": [i + 1], "max_tokens": 2} for i in range(20)])
    async with LocalStack(config, settings) as stack, AsyncClient(config=stack.config) as client:
        status = await (await client.batches.create(source)).wait(60)
        assert (status.state, status.succeeded) == ("completed", 20)
        assert {worker["worker"] for worker in (await client.stats())["workers"]} == set(status.workers)
    assert set(read(tmp_path / "in.output.jsonl")) == {f"c{i}" for i in range(20)}


async def test_a_local_stack_with_fewer_workers_than_shards_is_refused() -> None:
    settings = StackSettings(options=EngineOptions("sim"), workers=1, quiet=True)
    with pytest.raises(ConfigError, match="workers: must be at least one for each of the 2 shards, got 1"):
        async with LocalStack(Config(shards=2), settings):
            pass
