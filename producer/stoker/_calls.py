"""The pure part of both clients: what a request becomes on its way to Redis, and what comes back of it. No I/O."""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
import string
from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from stoker.config import Config
from stoker.errors import (
    DeadlineInfeasible,
    DurabilityNotReached,
    IdempotencyConflict,
    InvalidRequest,
    NoWorkers,
    QueueFull,
    RequestFailed,
    RequestLost,
    StokerError,
)
from stoker.request import (
    FIELDS,
    MAX_TOKEN_ID,
    Chunk,
    Classification,
    InferenceRequest,
    InferenceResponse,
    RequestPriority,
    Restarted,
    unknown_field,
)
from stoker.shards import shard_of
from stoker.store.codec import Form, Outcome, Submission, bare_prompt, encode, response_of
from stoker.store.durability import MEMORY, Durability
from stoker.store.lookups import BEGINNING
from stoker.store.pack import surely_under
from stoker.store.reads import Card, TokenRecord
from stoker.store.scripts import Accepted

T = TypeVar("T")
Item = InferenceRequest | str | Sequence[int]
"""What `map` and its like take: a whole request, a prompt, or a prompt's token ids."""

ONLY_LIFE = "0"
"""The nonce of a generated id: nobody else can submit under it, so there is no other life to be told from."""

_LETTERS = string.ascii_letters + string.digits

_BARE = (list, str, array, tuple)
_PLAIN = frozenset((int, float, str, bool, type(None), RequestPriority))
"""What cannot change behind the back of who remembers it."""

MOST_FORMS = 64
"""Forms that are remembered, before all are forgotten: a tenant each must not fill the memory."""

GROUP_BYTES = 8 << 20
"""About the most bytes of one submit: a script holds up all of Redis while its arguments are read."""


class RequestFields(TypedDict, total=False):
    """The fields of `InferenceRequest` as keywords of a call."""

    request_id: str | None
    prompt_tokens: Sequence[int] | None
    prompt: str | None
    messages: Sequence[Mapping[str, str]] | None
    inputs: Any
    max_tokens: int
    priority: RequestPriority
    timeout: float | None
    tenant: str | None
    temperature: float
    top_p: float
    top_k: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool
    stream: bool
    sheddable: bool
    affinity_key: str | None
    metadata: Mapping[str, Any] | None


class Names:
    """Unique names of 13 letters and digits, for ids and nonces: 10 at random (59 bits), 3 that count.

    They are short, for Redis holds each id three times while its request waits. What has counted to its end goes on
    behind other random ones, and so does a forked child, which would otherwise give the names that its parent gives.
    """

    def __init__(self) -> None:
        """Start with a fresh prefix."""
        self.renew()

    def renew(self) -> None:
        """Take a new prefix."""
        prefix = "".join(secrets.choice(_LETTERS) for _ in range(10))
        # One iterator has both, so that two threads which renew at once never give a name twice.
        self._names = map(prefix.__add__, map("".join, itertools.product(_LETTERS, repeat=3)))

    def __call__(self) -> str:
        """Return the next name. Thread-safe: one step of an iterator."""
        for name in self._names:
            return name
        self.renew()
        return self()


unique = Names()
os.register_at_fork(after_in_child=unique.renew)


def fresh_id(config: Config) -> str:
    """Return an id that nobody else gives; of a shard one that belongs to it."""
    if config.shards == 1:
        return unique()
    ids = iter(unique, "")
    return next(name for name in ids if shard_of(name, config.shards) == config.shard)


# --- requests ---------------------------------------------------------------------------------------------------------


def as_request(item: Item | None, fields: Mapping[str, Any]) -> InferenceRequest:
    """Return what a call was given as one request; keyword fields complete it, or change a whole request.

    Raises `InvalidRequest`, below it `UnsupportedParameter`.
    """
    check_fields(fields)
    if isinstance(item, InferenceRequest):
        return dataclasses.replace(item, **fields) if fields else item
    if item is None:
        return InferenceRequest(**fields)
    name = "prompt" if isinstance(item, str) else "prompt_tokens"
    if name in fields:
        raise InvalidRequest(name, "must be given once, by the item or by keyword", fields[name])
    given: dict[str, Any] = {name: item, **fields}
    return InferenceRequest(**given)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` for a name that no request has."""
    for name in fields:
        if name not in FIELDS:
            raise unknown_field(name, fields[name])


class Forms:
    """What requests share that are a bare prompt with the same keywords, worked out once for all calls of a client."""

    def __init__(self, reply: str, config: Config) -> None:
        """Make forms whose wake-ups come on the channel `reply`."""
        self.reply = reply
        self.config = config
        self._known: dict[Hashable, tuple[InferenceRequest, Form] | None] = {}

    def of(
        self, fields: Mapping[str, Any], *, displace: bool, check_deadline: bool
    ) -> tuple[InferenceRequest, Form] | None:
        """Return a request of these fields and its form; None where they do not go with a bare prompt."""
        if not _PLAIN.issuperset(map(type, fields.values())) or "request_id" in fields:
            return self._new(fields, displace, check_deadline)
        # Their types too: True is no number here, but equal to 1.
        key = (displace, check_deadline, *((name, type(value), value) for name, value in fields.items()))
        if key not in self._known:
            if len(self._known) >= MOST_FORMS:
                self._known.clear()
            self._known[key] = self._new(fields, displace, check_deadline)
        return self._known[key]

    def _new(
        self, fields: Mapping[str, Any], displace: bool, check_deadline: bool
    ) -> tuple[InferenceRequest, Form] | None:
        try:
            request = as_request("prompt", fields)
            wishes = {"displace": displace, "check_deadline": check_deadline}
            return request, Form(request, reply=self.reply, config=self.config, **wishes)
        except InvalidRequest:
            return None


class Encoder:
    """Checks and encodes what one call was given, item by item: one's error must not keep others from being sent.

    `fields` complete every item. `over_card`: whether any was refused for what the model's card says.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        *,
        forms: Forms,
        card: Card | None,
        bytes_per_token: float,
        displace: bool,
        check_deadline: bool,
    ) -> None:
        self.over_card = False
        self._shared: tuple[InferenceRequest, Form] | None = None
        self._looked = False
        self._fields = fields
        self._forms = forms
        self._card = card
        self._bytes_per_token = bytes_per_token
        self._wishes = {"displace": displace, "check_deadline": check_deadline}

    def __call__(self, item: Item | None) -> Submission | InvalidRequest:
        """Return an item as `submit` takes it; ids and nonces are fixed here: a repeated call is the same call."""
        try:
            if not isinstance(item, _BARE) or (shared := self._form()) is None:
                return self._whole(as_request(item, self._fields))
            request, form = shared
            prompt = bare_prompt(item, self._bytes_per_token)
            self._check(None if isinstance(item, str) else item, request.max_tokens, prompt.token_ids)
            return form.fill(*_names(self._forms.config, request.request_id), prompt)
        except InvalidRequest as error:
            return error

    def _form(self) -> tuple[InferenceRequest, Form] | None:
        """What all items share that are a bare prompt; None where the fields do not go with one."""
        if not self._looked:
            self._shared, self._looked = self._forms.of(self._fields, **self._wishes), True
        return self._shared

    def _whole(self, request: InferenceRequest) -> Submission:
        if request.inputs is None:
            self._check(request.prompt_tokens, request.max_tokens)
        config = self._forms.config
        request_id, nonce = _names(config, request.request_id)
        return encode(
            request,
            request_id=request_id,
            nonce=nonce,
            reply=self._forms.reply,
            config=config,
            bytes_per_token=self._bytes_per_token,
            **self._wishes,
        )

    def _check(self, tokens: Sequence[int] | None, max_tokens: int, packed: bytes = b"") -> None:
        if self._card is not None and (error := over_card(tokens, max_tokens, self._card, packed)):
            self.over_card = True
            raise error


def _names(config: Config, request_id: str | None) -> tuple[str, str]:
    """Return a request's id and its nonce; raises `InvalidRequest` for an id of another shard."""
    return (config.check_shard(request_id), unique()) if request_id else (fresh_id(config), ONLY_LIFE)


def over_card(tokens: Sequence[int] | None, max_tokens: int, card: Card, packed: bytes = b"") -> InvalidRequest | None:
    """Return why the model cannot serve token ids or a text (None), where that is certain: no estimate refuses.

    `packed`: the token ids as `pack_tokens` has them, which most often tells that each is in the vocabulary.
    """
    context, vocabulary = card.context, card.vocabulary
    unsure = 0 < vocabulary <= MAX_TOKEN_ID and not surely_under(packed, vocabulary)
    if tokens is not None and unsure and (largest := max(tokens)) >= vocabulary:
        limit = f"token ids must be under the model's vocabulary of {vocabulary}"
        return InvalidRequest("prompt_tokens", limit, largest)
    # A text has at least one token, whatever the tokenizer.
    least = 1 if tokens is None else len(tokens)
    if card.padded:
        limit = f"must be at most the model's context of {context} tokens"
        return InvalidRequest("prompt_tokens", limit, least) if context and least > context else None
    if context and least + max_tokens > context:
        name = "max_tokens" if least < context else "prompt_tokens"
        limit = f"prompt tokens + max_tokens must be at most the model's context of {context}"
        return InvalidRequest(name, limit, least + max_tokens)
    return None


def groups(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Cut into groups of at most `most`."""
    for start in range(0, len(items), most):
        yield items[start : start + most]


def fitting(submissions: Sequence[Submission]) -> int:
    """Return how many of a group go into one call: about `GROUP_BYTES` bytes, at least one."""
    sizes = itertools.accumulate(len(submission.body) for submission in submissions)
    return max(1, sum(1 for size in sizes if size <= GROUP_BYTES))


# --- answers ----------------------------------------------------------------------------------------------------------


def refusal(answer: Accepted, request_id: str, queue: str) -> StokerError | None:
    """Return the error that submit's word for a request means, None where Redis has the request."""
    match answer.word:
        case "ACCEPTED" | "SAME" | "DONE":
            return None
        case "CONFLICT":
            return IdempotencyConflict(request_id)
        case "LATE":
            return DeadlineInfeasible(request_id, answer.limit / 1000, answer.value / 1000)
        case _:
            kind = QueueFull if answer.workers else NoWorkers
            return kind(queue, answer.retry_after, field=answer.field, limit=answer.limit, value=answer.value)


def unreached(job: Any, wanted: Durability) -> DurabilityNotReached | None:
    """Return the error for an accepted request that is not as durable as asked, None where it is."""
    if wanted.level == MEMORY or job.durability == wanted.level:
        return None
    return DurabilityNotReached(job, wanted.level, job.durability or MEMORY)


def response_from(outcome: Outcome) -> InferenceResponse:
    """Return the outcome as a response; a body that cannot be read is that request's error and nobody else's."""
    try:
        return response_of(outcome)
    except (InvalidRequest, TypeError, ValueError, OverflowError) as error:
        failed = RequestFailed(outcome.id, f"its result cannot be read ({error})", outcome.attempts)
        return InferenceResponse(outcome.id, outcome.status, attempts=outcome.attempts, error=failed)


def lost(request_id: str) -> InferenceResponse:
    """Return the response of a request that Redis does not know."""
    return InferenceResponse(request_id, "lost", error=RequestLost(request_id))


def refused(request_id: str, error: StokerError) -> InferenceResponse:
    """Return the response of a request that was never accepted."""
    return InferenceResponse(request_id, "refused", error=error)


def refused_error(error: StokerError) -> InferenceResponse:
    """Return an error that `submit_many` gave instead of a job as a response."""
    return refused(getattr(error, "request_id", ""), error)


def full_pause(retry_after: float, deadline: float | None, now: float) -> float | None:
    """Return how long to wait for room in a full queue, None when the deadline (None: never) has come."""
    left = retry_after if deadline is None else deadline - now
    return min(retry_after, left) if left > 0 else None


def as_texts(texts: Iterable[Item]) -> Iterable[Item]:
    """Return `texts`; raises `InvalidRequest` for a single one, which would be taken letter by letter."""
    if isinstance(texts, str | InferenceRequest):
        raise InvalidRequest("texts", "must be a list of texts", texts if isinstance(texts, str) else "one request")
    return texts


def vector_of(response: InferenceResponse) -> array[float]:
    """Return the vector that an embedding model answered; raises the request's error, `RequestFailed` for no vector."""
    output = response.unwrap().output
    try:
        return output if isinstance(output, array) else array("f", output)
    except TypeError:
        raise RequestFailed(response.request_id, "its model answered no vector", response.attempts) from None


def classification_of(response: InferenceResponse) -> Classification:
    """Return what a classifier said; raises the request's error, `RequestFailed` for an answer of another kind."""
    output = response.unwrap().output
    try:
        return Classification(**output)
    except TypeError:
        raise RequestFailed(response.request_id, "its model answered no classification", response.attempts) from None


# --- token streams ----------------------------------------------------------------------------------------------------


class TokenReader:
    """Makes chunks of the records of one token stream: each token once, in order, whatever workers died meanwhile.

    `after` is the last entry seen, `ended` whether the stream's last record was among them.
    """

    def __init__(self) -> None:
        """Start before the first token."""
        self.after = BEGINNING
        self.ended = False
        self._attempt = 0
        self._position = 0
        self._texts: list[str] = []

    def feed(self, record: TokenRecord) -> Chunk | None:
        """Return the chunk that a record adds, None for a duplicate, a fenced attempt's, or the end."""
        self.after = record.entry
        if record.end:
            self.ended = True
            return None
        if record.attempt < self._attempt:
            return None
        if record.attempt > self._attempt:
            return self._next_attempt(record)
        return None if record.offset < self._position else self._take(record, Chunk)

    def rest(self, response: InferenceResponse) -> Chunk | None:
        """Return what the final answer has beyond what was published (all of it, where nothing was streamed).

        Where they differ (the last attempt published nothing), the answer is right and what was read is not.
        """
        seen, text, ids = "".join(self._texts), response.text, response.token_ids or []
        if text.startswith(seen):
            more, start = text[len(seen) :], min(self._position, len(ids))
            return Chunk(more, ids[start:], response.attempts, start) if more or start < len(ids) else None
        return Restarted(text, ids, response.attempts, 0)

    def _next_attempt(self, record: TokenRecord) -> Chunk:
        # An engine that can resume goes on behind what was published; all others begin at 0 again.
        resumed = self._attempt == 0 or record.offset == self._position
        self._attempt = record.attempt
        if resumed:
            return self._take(record, Chunk)
        self._texts = []
        return self._take(record, Restarted)

    def _take(self, record: TokenRecord, kind: type[Chunk]) -> Chunk:
        # Text without token ids moves it too: an attempt that begins at 0 again must not look like one that goes on.
        self._position = record.offset + max(1, len(record.token_ids))
        self._texts.append(record.text)
        return kind(record.text, record.token_ids, record.attempt, record.offset)
