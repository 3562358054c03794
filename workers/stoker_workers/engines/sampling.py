"""Choosing the next tokens of a batch, so that an answer depends neither on its company nor on the attempt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from stoker_workers.engine import Sampling

BROKEN = -1
"""Stands for the token of a row whose logits hold no finite maximum."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIN_TEMPERATURE = 1e-5  # below it the best token has all the weight anyway, and a float32 quotient could overflow


def choose(logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """Return the next token of each row of `logits` [rows, vocabulary]; the one place that waits for the device.

    `positions` are the places of those tokens in their sequences, counted from the prompt's first token.
    """
    best, token_ids = logits.max(dim=-1)
    drawn = [index for index, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        chosen = [samplings[index] for index in drawn]
        numbers = [uniform(samplings[index].seed, positions[index]) for index in drawn]
        token_ids[rows] = _draw(logits[rows].float() - best[rows].float()[:, None], chosen, numbers)
    broken = ~torch.isfinite(best)
    result: list[int] = token_ids.masked_fill_(broken, BROKEN).tolist()
    return result


def uniform(seed: int, position: int) -> float:
    """Return a number from [0, 1) that depends on `seed` and `position` alone (splitmix64)."""
    state = _mix(seed & _MASK)
    # 48 bits: their product with a sum of weights is always below that sum, whatever the rounding.
    return (_mix((state + position * _GOLDEN) & _MASK) >> 16) / (1 << 48)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _draw(scores: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> torch.Tensor:
    """Return one token a row by its number: the weights are summed in the order of the vocabulary.

    Not in the order of the weights, for two that lie within a rounding error may change places with the batch's shape.
    """
    temperatures = [max(sampling.temperature, _MIN_TEMPERATURE) for sampling in samplings]
    scores = scores / torch.tensor(temperatures, device=scores.device)[:, None]
    if any(sampling.top_k is not None or sampling.top_p < 1 for sampling in samplings):
        scores = _keep_likely(scores, samplings)
    sums = scores.softmax(dim=-1).double().cumsum(dim=-1)
    targets = sums[:, -1] * torch.tensor(numbers, dtype=torch.float64, device=scores.device)
    # A row of NaN finds no place; it is replaced by the caller, but must be an index until then.
    return torch.searchsorted(sums, targets[:, None], right=True).squeeze(1).clamp_(max=scores.shape[-1] - 1)


def _keep_likely(scores: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Take all weight from what lies outside a row's `top_k` best, and of those outside its nucleus of `top_p`."""
    size = scores.shape[-1]
    top_k = torch.tensor([sampling.top_k or size for sampling in samplings], device=scores.device)[:, None]
    # A row without a nucleus must not lose its tail to a sum that rounds to 1.
    nuclei = [sampling.top_p if sampling.top_p < 1 else math.inf for sampling in samplings]
    top_p = torch.tensor(nuclei, device=scores.device)[:, None]
    ordered = scores.sort(dim=-1, descending=True).values
    outside = torch.arange(size, device=scores.device) >= top_k
    weights = ordered.masked_fill(outside, -math.inf).softmax(dim=-1)
    before = weights.cumsum(dim=-1) - weights
    kept = (~outside & (before < top_p)).sum(dim=-1, keepdim=True)
    threshold = ordered.gather(-1, (kept - 1).clamp_(min=0))
    return scores.masked_fill(scores < threshold, -math.inf)
