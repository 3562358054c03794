"""Celery with its solo pool, prefetching 128."""

import os

from celery import Celery
from drive import MAX_TOKENS, Answers, Prompts, answer

app = Celery("peer", broker=os.environ["PEER_URL"], backend=os.environ["PEER_URL"])
app.conf.update(
    worker_prefetch_multiplier=128,
    result_expires=300,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)
model = app.task(name="model")(answer)


def ask(prompts: Prompts) -> Answers:
    """Send each, then wait for each."""
    results = [model.delay(prompt, MAX_TOKENS) for prompt in prompts]
    return [result.get(timeout=60) for result in results]
