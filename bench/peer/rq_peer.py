"""RQ with its SimpleWorker, which forks for no job."""

import os

from drive import MAX_TOKENS, Answers, Prompts, answer
from redis import Redis
from rq import Queue

QUEUE = Queue(connection=Redis.from_url(os.environ["PEER_URL"]))


def ask(prompts: Prompts) -> Answers:
    """Enqueue all in one call, then wait for each."""
    data = [Queue.prepare_data(answer, (prompt, MAX_TOKENS), result_ttl=300) for prompt in prompts]
    return [job.latest_result(timeout=60).return_value for job in QUEUE.enqueue_many(data)]
