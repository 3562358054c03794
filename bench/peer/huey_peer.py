"""Huey with one thread a process, which tells of results."""

import os

from drive import MAX_TOKENS, Answers, Prompts, answer
from huey import RedisHuey

huey = RedisHuey("peer", url=os.environ["PEER_URL"], notify_result=True)
model = huey.task()(answer)


def ask(prompts: Prompts) -> Answers:
    """Enqueue each, then wait for each."""
    results = [model(prompt, MAX_TOKENS) for prompt in prompts]
    return [result.get(blocking=True, timeout=60) for result in results]
