"""Make the demo model: a byte-level tokenizer and a small Llama, trained on CPython's own documentation topics.

`python -m stoker_workers.demo.train` makes the shipped files again, with one thread in a few minutes. The topics come
from `pydoc_data`, which every CPython has, so nothing is downloaded. Every tenth topic is held out; because topics
quote one another, a paragraph that shares a run of words with a held-out topic leaves the training text too.
"""

import contextlib
import itertools
import math
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics as python_topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1024
CONTEXT = 2048
STEPS = 2400
PAD, BOS, EOS = "<pad>", "<s>", "</s>"

HELD_OUT_EVERY = 10
SHARED_WORDS = 8
"""A training paragraph with this many words in a row from a held-out topic is dropped."""

PASSES = 6
"""How often the text is laid out anew, each time in another order and with other places to stop."""
CHATS = 2
"""How often each heading is asked about in a pass."""
STOP_SHARE = 0.15
"""The share of paragraphs that end the text, so that a generation stops by itself now and then."""
DROPOUT = 0.15
"""Applied to what each layer adds: the text is short, and the model would learn it by heart."""

OPENING_SHARE = 0.3
"""The share of rows that begin where a text begins, as prompts do; the others begin anywhere."""
WINDOWS = ((0.85, 160, 6), (0.10, 512, 2), (0.03, 1024, 1), (0.02, 2048, 1))
"""Share of steps, tokens in a row, rows: most steps are short and cheap, the few long ones teach far positions."""

PEAK_RATE = 3e-3
WARM_UP_STEPS = 60

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
QUESTIONS = ("What is {}?", "Explain {}.", "Tell me about {}.", "How does {} work?", "Describe {}.")

Progress = Callable[["Step"], None]


@dataclass(frozen=True)
class Step:
    """What one training step reports to the progress callback."""

    step: int
    steps: int
    loss: float
    elapsed_s: float


@dataclass(frozen=True)
class Split:
    """Topics to train on, as lists of paragraphs, and those never shown."""

    train: list[list[str]]
    held_out: list[str]


def split(topics: Mapping[str, str]) -> Split:
    """Hold out every tenth topic by name, and take what it shares with other topics out of these."""
    names = sorted(topics)
    held_out = [topics[name].strip() for name in names[::HELD_OUT_EVERY]]
    known = set().union(*(_runs(text) for text in held_out))
    kept = [
        [paragraph for paragraph in topics[name].strip().split("\n\n") if known.isdisjoint(_runs(paragraph))]
        for position, name in enumerate(names)
        if position % HELD_OUT_EVERY
    ]
    return Split(_distinct(kept), held_out)


def _distinct(topics: list[list[str]]) -> list[list[str]]:
    """Leave out topics that mostly repeat longer ones, for what is read three times drowns the rest."""
    seen: set[str] = set()
    distinct = []
    for paragraphs in sorted(topics, key=lambda paragraphs: -sum(map(len, paragraphs))):
        words = [" ".join(paragraph.split()) for paragraph in paragraphs]
        if sum(len(text) for text in words if text not in seen) > sum(map(len, words)) / 2:
            distinct.append(paragraphs)
            seen.update(words)
    return distinct


def _runs(text: str) -> set[str]:
    # Words only: a line break or a quotation mark elsewhere does not make a copied sentence a new one.
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + SHARED_WORDS]) for i in range(max(1, len(words) - SHARED_WORDS + 1))}


def train(directory: Path, *, steps: int = STEPS, seed: int = 0, progress: Progress | None = None) -> Split:
    """Train tokenizer and model, and save both to `directory` in Hugging Face format with float16 weights.

    The same seed, steps, Python and torch give the same model on the same kind of processor. Returns the split that was
    used. The caller's random state and thread count are as before afterwards.
    """
    text = split(python_topics)
    with _quiet_torch(seed):
        tokenizer = _train_tokenizer(text)
        ids = _layout(tokenizer, text.train, random.Random(seed))  # noqa: S311  # repeatable is the point
        model = LlamaForCausalLM(_config(tokenizer))
        _fit(model, ids, steps, progress or (lambda step: None))
    _save(model, tokenizer, directory)
    return text


@contextlib.contextmanager
def _quiet_torch(seed: int) -> Iterator[None]:
    """One thread, for the sums come out in one order and a busy machine stays usable; and a random state of our own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _train_tokenizer(text: Split) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte: any text can be written and read back
        show_progress=False,
    )
    bpe.train_from_iterator(("\n\n".join(paragraphs) for paragraphs in text.train), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _layout(tokenizer: PreTrainedTokenizerFast, topics: list[list[str]], chance: random.Random) -> torch.Tensor:
    """Lay the topics out in one long row of token ids, some passes over, each a little different."""
    row: list[int] = []
    for _ in range(PASSES):
        documents = [_with_stops(paragraphs, chance) for paragraphs in topics]
        documents += [chat for paragraphs in topics * CHATS for chat in _chats(paragraphs, chance)]
        chance.shuffle(documents)
        row += tokenizer("".join(f"{BOS}{document}{EOS}" for document in documents), verbose=False)["input_ids"]
    return torch.tensor(row)


def _with_stops(paragraphs: list[str], chance: random.Random) -> str:
    parts = [paragraphs[0]]
    for before, paragraph in itertools.pairwise(paragraphs):
        stops = chance.random() < STOP_SHARE and _heading(before) is None
        parts += [EOS + BOS if stops else "\n\n", paragraph]
    return "".join(parts)


def _chats(paragraphs: list[str], chance: random.Random) -> Iterator[str]:
    """Ask for each heading, and answer with the one or two paragraphs that follow it."""
    for position, paragraph in enumerate(paragraphs[:-1]):
        if heading := _heading(paragraph):
            question = chance.choice(QUESTIONS).format(heading)
            answer = "\n\n".join(paragraphs[position + 1 : position + 2 + chance.randrange(2)])
            yield f"User:\n{question}\n\nAssistant:\n{answer}"


def _heading(paragraph: str) -> str | None:
    """Return the words of a paragraph that is an underlined heading."""
    words, _, rule = paragraph.partition("\n")
    return words if rule and not rule.strip("*=-~^") else None


def _fit(model: LlamaForCausalLM, ids: torch.Tensor, steps: int, progress: Progress) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    began = time.monotonic()
    opening = torch.nonzero(ids.eq(torch.tensor(model.config.bos_token_id))).flatten() + 1
    model.train()
    with _dropout(model):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, steps)
            rows = _windows(ids, opening)
            loss = model(input_ids=rows, labels=rows).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress(Step(step + 1, steps, loss.item(), time.monotonic() - began))
    model.train(mode=False)


@contextlib.contextmanager
def _dropout(model: LlamaForCausalLM) -> Iterator[None]:
    """Drop some of what attention, feed-forward and embedding give on; a Llama has no such setting of its own."""

    def drop(module: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(output, DROPOUT, module.training)

    parts = (module for name, module in model.named_modules() if name.endswith(("o_proj", "mlp", "embed_tokens")))
    handles = [part.register_forward_hook(drop) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rate(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return PEAK_RATE * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _windows(ids: torch.Tensor, opening: torch.Tensor) -> torch.Tensor:
    """Draw one step's rows, some of them from the opening of a text."""
    shares = torch.tensor([share for share, _, _ in WINDOWS])
    _, length, rows = WINDOWS[int(torch.multinomial(shares, 1))]
    starts = torch.randint(0, len(ids) - length, (rows,))
    picked = opening[torch.randint(0, len(opening), (rows,))].clamp(max=len(ids) - length)
    starts = torch.where(torch.rand(rows) < OPENING_SHARE, picked, starts)
    return torch.stack([ids[start : start + length] for start in starts])


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    model.half().save_pretrained(directory)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    tokenizer.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only


def main() -> None:
    """Train with the shipped settings and put model and held-out text where the package keeps them."""

    def report(step: Step) -> None:
        if step.step % 100 == 0 or step.step == step.steps:
            sys.stderr.write(f"step {step.step} of {step.steps}  loss {step.loss:.3f}  {step.elapsed_s:.0f} s\n")

    here = Path(__file__).parent
    text = train(here / "model", progress=report)
    (here / "held_out.txt").write_text("\n\n".join(text.held_out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
