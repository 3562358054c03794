"""From a doorbell to work for the engine: begin, decode, check again, tokenize."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from stoker.request import InferenceRequest
from stoker.store.codec import Payload, decode_payload, text_bytes
from stoker.store.scripts import Begun
from stoker_workers.engine import Engine, Sampling, Work

SEED_BITS = 63


@dataclass(slots=True)
class Row:
    """One attempt in hand: what came, what it became so far."""

    payload: Payload
    delivery: str
    work: Work
    begun_s: float
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    first_token_us: int = -1
    published: int = 0
    unpublished_text: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        """What names the attempt to the scripts."""
        return self.payload.id, self.delivery

    @property
    def estimated(self) -> bool:
        """Whether the client did not know what this costs."""
        return self.payload.request.prompt_tokens is None


def open_row(begun: Begun, delivery: str, engine: Engine, clock: Callable[[], float], most_bytes: int) -> Row:
    """Return the attempt, ready for the engine; raises `InvalidRequest` for what can never run."""
    payload = decode_payload(begun.id, begun.payload, begun.attempt, most_bytes)
    request = payload.request
    work = Work(
        id=payload.id,
        batch=delivery,
        prompt=_prompt(request, engine),
        inputs=_inputs(request) if engine.raw else request.inputs,
        max_tokens=request.max_tokens,
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=_seed(payload.id) if request.seed is None else request.seed,
        ),
        stop=tuple(request.stop or ()),
        ignore_eos=request.ignore_eos,
    )
    return Row(payload, delivery, work, clock())


def nonce_of(begun: Begun) -> str:
    """Return the nonce of a payload that may be unreadable otherwise; empty where even that is gone."""
    fields = begun.payload[16:512].split(b"|", 2)
    return fields[1].decode(errors="replace") if len(fields) == 3 else ""


def prompt_bytes(row: Row) -> int:
    """Return the bytes of text that were tokenized here, from which the queue learns its bytes per token."""
    return text_bytes(row.payload.request) if row.payload.request.inputs is None and row.estimated else 0


def _prompt(request: InferenceRequest, engine: Engine) -> list[int]:
    if request.prompt_tokens is not None:
        return list(request.prompt_tokens)
    if request.prompt is not None:
        return engine.encode(request.prompt)
    if request.messages is not None:
        return engine.encode_chat(request.messages)
    return []


def _inputs(request: InferenceRequest) -> object:
    """What a user's model gets: its inputs, or the text itself."""
    return request.inputs if request.inputs is not None else request.prompt or request.messages


def _seed(request_id: str) -> int:
    """A seed of the request's own, so that every attempt samples the same answer."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "big") >> (64 - SEED_BITS)
