"""What a decode step's attention costs with different layouts of the cache, on lengths of conversations.

    python bench/attention_layouts.py --trace azure2023_conv.csv

The trace is a CSV with the columns ContextTokens and GeneratedTokens (for one, of the Azure LLM inference traces). All
layouts hold the same keys and values, in four layers, so that no layer finds another's in the processor's cache:

- rect: a slot of the longest's length for each sequence, attended to at once, masked; nothing is copied
- rows: the same, but each sequence by itself at its own length
- gather: blocks, copied into a rect of the longest's length
- blocks: blocks, each attended to where it lies, the results added up (`stoker_workers.engines.attention`)

Prints the medians in microseconds of processor time, and which share of a rect is useful.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # its customary name

from stoker_workers.engines.attention import Chunk, make_decode
from stoker_workers.engines.kv_cache import BLOCK, blocks_of

LAYERS = 4
LONGEST = 2048
CPU = torch.device("cpu")


def measure(run: Callable[[], object], rounds: int = 15) -> float:
    """Return the median processor time of a call, in microseconds."""
    times = []
    for _ in range(rounds + 2):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times[2:]) * 1e6


def compare(lengths: list[int], kv_heads: int, share: int, dim: int) -> dict[str, float]:
    """Measure each layout with sequences of these lengths."""
    rows, longest = len(lengths), max(lengths)
    slots = [torch.randn(2, rows, kv_heads, LONGEST, dim) for _ in range(LAYERS)]
    query = torch.randn(rows, kv_heads, share, dim)
    hidden = torch.arange(longest) >= torch.tensor(lengths)[:, None]
    mask = torch.zeros(rows, longest).masked_fill_(hidden, -torch.inf)[:, None, None]
    tables, pools = in_blocks(slots, lengths)
    most = max(map(len, tables))
    padded = torch.tensor([table + table[:1] * (most - len(table)) for table in tables])
    chunks = [Chunk([0], length - 1, table) for length, table in zip(lengths, tables, strict=True)]

    def rect() -> list[torch.Tensor]:
        return [
            F.scaled_dot_product_attention(query, k[:, :, :longest], v[:, :, :longest], attn_mask=mask)
            for k, v in slots
        ]

    def by_row() -> list[torch.Tensor]:
        return [
            torch.cat(
                [
                    F.scaled_dot_product_attention(query[i : i + 1], k[i : i + 1, :, :n], v[i : i + 1, :, :n])
                    for i, n in enumerate(lengths)
                ]
            )
            for k, v in slots
        ]

    def gather() -> list[torch.Tensor]:
        outputs = []
        for pool in pools:
            k, v = (part[padded].transpose(1, 2).flatten(2, 3)[:, :, :longest] for part in pool)
            outputs.append(F.scaled_dot_product_attention(query, k, v, attn_mask=mask))
        return outputs

    def blocks() -> list[torch.Tensor]:
        decode = make_decode(chunks, {None}, CPU)
        assert decode
        assert decode.blocks is None
        scaled = query * dim**-0.5
        return [decode.attend(scaled, *pool, None) for pool in pools]

    layouts = {"rect": rect, "rows": by_row, "gather": gather, "blocks": blocks}
    for run in layouts.values():
        torch.testing.assert_close(torch.stack(run()), torch.stack(rect()), rtol=1e-3, atol=1e-4)
    return {name: measure(run) for name, run in layouts.items()}


def in_blocks(slots: list[torch.Tensor], lengths: list[int]) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Return what the slots of each layer hold as blocks in random places, and the places of each sequence."""
    counts = [blocks_of(length) for length in lengths]
    numbers = random.sample(range(sum(counts)), sum(counts))
    tables = [numbers[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(lengths))]
    pools = []
    for slot in slots:
        pool = torch.zeros(2, sum(counts), slot.shape[2], BLOCK, slot.shape[4])
        for row, table in enumerate(tables):
            pool[:, table] = slot[:, row, :, : len(table) * BLOCK].unflatten(2, (-1, BLOCK)).transpose(1, 2)
        pools.append(pool)
    return tables, pools


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    with options.trace.open() as file:
        # A sequence is half done on average.
        lengths = [int(row["ContextTokens"]) + int(row["GeneratedTokens"]) // 2 for row in csv.DictReader(file)]
    lengths = [length for length in lengths if length <= LONGEST]
    for name, kv_heads, share, dim in (("demo model", 2, 2, 32), ("hidden size 512", 4, 2, 64)):
        for rows in (8, 16, 32, 64):
            drawn = random.sample(lengths, rows)
            useful = sum(drawn) / rows / max(drawn)
            figures = "  ".join(f"{k} {v:7.0f}" for k, v in compare(drawn, kv_heads, share, dim).items())
            print(f"{name:16} {rows:3} rows, {useful:4.0%} useful:  {figures}", flush=True)


if __name__ == "__main__":
    main()
