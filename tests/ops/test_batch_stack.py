"""A whole stack runs batch files too, where it is asked to; it goes on without."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from helpers import marked_processes, wait_until
from stoker import AsyncClient, Config
from stoker_ops.local import LocalStack
from stoker_ops.settings import StackSettings
from stoker_workers.messages import EngineOptions

SIM = EngineOptions("sim", profile="zero")

pytestmark = pytest.mark.usefixtures("no_stray_processes")


def settings(home: Path, *, batch: bool) -> StackSettings:
    return StackSettings(options=SIM, workers=1, home=home, quiet=True, batch=batch, ready_timeout_s=60)


async def test_a_stack_runs_batch_files_and_restarts_what_does(short_tmp: Path, tmp_path: Path) -> None:
    async with (
        LocalStack(Config(), settings(short_tmp / "s", batch=True)) as stack,
        AsyncClient(config=stack.config) as c,
    ):
        source = tmp_path / "in.txt"
        source.write_text("one\ntwo\n")
        batch = await c.batches.create(source)
        assert (await stack.during(batch.wait(timeout=60))).state == "completed"
        [before] = supervisors(short_tmp)
        os.kill(before, signal.SIGKILL)
        # In a thread: the stack restarts it in this one.
        await asyncio.to_thread(wait_until, lambda: set(supervisors(short_tmp)) - {before}, 20)
        again = await c.batches.create(source, output=tmp_path / "again.jsonl")
        assert (await stack.during(again.wait(timeout=60))).succeeded == 2


async def test_a_stack_that_is_not_asked_to_runs_none(short_tmp: Path) -> None:
    async with LocalStack(Config(), settings(short_tmp / "s", batch=False)):
        assert supervisors(short_tmp) == []


def supervisors(mark: Path) -> list[int]:
    return [pid for pid, command in marked_processes(str(mark)).items() if " batch-worker" in command]
