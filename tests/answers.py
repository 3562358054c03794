"""What tests of generating engines share: the demo model's folder as reference, random requests, and their answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker_workers.engine import Admitted, Engine, Event, Finished, Tokens, Work

VOCABULARY = 1024
CONTEXT = 2048


@dataclass
class Answer:
    """What became of a request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    end: str = ""


def prompts(count: int, seed: int = 1, longest: int = 60, vocabulary: int = VOCABULARY) -> list[list[int]]:
    numbers = random.Random(seed)
    return [[numbers.randrange(3, vocabulary) for _ in range(numbers.randint(1, longest))] for _ in range(count)]


def work(name: str, prompt: Sequence[int], max_tokens: int = 20, **options: Any) -> Work:
    return Work(id=name, batch="b", prompt=prompt, max_tokens=max_tokens, **options)


def collect(answers: dict[str, Answer], events: Iterable[Event]) -> None:
    for event in events:
        answer = answers.setdefault(event.id, Answer())
        assert not answer.end, "an event after the end"
        if isinstance(event, Tokens):
            answer.token_ids += event.token_ids
            answer.text += event.text
        else:
            answer.end = event.finish_reason if isinstance(event, Finished) else f"{event.kind}: {event.reason}"


def finish(engine: Engine, answers: dict[str, Answer] | None = None) -> dict[str, Answer]:
    answers = {} if answers is None else answers
    while engine.resident():
        collect(answers, engine.step())
    return answers


def run(engine: Engine, *works: Work) -> dict[str, Answer]:
    for each in works:
        assert isinstance(engine.admit(each), Admitted)
    return finish(engine)


def alone(model: Any, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Return what `generate` answers to one prompt."""
    import torch

    tokens = torch.tensor([list(prompt)])
    output = model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=max_tokens, do_sample=False
    )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer
