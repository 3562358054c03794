"""RQ drives batch files: what its jobs may do, how its workers end, and that a batch always has a run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import rq
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from structlog.testing import capture_logs

from batch.conftest import Bench, framed
from helpers import process_is_gone, wait_until
from sdk.fleet import Fleet
from stack_processes import is_measured
from stoker.batch import supervisor as supervisors
from stoker.batch.rq_queue import ALLOWED, BatchJob, RunQueue, make_queue, queue_name, run_id
from stoker.batch.supervisor import Supervisor
from stoker.config import Config, environment_of
from stoker.errors import ConfigError, RedisUnavailable
from stoker.store.connection import Store
from stoker.store.foreign import batch_client
from stoker_ops.embedded import ServerBinary, start

HOLD = {"metadata": {"do": "hold"}}


def environment(config: Config, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a process of ours, which coverage measures where the test is marked so."""
    return environment_of(config) | ({} if is_measured(request) else {"COVERAGE_PROCESS_CONFIG": ""})


@pytest.fixture
def rq_redis(config: Config) -> Iterator[redis.Redis]:
    """A client as RQ's own users have it."""
    with redis.Redis.from_url(str(config.redis_url)) as client:
        yield client


@pytest.fixture
def run_queue(config: Config) -> Iterator[RunQueue]:
    """Our side of RQ."""
    queue = RunQueue(config)
    yield queue
    queue.close()


@pytest.fixture
def worker(config: Config, short_tmp: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """One RQ worker of ours, without a supervisor."""
    command = [sys.executable, "-m", "stoker.batch.worker", str(os.getpid()), "warning"]
    with (short_tmp / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(config, request), stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()


def ended(job_id: str, client: redis.Redis, timeout: float = 30) -> Job:
    def over() -> Job | None:
        job = Job.fetch(job_id, connection=client, serializer=JSONSerializer)
        return job if job.get_status() in (JobStatus.FINISHED, JobStatus.FAILED) else None

    return wait_until(over, timeout, what=f"job {job_id} ends")


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_is_json_with_times_to_live_and_no_limit(run_queue: RunQueue, rq_redis: redis.Redis) -> None:
    assert run_queue.enqueue_run("b", 1)
    stored = {name.decode(): value for name, value in rq_redis.hgetall("rq:job:b-run1").items()}
    job = Job.fetch("b-run1", connection=rq_redis, serializer=JSONSerializer)
    assert (job.func_name, list(job.args)) == ("stoker.batch.jobs.run", ["b"])
    assert (job.result_ttl, job.failure_ttl, job.timeout) == (3600, 86_400, -1)
    assert b"pickle" not in b"".join(stored.values())


def test_a_run_is_enqueued_once_under_its_name(run_queue: RunQueue, rq_redis: redis.Redis, config: Config) -> None:
    assert run_queue.enqueue_run("b", 1)
    assert not run_queue.enqueue_run("b", 1)
    assert run_queue.waits("b", 1)
    assert not run_queue.waits("b", 2)
    assert rq_redis.lrange(f"rq:queue:{queue_name(config)}", 0, -1) == [b"b-run1"]
    assert run_id("b", 1) == "b-run1"


def test_a_sweep_is_enqueued_once_a_slot_and_queue(run_queue: RunQueue, config: Config) -> None:
    assert run_queue.enqueue_sweep(7)
    assert not run_queue.enqueue_sweep(7)
    assert run_queue.enqueue_sweep(8)
    other = RunQueue(config.model_copy(update={"queue": "other"}))
    assert other.enqueue_sweep(7)
    other.close()


@pytest.mark.measured
def test_a_job_that_names_another_function_fails_and_nothing_is_imported(
    worker: subprocess.Popen[bytes], config: Config, rq_redis: redis.Redis, tmp_path: Path
) -> None:
    queue = rq.Queue(queue_name(config), connection=rq_redis, serializer=JSONSerializer)
    target = tmp_path / "made"
    job = queue.enqueue("os.mkdir", str(target), job_id="evil")
    done = ended(job.id, rq_redis)
    assert done.get_status() == JobStatus.FAILED
    assert "NotAllowed" in str(done.latest_result().exc_string)
    assert not target.exists()


def test_a_pickled_job_is_not_unpickled(
    worker: subprocess.Popen[bytes], config: Config, rq_redis: redis.Redis, tmp_path: Path
) -> None:
    queue = rq.Queue(queue_name(config), connection=rq_redis, serializer="pickle")
    job = queue.enqueue("os.mkdir", str(tmp_path / "made"), job_id="pickled")
    assert pickle.loads(job.data)[0] == "os.mkdir"  # noqa: S301  # made one line above
    assert ended(job.id, rq_redis).get_status() == JobStatus.FAILED
    assert not (tmp_path / "made").exists()


@pytest.mark.measured
def test_callbacks_and_webhooks_of_a_job_are_not_called(
    worker: subprocess.Popen[bytes], config: Config, rq_redis: redis.Redis, tmp_path: Path
) -> None:
    queue = rq.Queue(queue_name(config), connection=rq_redis, serializer=JSONSerializer)
    hook = rq.Callback("os.mkdir")
    job = queue.enqueue("stoker.batch.jobs.sweep", job_id="sweep-x", on_success=hook, on_failure=hook)
    assert ended(job.id, rq_redis).get_status() == JobStatus.FINISHED
    mine = BatchJob.fetch("sweep-x", connection=rq_redis, serializer=JSONSerializer)
    assert (mine.success_callback, mine.failure_callback, mine.stopped_callback) == (None, None, None)
    assert mine.send_webhooks("finished") is None


def test_only_the_functions_of_batch_files_may_be_called() -> None:
    assert set(ALLOWED) == {"stoker.batch.jobs.run", "stoker.batch.jobs.sweep"}


def test_a_run_that_does_not_get_the_lease_ends_well(
    worker: subprocess.Popen[bytes], run_queue: RunQueue, rq_redis: redis.Redis
) -> None:
    run_queue.enqueue_run("unknown", 1)
    job = ended("unknown-run1", rq_redis)
    assert (job.get_status(), job.return_value()) == (JobStatus.FINISHED, "not run")


# --- connections ------------------------------------------------------------------------------------------------------


def test_rq_has_a_client_of_its_own_and_leaves_ours_alone(config: Config) -> None:
    store = Store(config)
    before = store._redis.connection_pool.connection_kwargs["socket_timeout"]
    client = batch_client(config)
    rq.Worker([make_queue(config, client)], connection=client)
    assert store._redis.connection_pool.connection_kwargs["socket_timeout"] == before
    client.close()
    store.close()


def test_a_cluster_is_refused_with_what_to_do(server_binary: ServerBinary, short_tmp: Path) -> None:
    with start(
        short_tmp / "r", ephemeral=True, server=server_binary, extra_args=("--cluster-enabled", "yes")
    ) as server:
        with pytest.raises(ConfigError, match="STOKER_BATCH_REDIS_URL"):
            RunQueue(Config(redis_url=server.url))
        cluster = server.url
        with start(short_tmp / "p", ephemeral=True, server=server_binary) as plain:
            RunQueue(Config(redis_url=cluster, batch_redis_url=plain.url)).close()


def test_a_redis_that_is_away_is_our_error() -> None:
    with pytest.raises(RedisUnavailable, match="look at"):
        RunQueue(Config(redis_url="redis://127.0.0.1:1/0", connect_timeout_s=0.1))


def test_the_worker_imports_nothing_heavy() -> None:
    code = "import stoker.batch.worker, sys\nprint(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "stoker_workers", "stoker_scheduler", "stoker_ops"} & set(loaded)


def test_the_scheduler_knows_nothing_of_rq() -> None:
    code = "import stoker_scheduler.service, sys\nprint('rq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def supervised(config: Config, short_tmp: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """`stoker batch-worker` with one RQ worker."""
    command = [sys.executable, "-c", "from stoker.cli import main; main()", "batch-worker", "--runs", "1"]
    with (short_tmp / "supervisor.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(config, request), stdout=log, stderr=log)
    yield process
    process.terminate()
    process.wait(30)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def horse_of(supervised: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The RQ worker and its work horse, once there is one."""

    def found() -> tuple[int, int] | None:
        for worker in children(supervised.pid):
            for horse in children(worker):
                return worker, horse
        return None

    return wait_until(found, 30, what="a work horse runs")


def held(bench: Bench, fleet: Fleet, n: int = 3) -> object:
    batch = bench.submit(*(framed(f"h{i}", **HOLD) for i in range(n)), *(framed(f"c{i}") for i in range(50)))
    wait_until(lambda: len(fleet.held) == n and batch.status().succeeded == 50, 30, what="the batch runs")
    return batch


@pytest.mark.measured
def test_a_submitted_batch_is_run_to_its_end(
    bench: Bench, fleet: Fleet, supervised: subprocess.Popen[bytes], rq_redis: redis.Redis
) -> None:
    batch = bench.submit(*(framed(f"c{i}") for i in range(300)))
    assert batch.wait(timeout=60).state == "completed"
    assert len(bench.answers()) == 300
    assert ended("b-run1", rq_redis).return_value() == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("who", ["work horse", "rq worker"])
def test_a_killed_run_is_followed_by_another_and_each_line_is_there_once(
    bench: Bench, fleet: Fleet, supervised: subprocess.Popen[bytes], rq_redis: redis.Redis, who: str
) -> None:
    batch = held(bench, fleet)
    worker, horse = horse_of(supervised)
    os.kill(horse if who == "work horse" else worker, signal.SIGKILL)
    wait_until(lambda: process_is_gone(horse), 10, what="the work horse dies with its worker")
    wait_until(lambda: batch.status().runs == 2, 30, what="a second run is enqueued")
    fleet.release()
    assert batch.wait(timeout=60).state == "completed"
    assert len(bench.answers()) == 53
    assert ended("b-run2", rq_redis).return_value() == "completed"


@pytest.mark.measured
@pytest.mark.slow
def test_sigterm_leaves_batches_to_their_next_run_at_once(
    bench: Bench, fleet: Fleet, supervised: subprocess.Popen[bytes]
) -> None:
    batch = held(bench, fleet)
    worker, horse = horse_of(supervised)
    supervised.terminate()
    assert supervised.wait(30) == 0
    assert process_is_gone(worker)
    assert process_is_gone(horse)
    assert batch.status().state == "queued"
    fleet.release()
    assert bench.run(batch) == "completed"
    assert len(bench.answers()) == 53


def test_no_address_of_redis_is_in_any_argument(
    bench: Bench, fleet: Fleet, supervised: subprocess.Popen[bytes]
) -> None:
    held(bench, fleet)
    worker, horse = horse_of(supervised)
    for pid in (supervised.pid, worker, horse):
        assert str(bench.config.redis_url).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    fleet.release()


def test_rqs_own_tool_sees_the_queue_and_its_workers(
    bench: Bench, fleet: Fleet, supervised: subprocess.Popen[bytes]
) -> None:
    held(bench, fleet)
    command = [str(Path(sys.executable).with_name("rq"))]
    if not Path(command[0]).exists():
        command = [sys.executable, "-c", "from rq.cli import main; main()"]
    run = subprocess.run([*command, "info", "-u", str(bench.config.redis_url)], capture_output=True, text=True)
    assert "stoker-batch-default" in run.stdout, run.stderr
    assert "busy stoker-batch-default" in run.stdout
    assert "1 workers, 1 queues" in run.stdout
    fleet.release()


# --- the supervisor ---------------------------------------------------------------------------------------------------


@pytest.fixture
def looking(config: Config) -> Iterator[Supervisor]:
    """A supervisor that runs in this thread, turn by turn, without workers."""
    supervisor = Supervisor(config, runs=0, log_level="warning")
    yield supervisor
    supervisor._end()


def jobs_in(client: redis.Redis, config: Config) -> list[str]:
    return [entry.decode() for entry in client.lrange(f"rq:queue:{queue_name(config)}", 0, -1)]


def runs_in(client: redis.Redis, config: Config) -> list[str]:
    return [job for job in jobs_in(client, config) if "-run" in job]


def test_a_batch_is_enqueued_once_however_often_one_looks(
    bench: Bench, looking: Supervisor, rq_redis: redis.Redis
) -> None:
    bench.submit("a")
    looking.turn()
    for _ in range(3):
        looking.look()
    assert runs_in(rq_redis, bench.config) == ["b-run1"]


def test_a_run_that_waits_for_a_free_worker_is_not_enqueued_again(
    bench: Bench, looking: Supervisor, rq_redis: redis.Redis
) -> None:
    batch = bench.submit("a")
    looking.turn()
    lapse_look(rq_redis, bench.config)
    looking.look()
    assert runs_in(rq_redis, bench.config) == ["b-run1"]
    assert batch.status().runs == 1


def test_a_run_that_vanished_before_it_took_the_lease_gets_a_successor(
    bench: Bench, looking: Supervisor, rq_redis: redis.Redis
) -> None:
    bench.submit("a")
    looking.turn()
    rq_redis.delete(f"rq:queue:{queue_name(bench.config)}")
    lapse_look(rq_redis, bench.config)
    looking.look()
    assert runs_in(rq_redis, bench.config) == ["b-run2"]


def test_a_name_that_is_taken_is_passed_over(bench: Bench, looking: Supervisor, rq_redis: redis.Redis) -> None:
    rq_redis.hset("rq:job:b-run1", "data", "of another queue")
    bench.submit("a")
    looking.turn()
    assert runs_in(rq_redis, bench.config) == []
    lapse_look(rq_redis, bench.config)
    looking.look()
    assert runs_in(rq_redis, bench.config) == ["b-run2"]


def lapse_look(client: redis.Redis, config: Config) -> None:
    """Let the time that a new run has to take the lease be over."""
    client.zadd(f"stoker:{{{config.queue}}}:lapses", {"b": 0})


def test_registries_are_cleaned_in_the_supervisors_main_thread_and_not_by_a_job(
    looking: Supervisor, rq_redis: redis.Redis, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[threading.Thread] = []
    monkeypatch.setattr(RunQueue, "clean", lambda self: cleaned.append(threading.current_thread()))
    monkeypatch.setitem(looking._every, looking._clean, 0.0)
    looking.turn()
    looking.turn()
    assert cleaned == [threading.main_thread()] * 2
    assert [job.partition("-")[0] for job in jobs_in(rq_redis, config)] == ["sweep"]
    assert supervisors.CLEAN_S == 15


def test_what_a_killed_worker_left_in_rqs_registry_is_cleaned(
    run_queue: RunQueue, config: Config, rq_redis: redis.Redis
) -> None:
    run_queue.enqueue_run("b", 1)
    queue = make_queue(config, rq_redis)
    job = queue.fetch_job("b-run1")
    assert job is not None
    registry = StartedJobRegistry(queue=queue)
    rq_redis.zadd(registry.key, {"b-run1:gone": 1})
    run_queue.clean()
    assert rq_redis.zcard(registry.key) == 0


def test_a_redis_that_is_away_is_waited_for(config: Config) -> None:
    supervisor = Supervisor(config.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}), runs=0, log_level="error")
    with capture_logs() as logs:
        supervisor.turn()
        supervisor.turn()
    assert [line["event"] for line in logs] == ["redis unavailable"]
    supervisor._end()


def test_a_sweep_removes_the_folder_of_a_batch_that_is_about_to_be_forgotten(
    bench: Bench, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, rq_redis: redis.Redis
) -> None:
    from stoker.batch import jobs

    batch = bench.submit(b"oops")
    bench.run(batch)
    folder = bench.folder / ".out.jsonl.b"
    monkeypatch.setattr(jobs, "load_config", lambda: bench.config)
    assert jobs.sweep() == 0
    assert folder.is_dir()
    key = f"stoker:{{{bench.config.queue}}}:batch:b"
    old = int(rq_redis.hget(key, "ended")) - int(bench.config.batch_ttl_s * 1e6) + 1_000_000
    rq_redis.hset(key, "ended", old)
    assert jobs.sweep() == 1
    assert not folder.exists()
    assert json.loads((bench.folder / "out.errors.jsonl").read_text())["error"]["code"] == "invalid_json"
