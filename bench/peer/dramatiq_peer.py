"""Dramatiq with 8 threads a process."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from drive import MAX_TOKENS, Answers, Prompts, answer

broker = RedisBroker(url=os.environ["PEER_URL"])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["PEER_URL"])))
dramatiq.set_broker(broker)
model = dramatiq.actor(answer, actor_name="model", store_results=True, max_retries=0)


def ask(prompts: Prompts) -> Answers:
    """Run a group, and take its results."""
    sent = dramatiq.group([model.message(prompt, MAX_TOKENS) for prompt in prompts]).run()
    return list(sent.get_results(block=True, timeout=60_000))
