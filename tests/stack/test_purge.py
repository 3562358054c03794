"""A stack that served, failed, streamed and lost a worker leaves in Redis only what the protocol says is for good."""

from __future__ import annotations

import os
import signal

import pytest

from helpers import wait_until
from protocol.test_protocol_document import KEY_ROWS
from stack_processes import Stack
from stoker import Client, Config, InferenceRequest

FOR_GOOD = {row.key for row in KEY_ROWS if row.life.startswith("for good")}
LAPSING = ("bell", "void:", "obituary:")
"""What goes by itself: within an hour, whatever the settings."""
COUNTED = ("kept",)
"""What a scheduler takes away within half a minute after results lapsed: how long they were."""
SHORT = {"result_ttl_s": 1, "reply_ttl_s": 1, "tokens_ttl_s": 1, "unschedulable_s": 0.2}


@pytest.mark.slow
@pytest.mark.measured
def test_after_a_purge_redis_holds_exactly_what_is_for_good(stack: Stack) -> None:
    stack.environment |= {f"STOKER_{name.upper()}": str(value) for name, value in SHORT.items()}
    config = Config(**(stack.config.model_dump(include=stack.config.model_fields_set) | SHORT))
    with Client(config=config) as client:
        # Too large for the worker, which is not there yet to say so.
        client.submit_many([InferenceRequest(prompt_tokens=[1] * 5000, max_tokens=4)] * 3)
        stack.scheduler()
        worker = stack.worker("worker", "--max-num-seqs", "4", "--kv-cache-tokens", "1024")
        jobs = client.submit_many(
            [InferenceRequest(prompt_tokens=[i + 1], max_tokens=60, tenant="t") for i in range(12)]
        )
        assert list(client.submit(prompt="hi", max_tokens=4, stream=True).stream())
        os.kill(stack.child_of(worker), signal.SIGKILL)
        client.submit(prompt="no", max_tokens=4).cancel()
        assert all(job.response(timeout=60).error is None for job in jobs)
        letters = wait_until(lambda: len(client.dead_letters()) == 3 and client.dead_letters(), 20, what="dead letters")
        assert client.purge_dead(letter.id for letter in letters) == 3
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    prefix = stack.keys.prefix
    names = wait_until(lambda: only_lasting(stack), 20, what="results, channels and streams lapse")
    lasting = {name.removeprefix(prefix) for name in names if stack.redis.ttl(name) == -1}
    lasting = {name for name in lasting if not name.startswith(COUNTED)}
    # `skew` is there once the clock was set back, `tenants` once an operator gave one a limit, the others with shards.
    assert lasting | {"skew", "tenants", "shards", "tickets"} == FOR_GOOD
    left = {name.removeprefix(prefix) for name in stack.redis.scan_iter("*")} - FOR_GOOD
    assert {name for name in left if not name.startswith(COUNTED)} == {
        name.removeprefix(prefix) for name in names if name.removeprefix(prefix).startswith(LAPSING)
    }


def only_lasting(stack: Stack) -> list[str]:
    """All keys, once none is left whose life its settings bound."""
    names = list(stack.redis.scan_iter("*"))
    bounded = [name for name in names if stack.redis.ttl(name) >= 0]
    rest = [name for name in bounded if not name.removeprefix(stack.keys.prefix).startswith(LAPSING)]
    return [] if rest else names
