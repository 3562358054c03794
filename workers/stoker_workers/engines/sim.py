"""An engine without a model: it spends the time that a model would, and its tokens depend on the request alone."""

from __future__ import annotations

import json
import math
import string
import time
import zlib
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from itertools import chain
from pathlib import Path

from stoker._records import unchecked
from stoker.errors import ConfigError
from stoker_workers.engine import (
    GENERATION,
    Admitted,
    Capacity,
    Event,
    Finished,
    Full,
    Invalid,
    ModelCard,
    Tokens,
    Work,
)
from stoker_workers.engines.continuous import check_limits, check_work, prefill_chunks, take_up
from stoker_workers.text import Detokenizer

_finished = unchecked(Finished)

VOCABULARY = 65_536
CONTEXT = 131_072
ZERO = "zero"
"""The profile of an engine that takes no time: what is measured with it is everything else."""
INSTANT = "instant"
"""The same of one that also gives whole answers in a step: what is measured with it is everything but the steps."""

# Text of letters and some spaces; its length is a power of two, so that a mask picks a letter.
_LETTERS = string.ascii_lowercase * 2 + " " * 12
_TOKENS = [ord(letter) for letter in _LETTERS]
_PACKED = [token.to_bytes(4, "little") for token in _TOKENS]
_PICK = len(_LETTERS) - 1
_MIX = 2_654_435_761  # Knuth's multiplicative hash: spreads the checksum's low bits into those that pick a letter


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a step costs, in milliseconds: `base_ms`, and a share for each prefilled token, row and resident token."""

    base_ms: float = 5.0
    prefill_ms: float = 0.02
    row_ms: float = 0.05
    resident_ms: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be slept, one line a problem."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        problems = [
            f"profile: {name} must be a finite number >= 0, got {value!r}"
            for name, value in values.items()
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0
        ]
        if problems:
            raise ConfigError("\n".join(problems))

    def step_ms(self, prefilled: int, rows: int, resident: int) -> float:
        """Return the milliseconds of a step with so many prefilled tokens, rows and tokens in the cache before it."""
        return self.base_ms + self.prefill_ms * prefilled + self.row_ms * rows + self.resident_ms * resident


def load_profile(source: str | Path | None) -> Profile:
    """Return the profile in the JSON file `source`, a small GPU's for None, all zeros for "zero" and "instant".

    The file holds one object with exactly the four numbers of `Profile`; anything else raises `ConfigError`.
    """
    if source is None:
        return Profile()
    if source in (ZERO, INSTANT):
        return Profile(base_ms=0, prefill_ms=0, row_ms=0, resident_ms=0)
    names = [field.name for field in fields(Profile)]
    try:
        content = json.loads(Path(source).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"profile: {source} cannot be read: {error}") from error
    if not isinstance(content, dict) or set(content) != set(names):
        raise ConfigError(f"profile: {source} must hold one JSON object with exactly {', '.join(names)}")
    return Profile(**content)


class _Row:
    """One resident request: what it has still to prefill, and how its tokens go on."""

    __slots__ = ("checksum", "detokenizer", "expected", "id", "left", "prefill", "salt", "tokens")

    def __init__(self, work: Work) -> None:
        self.id = work.id
        self.prefill = len(work.prompt) + len(work.generated)
        self.left = work.max_tokens - len(work.generated)
        self.expected = len(work.prompt) + min(work.max_tokens, work.expected or work.max_tokens)
        self.tokens = 0
        # A checksum over prompt and answer so far, like a model's state: an answer continued from its middle goes on
        # the same.
        self.checksum = zlib.crc32(array("I", [*work.prompt, *work.generated]))
        self.salt = _salt(work)
        self.detokenizer = Detokenizer(_decode, work.stop) if work.stop else None

    def go_on(self, n: int) -> list[int]:
        """Return its next `n` tokens, as places in `_TOKENS`."""
        checksum, salt, picks = self.checksum, self.salt, []
        for _ in range(n):
            pick = ((checksum ^ salt) * _MIX >> 16) & _PICK
            checksum = zlib.crc32(_PACKED[pick], checksum)
            picks.append(pick)
        self.checksum = checksum
        return picks

    @property
    def reserved(self) -> int:
        """Tokens that it is expected to occupy in all."""
        return max(self.expected, self.tokens + self.prefill + 1)


class SimEngine:
    """Continuous batching without a model.

    A step costs what its profile says, really slept. One byte of text is one token, and a token depends on nothing but
    the tokens before it, the seed and the temperature. When answers become longer than expected and the cache is full,
    the latest arrival leaves it and is prefilled again.
    """

    raw = False
    parameters = GENERATION
    resumes = True

    def __init__(
        self,
        profile: Profile,
        *,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 8192,
        kv_cache_tokens: int | None = None,
        context: int = CONTEXT,
        whole_answers: bool = False,
    ) -> None:
        """Hold `max_num_seqs` rows; by default the cache holds one row of the whole context, and 4,096 tokens a row.

        `whole_answers`: a step gives each row all its tokens, not one.
        """
        check_limits(max_num_seqs, max_num_batched_tokens, kv_cache_tokens)
        self.prefilled_tokens = 0
        """Tokens prefilled so far, those of preempted rows again."""
        self.preemptions = 0
        """How often a row left the cache."""
        self._profile = profile
        self._free = profile == load_profile(ZERO)
        self._whole = whole_answers
        self._context = context
        self._capacity = Capacity(
            rows=max_num_seqs,
            tokens=kv_cache_tokens or max(context, 4096 * max_num_seqs),
            budget=max_num_batched_tokens,
        )
        self._resident: dict[str, _Row] = {}
        # Those that decode came before those that are prefilled, for nothing is prefilled out of turn.
        self._decoding: list[_Row] = []
        self._prefilling: deque[_Row] = deque()
        self._complete: dict[str, str] = {}
        self._expected = 0
        # Whether any row may outgrow its room: the sums over all rows that this takes are not for those who don't ask.
        self._optimistic = False

    def load(self) -> ModelCard:
        """Return the card; there is nothing to load."""
        # The number changes with the function that makes the tokens.
        identity = sha256(b"stoker sim 1").hexdigest()
        return ModelCard(
            name="sim", identity=identity, dtype="none", vocabulary=VOCABULARY, context=self._context, mode="continuous"
        )

    def warm_up(self) -> None:
        """Do nothing: the first step costs what every step costs."""

    def encode(self, prompt: str) -> list[int]:
        """Return the bytes of the text."""
        return list(prompt.encode())

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the bytes of the conversation, a line `role: content` for each message."""
        return self.encode("".join(f"{message['role']}: {message['content']}\n" for message in messages))

    def admit(self, work: Work) -> Admitted | Full | Invalid:
        """Take a request in if rows and cache have room."""
        capacity = self._capacity
        if invalid := check_work(work, context=self._context, vocabulary=VOCABULARY, cache_tokens=capacity.tokens):
            return invalid
        self.cancel(work.id)  # another attempt at the same request takes the place of the first
        row = _Row(work)
        self._optimistic |= work.expected is not None
        reserved = self._expected
        if self._optimistic:
            reserved = sum(other.reserved for other in self._resident.values())
        if len(self._resident) >= capacity.rows or reserved + row.reserved > capacity.tokens:
            return Full()
        self._resident[work.id] = row
        self._expected += row.expected
        if end := take_up(work, row.detokenizer or Detokenizer(_decode)):
            self._complete[work.id] = end
        else:
            self._prefilling.append(row)
        return Admitted(row.reserved)

    def step(self) -> list[Event]:
        """Prefill what the budget allows beside one token for each decoding row."""
        if not self._resident:
            return []
        ended: list[Event] = [Finished(name, reason) for name, reason in self._complete.items()]
        for name in list(self._complete):
            self.cancel(name)
        self._make_room()
        decoding = len(self._decoding)
        chunks = self._chunks()
        self._sleep(sum(chunks), decoding + len(chunks))
        for chunk in chunks:
            row = self._prefilling[0]
            row.prefill -= chunk
            row.tokens += chunk
            if not row.prefill:
                self._decoding.append(self._prefilling.popleft())
        self.prefilled_tokens += sum(chunks)
        return ended + self._next_tokens()

    def scheduled(self) -> Sequence[str]:
        """Return the decoding rows, and those whose prompt the budget reaches."""
        prefilling = [row.id for row, _ in zip(self._prefilling, self._chunks(), strict=False)]
        return [row.id for row in self._decoding] + prefilling

    def cancel(self, request_id: str) -> None:
        """Drop a row."""
        row = self._resident.pop(request_id, None)
        if row is None:
            return
        self._expected -= row.expected
        if self._complete.pop(request_id, None):
            return
        if row.prefill:
            self._prefilling.remove(row)
        else:
            self._decoding.remove(row)

    def resident(self) -> Sequence[str]:
        """Return the ids of all rows, in order of arrival."""
        return list(self._resident)

    def capacity(self) -> Capacity:
        """Return the limits given."""
        return self._capacity

    def close(self) -> None:
        """Forget all rows."""
        self._resident.clear()
        self._decoding.clear()
        self._prefilling.clear()
        self._complete.clear()
        self._expected = 0

    def _chunks(self) -> list[int]:
        if not self._prefilling:
            return []
        return prefill_chunks((row.prefill for row in self._startable()), self._capacity.budget - len(self._decoding))

    def _startable(self) -> Iterator[_Row]:
        """Give the rows to prefill, as long as those before keep the room that they are expected to need."""
        if not self._optimistic:
            yield from self._prefilling
            return
        free = self._capacity.tokens - sum(row.reserved for row in self._decoding)
        for row in self._prefilling:
            free -= row.reserved
            if free < 0 and (self._decoding or row is not self._prefilling[0]):
                return
            yield row

    def _make_room(self) -> None:
        """Let the latest arrivals leave the cache until every decoding row has room for its token."""
        if not self._optimistic:
            return
        free = self._capacity.tokens - sum(row.tokens for row in self._resident.values()) - len(self._decoding)
        while free < 0:
            if not (self._prefilling and self._prefilling[0].tokens):
                self._prefilling.appendleft(self._decoding.pop())
                free += 1
            row = self._prefilling[0]
            free += row.tokens
            row.prefill, row.tokens = row.prefill + row.tokens, 0
            self.preemptions += 1

    def _sleep(self, prefilled: int, rows: int) -> None:
        if self._free:
            return
        resident = 0
        if self._profile.resident_ms:
            resident = sum(row.tokens for row in chain(self._decoding, self._prefilling))
        time.sleep(self._profile.step_ms(prefilled, rows, resident) / 1000)

    def _next_tokens(self) -> list[Event]:
        events: list[Event] = []
        ended = False
        for row in self._decoding:
            detokenizer = row.detokenizer
            picks = row.go_on(row.left if self._whole else 1)
            token_ids = [_TOKENS[pick] for pick in picks]
            if detokenizer is None:
                text = "".join([_LETTERS[pick] for pick in picks])
            else:
                token_ids, text = _until_stopped(detokenizer, token_ids, row.left)
            row.tokens += len(token_ids)
            row.left -= len(token_ids)
            events.append(Tokens(row.id, token_ids, text))
            stopped = detokenizer is not None and detokenizer.stopped
            if stopped or not row.left:
                row.left, ended = 0, True
                events.append(_finished(row.id, "stop" if stopped else "length", None, None, None))
        if ended:
            self._drop_ended()
        return events

    def _drop_ended(self) -> None:
        for row in self._decoding:
            if not row.left:
                del self._resident[row.id]
                self._expected -= row.expected
        self._decoding = [row for row in self._decoding if row.left]


def _until_stopped(detokenizer: Detokenizer, token_ids: list[int], left: int) -> tuple[list[int], str]:
    """Return the tokens up to the one that ends the answer, and their text; `left` are the row's tokens to come."""
    text = ""
    for count, token in enumerate(token_ids, 1):
        text += detokenizer.push([token])
        if count == left:
            text += detokenizer.finish()
        if detokenizer.stopped:
            return token_ids[:count], text
    return token_ids, text


def _decode(token_ids: list[int]) -> str:
    return bytes([token & 0xFF for token in token_ids]).decode(errors="replace")


def _salt(work: Work) -> int:
    """Return what sampling adds to a row's checksum; greedy answers depend on the prompt alone."""
    sampling = work.sampling
    if not sampling.temperature:
        return 0
    return zlib.crc32(f"{sampling.seed} {sampling.temperature!r}".encode())
