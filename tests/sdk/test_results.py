"""Waiting for a result: how it ends, how it gets here, and what is lost on the way."""

from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from helpers import wait_until
from sdk.fleet import WORKER, Fleet, cut_readers
from stoker.client import Client, Job
from stoker.config import Config
from stoker.errors import (
    InvalidRequest,
    RedisUnavailable,
    RequestCancelled,
    RequestExpired,
    RequestFailed,
    RequestLost,
    ResultTimeout,
    StokerError,
)
from stoker_ops.embedded import ServerBinary, start

LOST_WITHIN_S = 2.5
"""A second without news, and the time to look."""


def do(what: str) -> dict[str, str]:
    return {"do": what}


# --- how a request ends -----------------------------------------------------------------------------------------------


def test_a_result_has_the_answer_and_how_it_came_about(client: Client, fleet: Fleet) -> None:
    response = client.submit(prompt_tokens=[1, 2, 3], max_tokens=2, metadata={"mine": 7}).result(timeout=5)
    assert (response.text, response.token_ids, response.finish_reason) == ("2 3 ", [2, 3], "stop")
    assert (response.usage.prompt_tokens, response.usage.total_tokens) == (3, 5)
    assert (response.status, response.attempts, response.worker) == ("succeeded", 1, WORKER)
    assert (response.metadata, response.error) == ({"mine": 7}, None)
    assert 0 <= response.timings.queue_ms <= response.timings.ttft_ms <= response.timings.e2e_ms + 1


def test_a_result_may_be_asked_for_again(client: Client, fleet: Fleet) -> None:
    job = client.submit(prompt="again")
    assert job.result(timeout=5) == job.result() == job.response(timeout=0)


def test_a_request_that_fails_raises_why(client: Client, fleet: Fleet) -> None:
    job = client.submit(prompt="hi", metadata=do("fail"))
    with pytest.raises(RequestFailed, match=r"failed after 1 attempt\(s\): it broke") as caught:
        job.result(timeout=5)
    assert (caught.value.request_id, caught.value.reason, caught.value.attempts) == (job.id, "it broke", 1)
    assert job.response().status == job.status() == "failed"


def test_what_only_the_worker_sees_raises_as_if_it_had_been_refused(client: Client, fleet: Fleet) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit(prompt="hi", metadata=do("bad")).result(timeout=5)
    assert (caught.value.field, caught.value.limit, caught.value.value) == ("prompt_tokens", "must fit the model", 5)


def test_a_request_that_is_retried_counts_its_attempts(client: Client, fleet: Fleet) -> None:
    assert client.submit(prompt="hi", metadata=do("retry")).result(timeout=5).attempts == 2


def test_a_request_whose_time_runs_out_raises_expired(client: Client, fleet: Fleet) -> None:
    fleet.open.clear()
    job, submitted = client.submit(prompt="hi", timeout=0.05), time.monotonic()
    wait_until(lambda: time.monotonic() - submitted > 0.05)
    fleet.open.set()
    with pytest.raises(RequestExpired):
        job.result(timeout=5)


def test_a_waiting_request_is_cancelled_at_once(client: Client, fleet: Fleet) -> None:
    fleet.open.clear()
    job = client.submit(prompt="hi")
    assert job.cancel() is True
    assert job.cancel() is True
    with pytest.raises(RequestCancelled):
        job.result(timeout=5)


def test_a_running_request_is_cancelled_and_its_worker_learns_of_it(client: Client, fleet: Fleet) -> None:
    job = client.submit(prompt="hi", metadata=do("hold"))
    wait_until(lambda: job.status() == "running")
    assert job.cancel() is True
    assert job.response(timeout=5).status == "cancelled"
    wait_until(lambda: not fleet.held)


def test_what_ended_or_never_was_cannot_be_cancelled(client: Client, fleet: Fleet) -> None:
    job = client.submit(prompt="hi")
    job.result(timeout=5)
    assert job.cancel() is False
    assert client.job("nobody").cancel() is False


def test_a_result_that_cannot_be_read_is_that_requests_error(client: Client, fleet: Fleet) -> None:
    jobs = [client.submit(prompt="hi", metadata=do("unreadable")), client.submit(prompt="hi")]
    with pytest.raises(RequestFailed, match="its result cannot be read"):
        jobs[0].result(timeout=5)
    assert jobs[1].result(timeout=5).text == "HI "


def test_waiting_ends_with_its_timeout_and_the_request_goes_on(client: Client) -> None:
    job = client.submit(prompt="hi")
    with pytest.raises(ResultTimeout, match=r"no result after 0\.05 s; it goes on") as caught:
        job.result(timeout=0.05)
    assert caught.value.request_id == job.id
    assert job.status() == "queued"


# --- by id ------------------------------------------------------------------------------------------------------------


def test_a_result_can_be_read_by_its_id_from_another_client(client: Client, fleet: Fleet) -> None:
    job = client.submit(prompt="hi", metadata=do("hold"))
    with Client(config=client.config) as other:
        wait_until(lambda: job.status() == "running")
        with pytest.raises(ResultTimeout):
            other.job(job.id).result(timeout=0.05)
        fleet.release()
        assert other.job(job.id).result(timeout=5).text == "HI "
        assert other.job(job.id).status() == "succeeded"


def test_the_same_request_submitted_elsewhere_gets_the_one_result(client: Client, fleet: Fleet) -> None:
    fleet.open.clear()
    mine = client.submit(prompt="hi", request_id="one")
    with Client(config=client.config) as other:
        theirs = other.submit(prompt="hi", request_id="one")
        fleet.open.set()
        assert theirs.result(timeout=5) == mine.result(timeout=5)
        assert other.submit(prompt="hi", request_id="one").result(timeout=0) == mine.result()
        assert other.stats()["counts"]["submitted"] == 1


def test_an_id_that_nobody_knows_is_lost(client: Client) -> None:
    started = time.monotonic()
    with pytest.raises(RequestLost, match="'nobody' is unknown to Redis"):
        client.job("nobody").result(timeout=30)
    assert time.monotonic() - started < 5
    assert client.job("nobody").status() == "unknown"


def test_an_id_that_no_key_may_have_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        client.job("a b")


# --- how it gets here -------------------------------------------------------------------------------------------------


def test_a_result_too_large_for_its_wake_up_is_fetched(client: Client, fleet: Fleet) -> None:
    jobs = [client.submit(prompt="hi", metadata=do("large")) for _ in range(3)]
    assert [len(job.result(timeout=5).text) for job in jobs] == [100_000] * 3


def test_a_lost_wake_up_is_found_within_two_seconds(client: Client, fleet: Fleet, redis_url: str) -> None:
    job = client.submit(prompt="hi")
    wait_until(lambda: job.status() == "succeeded")
    with redis.Redis.from_url(redis_url) as server:
        assert server.delete(client._link.state.keys.reply(client._link.state.book.channel)) == 1
    started = time.monotonic()
    assert job.result(timeout=10).text == "HI "
    assert time.monotonic() - started < LOST_WITHIN_S


def test_a_wake_up_lost_with_its_connection_is_found(client: Client, fleet: Fleet, redis_url: str) -> None:
    job = client.submit(prompt="hi", metadata=do("hold"))
    with pytest.raises(ResultTimeout):
        job.result(timeout=0.1)  # the reader runs now
    cut_readers(redis_url)
    fleet.release()
    started = time.monotonic()
    assert job.result(timeout=10).text == "HI "
    assert time.monotonic() - started < LOST_WITHIN_S


def test_sixteen_threads_share_a_client_and_one_reader(client: Client, fleet: Fleet) -> None:
    def work(number: int) -> list[str]:
        jobs = [client.submit(prompt=f"{number} {i}") for i in range(20)]
        return [job.result(timeout=20).text for job in jobs]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(work, range(16)))
        assert [thread.name for thread in threading.enumerate()].count("stoker-wakeups") == 1
    assert found == [[f"{number} {i} " for i in range(20)] for number in range(16)]


def test_a_forked_child_has_a_channel_of_its_own(client: Client, fleet: Fleet) -> None:
    before = client.submit(prompt="of the parent", metadata=do("hold"))
    with pytest.raises(ResultTimeout):
        before.result(timeout=0.1)
    receiver, sender = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            own = client.submit(prompt="of the child").result(timeout=10).text
            os.write(sender, b"holding;")
            os.write(sender, f"{own};{before.result(timeout=10).text};{client._link.state.book.channel}".encode())
        finally:
            os._exit(0)
    os.close(sender)
    assert os.read(receiver, 100) == b"holding;"
    fleet.release()
    assert before.result(timeout=10).text == "OF THE PARENT "
    own, parents, channel = os.read(receiver, 1000).decode().split(";")
    os.waitpid(pid, 0)
    os.close(receiver)
    assert (own, parents) == ("OF THE CHILD ", "OF THE PARENT ")
    assert channel != client._link.state.book.channel


def test_jobs_that_nobody_keeps_cost_nothing(client: Client, fleet: Fleet) -> None:
    fleet.open.clear()
    jobs = client.submit_many(["hi"] * 600)
    book = client._link.state.book
    assert len(book) == 600
    kept = jobs[7]
    del jobs
    gc.collect()
    assert len(book) == 1
    fleet.open.set()
    assert isinstance(kept, Job)
    assert kept.result(timeout=5).text == "HI "
    assert len(book) == 0


# --- closing ----------------------------------------------------------------------------------------------------------


def test_closing_ends_who_waits_and_leaves_no_thread(config: Config) -> None:
    client = Client(config=config)
    job = client.submit(prompt="hi")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.result)
        wait_until(lambda: "stoker-wakeups" in [thread.name for thread in threading.enumerate()])
        started = time.monotonic()
        client.close()
        with pytest.raises(StokerError, match="closed"):
            waiting.result(timeout=5)
    assert time.monotonic() - started < 0.9  # the blocking read was cut short
    assert "stoker-wakeups" not in [thread.name for thread in threading.enumerate()]


def test_a_client_that_nobody_closed_ends_its_reader_when_it_is_forgotten(config: Config) -> None:
    client = Client(config=config)
    with pytest.raises(ResultTimeout):
        client.submit(prompt="hi").result(timeout=0.05)
    del client
    gc.collect()
    wait_until(lambda: "stoker-wakeups" not in [thread.name for thread in threading.enumerate()])


# --- when Redis loses things ------------------------------------------------------------------------------------------


def test_an_emptied_redis_has_lost_what_was_outstanding(client: Client, redis_url: str) -> None:
    ours, theirs = client.submit(prompt="hi", request_id="a"), client.submit(prompt="hi", request_id="b")
    with Client(config=client.config) as other, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ours.result), pool.submit(other.job(theirs.id).result)]
        wait_until(lambda: "stoker-wakeups" in [thread.name for thread in threading.enumerate()])
        with redis.Redis.from_url(redis_url) as server:
            server.flushall()
        started = time.monotonic()
        for result in waiting:
            with pytest.raises(RequestLost, match="lost by it"):
                result.result(timeout=10)
        assert time.monotonic() - started < LOST_WITHIN_S
    with Fleet(client.config):
        assert client.submit(prompt="hi", request_id="a").result(timeout=5).text == "HI "


def test_a_new_generation_loses_the_old_ones_requests_though_there_is_news(client: Client, redis_url: str) -> None:
    old = client.submit(prompt="hi")
    with redis.Redis.from_url(redis_url) as server:
        server.flushall()
    with Fleet(client.config):
        assert client.submit(prompt="new").result(timeout=5).text == "NEW "
        with pytest.raises(RequestLost):
            old.result(timeout=LOST_WITHIN_S)


def test_what_a_crashed_redis_forgot_is_submitted_again_under_its_id(client: Client, redis_url: str) -> None:
    job = client.submit(prompt="hi", request_id="a")
    with pytest.raises(ResultTimeout):
        job.result(timeout=0.05)
    keys = client._link.state.keys
    with redis.Redis.from_url(redis_url) as server:
        # As if the last write before the crash had not reached the disk.
        server.delete(keys.payload("a"), keys.lane("normal"), keys.counts)
    cut_readers(redis_url)
    wait_until(lambda: job.status() == "queued")
    with Fleet(client.config):
        assert job.result(timeout=5).text == "HI "


def test_results_come_after_a_restart_of_redis(short_tmp: Path, server_binary: ServerBinary) -> None:
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    server = start(short_tmp / "redis", server=server_binary, extra_args=durable)
    with Client(config=Config(redis_url=server.url, heartbeat_ms=100, retry_timeout_s=30)) as client:
        job = client.submit(prompt="hi")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(job.result, timeout=30)
            server.stop()
            with start(short_tmp / "redis", server=server_binary, extra_args=durable), Fleet(client.config):
                assert waiting.result(timeout=30).text == "HI "


def test_waiting_for_a_redis_that_is_away_costs_nothing(
    short_tmp: Path, server_binary: ServerBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(short_tmp / "redis", server=server_binary)
    with Client(config=Config(redis_url=server.url, retry_timeout_s=0.1)) as client:
        job, looks = client.submit(prompt="hi"), []
        server.stop()
        monkeypatch.setattr(client._link, "check", looks.append)
        with pytest.raises(ResultTimeout):
            job.result(timeout=1.5)
        assert len(looks) < 30


def test_waiting_without_a_limit_ends_when_redis_stays_away(short_tmp: Path, server_binary: ServerBinary) -> None:
    server = start(short_tmp / "redis", server=server_binary)
    with Client(config=Config(redis_url=server.url, retry_timeout_s=0.3)) as client:
        own, other = client.submit(prompt="hi"), client.job("other")
        server.stop()
        started = time.monotonic()
        for job in (own, other):
            with pytest.raises(RedisUnavailable, match=r"waiting for a result: .* does not answer since"):
                job.result()
        with pytest.raises(ResultTimeout) as caught:
            own.result(timeout=0.1)
        assert isinstance(caught.value.__cause__, RedisUnavailable)
        assert time.monotonic() - started < 10
