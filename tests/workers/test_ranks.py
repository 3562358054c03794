"""A tensor-parallel group answers as one rank would, and its ranks live and die together."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import group_process
from helpers import process_is_gone, wait_until
from stoker.errors import ConfigError
from stoker_workers.demo import demo_model_path
from stoker_workers.engines.transformers_cb import TransformersCbEngine

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SCRIPT = Path(group_process.__file__)
LOAD_S = 120.0


class Group:
    """The process of a group's first rank."""

    def __init__(self, ranks: int) -> None:
        command = [sys.executable, str(SCRIPT), str(demo_model_path()), str(ranks)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert "loaded" in self.hear()

    @property
    def followers(self) -> list[int]:
        """The other ranks: the children of any of the process's threads."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"the group ended with {self.process.wait(10)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        followers = self.followers if self.process.poll() is None else []
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        for pid in followers:
            wait_until(lambda pid=pid: process_is_gone(pid), 20, what=f"rank {pid} is gone")  # type: ignore[misc]


@pytest.fixture
def group(short_tmp: Path) -> Iterator[Group]:
    """Two ranks; none of their processes is left after the test."""
    group = Group(2)
    try:
        yield group
    finally:
        group.end()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Group]:
    """Two ranks, for the tests that leave them as they were."""
    group = Group(2)
    try:
        yield group
    finally:
        group.end()


WORKS: list[dict[str, Any]] = [
    {"id": "a", "prompt": [5, 6, 7], "max_tokens": 30},
    {"id": "b", "prompt": [9] * 100, "max_tokens": 20},
    {"id": "gone", "prompt": [11, 12], "max_tokens": 60, "ignore_eos": True},
    {"id": "seeded", "prompt": [50, 51], "max_tokens": 40, "sampling": {"temperature": 0.9, "seed": 3, "top_p": 0.9}},
    {"id": "stopped", "prompt": [40, 41, 42], "max_tokens": 60, "ignore_eos": True, "stop": ["e"]},
    {"id": "c", "prompt": [7], "max_tokens": 1},
    *({"id": str(i), "prompt": list(range(3, 20 + i)), "max_tokens": 10 + i} for i in range(6)),
]
CANCEL = {"gone": 9}


def test_two_ranks_answer_as_one_does(lasting: Group) -> None:
    together = lasting.ask(works=WORKS, cancel=CANCEL)
    torch.set_num_threads(1)
    one = TransformersCbEngine(demo_model_path(), max_num_seqs=8, max_num_batched_tokens=64, kv_cache_tokens=2048)
    one.load()
    works = [group_process.make_work(dict(fields)) for fields in WORKS]
    assert together == group_process.drive(one, works, CANCEL)
    assert set(together) == {fields["id"] for fields in WORKS} - {"gone"}
    # Once more, for a group that has worked and been idle.
    assert lasting.ask(works=WORKS, cancel=CANCEL) == together


def test_a_group_listens_on_the_loopback_interface_only(lasting: Group) -> None:
    pids = [lasting.process.pid, *lasting.followers]
    sockets = {str(file.readlink()) for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir() if file.exists()}
    inodes = {name[len("socket:[") : -1] for name in sockets if name.startswith("socket:[")}
    listening = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append((family, fields[1].partition(":")[0]))
    assert listening
    assert set(listening) <= {(socket.AF_INET, "0100007F"), (socket.AF_INET6, "0" * 24 + "01000000")}


def test_a_group_that_is_closed_leaves_nobody(lasting: Group) -> None:
    (follower,) = lasting.followers
    assert lasting.ask(close=True) == {"closed": True}
    assert process_is_gone(follower)
    assert lasting.process.wait(20) == 0


@pytest.mark.long
@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_rank_takes_an_idle_or_busy_group_along_as_killed(group: Group, busy: bool) -> None:
    if busy:
        group.ask(endless={"id": "a", "prompt": [5], "max_tokens": 1900, "ignore_eos": True})
    (follower,) = group.followers
    os.kill(follower, signal.SIGKILL)
    assert group.process.wait(30) == -signal.SIGKILL


@pytest.mark.long
def test_a_rank_that_crashes_makes_the_group_crash(group: Group) -> None:
    (follower,) = group.followers
    os.kill(follower, signal.SIGSEGV)
    assert group.process.wait(30) == 1


@pytest.mark.long
def test_the_other_ranks_end_with_the_first(group: Group) -> None:
    (follower,) = group.followers
    group.process.kill()
    wait_until(lambda: process_is_gone(follower), 20, what="the other rank is gone")


def test_heads_that_cannot_be_split_evenly_are_refused_before_a_process_starts() -> None:
    engine = TransformersCbEngine(demo_model_path(), tensor_parallel=3)
    with pytest.raises(ConfigError, match="tensor_parallel: must divide the model's 4 attention heads, got 3"):
        engine.load()
    engine = TransformersCbEngine(demo_model_path(), tensor_parallel=4)
    with pytest.raises(ConfigError, match="tensor_parallel: must divide the model's 2 key-value heads, got 4"):
        engine.load()


@pytest.mark.long
def test_weights_that_no_rank_can_load_are_refused_by_the_first(tmp_path: Path, short_tmp: Path) -> None:
    folder = shutil.copytree(demo_model_path(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "2"], capture_output=True, text=True, timeout=LOAD_S, check=False
    )
    assert "ConfigError: model:" in ended.stderr
    assert "lacks the weights of 9 tensors" in ended.stderr
