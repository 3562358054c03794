"""Every script as one typed function: arguments in, a `Call` out, whose `parse` makes a value of the reply.

Nothing here talks to Redis, so that sync and async stores, pipelines and tests run the same calls. This is the only
place where `Any` enters from the wire.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

from stoker.config import Config
from stoker.store.codec import Submission
from stoker.store.records import CLASSES, LANES, Waiting

RATE_WINDOW_US = 5_000_000
RESULT_SLICES = 16
"""In so many parts of their life the bytes of results are counted: they count for up to one part too long."""

QUARANTINE_PATIENCE_US = 5_000_000
VOID_TTL_MS = 3_600_000
BATCH_LEASE_US = 5_000_000
MAX_BATCHES = 10_000
MAX_TENANT_SETTINGS = 10_000
MOST_TOLD = 1024
MOST_ANSWERS = 4096
"""Answers of tenants whose lengths are known, the latest ones."""

IMPLICIT_PIECES = ("base", "clock")

Arg = str | bytes | int | float
Told = tuple[str, str, str, str, str]
NOTHING_TOLD: Told = ("", "", "", "", "")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of a script, not yet made."""

    script: str
    args: Sequence[Arg]
    parse: Callable[[list[Any]], T]
    then: Sequence[Sequence[Arg]] | None = None
    """Commands sent behind it on its connection. Unless None, `parse` gets its reply and theirs, None for an error."""


@dataclass(frozen=True, slots=True)
class Script:
    """The finished source of one script, and the SHA-1 by which Redis knows it."""

    name: str
    source: str
    sha: str


# --- sources --------------------------------------------------------------------------------------------------------


def script_names() -> list[str]:
    """Return the names of all transitions, as their files say."""
    return sorted(file.name.removesuffix(".lua") for file in lua_folder().iterdir() if file.name.endswith(".lua"))


@functools.lru_cache(maxsize=64)
def load_scripts(config: Config, clock: str | None = None) -> Mapping[str, Script]:
    """Return all scripts for `config`, whose limits stand in their text; `clock` replaces that piece in tests."""
    return {name: _build(name, config, clock) for name in script_names()}


def lua_folder() -> Traversable:
    """Return where the scripts lie, and in `pieces` what they share."""
    return resources.files("stoker.store") / "lua"


def _build(name: str, config: Config, clock: str | None) -> Script:
    body = (lua_folder() / f"{name}.lua").read_text()
    used = re.match(r"-- use: ([a-z ]+)\n", body)
    pieces = [*IMPLICIT_PIECES, *(used[1].split() if used else [])]
    texts = [clock if piece == "clock" and clock else _piece(piece) for piece in pieces]
    # What only some calls need is defined where they begin: defining it costs each call.
    body = re.sub(r"^ *-- include: (\w+)$", lambda found: _piece(found[1]), body, flags=re.MULTILINE)
    source = "\n".join([_limits(config), *texts, body])
    # Redis names scripts by their SHA-1; nothing is protected by it.
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _piece(name: str) -> str:
    return (lua_folder() / "pieces" / f"{name}.lua").read_text()


def _limits(config: Config) -> str:
    """The limits as Lua constants: microseconds for what is compared with now, milliseconds for TTLs."""
    numbers: dict[str, int | None] = {
        "H": config.heartbeat_ms * 1000,
        "T": config.lease_us,
        "L": config.leader_lease_us,
        "MAX_WAITING": config.max_waiting,
        "MAX_TOKENS": config.max_waiting_tokens,
        "MAX_STORED": config.max_stored_bytes,
        "TENANT_WAITING": config.tenant_max_waiting,
        "TENANT_TOKENS": config.tenant_max_tokens,
        "TENANT_BYTES": config.tenant_max_bytes,
        "MAX_AGE": config.max_age_s * 1_000_000,
        "MAX_ATTEMPTS": config.max_attempts,
        "MAX_LOSSES": config.max_losses,
        "BACKOFF_MIN": config.backoff_min_ms * 1000,
        "BACKOFF_MAX": config.backoff_max_ms * 1000,
        "RESULT_TTL": int(config.result_ttl_s * 1000),
        "RESULT_SLICE": int(config.result_ttl_s * 1e6 / RESULT_SLICES),
        "DEAD_TTL": int(config.dead_ttl_s * 1000),
        "TOKENS_TTL": int(config.tokens_ttl_s * 1000),
        "REPLY_TTL": int(config.reply_ttl_s * 1000),
        "REPLY_LEN": config.reply_len,
        "WAKEUP": config.wakeup_bytes,
        "EVENTS_LEN": config.events_len,
        "GROUP_MOST": config.group,
        "PREEMPT": config.preempt_ms * 1000,
        "RATE_WINDOW": RATE_WINDOW_US,
        "QUARANTINE_PATIENCE": QUARANTINE_PATIENCE_US,
        "VOID_TTL": VOID_TTL_MS,
        "BATCH_LEASE": BATCH_LEASE_US,
        "BATCH_TTL": int(config.batch_ttl_s * 1e6),
        "MAX_BATCHES": MAX_BATCHES,
        "MAX_TENANT_SETTINGS": MAX_TENANT_SETTINGS,
        "MOST_ANSWERS": MOST_ANSWERS,
    }
    lines = [f"local {', '.join(numbers)} = {', '.join(map(_constant, numbers.values()))}"]
    lines += [f"local EVENTS = {'true' if config.events else 'false'}"]
    for table, names in (("CLASSES", CLASSES), ("LANES", LANES)):
        lines.append(f"local {table} = {{{', '.join(f'{name} = true' for name in names)}}}")
    return "\n".join(lines)


def _constant(number: int | None) -> str:
    return "nil" if number is None else str(number)


# --- clients --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of one submission: ACCEPTED, SAME, DONE, CONFLICT, FULL, or LATE.

    Where it is FULL: `retry_after` in seconds; the name of the limit that was met, the limit, and the value that it
    would have had; whether any worker is alive. Where it is LATE: `limit` is its timeout and `value` how long it would
    take, in milliseconds.
    """

    word: str
    retry_after: float = 0.0
    field: str = ""
    limit: int = 0
    value: int = 0
    workers: bool = False


def submit(random: str, max_bytes: int, items: Sequence[Submission]) -> Call[tuple[str, list[Accepted]]]:
    """Call that accepts requests; gives the generation and a word for each."""
    unchecked = "".join(f"{number}," for number, item in enumerate(items, 1) if not item.check_deadline)
    displacing = "".join(f"{number}," for number, item in enumerate(items, 1) if item.displace)
    args: list[Arg] = [random, max_bytes, f",{displacing}|,{unchecked}" if displacing or unchecked else ""]
    for item in items:
        args += (item.id, item.header, item.body)
    return Call("submit", args, _parse_submit)


def followed(call: Call[T], commands: Sequence[Sequence[Arg]]) -> Call[tuple[T, list[Any]]]:
    """Return a call with commands behind it, on the same connection; gives its value and their replies."""
    return Call(call.script, call.args, lambda replies: (call.parse(replies[0]), replies[1:]), commands)


def _parse_submit(reply: list[Any]) -> tuple[str, list[Accepted]]:
    generation, *words = reply
    return generation.decode(), [_ACCEPTED.get(word) or _full(word) for word in words]


_ACCEPTED = {word.encode(): Accepted(word) for word in ("ACCEPTED", "SAME", "DONE", "CONFLICT")}


def _full(word: bytes) -> Accepted:
    name, *parts = word.decode().split(":")
    if name == "LATE":
        return Accepted(name, field="timeout", limit=int(parts[0]), value=int(parts[1]))
    wait_ms, field, limit, value, workers = parts
    return Accepted(name, float(wait_ms) / 1000, field, int(limit), int(value), workers == "1")


def cancel(request_id: str, nonce: str = "") -> Call[str]:
    """Call that ends a request; gives OK, DONE or UNKNOWN."""
    return Call("cancel", (request_id, nonce), _word)


def retry_dead(request_id: str, new_id: str, nonce: str, reply: str) -> Call[str]:
    """Call that submits a dead letter again under `new_id`; gives OK, UNKNOWN or CONFLICT."""
    return Call("retry_dead", (request_id, new_id, nonce, reply), _word)


def purge_dead(ids: Sequence[str]) -> Call[int]:
    """Call that forgets dead letters; gives how many there were."""
    return Call("purge_dead", ids, _number)


def set_model(identity: str, card: bytes) -> Call[str]:
    """Call that replaces the model card (an empty identity forgets it); gives OK or BUSY."""
    return Call("set_model", (identity, card), _word)


def set_tenant(tenant: str, values: Mapping[str, str]) -> Call[str]:
    """Call that sets numbers for a tenant (an empty text: no longer set); gives OK or FULL."""
    return Call("set_tenant", [tenant, *(part for pair in values.items() for part in pair)], _word)


def drain(worker: str, drained: bool) -> Call[str]:
    """Call that stops or resumes work for a worker; gives OK or UNKNOWN."""
    return Call("drain", (worker, int(drained)), _word)


# --- shards ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreed:
    """Answer to `agree`: OK (with a `ticket`, if one was taken) or OTHER (with the number of `shards` that counts)."""

    word: str
    shards: int
    ticket: int


def agree(shards: int, tickets: int = 0, instead_of: int | None = None) -> Call[Agreed]:
    """Call that fixes a queue's number of shards, compares or replaces it; made on the keys of the first shard."""

    def parse(reply: list[Any]) -> Agreed:
        word, number = _word(reply), int(reply[1])
        return Agreed(word, shards, number) if word == "OK" else Agreed(word, number, 0)

    return Call("agree", (shards, tickets, instead_of or ""), parse)


# --- schedulers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lead:
    """Answer to `lead`: LEADER, STANDBY (`token` is the leader's), VOID or OTHER_H (`detail` is its H in us)."""

    word: str
    token: str = ""
    generation: str = ""
    detail: str = ""


def told(
    circuits: Mapping[str, str],
    served: Mapping[str, float],
    forecast: str,
    speeds: Mapping[str, Sequence[float]],
    rooms: Mapping[str, Sequence[float]],
) -> Told:
    """Return what a leader leaves in Redis, as `lead` takes it.

    For who looks: `circuits` are those that are not closed, `served` the tokens over weight of tenants' lanes.
    `forecast`: what submit holds deadlines against (`Forecast.text`), empty for nothing. `speeds`: by incarnation, the
    tokens a second of a full worker, and the seconds of a token of max_tokens on an empty one; for who looks, as
    `rooms`: by incarnation, what BATCH may take (the fields of `BatchRoom`).
    """
    states = "|".join(f"{worker}={state}" for worker, state in circuits.items())
    tenants = "|".join(f"{lane}={number:.0f}" for lane, number in islice(served.items(), MOST_TOLD))
    return states, tenants, forecast, _numbers(speeds), _numbers(rooms)


def lead(me: str, generation: str, random: str, config: Config, left: Told = NOTHING_TOLD) -> Call[Lead]:
    """Call that takes or renews the leader's lease; `me` is `<node>:<nonce>`, `left` what `told` made."""
    return Call("lead", (me, generation, random, config.heartbeat_ms * 1000, *left), _parse_lead)


def _numbers(known: Mapping[str, Sequence[float]]) -> str:
    """Return what is known of incarnations as they are told: inc=numbers pairs."""
    first = islice(known.items(), MOST_TOLD)
    return "|".join(f"{inc}={','.join(f'{number:.9g}' for number in numbers)}" for inc, numbers in first)


def _parse_lead(reply: list[Any]) -> Lead:
    word, *rest = [part.decode() for part in reply]
    match word:
        case "VOID":
            return Lead(word, generation=rest[0])
        case "OTHER_H":
            return Lead(word, detail=rest[0])
        case _:
            return Lead(word, *rest)


def resign(token: str) -> Call[str]:
    """Call that gives the lease up; gives OK."""
    return Call("resign", (token,), _word)


@dataclass(frozen=True, slots=True)
class Dispatched:
    """Answer to `dispatch`: OK (`words` per member), SEEN (`words` are ids), or one of the refusals."""

    word: str
    delivery: str = ""
    words: tuple[str, ...] = ()


def dispatch(token: str, n: int, inc: str, requests: Iterable[tuple[Waiting, int]]) -> Call[Dispatched]:
    """Call that hands requests, each with its cost in tokens, to an incarnation."""
    args: list[Arg] = [token, n, inc]
    for waiting, cost in requests:
        args += (waiting.lane, waiting.member, cost)
    return Call("dispatch", args, _parse_dispatch)


def _parse_dispatch(reply: list[Any]) -> Dispatched:
    word, *rest = [part.decode() for part in reply]
    return Dispatched(word, rest[0] if rest else "", tuple(rest[1:]))


FENCED = -2
"""What counts are when another leads."""


def make_room(token: str, inc: str, items: Iterable[tuple[str, str]]) -> Call[list[str]]:
    """Call that asks an incarnation to give (id, delivery) back; gives OK and ASKED, GONE or SPARED for each."""
    return Call("make_room", [token, inc, *(part for item in items for part in item)], _words)


def reclaim(token: str, inc: str) -> Call[int]:
    """Call that takes work back; gives the members left, -1 for not yet, or `FENCED`."""
    return Call("reclaim", (token, inc), _fenced_number)


def promote(token: str) -> Call[int]:
    """Call that ends due delays; gives how many, or `FENCED`."""
    return Call("promote", (token,), _fenced_number)


def expire(token: str) -> Call[list[str] | None]:
    """Call that ends what is late; gives the ids, None when another leads."""
    return Call("expire", (token,), _parse_expire)


def _parse_expire(reply: list[Any]) -> list[str] | None:
    ids = [part.decode() for part in reply]
    return None if ids == ["FENCED"] else ids


def refuse(token: str, waiting: Waiting) -> Call[str]:
    """Call that fails an unschedulable request; gives OK, GONE or FENCED."""
    return Call("refuse", (token, waiting.lane, waiting.member), _word)


# --- workers --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Begun:
    """What one id of a doorbell became. `word`: RUN (with payload and attempt), GONE or LATE."""

    id: str
    word: str
    payload: bytes = b""
    attempt: int = 0


def begin(inc: str, entry: str, delivery: str, ids: Sequence[str]) -> Call[list[Begun]]:
    """Call that starts the requests of a doorbell."""
    return Call("begin", (inc, entry, delivery, *ids), functools.partial(_parse_begin, ids))


def _parse_begin(ids: Sequence[str], reply: list[Any]) -> list[Begun]:
    pairs = zip(ids, reply[::2], reply[1::2], strict=True)
    return [Begun(i, "RUN", data, int(attempt)) if attempt else Begun(i, data.decode()) for i, data, attempt in pairs]


@dataclass(slots=True)
class Settlement:
    """How an attempt ended. `reason` is a word without `|`; `first_token_us` counts from its begin, -1 for none."""

    id: str
    delivery: str
    nonce: str
    outcome: Literal["ok", "bad", "failure", "retry"]
    reason: str
    body: bytes
    attempt: int
    first_token_us: int = -1
    prompt: int = 0
    completion: int = 0
    text_bytes: int = 0


def settle(inc: str, jitter: float, items: Sequence[Settlement]) -> Call[list[str]]:
    """Call that reports ends; `jitter` (0 to 1) scales the back-off. Gives OK, DUPLICATE or STALE for each."""
    args: list[Arg] = [inc, f"{jitter:.6f}"]
    for item in items:
        figures = f"{item.attempt}:{item.first_token_us}:{item.prompt}:{item.completion}:{item.text_bytes}"
        args += (item.id, item.delivery, item.nonce, item.outcome, item.reason, figures, item.body)
    return Call("settle", args, _words)


def hand_back(inc: str, items: Iterable[tuple[str, str]]) -> Call[str]:
    """Call that gives (id, delivery) back uncharged; gives OK."""
    return Call("hand_back", [inc, *(part for item in items for part in item)], _word)


@dataclass(frozen=True, slots=True)
class Published:
    """New tokens of a streaming request; `offset` counts the tokens of this attempt before them."""

    id: str
    delivery: str
    nonce: str
    attempt: int
    offset: int
    ids: bytes
    text: str


def flush(inc: str, items: Iterable[Published]) -> Call[list[str]]:
    """Call that publishes tokens; gives OK or STOP for each."""
    args: list[Arg] = [inc]
    for item in items:
        args += (item.id, item.delivery, item.nonce, item.attempt, item.offset, item.ids, item.text)
    return Call("flush", args, _words)


def incarnate() -> Call[int]:
    """Call that numbers the next start of a child."""
    return Call("incarnate", (), _number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a supervisor announces of an incarnation. `card`: msgpack, `identity`: its hash; else as in WorkerRecord."""

    inc: str
    worker: str
    number: int
    identity: str
    card: bytes
    capacity: int
    rows: int
    budget: int
    mode: str
    cache: str


@dataclass(frozen=True, slots=True)
class Registered:
    """Answer to `register`, and its `detail`: OK (generation), VOID (why), OTHER_MODEL (card), OTHER_H (in us)."""

    word: str
    detail: bytes = b""


def register(item: Registration, random: str, config: Config) -> Call[Registered]:
    """Call that announces an incarnation."""
    args = (
        item.inc,
        item.worker,
        item.number,
        config.heartbeat_ms * 1000,
        random,
        item.identity,
        item.card,
        item.capacity,
        item.rows,
        item.budget,
        item.mode,
        item.cache,
    )
    return Call("register", args, lambda reply: Registered(reply[0].decode(), *reply[1:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a supervisor says each H. `figures` are running totals; `costs` corrects (id, delivery) -> tokens."""

    inc: str
    generation: str
    accepting: bool
    capacity: int
    progress: int = 0
    rate: float = 0.0
    faults: int = 0
    successes: int = 0
    figures: Mapping[str, int]
    costs: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Beaten:
    """Answer to `beat`: OK (`named`: the (id, delivery) to stop and hand back), VOID or OTHER_H (`detail`)."""

    word: str
    drained: bool = False
    named: tuple[tuple[str, str], ...] = ()
    detail: str = ""


def beat(item: Beat, config: Config) -> Call[Beaten]:
    """Call that keeps an incarnation alive."""
    figures = ",".join(f"{name}={number}" for name, number in item.figures.items())
    args: list[Arg] = [item.inc, item.generation, config.heartbeat_ms * 1000, int(item.accepting), item.capacity]
    args += [item.progress, f"{item.rate:.3f}", item.faults, item.successes, figures]
    for (request_id, delivery), cost in item.costs.items():
        args += (request_id, delivery, cost)
    return Call("beat", args, _parse_beat)


def _parse_beat(reply: list[Any]) -> Beaten:
    word, *rest = [part.decode() for part in reply]
    if word != "OK":
        return Beaten(word, detail=rest[0])
    return Beaten(word, rest[0] == "1", tuple(zip(rest[1::2], rest[2::2], strict=True)))


@dataclass(frozen=True, slots=True)
class Reported:
    """The answer to a report. `quarantined`: it was given crash suspects, so its death says nothing about it."""

    word: str
    quarantined: bool


def report(inc: str, cause: str, crash_set: Sequence[str], obituary: bytes = b"") -> Call[Reported]:
    """Call that announces a child's death; `obituary` is the body of the failure of whoever is blamed for it."""
    return Call("report", (inc, cause, obituary, *crash_set), lambda reply: Reported(_word(reply), reply[1] == b"1"))


def deregister(inc: str) -> Call[str]:
    """Call that takes leave; gives OK or HELD."""
    return Call("deregister", (inc,), _word)


# --- replies --------------------------------------------------------------------------------------------------------


def _word(reply: list[Any]) -> str:
    return str(reply[0].decode())


def _words(reply: list[Any]) -> list[str]:
    return [part.decode() for part in reply]


def _number(reply: list[Any]) -> int:
    return int(reply[0])


def _fenced_number(reply: list[Any]) -> int:
    return FENCED if reply[0] == b"FENCED" else int(reply[0])
