"""What a scheduler reads of the whole queue for its exporter, and when it may say it."""

from __future__ import annotations

import contextlib
import math

import pytest
import redis
from prometheus_client import CollectorRegistry

from stoker import Client, Config, InferenceRequest
from stoker.store import scripts
from stoker.store.backlog import SAMPLE
from stoker.store.connection import Store
from stoker.store.records import WorkerRecord
from stoker_scheduler import queue_reader
from stoker_scheduler.batcher import Batch
from stoker_scheduler.families import DRAINED, LEAVING, SERVING, state_of, worker_families
from stoker_scheduler.figures import SchedulerFigures
from stoker_scheduler.health import HealthMonitor
from stoker_scheduler.instruments import LEAD, Instruments
from stoker_scheduler.queue_reader import QueueReader

WORKER = WorkerRecord(inc="w:1-a", worker="w", rows=4, capacity=100, budget=50, mode="continuous", cache="paged")


def submit(url: str, *items: InferenceRequest) -> None:
    with contextlib.closing(Client(url)) as client:
        client.submit_many(items)


def calls(url: str) -> int:
    """How often the backlog was read: only exporters use this command."""
    with redis.Redis.from_url(url) as server:
        found = server.info("commandstats").get("cmdstat_zrandmember", {"calls": 0})
        return int(found["calls"])


def figures(config: Config, token: str) -> SchedulerFigures:
    return SchedulerFigures(config, Instruments(), HealthMonitor(config), lambda: token)


def sample(collector: SchedulerFigures, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry.get_sample_value(name, labels)


def test_however_many_ask_the_queue_is_read_once_a_second(redis_url: str) -> None:
    reader = QueueReader(Config(redis_url=redis_url))
    before = calls(redis_url)
    readings = [reader.read() for _ in range(200)]
    read = (calls(redis_url) - before) / 5  # a command for each class
    assert len({id(reading) for reading in readings}) == read
    # 200 answers out of a few readings, even where this machine is slow.
    assert read < 20
    reader.close()


def test_the_next_second_reads_anew(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = QueueReader(Config(redis_url=redis_url))
    monkeypatch.setattr(queue_reader, "FRESH_S", 3600)
    first = reader.read()
    submit(redis_url, InferenceRequest(prompt_tokens=[1]))
    assert reader.read() is first
    monkeypatch.setattr(queue_reader, "FRESH_S", 0)
    reading = reader.read()
    assert reading
    assert reading.overview.lanes["normal"] == 1
    reader.close()


def test_the_tokens_of_a_short_queue_are_exact(redis_url: str) -> None:
    submit(redis_url, *[InferenceRequest(prompt_tokens=[1] * n, max_tokens=7) for n in range(1, 101)])
    reading = QueueReader(Config(redis_url=redis_url)).read()
    assert reading
    assert reading.backlog.mean_tokens["normal"] * 100 == pytest.approx(sum(range(1, 101)) + 700)
    assert reading.backlog.mean_tokens["high"] == 0


def test_the_tokens_and_the_oldest_of_a_class_are_those_of_its_tenants_too(redis_url: str) -> None:
    submit(redis_url, InferenceRequest(request_id="old", prompt_tokens=[1], max_tokens=1, tenant="acme"))
    submit(redis_url, *[InferenceRequest(prompt_tokens=[1], max_tokens=9, tenant="beta") for _ in range(3)])
    submit(redis_url, InferenceRequest(prompt_tokens=[1], max_tokens=9))
    with redis.Redis.from_url(redis_url) as server:
        old = int(server.getrange("stoker:{default}:payload:old", 0, 15))
    reading = QueueReader(Config(redis_url=redis_url)).read()
    assert reading
    assert reading.overview.lanes["normal"] == 5
    assert reading.backlog.mean_tokens["normal"] == pytest.approx((2 + 4 * 10) / 5)
    assert reading.oldest_us == {"normal": old}


def test_the_tokens_of_a_long_queue_are_estimated_from_all_of_it_not_from_its_head(redis_url: str) -> None:
    small = [InferenceRequest(prompt_tokens=[1], max_tokens=9) for _ in range(1000)]
    large = [InferenceRequest(prompt_tokens=[1] * 91, max_tokens=9) for _ in range(1000)]
    submit(redis_url, *small, *large)
    reading = QueueReader(Config(redis_url=redis_url)).read()
    assert reading
    # Half cost 10 and half 100: seven standard errors of the mean of the sample.
    assert reading.backlog.mean_tokens["normal"] == pytest.approx(55, abs=7 * 45 / math.sqrt(SAMPLE))


def test_the_oldest_is_found_behind_younger_ones_that_a_deadline_lifted(redis_url: str) -> None:
    submit(redis_url, InferenceRequest(request_id="old", prompt_tokens=[1]))
    with redis.Redis.from_url(redis_url) as server:
        old = int(server.getrange("stoker:{default}:payload:old", 0, 15))
    submit(redis_url, InferenceRequest(request_id="young", prompt_tokens=[1], timeout=5))
    reading = QueueReader(Config(redis_url=redis_url)).read()
    assert reading
    assert reading.backlog.heads["normal"] == ["young", "old"]
    assert reading.oldest_us == {"normal": old}


def test_only_the_leader_that_redis_knows_speaks_for_the_queue(redis_url: str) -> None:
    config = Config(redis_url=redis_url)
    store = Store(config)
    token = store.run(scripts.lead("node:nonce", "", "random", config)).token
    leader, standby, deposed = figures(config, token), figures(config, ""), figures(config, "0:node:old")
    waiting = {"priority": "normal", "model": ""}
    assert sample(leader, "stoker_num_requests_waiting", **waiting) == 0
    assert sample(leader, "stoker_leader") == 1
    for other in (standby, deposed):
        assert sample(other, "stoker_num_requests_waiting", **waiting) is None
        assert (sample(other, "stoker_leader"), sample(other, "stoker_redis_up")) == (0, 1)
    store.run(scripts.resign(token))
    assert sample(figures(config, token), "stoker_leader") == 0


def test_without_redis_the_own_figures_go_on() -> None:
    config = Config(redis_url="redis://127.0.0.1:1/0", connect_timeout_s=0.2)
    instruments = Instruments()
    collector = SchedulerFigures(config, instruments, HealthMonitor(config), lambda: "token")
    instruments.dispatched(Batch((), (3, 4), 0.25, 0.75))
    assert (sample(collector, "stoker_redis_up"), sample(collector, "stoker_leader")) == (0, 0)
    assert sample(collector, "stoker_batch_tokens_sum", model="") == 7
    assert sample(collector, "stoker_batch_fill_ratio_sum", model="") == 0.25
    assert sample(collector, "stoker_batch_padding_efficiency_ratio_bucket", model="", le="0.8") == 1


def test_a_scheduler_is_ready_while_redis_answers_its_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(redis_url="redis://127.0.0.1:1/0", heartbeat_ms=60_000)
    instruments = Instruments()
    collector = SchedulerFigures(config, instruments, HealthMonitor(config), lambda: "")
    assert "not answered yet" in collector.ready()
    instruments.timed("expire", 0.001)
    assert "not answered yet" in collector.ready()
    instruments.timed(LEAD, 0.001)
    assert collector.ready() == ""
    monkeypatch.setattr(Instruments, "unheard_s", 3 * 60 + 1.0)
    assert collector.ready() == "Redis has not answered for 181.0 s"


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, SERVING),
        ({"drained": True}, DRAINED),
        ({"accepting": False, "drained": True}, LEAVING),
        ({"state": "dead", "drained": True}, "dead"),
    ],
)
def test_a_workers_state_is_its_life_and_whether_it_takes_work(changes: dict[str, object], state: str) -> None:
    assert state_of(WorkerRecord(**{**as_fields(WORKER), **changes})) == state


def test_of_a_restarted_worker_the_youngest_incarnation_counts() -> None:
    old = WorkerRecord(**{**as_fields(WORKER), "inc": "w:9-z", "state": "dead", "held_tokens": 80})
    new = WorkerRecord(**{**as_fields(WORKER), "inc": "w:10-a", "held_tokens": 30})
    families = {family.name: family for family in worker_families([new, old])}
    state = {s.labels["state"]: s.value for s in families["stoker_worker_state"].samples}
    assert {name for name, value in state.items() if value} == {SERVING}
    assert [s.value for s in families["stoker_worker_credit_tokens"].samples] == [70]


def as_fields(record: WorkerRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
