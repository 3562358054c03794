"""What operators ask of a client: figures, workers, models and dead letters."""

from __future__ import annotations

import pytest

from helpers import wait_until
from sdk.fleet import CARD, WORKER, Fleet
from stoker.client import Client
from stoker.errors import ModelMismatch, RequestFailed, RequestLost


def test_an_empty_redis_has_figures_too(client: Client) -> None:
    stats = client.stats()
    assert stats["queue"]["waiting"] == dict.fromkeys(("critical", "high", "normal", "low", "batch"), 0)
    assert stats["counts"] == dict.fromkeys(("submitted", "succeeded", "failed", "expired", "cancelled"), 0)
    assert (stats["workers"], stats["leader"], stats["model"], stats["generation"]) == ([], None, None, None)
    assert stats["rates"] == {"requests_per_second": 0.0, "tokens_per_second": 0.0}
    assert stats["latency_ms"]["e2e"]["p99"] is None


def test_the_figures_are_those_of_what_was_done(client: Client, fleet: Fleet) -> None:
    for prompt, metadata in (("a", None), ("b", None), ("c", {"do": "fail"})):
        client.submit(prompt=prompt, metadata=metadata, tenant="acme", priority="high").response(timeout=5)
    held = client.submit(prompt="d", metadata={"do": "hold"})
    wait_until(lambda: held.status() == "running")
    fleet.open.clear()
    client.submit(prompt="e" * 100, priority="low")
    stats = client.stats()
    assert stats["queue"] == {
        "name": "default",
        "waiting": {"critical": 0, "high": 0, "normal": 0, "low": 1, "batch": 0},
        "suspect": 0,
        "delayed": 0,
        "running": 1,
        "waiting_bytes": stats["queue"]["waiting_bytes"],
        "dead_letters": 1,
    }
    assert stats["queue"]["waiting_bytes"] > 100
    assert (stats["counts"]["submitted"], stats["counts"]["succeeded"], stats["counts"]["failed"]) == (5, 2, 1)
    assert stats["tenants"]["acme"]["succeeded"] == 2
    for latency in (stats["latency_ms"]["e2e"], stats["latency_ms_by_class"]["high"]["e2e"]):
        assert latency["count"] == 2
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert stats["rates"]["requests_per_second"] > 0
    assert stats["leader"].startswith("1:node:")
    assert stats["model"] == {"identity": "echo-1", **CARD}
    assert [(w["worker"], w["state"], w["held_rows"]) for w in stats["workers"]] == [(WORKER, "live", 1)]


def test_a_worker_can_be_drained_and_sent_work_again(client: Client, fleet: Fleet) -> None:
    wait_until(client.workers)
    assert client.drain(WORKER) is True
    assert [worker.available for worker in client.workers()] == [False]
    assert client.drain(WORKER, drained=False) is True
    assert [worker.available for worker in client.workers()] == [True]
    assert client.drain("nobody") is False


def test_the_model_is_replaced_only_without_workers_of_the_old(client: Client) -> None:
    assert client.queue_card() is None
    with Fleet(client.config):
        wait_until(client.queue_card)
        with pytest.raises(ModelMismatch, match="queue 'default' has workers of another model"):
            client.set_model("other", {"name": "other"})
        with pytest.raises(ModelMismatch):
            client.forget_model()
        client.set_model("echo-1", {**CARD, "context": 5})
        assert client.queue_card().context == 5


def test_a_model_that_is_forgotten_is_decided_by_the_next_worker(client: Client) -> None:
    client.set_model("other", {"name": "other"})
    assert client.queue_card().identity == "other"
    client.forget_model()
    assert client.queue_card() is None


def test_a_dead_letter_says_why_and_can_be_tried_again(client: Client, fleet: Fleet) -> None:
    assert client.dead_letters() == []
    job = client.submit(prompt="hi", metadata={"do": "fail"}, tenant="acme", priority="low")
    job.response(timeout=5)
    [letter] = client.dead_letters()
    assert (letter.id, letter.reason, letter.attempts, letter.failures, letter.losses) == (job.id, "error", 1, 1, 0)
    assert (letter.priority, letter.tenant, letter.history) == ("low", "acme", f"{fleet.inc},error")
    again = client.retry_dead(job.id)
    assert again.id != job.id
    with pytest.raises(RequestFailed):
        again.result(timeout=5)
    assert [letter.id for letter in client.dead_letters()] == [again.id]
    with pytest.raises(RequestLost):
        client.retry_dead(job.id)


def test_dead_letters_are_listed_newest_first_and_purged(client: Client, fleet: Fleet) -> None:
    jobs = [client.submit(prompt=f"{i}", metadata={"do": "fail"}) for i in range(3)]
    for job in jobs:
        job.response(timeout=5)
    assert len(client.dead_letters(limit=2)) == 2
    assert client.purge_dead([job.id for job in jobs[:2]]) == 2
    assert [letter.id for letter in client.dead_letters()] == [jobs[2].id]
    assert client.purge_dead([]) == 0
