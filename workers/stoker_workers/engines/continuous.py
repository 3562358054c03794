"""What engines with continuous batching share: who may come in, and how a step's token budget is spent."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from stoker.errors import ConfigError
from stoker_workers.engine import Invalid, Work
from stoker_workers.text import Detokenizer


def check_limits(max_num_seqs: int, max_num_batched_tokens: int, kv_cache_tokens: int | None) -> None:
    """Raise `ConfigError` with one line for each limit that cannot work."""
    problems = []
    if max_num_seqs < 1:
        problems.append(f"max_num_seqs: must be at least 1, got {max_num_seqs}")
    if max_num_batched_tokens < max_num_seqs:
        # Every resident row decodes one token a step, and those come before any prefill.
        problems.append(
            f"max_num_batched_tokens: must be at least max_num_seqs ({max_num_seqs}), got {max_num_batched_tokens}"
        )
    if kv_cache_tokens is not None and kv_cache_tokens < 2:
        problems.append(f"kv_cache_tokens: must be at least 2, got {kv_cache_tokens}")
    if problems:
        raise ConfigError("\n".join(problems))


def check_work(work: Work, *, context: int, vocabulary: int, cache_tokens: int) -> Invalid | None:
    """Return why `work` can never run on a model of these limits; 0 for `context` or `vocabulary`: no such bound."""
    size = len(work.prompt)
    if work.inputs is not None and not size:
        return Invalid("inputs", "this model generates text: give a prompt, messages or prompt_tokens", work.inputs)
    if not size:
        return Invalid("prompt", "must have at least one token", size)
    if work.max_tokens < 1:
        return Invalid("max_tokens", "must be at least 1", work.max_tokens)
    if context and size + work.max_tokens > context:
        return Invalid(
            "max_tokens", f"a prompt of {size} tokens + max_tokens must be at most {context}", work.max_tokens
        )
    if size + work.max_tokens > cache_tokens:
        limit = f"a prompt of {size} tokens + max_tokens must fit the worker's cache of {cache_tokens} tokens"
        return Invalid("max_tokens", limit, work.max_tokens)
    # What is packed is unsigned, and no tokenizer gives less than 0.
    if vocabulary and (highest := max(work.prompt)) >= vocabulary:
        return Invalid("prompt_tokens", f"token ids must be from 0 to {vocabulary - 1}", highest)
    return None


def prefill_chunks(remaining: Iterable[int], budget: int) -> list[int]:
    """Return how many tokens of each waiting prompt this step takes: in order, until the `budget` is spent.

    `remaining` are the tokens still to prefill, first come first. Only the last chunk can be less than its prompt.
    """
    chunks = []
    for tokens in remaining:
        if budget <= 0:
            break
        chunks.append(min(tokens, budget))
        budget -= chunks[-1]
    return chunks


def take_up(work: Work, detokenizer: Detokenizer, eos: Collection[int] = ()) -> str:
    """Bring `detokenizer` behind the tokens that an earlier attempt gave.

    Returns the finish reason where they are the whole answer already, else an empty string.
    """
    if not work.generated:
        return ""
    if work.generated[-1] in eos and not work.ignore_eos:
        return "stop"
    detokenizer.push(work.generated)
    whole = len(work.generated) >= work.max_tokens
    if whole:
        detokenizer.finish()
    if detokenizer.stopped:
        return "stop"
    return "length" if whole else ""
