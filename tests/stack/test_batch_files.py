"""Batch files on real processes: each line once, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from helpers import wait_until
from stack.batch_lines import read, write
from stack_processes import Stack
from stoker import RedisUnavailable
from stoker.batch.sdk import Batch
from stoker_ops.embedded import ServerBinary, start


class Killed:
    """A stack on a Redis with an append-only file, of which everything may be killed."""

    def __init__(self, server: ServerBinary, folder: Path) -> None:
        self._server, self._folder = server, folder
        self.redis = start(folder / "r", ephemeral=False, server=server)
        self.stack = Stack(self.redis.url, folder)
        self.scheduler = self.stack.scheduler()
        self.worker = self.stack.worker("w0", "--max-num-seqs", "8")
        self.stack.worker("w1", "--max-num-seqs", "8")
        self.runner = self.stack.batch_worker("batch-worker", "--runs", "1")

    def end(self) -> None:
        self.stack.end()
        self.redis.stop()

    def kill_redis(self) -> None:
        with redis.Redis.from_url(self.redis.url) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.redis.running, 10)
        self.redis.stop()
        self.redis = start(self._folder / "r", ephemeral=False, server=self._server)

    def kill_scheduler(self) -> None:
        self.scheduler.kill()
        self.scheduler = self.stack.scheduler("another")

    def kill_worker(self) -> None:
        os.kill(self.stack.child_of(self.worker), signal.SIGKILL)

    def kill_rq_worker(self) -> None:
        os.kill(self._horse()[0], signal.SIGKILL)

    def kill_work_horse(self) -> None:
        os.kill(self._horse()[1], signal.SIGKILL)

    def _horse(self) -> tuple[int, int]:
        def found() -> tuple[int, int] | None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                worker = children(self.runner.pid)[0]
                return worker, children(worker)[0]
            return None

        return wait_until(found, 30, what="a work horse runs")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def killed(server_binary: ServerBinary, short_tmp: Path) -> Iterator[Killed]:
    killed = Killed(server_binary, short_tmp)
    yield killed
    killed.end()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.chaos
def test_each_line_is_there_once_after_everything_was_killed(killed: Killed, tmp_path: Path) -> None:
    bodies = [{"prompt": [i % 1000 + 1, 2, 3], "max_tokens": 4} for i in range(6000)]
    with killed.stack.client() as client:
        batch = client.batches.create(write(tmp_path / "in.jsonl", bodies), max_in_flight=64)
        kills: list[Callable[[], None]] = [
            killed.kill_work_horse,
            killed.kill_worker,
            killed.kill_redis,
            killed.kill_rq_worker,
            killed.kill_scheduler,
            killed.kill_work_horse,
        ]
        for kill in kills:
            before = wait_until(lambda: done(batch), 60, what="some lines are done")
            what = f"more than {before} lines are done before {kill.__name__}"
            wait_until(lambda before=before: done(batch) > before, 60, what=what)
            kill()
        wait_until(lambda: state(batch) == "completed", 120, what="the batch is whole", poll=0.2)
    answers = read(tmp_path / "in.output.jsonl")
    assert set(answers) == {f"c{i}" for i in range(6000)}
    assert not (tmp_path / "in.errors.jsonl").exists()


def done(batch: Batch) -> int:
    with contextlib.suppress(RedisUnavailable):
        return batch.status().done
    return 0


def state(batch: Batch) -> str:
    with contextlib.suppress(RedisUnavailable):
        return batch.status().state
    return ""
