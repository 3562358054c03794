"""From a doorbell to work for the engine: begin, decode, check again, tokenize."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stoker._calls import TokenReader
from stoker._records import unchecked
from stoker.errors import UnsupportedParameter
from stoker.request import Chunk, InferenceRequest, RequestPriority, Restarted
from stoker.store.codec import DEFAULTS, STAMP, Payload, text_bytes
from stoker.store.payloads import Payloads
from stoker.store.reads import TokenRecord
from stoker.store.scripts import Begun
from stoker_workers.engine import Engine, Sampling, Tokens, Work

SEED_BITS = 63

_sampled = unchecked(Sampling)


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
    tokens: int = 0
    last_token_s: float = 0.0
    published: int = 0
    unpublished_text: list[str] = field(default_factory=list)
    cost: int = 1
    """The tokens of the engine's room that it takes: as the scheduler reserved them, then as the engine counts."""
    key: tuple[str, str] = field(init=False)
    """What names the attempt to the scripts."""
    priority: RequestPriority = field(init=False)
    stream: bool = field(init=False)

    def __post_init__(self) -> None:
        """Keep at hand what every token asks for."""
        self.key = self.payload.id, self.delivery
        self.priority, self.stream = self.payload.request.priority, self.payload.stream

    def add(self, event: Tokens) -> int:
        """Add an event's tokens and text; returns how many tokens."""
        before, ids = self.tokens, self.token_ids
        ids += event.token_ids
        self.tokens = after = len(ids) or before + 1
        self.texts.append(event.text)
        if self.stream:
            self.unpublished_text.append(event.text)
        return after - before

    @property
    def resident_tokens(self) -> int:
        """The tokens in the engine's cache, 0 until the first one of the answer came: the prompt may not be there."""
        return len(self.work.prompt) + self.tokens if self.first_token_us >= 0 else 0

    @property
    def offline(self) -> bool:
        """Whether it is of class BATCH."""
        return self.priority == RequestPriority.BATCH

    @property
    def to_prefill(self) -> int:
        """The tokens of its prompt, and those that earlier attempts gave."""
        return len(self.work.prompt) + len(self.work.generated)

    @property
    def estimated(self) -> bool:
        """Whether the client did not know what this costs."""
        return self.payload.request.prompt_tokens is None


def open_row(
    begun: Begun,
    delivery: str,
    engine: Engine,
    clock: Callable[[], float],
    most_bytes: int,
    published: Sequence[TokenRecord] = (),
    cost: int | None = None,
    payloads: Payloads | None = None,
) -> Row:
    """Return the attempt, ready for the engine; raises `InvalidRequest` for what can never run.

    Below it `UnsupportedParameter`: a parameter that the engine does not honour.

    `published` is what earlier attempts gave of a streamed answer: this one goes on behind it. `cost` are the tokens
    that the scheduler reserved. `payloads` knows what earlier ones were like.
    """
    given, text = _given(published) if published else ([], "")
    payload = (payloads or Payloads()).decode(begun.id, begun.payload, begun.attempt, most_bytes)
    request = payload.request
    _check_parameters(request, engine)
    work = Work(
        id=payload.id,
        batch=delivery,
        prompt=_prompt(request, engine),
        text=request.prompt,
        messages=request.messages,
        inputs=_inputs(request) if engine.raw else request.inputs,
        max_tokens=request.max_tokens,
        sampling=_sampling(payload.id, request),
        stop=tuple(request.stop) if request.stop else (),
        ignore_eos=request.ignore_eos,
        request=request,
        generated=given,
        expected=_expected(begun, request, cost),
    )
    return Row(
        payload,
        delivery,
        work,
        clock(),
        token_ids=list(given),
        texts=[text],
        tokens=len(given),
        published=len(given),
        cost=cost or 1,
    )


def _sampling(request_id: str, request: InferenceRequest) -> Sampling:
    seed = _seed(request_id) if request.seed is None else request.seed
    return _sampled(request.temperature, request.top_p, request.top_k, seed)


def _expected(begun: Begun, request: InferenceRequest, cost: int | None) -> int | None:
    """Return for how many tokens of answer the scheduler reserved room, None where it did for all."""
    if request.prompt_tokens is None:
        tail = begun.payload[STAMP : STAMP + 496].split(b"|")[7]
        prompt = int(tail.partition(b":")[0])
    else:
        prompt = len(request.prompt_tokens)
    answer = (cost or 0) - prompt
    return answer if 0 < answer < request.max_tokens else None


def nonce_of(begun: Begun) -> str:
    """Return the nonce of a payload that may be unreadable otherwise; empty where even that is gone."""
    fields = begun.payload[STAMP : STAMP + 496].split(b"|", 2)
    return fields[1].decode(errors="replace") if len(fields) == 3 else ""


def prompt_bytes(row: Row) -> int:
    """Return the bytes of text that were tokenized here, from which the queue learns its bytes per token."""
    return text_bytes(row.payload.request) if row.payload.request.inputs is None and row.estimated else 0


def _check_parameters(request: InferenceRequest, engine: Engine) -> None:
    """Refuse what the engine would ignore: an answer must not look as if a parameter had been honoured."""
    for name, default in DEFAULTS.items():
        if name not in engine.parameters and (value := getattr(request, name)) != default:
            raise UnsupportedParameter(name, "is not honoured by this queue's model; leave it out", value)


def _given(published: Sequence[TokenRecord]) -> tuple[list[int], str]:
    """Return the tokens and the text that whoever reads the stream has; nothing where its beginning was cut off."""
    reader = TokenReader()
    chunks: list[Chunk] = []
    for chunk in filter(None, map(reader.feed, published)):
        if isinstance(chunk, Restarted):
            chunks.clear()
        chunks.append(chunk)
    if chunks and chunks[0].offset:
        return [], ""
    return [token for chunk in chunks for token in chunk.token_ids], "".join(chunk.text for chunk in chunks)


def _prompt(request: InferenceRequest, engine: Engine) -> Sequence[int]:
    if request.prompt_tokens is not None:
        return request.prompt_tokens
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
