"""A random Llama with a real tokenizer, and what tests of the torch engine do with it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stoker_workers.engine import Admitted, Event, Finished, Tokens, Work
from stoker_workers.engines.torch import TorchEngine

VOCABULARY = 512
CONTEXT = 256
EOS = 2
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    # Large weights, so that answers are varied instead of one token for ever.
    "initializer_range": 0.3,
}


@dataclass
class Answer:
    """What became of a request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    end: str = ""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train byte-level BPE on text that is in every Python."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics.topics["strings"], topics.topics["assignment"]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_llama(path: Path) -> Path:
    """Write a random Llama with a tokenizer to a folder."""
    # As the engine does for small models: what transformers computes here must not wait for neighbours either.
    torch.set_num_threads(1)
    torch.manual_seed(11)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def load(folder: Path, **options: Any) -> TorchEngine:
    engine = TorchEngine(folder, **options)
    engine.load()
    return engine


def prompts(count: int, seed: int = 1, longest: int = 60) -> list[list[int]]:
    numbers = random.Random(seed)
    return [[numbers.randrange(3, VOCABULARY) for _ in range(numbers.randint(1, longest))] for _ in range(count)]


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


def finish(engine: TorchEngine, answers: dict[str, Answer] | None = None) -> dict[str, Answer]:
    answers = {} if answers is None else answers
    while engine.resident():
        collect(answers, engine.step())
    return answers


def run(engine: TorchEngine, *works: Work) -> dict[str, Answer]:
    for each in works:
        assert isinstance(engine.admit(each), Admitted)
    return finish(engine)


def alone(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    """Return what `generate` answers to one prompt."""
    tokens = torch.tensor([prompt])
    output = model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=max_tokens, do_sample=False
    )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer
