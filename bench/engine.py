"""Tokens a second of our engines, against a bare loop, `generate` and transformers' own continuous batching.

    python bench/engine.py --requests 32 --rows 16 --rounds 5

All answer the same load on one torch thread: random prompts of 16-400 tokens and 8-256 tokens of answer each, greedy,
in float32 on the CPU, at most `--rows` at once. Every contestant runs once in each round, and what counts is the median
over the rounds of its rate over the bare loop's in the same round. The ids must be the same from all of them. The last
line compares the torch engine with the fastest of the three that are not ours.

The bare loop is what one would write without an engine: a left-padded batch on transformers' cache, from which rows
that are done are dropped, and then the next batch.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from figures import Bar, save, verdicts
from transformers import DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from stoker_workers.demo import demo_model_path
from stoker_workers.engine import Admitted, Engine, Tokens, Work
from stoker_workers.engines import make_engine

BAR = 1.0
BUDGET = 2048
PAGE = 16
LONGEST = 400 + 256
RIVALS = ("bare loop", "generate", "transformers' batching")

Answers = dict[str, list[int]]
Contestant = Callable[[list[Work]], Answers]


def make_load(requests: int, vocabulary: int, seed: int = 1) -> list[Work]:
    """Return the requests, in their order of arrival."""
    numbers = random.Random(seed)
    return [
        Work(
            id=str(number),
            batch="bench",
            prompt=[numbers.randrange(3, vocabulary) for _ in range(numbers.randint(16, 400))],
            max_tokens=numbers.randint(8, 256),
            ignore_eos=True,
        )
        for number in range(requests)
    ]


def through(engine: Engine, load: list[Work]) -> Answers:
    """Run the load through one of our engines, admitting whatever fits before each step."""
    waiting, answers = list(reversed(load)), {work.id: [] for work in load}
    while waiting or engine.resident():
        while waiting and isinstance(engine.admit(waiting[-1]), Admitted):
            waiting.pop()
        for event in engine.step():
            if isinstance(event, Tokens):
                answers[event.id] += event.token_ids
    return answers


def padded(works: list[Work]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of a batch whose prompts end together."""
    longest = max(len(work.prompt) for work in works)
    ids = [[0] * (longest - len(work.prompt)) + list(work.prompt) for work in works]
    mask = [[0] * (longest - len(work.prompt)) + [1] * len(work.prompt) for work in works]
    return torch.tensor(ids), torch.tensor(mask)


def batches(load: list[Work], rows: int) -> Iterator[list[Work]]:
    """Cut the load into batches, first come first served."""
    for start in range(0, len(load), rows):
        yield load[start : start + rows]


@torch.inference_mode()
def bare_loop(model: Any, rows: int, load: list[Work]) -> Answers:
    """Run batch after batch, dropping rows as they end."""
    answers: Answers = {work.id: [] for work in load}
    for batch in batches(load, rows):
        alive, cache = list(batch), DynamicCache(config=model.config)
        ids, mask = padded(batch)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        while alive:
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, logits_to_keep=1
            ).logits
            tokens = logits[:, -1].argmax(-1)
            for work, token in zip(alive, tokens.tolist(), strict=True):
                answers[work.id].append(token)
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones(len(alive), 1, dtype=mask.dtype)], dim=1)
            kept = [row for row, work in enumerate(alive) if len(answers[work.id]) < work.max_tokens]
            if len(kept) < len(alive):
                alive = [alive[row] for row in kept]
                ids, mask, positions = ids[kept], mask[kept], positions[kept]
                cache.batch_select_indices(torch.tensor(kept, dtype=torch.long))
    return answers


@torch.inference_mode()
def generate(model: Any, rows: int, load: list[Work]) -> Answers:
    """Run batch after batch, each until its longest answer is whole."""
    answers: Answers = {}
    for batch in batches(load, rows):
        ids, mask = padded(batch)
        length = max(work.max_tokens for work in batch)
        whole = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=length, pad_token_id=0),
        )
        for work, row in zip(batch, whole[:, ids.shape[1] :].tolist(), strict=True):
            answers[work.id] = row[: work.max_tokens]
    return answers


def batching(model: Any, rows: int) -> tuple[Contestant, Callable[[], None]]:
    """Return transformers' own manager as a contestant, and what ends its thread."""
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=rows * LONGEST // PAGE,
        max_batch_tokens=BUDGET,
        max_requests_per_batch=rows,
        auto_switch_to_flash=False,
    )
    settings = GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1)
    manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=config)
    with torch.inference_mode():
        manager.start()

    def run(load: list[Work]) -> Answers:
        for work in load:
            manager.add_request(list(work.prompt), request_id=work.id, max_new_tokens=work.max_tokens)
        answers: Answers = {}
        while len(answers) < len(load):
            result = manager.get_result(timeout=60)
            assert result is not None, "transformers' manager gave no result in 60 s"
            assert result.error is None, result.error
            answers[result.request_id] = result.generated_tokens
        return answers

    return run, manager.stop


def engine(kind: str, rows: int) -> Engine:
    """Return one of ours, with the demo model and room for all rows."""
    made = make_engine(
        "demo",
        engine=kind,
        device="cpu",
        dtype="float32",
        max_num_seqs=rows,
        max_num_batched_tokens=BUDGET,
        kv_cache_tokens=rows * LONGEST,
    )
    made.load()
    made.warm_up()
    return made


def load_model() -> Any:
    """Return the demo model as transformers loads it."""
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(demo_model_path(), dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig()  # whose own would end answers early
    return model


def measure(contestants: dict[str, Contestant], load: list[Work], rounds: int) -> dict[str, list[float]]:
    """Return tokens a second of each, round by round; all must give the same ids."""
    expected = contestants["bare loop"](load)
    total = sum(work.max_tokens for work in load)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        # From another one on in each round, so that none always comes first.
        order = list(contestants)[number % len(contestants) :] + list(contestants)[: number % len(contestants)]
        for name in order:
            began = time.perf_counter()
            answers = contestants[name](load)
            rates[name].append(total / (time.perf_counter() - began))
            others = [work_id for work_id in expected if answers[work_id] != expected[work_id]]
            assert not others, f"{name}: {len(others)} answers differ from the bare loop's"
    return rates


def main() -> None:
    """Measure, print, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, rows = load_model(), options.rows
    # A model of its own: nobody else may run the one that the manager's thread runs.
    batch, stop = batching(load_model(), rows)
    ours = {kind: engine(kind, rows) for kind in ("torch", "transformers-cb")}
    contestants: dict[str, Contestant] = {
        "bare loop": lambda load: bare_loop(model, rows, load),
        "generate": lambda load: generate(model, rows, load),
        "transformers' batching": batch,
        **{kind: lambda load, made=made: through(made, load) for kind, made in ours.items()},
    }
    load = make_load(options.requests, int(model.config.vocab_size))
    try:
        rates = measure(contestants, load, options.rounds)
    finally:
        stop()
    report(rates, options)


def report(rates: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Print the table and the verdict, and write both as JSON."""
    ratios = {
        name: statistics.median(rate / bare for rate, bare in zip(rates[name], rates["bare loop"], strict=True))
        for name in rates
    }
    print(f"{'':24}{'tokens/s':>10}{'slowest':>10}{'fastest':>10}{'of bare':>10}")
    for name, measured in rates.items():
        median, low, high = statistics.median(measured), min(measured), max(measured)
        print(f"{name:24}{median:10,.0f}{low:10,.0f}{high:10,.0f}{ratios[name]:10.2f}")
    best = [max(rates[rival][number] for rival in RIVALS) for number in range(options.rounds)]
    ratio = statistics.median(ours / other for ours, other in zip(rates["torch"], best, strict=True))
    rounds = [
        {name: round(measured[number], 1) for name, measured in rates.items()} for number in range(options.rounds)
    ]
    more = {
        "requests": options.requests,
        "rows": options.rows,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "of_bare_loop": {name: round(value, 3) for name, value in ratios.items()},
    }
    bar = Bar("engine", ratio, BAR)
    save("engine", rounds, [bar], "tokens_per_s", more)
    verdicts([bar])


if __name__ == "__main__":
    main()
