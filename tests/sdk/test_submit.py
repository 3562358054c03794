"""Submitting: the same request twice, another one under its id, a full queue, and the model's limits."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import fakeredis
import pytest
import redis

from helpers import wait_until
from sdk.fleet import Fleet
from stoker import _flows
from stoker.client import Client, Job
from stoker.config import Config
from stoker.errors import (
    ConfigError,
    DeadlineInfeasible,
    IdempotencyConflict,
    InvalidRequest,
    NoWorkers,
    QueueFull,
    RedisUnavailable,
    RequestDisplaced,
    StokerError,
)
from stoker.forecast import Forecast
from stoker.request import InferenceRequest, RequestPriority
from stoker.store import scripts
from stoker.store.connection import Posted, Store
from stoker_ops.embedded import ServerBinary, start


def test_a_request_waits_in_the_lane_of_its_class(fake_client: Client) -> None:
    job = fake_client.submit(prompt="hi", priority=RequestPriority.HIGH, timeout=30)
    assert job.status() == "queued"
    assert fake_client.stats()["queue"]["waiting"]["high"] == 1
    assert job.id in repr(job)
    assert "default" in repr(fake_client)


def test_the_same_id_with_the_same_content_is_the_same_request(fake_client: Client) -> None:
    fake_client.submit(prompt="hi", request_id="a", priority="high")
    fake_client.submit(prompt="hi", request_id="a", tenant="other", timeout=3, affinity_key="s")
    assert fake_client.stats()["counts"]["submitted"] == 1


def test_the_same_id_with_other_content_is_a_conflict(fake_client: Client) -> None:
    fake_client.submit(prompt="hi", request_id="a")
    with pytest.raises(IdempotencyConflict, match="request id 'a' is taken"):
        fake_client.submit(prompt="ho", request_id="a")


def test_many_are_submitted_in_order_and_one_error_is_nobody_elses(fake_client: Client) -> None:
    requests = [InferenceRequest(prompt="x", request_id=f"r{i}") for i in range(1200)]
    requests[700] = InferenceRequest(prompt="other", request_id="r3")
    jobs = fake_client.submit_many([*requests, ""])
    assert [job.id for job in jobs if isinstance(job, Job)] == [f"r{i}" for i in range(1200) if i != 700]
    assert isinstance(jobs[700], IdempotencyConflict)
    assert isinstance(jobs[1200], InvalidRequest)


def test_no_requests_are_no_call(fake_client: Client) -> None:
    assert fake_client.submit_many([]) == []


def test_a_model_without_limits_refuses_nothing(fake_client: Client) -> None:
    fake_client.set_model("m", {"vocabulary": 0, "context": 0})
    assert fake_client.submit(prompt_tokens=[4_000_000_000], max_tokens=1 << 20).status() == "queued"


def test_an_estimate_never_refuses(fake_client: Client) -> None:
    fake_client.set_model("m", {"vocabulary": 10, "context": 64})
    assert fake_client.submit(prompt="word " * 1000).status() == "queued"


def test_a_refusal_never_rests_on_an_old_card(fake_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_client.set_model("m", {"vocabulary": 10, "context": 0})
    with pytest.raises(InvalidRequest):
        fake_client.submit(prompt_tokens=[10])
    with Client(config=fake_client.config) as operator:
        operator.set_model("m", {"vocabulary": 20, "context": 0})
    monkeypatch.setattr("stoker._flows.CARD_AGE_S", 0.0)
    assert fake_client.submit(prompt_tokens=[10]).status() == "queued"


def full_config(redis_url: str, **settings: float) -> Config:
    return Config(redis_url=redis_url, heartbeat_ms=100, max_waiting=2, **settings)


def test_a_full_queue_says_when_to_try_again(redis_url: str) -> None:
    with Client(config=full_config(redis_url)) as client:
        client.submit_many(["a", "b"])
        fleet = Fleet(client.config)
        fleet.open.clear()
        with fleet:
            wait_until(client.workers, what="a worker is there")
            with pytest.raises(QueueFull) as caught:
                client.submit(prompt="c")
    error = caught.value
    assert "queue 'default' is full; try again in 1.0 s" in str(error)
    assert (error.retry_after, error.field, error.limit, error.value) == (1.0, "max_waiting", 2, 3)
    assert not isinstance(error, NoWorkers)


def test_a_full_queue_without_workers_says_so(redis_url: str) -> None:
    with Client(config=full_config(redis_url)) as client:
        client.submit_many(["a", "b"])
        with pytest.raises(NoWorkers, match="no worker is alive") as caught:
            client.submit(prompt="c")
        assert caught.value.field == "max_waiting"


def test_a_tenant_at_its_limit_is_told_so_and_others_get_in(redis_url: str) -> None:
    with Client(config=Config(redis_url=redis_url, tenant_max_waiting=1)) as client:
        client.submit(prompt="a", tenant="busy")
        with pytest.raises(QueueFull, match="the request's tenant is at a limit") as caught:
            client.submit(prompt="b", tenant="busy")
        assert (caught.value.field, caught.value.of_tenant) == ("tenant_max_waiting", True)
        assert client.submit(prompt="b", tenant="calm").status() == "queued"


def test_a_full_queue_is_waited_out_for_so_long(redis_url: str) -> None:
    with Client(config=full_config(redis_url)) as client:
        client.submit_many(["a", "b"])
        started = time.monotonic()
        with pytest.raises(QueueFull):
            client.submit(prompt="c", block=True, block_timeout=0.2)
        assert 0.2 <= time.monotonic() - started < 2


def test_with_block_a_request_gets_in_when_there_is_room(redis_url: str) -> None:
    config = full_config(redis_url)
    with Client(config=config) as client:
        client.submit_many(["a", "b"])
        with Fleet(config):
            assert client.submit(prompt="c", block=True, block_timeout=20).result(timeout=5).text == "C "


def test_bytes_that_wait_are_bounded_too(redis_url: str) -> None:
    with Client(config=Config(redis_url=redis_url, max_waiting_bytes=1000)) as client:
        client.submit(prompt="x" * 900)
        with pytest.raises(QueueFull):
            client.submit(prompt="x" * 900)


def test_closing_ends_who_waits_for_room(redis_url: str) -> None:
    client = Client(config=full_config(redis_url))
    client.submit_many(["a", "b"])
    errors: list[Exception] = []

    def submit() -> None:
        try:
            client.submit(prompt="c", block=True)
        except StokerError as error:
            errors.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    wait_until(lambda: client.stats()["queue"]["waiting"]["normal"] == 2)
    client.close()
    thread.join(5)
    assert "closed" in str(errors[0])


def test_a_server_that_is_down_is_an_error_in_bounded_time(fake: fakeredis.FakeServer, fake_client: Client) -> None:
    fake.connected = False
    started = time.monotonic()
    with pytest.raises(RedisUnavailable, match=r"connect: Redis at redis://fake does not answer since 0\.\d s"):
        fake_client.submit(prompt="hi")
    assert 0.2 <= time.monotonic() - started < 2


def test_a_server_that_comes_back_gets_the_request(fake: fakeredis.FakeServer) -> None:
    fake.connected = False
    with Client(config=Config(redis_url="redis://fake", retry_timeout_s=20)) as client:
        timer = threading.Timer(0.1, lambda: setattr(fake, "connected", True))
        timer.start()
        assert client.submit(prompt="hi").status() == "queued"
        timer.join()


def test_what_was_accepted_before_the_server_went_down_keeps_its_job(
    fake: fakeredis.FakeServer, fake_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker._calls.GROUP_BYTES", 1)  # one call a request
    store = fake_client._link.store
    post, calls = store.post, []

    def post_once(call: object) -> object:
        calls.append(call)
        fake.connected = len(calls) < 2
        return post(call)

    monkeypatch.setattr(store, "post", post_once)
    first, *others = fake_client.submit_many(["a", "b", "c"])
    assert isinstance(first, Job)
    assert [type(other).__mro__[1] for other in others] == [RedisUnavailable] * 2
    assert len(calls) == 2


def test_a_group_is_encoded_while_redis_takes_the_one_before(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(config=config.model_copy(update={"group": 1})) as client:
        steps, store, prepare = [], client._link.store, _flows.prepare

        class Noted(Posted):
            def reply(self, *, patiently: bool) -> object:
                steps.append("reply")
                return super().reply(patiently=patiently)

        monkeypatch.setattr(store, "post", lambda call: steps.append("send") or Noted(store, call))
        monkeypatch.setattr(_flows, "prepare", lambda *a, **k: steps.append("encode") or prepare(*a, **k))
        assert [job.status() for job in client.submit_many(["a", "b"])] == ["queued"] * 2
    assert steps == ["encode", "send", "encode", "reply", "send", "reply"]


@pytest.mark.parametrize("trouble", ["no script", "no connection"])
def test_a_call_whose_reply_did_not_come_is_made_again(client: Client, redis_url: str, trouble: str) -> None:
    client.submit(prompt="before")
    items = client._link.drive(_flows.prepare(client._link.state, ["hi"]))
    if trouble == "no script":
        with redis.Redis.from_url(redis_url) as server:
            server.script_flush()
    posted = client._link.store.post(scripts.submit("r", 1 << 20, items))
    if trouble == "no connection":
        posted._connection._sock.close()
    _, [answer] = posted.reply(patiently=True)
    assert answer.word in ("ACCEPTED", "SAME")
    assert client.job(items[0].id).status() == "queued"


def test_nobody_gets_the_reply_of_a_call_that_was_given_up(client: Client) -> None:
    client.submit(prompt="before")
    [item] = client._link.drive(_flows.prepare(client._link.state, ["hi"]))
    client._link.store.post(scripts.submit("r", 1 << 20, [item])).drop()
    assert [job.status() for job in client.submit_many(["a", "b"])] == ["queued"] * 2


def test_without_any_redis_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, short_tmp: object) -> None:
    monkeypatch.delenv("STOKER_REDIS_URL", raising=False)
    monkeypatch.setenv("STOKER_STATE", str(short_tmp))
    with pytest.raises(ConfigError, match="stoker up"):
        Client()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="redis_url"):
        Client(url)


def test_url_and_queue_go_before_the_config() -> None:
    with Client("redis://here", queue="q", config=Config(redis_url="redis://there", max_waiting=7)) as client:
        assert (client.config.redis_url, client.config.queue, client.config.max_waiting) == ("redis://here", "q", 7)


def test_a_closed_client_says_so(redis_url: str) -> None:
    client = Client(redis_url)
    client.close()
    client.close()
    with pytest.raises(StokerError, match="this client is closed"):
        client.submit(prompt="hi")


def test_a_server_that_is_out_of_memory_refuses_for_now(short_tmp: Path, server_binary: ServerBinary) -> None:
    with (
        start(short_tmp / "redis", server=server_binary) as server,
        Client(server.url) as client,
        redis.Redis.from_url(server.url) as admin,
    ):
        client.submit(prompt="hi")
        admin.config_set("maxmemory", 1)
        with pytest.raises(RedisUnavailable, match=r"submit: Redis at .* refuses for now .*maxmemory"):
            client.submit(prompt="ho")
        admin.config_set("maxmemory", 0)
        assert client.submit(prompt="ho").status() == "queued"


def test_half_of_the_servers_memory_is_the_most_that_may_wait(short_tmp: Path, server_binary: ServerBinary) -> None:
    limit = ("--maxmemory", "40mb")
    with start(short_tmp / "redis", server=server_binary, extra_args=limit) as server, Client(server.url) as client:
        # One by one: what Redis holds of a call while it runs counts too, and Redis 8 holds more of it.
        jobs = [client.submit_many(["x" * 1_000_000])[0] for _ in range(25)]
        assert [isinstance(job, Job) for job in jobs] == [True] * 20 + [False] * 5
        assert isinstance(jobs[-1], QueueFull)


def test_a_user_without_the_right_to_info_can_submit(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.acl_setuser("narrow", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-info"])
        try:
            with Client(redis_url.replace("unix://", "unix://narrow:pw@")) as client:
                assert client.submit(prompt="hi").status() == "queued"
            with (
                Client(redis_url.replace("unix://", "unix://narrow:guess@")) as client,
                pytest.raises(RedisUnavailable, match="refuses the credentials") as caught,
            ):
                client.submit(prompt="hi")
            assert "guess" not in str(caught.value)
        finally:
            admin.acl_deluser("narrow")


def test_a_displaced_request_says_so_to_whoever_waits_for_it(redis_url: str) -> None:
    with Client(config=full_config(redis_url)) as client:
        job = client.submit(prompt="a", priority="batch", sheddable=True)
        client.submit(prompt="b")
        assert client.submit(prompt="c", priority="high", displace=True).status() == "queued"
        with pytest.raises(RequestDisplaced, match="submit it again in") as caught:
            job.result(timeout=5)
        assert (caught.value.reason, caught.value.retry_after) == ("displaced", 1.0)
        assert client.dead_letters() == []


def test_a_deadline_that_cannot_be_met_is_refused_unless_it_may_be_tried(redis_url: str) -> None:
    config = Config(redis_url=redis_url, heartbeat_ms=100)
    with Client(config=config) as client, contextlib.closing(Store(config)) as store:
        forecast = Forecast(tokens_per_s=100, base_us=1e6, prompt_us=0, answer_us=0)
        store.run(scripts.lead("s:1", "", "g", config, scripts.told({}, {}, forecast.text(), {}, {})))
        with pytest.raises(DeadlineInfeasible, match=r"would take about 1\.0 s, got 0\.5") as caught:
            client.submit(prompt="a", timeout=0.5)
        assert (caught.value.timeout, caught.value.estimate) == (0.5, 1.0)
        assert client.submit(prompt="a", timeout=0.5, check_deadline=False).status() == "queued"
        [refused] = client.map(["b"], timeout=0.5)
        assert (refused.status, type(refused.error)) == ("refused", DeadlineInfeasible)
