"""A Redis whose clock is set by ten minutes, and one whose disk stalls: its calls of the C library are replaced.

The tests need a C compiler, and skip where there is none.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from helpers import MARK, assert_no_stray_processes, wait_until
from proxy import proxy_to
from stack.steady_load import SteadyLoad
from stack.test_redis_faults import Server, World, pass_time
from stoker import Client, InferenceResponse
from stoker_ops.embedded import ServerBinary

SHIM = Path(__file__).with_name("shim.c")
TEN_MINUTES_S = 600
SHORT = 8
"""Tokens of an answer, which takes a tenth of a second."""


class Machine:
    """Where a Redis runs: its clock and its disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.library = directory / "shim.so"
        self.set_clock(0)

    def set_clock(self, offset_s: int) -> None:
        """Let the clock be wrong by so much."""
        path = self.directory / "offset"
        if not path.exists():
            path.write_bytes(struct.pack("q", offset_s))
            return
        # In place and at once: the server has it mapped.
        with path.open("r+b", buffering=0) as file:
            file.write(struct.pack("q", offset_s))

    def stall(self) -> None:
        """Let no sync of the disk end."""
        (self.directory / "stall").touch()

    def heal(self) -> None:
        """Let them end."""
        (self.directory / "stall").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine whose library is compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here: clock and disk of a Redis cannot be replaced")
    directory = Path(tempfile.mkdtemp(prefix="stoker-m-", dir="/tmp"))
    machine = Machine(directory)
    try:
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", machine.library, SHIM], check=True)
        yield machine
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def shared(server_binary: ServerBinary, machine: Machine) -> Iterator[World]:
    """The world that all tests of the module share."""
    directory = Path(tempfile.mkdtemp(prefix="stoker-t-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as ending:
        patch.setenv(MARK, str(directory))
        server = Shimmed(directory / "r", server_binary, machine)
        ending.callback(server.stop)
        server.start()
        if not server.follows_the_shim():
            pytest.skip("this Redis does not ask the C library what time it is (a static build?)")
        proxy = ending.enter_context(proxy_to(server.socket))
        world = World(server, proxy, directory)
        ending.callback(world.end)
        world.scheduler()
        world.worker("worker", "--max-num-seqs", "8", wait=False)
        yield world
        machine.heal()
    try:
        assert_no_stray_processes(str(directory))
    finally:
        shutil.rmtree(directory)


class Shimmed(Server):
    """A server that runs on the machine."""

    def __init__(self, directory: Path, binary: ServerBinary, machine: Machine) -> None:
        super().__init__(directory, binary)
        self.machine = machine

    def start(self, *more: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(self.machine.library))
            patch.setenv("SHIM_DIR", str(self.machine.directory))
            super().start(*more)

    def follows_the_shim(self) -> bool:
        """Whether its clock goes with the machine's."""
        before, _ = self.redis.time()
        self.machine.set_clock(1000)
        after, _ = self.redis.time()
        self.machine.set_clock(0)
        return 900 < after - before < 1100


@pytest.fixture
def world(shared: World, machine: Machine) -> Iterator[World]:
    """A world where all is well."""
    shared.calm()
    yield shared
    machine.heal()
    machine.set_clock(0)


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with world.clients(retry_timeout_s=30) as client:
        yield client


@contextmanager
def load(client: Client) -> Iterator[SteadyLoad]:
    """Keep some requests in flight before, while, and after something happens."""
    with SteadyLoad(client, live=16, max_tokens=SHORT) as steady:
        wait_until(lambda: len(steady.responses) > 16, 30, what="some are answered")
        yield steady
        answered = len(steady.responses)
        wait_until(lambda: len(steady.responses) > answered + 32, 60, what="more are answered")


def right(world: World, responses: list[InferenceResponse]) -> set[int]:
    """Hold all answers against what was asked; gives how often the history says that they ended."""
    assert [response.error for response in responses if response.error] == []
    assert {response.usage.completion_tokens for response in responses} == {SHORT}
    return world.ends([response.request_id for response in responses])


@pytest.mark.slow
@pytest.mark.parametrize("step_s", [TEN_MINUTES_S, -TEN_MINUTES_S], ids=["ahead", "back"])
def test_a_clock_that_is_set_by_ten_minutes_costs_nobody_anything(
    world: World, client: Client, machine: Machine, step_s: int
) -> None:
    before, log = world.incarnation("worker"), len(world.log("scheduler"))
    with load(client) as steady:
        machine.set_clock(step_s)
        # Longer than a lease and the grace that the step begins.
        pass_time(world.beats(10))
    assert right(world, steady.responses) == {1}
    assert {response.attempts for response in steady.responses} == {1}
    assert world.incarnation("worker") == before, "no worker was declared dead"
    assert "took work back" not in world.log("scheduler")[log:]


@pytest.mark.slow
@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_a_redis_that_is_killed_while_its_disk_stalls_loses_nothing_of_a_living_client(
    world: World, client: Client, machine: Machine, appendfsync: str
) -> None:
    world.redis.config_set("appendfsync", appendfsync)
    pid = world.server.pid
    with load(client) as steady:
        machine.stall()
        # Beyond the second in which everysec syncs, and the two for which it puts a write off meanwhile.
        pass_time(4)
        kill(pid, world)
        machine.heal()
        world.server.start("--appendfsync", appendfsync)
    # With everysec the last two seconds may be gone from the history, and what they had ended was submitted anew.
    assert right(world, steady.responses) in ({1}, *[{0, 1}] * (appendfsync == "everysec"))


def kill(pid: int, world: World) -> None:
    """End the server, which with `always` answers nobody."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, what="it is gone")
    world.server.stop()
