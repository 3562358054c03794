"""What forming batches is worth: the scheduler's padded batches against batches in order of arrival.

    python bench/embed_batches.py --model demo
    python bench/embed_batches.py --model /models/minilm --prompts texts.txt --rounds 7

Both ways run the same texts through the same engine, with the same limits of rows and of rows x longest; only what
shares a batch differs. Rounds alternate. The time is that of the engine's steps alone, per token of text; padding is
paid for and not counted. `--estimate` forms batches as the queue does for texts that no client tokenized: by their
bytes and the mean bytes a token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

from stoker import Config
from stoker.store.records import Waiting
from stoker_scheduler.batcher import DynamicBatcher, Room
from stoker_workers.engine import Admitted, Finished, Work
from stoker_workers.engines import make_engine

ARRIVAL_US = 10


@dataclass(frozen=True)
class Text:
    """A text, as it waits and as the engine takes it."""

    waiting: Waiting
    tokens: list[int]


def read_texts(file: Path | None) -> list[str]:
    """Return the prompts: the lines of a file, or paragraphs of Python's own documentation."""
    if file:
        return [line for line in file.read_text().splitlines() if line.strip()]
    paragraphs = [part.strip() for text in topics.topics.values() for part in text.split("\n\n")]
    return [part for part in paragraphs if part]


def make_texts(engine: Any, prompts: list[str], most: int, *, estimate: bool) -> list[Text]:
    """Tokenize; what the model cannot read whole is cut."""
    tokens = [engine.encode(prompt)[:most] for prompt in prompts]
    bytes_per_token = sum(len(prompt.encode()) for prompt in prompts) / sum(map(len, tokens))
    texts = []
    for place, (prompt, ids) in enumerate(zip(prompts, tokens, strict=True)):
        length = min(most, max(1, round(len(prompt.encode()) / bytes_per_token))) if estimate else len(ids)
        waiting = Waiting(str(place), "normal", f"{place}:{length}:0:x", place * ARRIVAL_US, length, 0, True)
        texts.append(Text(waiting, ids))
    return texts


def formed(texts: list[Text], room: Room) -> Iterator[list[Text]]:
    """Give the scheduler's batches, all texts waiting from the start."""
    batcher = DynamicBatcher(Config())
    left = {text.waiting.id: text for text in texts}
    now_us = len(texts) * ARRIVAL_US
    while left:
        window = [text.waiting for text in left.values()][:2048]
        batch = batcher.form(window, room, now_us=now_us)
        assert batch.requests, "an idle worker is never kept waiting"
        yield [left.pop(request.id) for request in batch.requests]


def in_order(texts: list[Text], room: Room) -> Iterator[list[Text]]:
    """Give batches in order of arrival, each as large as the same limits allow."""
    batch: list[Text] = []
    longest = 0
    for text in texts:
        longest = max(longest, text.waiting.cost)
        if batch and (len(batch) == room.share or (len(batch) + 1) * longest > room.budget):
            yield batch
            batch, longest = [], text.waiting.cost
        batch.append(text)
    if batch:
        yield batch


def run(engine: Any, batches: list[list[Text]]) -> float:
    """Return the seconds that the engine's steps took; each text must get its vector."""
    seconds = 0.0
    for number, batch in enumerate(batches):
        for text in batch:
            work = Work(id=text.waiting.id, batch=str(number), prompt=text.tokens)
            assert isinstance(engine.admit(work), Admitted)
        answered = 0
        while engine.resident():
            began = time.perf_counter()
            events = engine.step()
            seconds += time.perf_counter() - began
            answered += sum(isinstance(event, Finished) for event in events)
        assert answered == len(batch)
    return seconds


def efficiency(batches: list[list[Text]]) -> float:
    """Return the share of padded tokens that are text."""
    lengths = [[len(text.tokens) for text in batch] for batch in batches]
    return sum(map(sum, lengths)) / sum(len(batch) * max(batch) for batch in lengths)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run alternating rounds; give each way's nanoseconds a token (median), its padding and its batches."""
    engine: Any = make_engine(
        options.model,
        task="embed",
        device=options.device,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
    )
    card = engine.load()
    engine.warm_up()
    capacity = engine.capacity()
    room = Room(
        mode="padded",
        cache=capacity.cache,
        rows=capacity.rows,
        capacity=capacity.tokens,
        budget=capacity.budget,
        share=capacity.rows // 2,
        idle=True,
    )
    most = min(card.context or capacity.budget, capacity.budget)
    texts = make_texts(engine, read_texts(options.prompts), most, estimate=options.estimate)[: options.limit]
    tokens = sum(len(text.tokens) for text in texts)
    ways = {"formed": list(formed(texts, room)), "fifo": list(in_order(texts, room))}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name in sorted(ways, reverse=number % 2 == 0):
            seconds = run(engine, ways[name])
            if number:  # the first round only warms up
                times[name].append(seconds / tokens * 1e9)
    medians = {name: statistics.median(figures) for name, figures in times.items()}
    return {
        "model": card.name,
        "texts": len(texts),
        "tokens": tokens,
        "budget": capacity.budget,
        "rows": room.share,
        "ns_per_token": medians,
        "all_ns_per_token": times,
        "efficiency": {name: efficiency(batches) for name, batches in ways.items()},
        "batches": {name: len(batches) for name, batches in ways.items()},
        "fifo_over_formed": medians["fifo"] / medians["formed"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, or a folder of a model that embeds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=Path, help="one text a line; default: paragraphs of pydoc_data.topics")
    parser.add_argument("--limit", type=int, help="only the first so many texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--estimate", action="store_true", help="form batches by bytes, as for texts not yet tokenized")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    found = measure(options)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['model']}: {found['texts']:,} texts, {found['tokens']:,} tokens, budget {found['budget']:,}")
    for name in ("formed", "fifo"):
        rounds = " ".join(f"{figure:,.0f}" for figure in found["all_ns_per_token"][name])
        print(
            f"{name:>7}: {found['ns_per_token'][name]:10,.0f} ns/token"
            f"  {found['efficiency'][name]:6.1%} text, {found['batches'][name]:,} batches  (rounds: {rounds})"
        )
    print(f"FIFO takes {found['fifo_over_formed']:.2f} times as long a token")


if __name__ == "__main__":
    main()
