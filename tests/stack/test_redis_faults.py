"""What Redis does to a stack, and what the stack makes of it: one scheduler, one worker, on a Redis of their own.

All of them reach it through a proxy, which is the network; the tests look at it directly.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from helpers import MARK, assert_no_stray_processes, wait_until
from proxy import Proxy, proxy_to
from stack_processes import Stack
from stoker import (
    Client,
    InferenceRequest,
    Job,
    RedisUnavailable,
    RequestLost,
    ResultTimeout,
    StokerError,
)
from stoker_ops.embedded import EmbeddedRedis, ServerBinary, start

LEASE_BEATS = 3.3
LONG = 250
"""Tokens of a request that still runs when a fault begins; a step of the sim takes about 10 ms."""


class Server:
    """A Redis that can be killed, stopped and emptied, at an address that stays."""

    def __init__(self, directory: Path, binary: ServerBinary, *settings: str) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.settings = settings
        self._binary = binary
        self._running: EmbeddedRedis | None = None
        self.redis = redis.Redis(unix_socket_path=str(self.socket), decode_responses=True, max_connections=1)

    def start(self, *more: str) -> None:
        """Start, without waiting until its data is loaded."""
        self._running = start(self.directory, server=self._binary, extra_args=(*self.settings, *more))

    @property
    def pid(self) -> int:
        return int(self.redis.info("server")["process_id"])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: self._running and not self._running.running, 10)
        self.stop()

    def stop(self) -> None:
        if self._running:
            self._running.stop()

    def wipe(self) -> None:
        """Lose all data of a server that is down."""
        shutil.rmtree(self.directory)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def port(self) -> int:
        """Listen on a port too, which a replica needs, and return it."""
        with redis.Redis(unix_socket_path=str(self.socket)) as admin:
            for port in range(20_000 + os.getpid() % 10_000, 40_000):
                try:
                    admin.config_set("port", port)
                except redis.ResponseError:
                    continue
                return port
        raise AssertionError("no port is free")


class World(Stack):
    """A scheduler and a worker, their Redis, and the network between."""

    def __init__(self, server: Server, proxy: Proxy, logs: Path) -> None:
        super().__init__(proxy.url, logs, f"unix://{server.socket}")
        self.server = server
        self.proxy = proxy
        self.ids = 0

    def clients(self, **settings: object) -> Client:
        return Client(config=self.config.model_copy(update=settings))

    def requests(self, n: int, max_tokens: int = 8) -> list[InferenceRequest]:
        self.ids += n
        return [
            InferenceRequest(prompt_tokens=[i + 1, 2], max_tokens=max_tokens, request_id=f"r{self.ids}-{i}")
            for i in range(n)
        ]

    def well(self) -> bool:
        """Whether there are a leader and a worker, in whatever history Redis has."""
        return bool(self.redis.hget(self.keys.leader, "token")) and bool(self.incarnation("worker"))

    def calm(self) -> str:
        """Wait until all is well and an answer comes; gives the worker's incarnation."""
        wait_until(self.well, 30, what="a leader and a worker")
        with self.clients() as client:
            assert client.submit(prompt_tokens=[1], max_tokens=1).result(timeout=30).text
        return self.incarnation("worker") or ""

    def ends(self, ids: list[str]) -> set[int]:
        """How often the requests ended, by the history."""
        lines = [line for _, fields in self.redis.xrange(self.keys.events) for line in fields["lines"].split("\n")]
        ended = [line.split(" ")[0] for line in lines if line.split(" ")[1] == "end"]
        return {ended.count(request_id) for request_id in ids}


@pytest.fixture(scope="module")
def shared(server_binary: ServerBinary) -> Iterator[World]:
    """The world that all tests of the module share."""
    directory = Path(tempfile.mkdtemp(prefix="stoker-t-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as ending:
        patch.setenv(MARK, str(directory))
        server = Server(directory / "r", server_binary, "--dbfilename", "blocked")
        ending.callback(server.stop)
        server.start()
        proxy = ending.enter_context(proxy_to(server.socket))
        world = World(server, proxy, directory)
        ending.callback(world.end)
        world.scheduler()
        # After short answers it would take long ones ahead, and hand them back: an attempt more than faults explain.
        world.environment["STOKER_AHEAD_MS"] = "0"
        world.worker("worker", "--max-num-seqs", "8", wait=False)
        yield world
    try:
        assert_no_stray_processes(str(directory))
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def world(shared: World) -> World:
    """A world where all is well."""
    shared.calm()
    return shared


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with world.clients(retry_timeout_s=30) as client:
        yield client


@contextmanager
def load(client: Client, world: World, jobs: list[Job]) -> Iterator[None]:
    """Submit all the while, one after the other; `jobs` gets each that was accepted."""
    over, failures = threading.Event(), []

    def submit() -> None:
        try:
            while not over.is_set():
                jobs.append(client.submit(world.requests(1)[0]))
        except StokerError as error:
            failures.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        wait_until(lambda: len(jobs) >= 20, 30, what="20 requests are accepted")
        yield
        accepted = len(jobs)
        wait_until(lambda: failures or len(jobs) >= accepted + 20, 30, what="20 more are accepted")
    finally:
        over.set()
        thread.join(40)
    assert not failures


def running(world: World, client: Client, n: int = 6) -> list[Job]:
    """Requests that all run, and will for a while."""
    jobs = client.submit_many(world.requests(n, LONG))
    ids = {job.id for job in jobs}
    wait_until(lambda: ids <= world.running("worker"), 30, what="all run")
    return jobs


def pass_time(seconds: float) -> None:
    """Let a fault last."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 1)


def answered_at_once(jobs: list[Job]) -> bool:
    """Whether each was answered by its first attempt."""
    responses = [job.result(timeout=60) for job in jobs]
    return {(response.attempts, response.usage.completion_tokens) for response in responses} == {(1, LONG)}


# --- killed, stopped, emptied -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_a_redis_killed_under_load_loses_nothing_and_everybody_says_so_once(
    world: World, client: Client, appendfsync: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stoker")
    world.redis.config_set("appendfsync", appendfsync)
    before, jobs = world.incarnation("worker"), []
    logs = {name: len(world.log(name)) for name in ("scheduler", "worker")}
    client.job("nobody").status()
    with load(client, world, jobs):
        jobs[0].response(timeout=30)
        world.server.kill()
        world.server.start("--appendfsync", appendfsync)
    responses = [job.result(timeout=30) for job in jobs]
    assert {response.usage.completion_tokens for response in responses} == {8}
    # Where everysec was still writing, Redis may have forgotten what it had answered; nothing ever ends twice.
    assert world.ends([job.id for job in jobs]) in ({1}, *[{0, 1}] * (appendfsync == "everysec"))
    assert world.incarnation("worker") == before, "no worker was declared dead"

    for name, start_at in logs.items():
        # Of a worker both processes, supervisor and child, may say so.
        lost, back = (
            wait_until(lambda t=text, n=name, s=start_at: world.log(n)[s:].count(t), 10)
            for text in ("redis unavailable", "redis is back")
        )
        assert lost == back <= (2 if name == "worker" else 1), world.log(name)[start_at:]
        assert "after_s" in world.log(name)[start_at:]
    said = [record.getMessage() for record in caplog.records if record.name == "stoker"]
    assert [line.split(",")[0].split(" after")[0] for line in said] == ["Redis is lost", "Redis is back"]


def test_a_stall_of_two_leases_costs_nobody_anything(world: World, client: Client) -> None:
    before, log = world.incarnation("worker"), len(world.log("scheduler"))
    jobs = running(world, client)
    with world.server.standing_still():
        pass_time(2 * world.beats(LEASE_BEATS))
    assert answered_at_once(jobs)
    assert world.incarnation("worker") == before
    assert "took work back" not in world.log("scheduler")[log:]


def test_a_redis_that_comes_back_empty_is_a_new_history_and_old_requests_are_lost(world: World, client: Client) -> None:
    before, generation = world.incarnation("worker"), world.redis.get(world.keys.generation)
    jobs = running(world, client, 3)
    requests = world.requests(3, 4)
    waiting = client.submit_many(requests)
    with ThreadPoolExecutor(len(jobs)) as pool:
        results = [pool.submit(job.result) for job in jobs]
        world.server.kill()
        world.server.wipe()
        world.server.start()
        for result in results:
            with pytest.raises(RequestLost, match="lost by it"):
                result.result(timeout=30)
    for job in waiting:
        with pytest.raises(RequestLost):
            job.result(timeout=30)
    now = world.calm()
    assert now
    assert now != before
    assert world.redis.get(world.keys.generation) not in (None, generation)
    # What ran for the old history was dropped: as much later as it took, nothing of it was written.
    assert client.submit(prompt_tokens=[1], max_tokens=LONG).result(timeout=60).attempts == 1
    assert not [key for key in world.redis.keys("*") for job in [*jobs, *waiting] if job.id in key]
    again = client.submit_many(requests)
    assert [job.id for job in again] == [job.id for job in waiting]
    assert [len(job.result(timeout=30).token_ids) for job in again] == [4, 4, 4]


# --- refusals ---------------------------------------------------------------------------------------------------------


@contextmanager
def readonly(server: Server) -> Iterator[None]:
    server.redis.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        server.redis.replicaof("NO", "ONE")


@contextmanager
def out_of_memory(server: Server) -> Iterator[None]:
    server.redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        server.redis.config_set("maxmemory", 0)


@contextmanager
def misconfigured(server: Server) -> Iterator[None]:
    """It cannot write its snapshot: a directory stands where the file should be."""
    (blocked := server.directory / "blocked").mkdir()
    server.redis.config_set("save", "3600 1")
    server.redis.bgsave()
    wait_until(lambda: server.redis.info("persistence")["rdb_last_bgsave_status"] == "err", 10)
    try:
        yield
    finally:
        blocked.rmdir()
        server.redis.config_set("save", "")


@contextmanager
def too_many_clients(server: Server) -> Iterator[None]:
    server.redis.config_set("maxclients", 1)
    # But the one that says so, which will be needed.
    server.redis.client_kill_filter(_type="normal", skipme=True)
    try:
        yield
    finally:
        server.redis.config_set("maxclients", 10_000)


@contextmanager
def loading(server: Server) -> Iterator[None]:
    """It is killed, and reads its data slowly; it looks up from that only every thousand commands."""
    pipeline = server.redis.pipeline(transaction=False)
    for i in range(16_000):
        pipeline.set(f"filler:{i}", i)
    pipeline.execute()
    server.kill()
    thread = threading.Thread(target=server.start, args=("--key-load-delay", "100"))
    thread.start()
    try:
        wait_until(lambda: is_loading(server), 10, what="it loads its data", poll=0.001)
        yield
    finally:
        thread.join(30)


def is_loading(server: Server) -> bool:
    with socket.socket(socket.AF_UNIX) as plain:
        try:
            plain.connect(str(server.socket))
            plain.sendall(b"PING\r\n")
            return plain.recv(100).startswith(b"-LOADING")
        except OSError:
            return False


@pytest.mark.parametrize(
    ("refusing", "says"),
    [
        pytest.param(readonly, "is no master now .*READONLY|is no master now .*read only", id="readonly"),
        pytest.param(out_of_memory, "refuses for now .*(OOM|maxmemory)", id="oom"),
        pytest.param(misconfigured, "refuses for now .*MISCONF", id="misconf"),
        pytest.param(
            too_many_clients,
            "max number of clients reached|closed by server|reset by peer|Broken pipe",
            id="maxclients",
        ),
        pytest.param(loading, "loading the dataset in memory", id="loading"),
    ],
)
def test_a_redis_that_refuses_says_why_and_all_recover_by_themselves(
    world: World, client: Client, refusing: Callable[[Server], Iterator[None]], says: str
) -> None:
    before, log = world.incarnation("worker"), len(world.log("scheduler"))
    jobs = running(world, client)
    [request] = world.requests(1, 4)
    with (
        refusing(world.server),
        world.clients(retry_timeout_s=0.1) as hasty,
        pytest.raises(RedisUnavailable, match=f"(connect|submit|read): Redis at .*({says})"),
    ):
        hasty.submit(request)
    assert answered_at_once(jobs)
    assert len(client.submit(request).result(timeout=30).token_ids) == 4
    assert world.incarnation("worker") == before, "no worker was declared dead"
    assert "took work back" not in world.log("scheduler")[log:]


def test_what_runs_and_waits_is_answered_by_a_redis_that_is_out_of_memory(world: World, client: Client) -> None:
    jobs = running(world, client) + client.submit_many(world.requests(12, LONG))
    with out_of_memory(world.server):
        assert answered_at_once(jobs)
        with pytest.raises(RedisUnavailable, match="refuses for now"):
            client.submit(prompt_tokens=[1])


# --- failover ---------------------------------------------------------------------------------------------------------


def test_a_failover_to_a_replica_loses_no_request_of_a_living_client(
    world: World, client: Client, server_binary: ServerBinary
) -> None:
    quick = ("--repl-diskless-sync-delay", "0")
    world.redis.config_set("repl-diskless-sync-delay", 0)
    follow = ("--replicaof", "127.0.0.1", str(world.server.port()), *quick)
    replica = Server(world.server.directory.parent / "s", server_binary, *follow)
    replica.start()
    try:
        wait_until(lambda: replica.redis.info("replication")["master_link_status"] == "up", 20)
        replicated = running(world, client)
        replica.redis.replicaof("NO", "ONE")
        # Accepted by a master that nobody follows any more.
        vanishing = client.submit_many(world.requests(6, 4))
        world.server.kill()
        world.proxy.target = replica.socket
        assert [len(job.result(timeout=60).token_ids) for job in vanishing] == [4] * 6
        assert [len(job.result(timeout=60).token_ids) for job in replicated] == [LONG] * 6
        keys = [world.keys.result(job.id) for job in vanishing]
        assert replica.redis.exists(*keys) == 6, "under the same ids"
    finally:
        replica.kill()
        world.proxy.target = world.server.socket
        world.server.wipe()
        world.server.start()


# --- the network ------------------------------------------------------------------------------------------------------


def test_replies_that_are_lost_change_nothing(world: World, client: Client) -> None:
    submitted = int(world.redis.hget(world.keys.counts, "submitted") or 0)
    world.proxy.lost_share, lost = 0.05, world.proxy.lost
    try:
        jobs = [client.submit(request) for request in world.requests(60)]
        assert {len(job.result(timeout=60).token_ids) for job in jobs} == {8}
    finally:
        world.proxy.lost_share = 0.0
    assert world.proxy.lost > lost + 5
    assert world.ends([job.id for job in jobs]) == {1}
    assert int(world.redis.hget(world.keys.counts, "submitted")) == submitted + 60


def test_a_redis_that_is_200_ms_away_is_only_slow(world: World, client: Client) -> None:
    before = world.incarnation("worker")
    world.proxy.delay_s = 0.1
    try:
        jobs = client.submit_many(world.requests(8, LONG))
        assert answered_at_once(jobs)
    finally:
        world.proxy.delay_s = 0.0
    assert world.incarnation("worker") == before


def test_in_a_silent_network_every_call_ends_and_afterwards_all_goes_on(world: World, client: Client) -> None:
    jobs = running(world, client)
    quick = {"socket_timeout_s": 0.4, "retry_timeout_s": 0.2, "block_ms": 100}
    [request] = world.requests(1, 4)
    with world.clients(**quick) as hasty:
        world.proxy.open.clear()
        try:
            with pytest.raises(RedisUnavailable, match="does not answer since"):
                hasty.submit(request)
            with pytest.raises(ResultTimeout):
                hasty.job(jobs[0].id).result(timeout=0.5)
            pass_time(2 * world.beats(LEASE_BEATS))
        finally:
            world.proxy.open.set()
        assert answered_at_once(jobs)
        assert len(hasty.submit(request).result(timeout=30).token_ids) == 4


def test_connections_that_are_reset_under_load_lose_and_double_nothing(world: World, client: Client) -> None:
    before, jobs = world.incarnation("worker"), []
    with load(client, world, jobs):
        for _ in range(10):
            accepted = len(jobs)
            world.proxy.reset_all()
            wait_until(lambda n=accepted: len(jobs) > n, 30, what="it goes on")
    assert {len(job.result(timeout=60).token_ids) for job in jobs} == {8}
    assert world.ends([job.id for job in jobs]) == {1}
    assert world.incarnation("worker") == before
