"""A queue whose clock the tests set: quick calls of every script, and dumps of all its keys to compare.

Values come out of `dump` as a reader would want them: records as dicts by field name, sorted sets as member -> score,
digits as ints. `changes(before, after)` is what a call did: a complete answer, so that a test that compares it sees
every write.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import redis

from stoker.config import Config
from stoker.request import InferenceRequest
from stoker.store import codec, reads
from stoker.store import scripts as s
from stoker.store.connection import Store
from stoker.store.records import Waiting, parse_tail

H, T, L = 1_000_000, 3_300_000, 3_000_000
"""Heartbeat, lease of a worker and lease of the leader of the test queue, in microseconds."""

START = 1_700_000_000_000_000
NORMAL = 60_000_000
"""What a score of class normal adds to its arrival."""

CLOCK = "local now = tonumber(redis.call('GET', KEYS[1] .. 'vclock'))\n"
SETTINGS: dict[str, Any] = {
    "events": True,
    "heartbeat_ms": H // 1000,
    "result_ttl_s": 1000,
    "dead_ttl_s": 2000,
    "reply_ttl_s": 3000,
    "tokens_ttl_s": 4000,
    "reply_len": 16,
    "wakeup_bytes": 64,
}
RESULT_TTL, DEAD_TTL, REPLY_TTL, TOKENS_TTL, VOID_TTL, BELL_TTL, DAY = 1000, 2000, 3000, 4000, 3600, 60, 86_400

A, B, C, D = "a:1-x", "b:1-x", "c:1-x", "d:1-x"
"""Incarnations: each the first start of a worker of that letter."""

HEADER = [
    "version",
    "nonce",
    "digest",
    "class",
    "tenant",
    "timeout",
    "term",
    "tail",
    "bytes",
    "reply",
    "stream",
    "link",
]
FLIGHT = [
    "delivery",
    "state",
    "score",
    "attempts",
    "failures",
    "losses",
    "group",
    "solo",
    "begun",
    "history",
    "nonce",
    "digest",
    "class",
    "tenant",
    "tail",
    "bytes",
    "reply",
    "stream",
    "accepted",
    "deadline",
]
MEMBER = ["delivery", "cost", "state", "since", "class", "before"]
INC = [
    "worker",
    "identity",
    "capacity",
    "rows",
    "budget",
    "mode",
    "cache",
    "life",
    "accepting",
    "drained",
    "progress",
    "rate",
    "faults",
    "successes",
    "figures",
    "cause",
    "crashed",
]
RESULT = [
    "state",
    "nonce",
    "digest",
    "id",
    "accepted",
    "begun",
    "settled",
    "attempts",
    "reason",
    "inc",
    "history",
    "size",
]
DEAD = ["time", "reason", "attempts", "failures", "losses", "history", "size"]

Value = Any
Dump = dict[str, Value]


# --- dumps ----------------------------------------------------------------------------------------------------------


class _Gone:
    def __repr__(self) -> str:
        return "GONE"


GONE = _Gone()
"""What `changes` gives for what is there no more."""


class Added(list[Value]):
    """What `changes` gives for a list or stream that only grew: the new elements."""


def plain(text: bytes | str) -> int | str:
    """Return digits as an int, anything else as text."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return int(text) if text.removeprefix("-").isdigit() else text


def fields(names: Sequence[str], data: bytes) -> dict[str, Value]:
    """Return a text record by its field names."""
    parts = data.split(b"|")
    assert len(parts) == len(names), data
    return {name: plain(part) for name, part in zip(names, parts, strict=True)}


def _headed(names: Sequence[str], data: bytes) -> tuple[dict[str, Value], bytes]:
    *parts, rest = data.split(b"|", len(names))
    return {name: plain(part) for name, part in zip(names, parts, strict=True)}, rest


def payload_value(data: bytes) -> dict[str, Value]:
    """Return a payload by field names, with when it was accepted and its body."""
    header, body = _headed(HEADER, data[codec.STAMP :])
    return {"accepted": int(data[: codec.STAMP]), **header, "body": body}


def result_value(data: bytes) -> dict[str, Value]:
    """Return a result, or an element of a reply channel, by field names, with its body."""
    head, body = _headed(RESULT, data)
    return head | {"body": body}


def _dead_value(data: bytes) -> dict[str, Value]:
    head, rest = _headed(DEAD, data)
    return head | {"body": rest[: head["size"]], "payload": payload_value(rest[head["size"] :])}


def _string(name: str, data: bytes) -> Value:
    kind = name.partition(":")[0] if ":" in name else ""
    readers: dict[str, Callable[[bytes], Value]] = {
        "payload": payload_value,
        "flight": lambda record: fields(FLIGHT, record),
        "result": result_value,
        "dead": _dead_value,
    }
    return readers.get(kind, plain)(data)


def _hash(name: str, pairs: dict[bytes, bytes]) -> Value:
    records = {"work": MEMBER, "inc": INC}.get(name.partition(":")[0])
    return {field.decode(): fields(records, value) if records else plain(value) for field, value in pairs.items()}


def _zset(_: str, pairs: list[tuple[bytes, float]]) -> Value:
    return {member.decode(): int(score) for member, score in pairs}


def _list(name: str, items: list[bytes]) -> Value:
    return [result_value(item) if name.startswith("reply:") else plain(item) for item in items]


def _stream(name: str, found: list[tuple[bytes, dict[bytes, bytes]]]) -> Value:
    entries = [{k.decode(): plain(v) for k, v in pairs.items()} for _, pairs in found]
    if name.startswith("tokens:"):
        places = [place.decode() for place, _ in found]
        return [{"entry": at, **e} if "ids" in e else e for at, e in zip(places, entries, strict=True)]
    if name == "events":
        return [(e["script"], e["time"], str(e["by"]), *str(e["lines"]).split("\n")) for e in entries]
    if name.startswith("stream:"):
        return {"bells": [f"leave {e['leave']}" if "leave" in e else f"{e['delivery']} {e['ids']}" for e in entries]}
    return entries


READERS: dict[bytes, tuple[Callable[[Any, str], Any], Callable[[str, Any], Value]]] = {
    b"string": (lambda pipe, key: pipe.get(key), _string),
    b"hash": (lambda pipe, key: pipe.hgetall(key), _hash),
    b"zset": (lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True), _zset),
    b"list": (lambda pipe, key: pipe.lrange(key, 0, -1), _list),
    b"stream": (lambda pipe, key: pipe.xrange(key), _stream),
}
"""For each type: the command that reads it, and what makes a value of the reply."""


def _all(client: Any, ask: Callable[[Any, str], Any], keys: Sequence[str]) -> list[Any]:
    pipe = client.pipeline(transaction=False)
    for key in keys:
        ask(pipe, key)
    return list(pipe.execute())


def _metadata(client: Any, prefix: str) -> dict[str, tuple[bytes, int]]:
    """Return every key of the queue, without its prefix, with its type and its PTTL."""
    names = sorted(key.decode().removeprefix(prefix) for key in client.scan_iter(match=prefix + "*", count=1000))
    keys = [prefix + name for name in names]
    types = _all(client, lambda pipe, key: pipe.type(key), keys)
    left = _all(client, lambda pipe, key: pipe.pttl(key), keys)
    return {name: (kind, ms) for name, kind, ms in zip(names, types, left, strict=True) if name != "vclock"}


def shapes(client: Any, prefix: str) -> dict[str, tuple[str, bool]]:
    """Return every key of the queue, without its prefix, with its type and whether it has a TTL."""
    return {name: (kind.decode(), ms >= 0) for name, (kind, ms) in _metadata(client, prefix).items()}


def dump(client: Any, prefix: str) -> Dump:
    """Return every key of the queue with its value; under `ttl` the seconds (to the next 10) of those that have one."""
    found = _metadata(client, prefix)
    out: Dump = {}
    for kind, (ask, read) in READERS.items():
        names = [name for name, (its, _) in found.items() if its == kind]
        replies = _all(client, ask, [prefix + name for name in names])
        out |= {name: read(name, reply) for name, reply in zip(names, replies, strict=True)}
    streams = [name for name in out if name.startswith("stream:")]
    groups = _all(client, lambda pipe, key: pipe.xpending(key, "workers"), [prefix + name for name in streams])
    for name, group in zip(streams, groups, strict=True):
        out[name]["pending"] = group["pending"]
    lives = {name: math.ceil(ms / 10_000) * 10 for name, (_, ms) in found.items() if ms >= 0}
    return dict(sorted(out.items())) | {"ttl": lives}


def changes(before: Dump, after: Dump) -> Dump:
    """Return what differs, nested like the dumps: new values, `GONE`, and `Added` for what only grew."""
    names = sorted(before.keys() | after.keys())
    pairs = {name: (before.get(name, GONE), after.get(name, GONE)) for name in names}
    return {name: _change(old, new) for name, (old, new) in pairs.items() if old != new}


def _change(old: Value, new: Value) -> Value:
    if isinstance(old, dict) and isinstance(new, dict):
        return changes(old, new)
    if isinstance(new, list) and (old is GONE or (isinstance(old, list) and new[: len(old)] == old)):
        return Added(new[0 if old is GONE else len(old) :])
    return new


# --- the queue ------------------------------------------------------------------------------------------------------


def member(
    delivery: str, cost: int = 7, state: str = "D", since: int = 0, name: str = "normal", before: int = 0
) -> dict[str, Value]:
    """Return a member of a work hash as `dump` shows it; `name`: its class."""
    return {"delivery": delivery, "cost": cost, "state": state, "since": since, "class": name, "before": before}


def ok(request_id: str, delivery: str, **more: Any) -> s.Settlement:
    """Return a success of the first attempt, of the life that `Queue.submit` gives an id."""
    return settlement(request_id, delivery, "ok", **({"reason": "stop", "body": b"done"} | more))


def settlement(
    request_id: str, delivery: str, outcome: Literal["ok", "bad", "failure", "retry"], **more: Any
) -> s.Settlement:
    """Return how an attempt ended, of the life that `Queue.submit` gives an id."""
    rest: dict[str, Any] = {"nonce": f"n-{request_id}", "reason": "error", "body": b"", "attempt": 1} | more
    return s.Settlement(request_id, delivery, outcome=outcome, **rest)


@functools.cache
def _config(url: str | None, settings: tuple[tuple[str, Any], ...]) -> Config:
    return Config(redis_url=url, **dict(settings))


class Queue:
    """One queue in an empty Redis: every script as a method that speaks of ids, and a clock that stands still."""

    def __init__(self, url: str | None = None, *, client: Any = None, **settings: Any) -> None:
        """Connect; `settings` replace those of the test queue."""
        self.config = _config(url, tuple(sorted((SETTINGS | settings).items())))
        self.store = Store(self.config, clock=CLOCK, client=client)
        self.keys = self.store.keys
        self.redis = client or redis.Redis.from_url(str(url))
        self.sent: dict[str, codec.Submission] = {}
        self.accepted: dict[str, int] = {}
        self.token = ""
        self.n = 0
        self.now = START

    @property
    def now(self) -> int:
        """The clock of Redis, in microseconds."""
        return self._now

    @now.setter
    def now(self, value: int) -> None:
        self._now = value
        self.redis.set(self.keys.prefix + "vclock", value)

    def dump(self) -> Dump:
        """Return every key of the queue."""
        return dump(self.redis, self.keys.prefix)

    def before(self) -> Dump:
        """Silence the scheduler's bell, so that ringing it shows, and return every key of the queue."""
        self.redis.delete(self.keys.bell)
        return self.dump()

    def key(self, name: str) -> str:
        """Return the full name of a key."""
        return self.keys.prefix + name

    def set(self, name: str, value: int | str) -> None:
        """Write a string key behind the scripts' back."""
        self.redis.set(self.key(name), value)

    def tick(self, us: int, *beating: str) -> None:
        """Let time pass with schedulers and these incarnations alive: no gap is longer than H."""
        end = self.now + us
        while self.now < end:
            self.now = min(self.now + H, end)
            self.lead()
            for inc in beating:
                self.beat(inc)

    # --- clients

    def encode(
        self,
        request_id: str,
        nonce: str | None = None,
        reply: str = "c",
        displace: bool = False,
        check_deadline: bool = True,
        **request: Any,
    ) -> codec.Submission:
        """Return a request of 3 prompt tokens and at most 4 new ones, unless `request` says otherwise."""
        wanted = InferenceRequest(**({"prompt_tokens": [1, 2, 3], "max_tokens": 4} | request))
        return codec.encode(
            wanted,
            request_id=request_id,
            nonce=nonce or f"n-{request_id}",
            reply=reply,
            config=self.config,
            displace=displace,
            check_deadline=check_deadline,
        )

    def submit_all(self, items: Sequence[codec.Submission], random: str = "g", max_bytes: int = 10**9) -> list[str]:
        """Submit in one call; give the words."""
        _, answers = self.store.run(s.submit(random, max_bytes, items))
        for item, answer in zip(items, answers, strict=True):
            if answer.word == "ACCEPTED":
                self.sent[item.id] = item
                self.accepted[item.id] = self.now
        return [answer.word for answer in answers]

    def submit(self, *ids: str, max_bytes: int = 10**9, **request: Any) -> list[str]:
        """Submit alike requests in one call; give the words."""
        return self.submit_all([self.encode(request_id, **request) for request_id in ids], max_bytes=max_bytes)

    def cancel(self, request_id: str, nonce: str = "") -> str:
        """Cancel."""
        return self.store.run(s.cancel(request_id, nonce))

    # --- schedulers

    def lead(self, me: str = "s:1", generation: str = "", random: str = "g", forecast: str = "") -> s.Lead:
        """Take or renew the lease; the default scheduler's token is remembered."""
        answer = self.store.run(s.lead(me, generation, random, self.config, s.told({}, {}, forecast, {}, {})))
        if answer.word == "LEADER" and me == "s:1":
            self.n = self.n if answer.token == self.token else 0
            self.token = answer.token
        return answer

    def waiting(self, request_id: str, lane: str | None = None) -> Waiting:
        """Return a request as the scheduler sees it, in the lane where it lies unless another is named."""
        sent = self.header(request_id)
        record = self.redis.get(self.key(f"flight:{request_id}"))
        suspect = record is not None and fields(FLIGHT, record)["group"] != ""
        tail = str(sent["tail"])
        prompt, most, exact, affinity = parse_tail(tail)
        return Waiting(
            request_id,
            lane or ("suspect" if suspect else ":".join(filter(None, (str(sent["class"]), str(sent["tenant"]))))),
            f"{request_id}:{tail}",
            0.0,
            prompt,
            most,
            exact,
            affinity=affinity,
        )

    def offer(self, inc: str, *ids: str, cost: int | None = None, lane: str | None = None) -> s.Dispatched:
        """Dispatch with the next n, to see the answer."""
        self.n += 1
        return self.offer_again(inc, *ids, cost=cost, lane=lane)

    def offer_again(
        self, inc: str, *ids: str, cost: int | None = None, lane: str | None = None, token: str | None = None
    ) -> s.Dispatched:
        """Dispatch with the n used last."""
        offered = [self.waiting(request_id, lane) for request_id in ids]
        call = s.dispatch(token or self.token, self.n, inc, [(w, w.cost if cost is None else cost) for w in offered])
        return self.store.run(call)

    def dispatch(self, inc: str, *ids: str, **more: Any) -> str:
        """Dispatch what must be taken; give the delivery."""
        answer = self.offer(inc, *ids, **more)
        assert answer == s.Dispatched("OK", answer.delivery, ("TOOK",) * len(ids))
        return answer.delivery

    def reclaim(self, inc: str, token: str | None = None) -> int:
        """Take back what an incarnation holds."""
        return self.store.run(s.reclaim(token or self.token, inc))

    def promote(self, token: str | None = None) -> int:
        """End due delays."""
        return self.store.run(s.promote(token or self.token))

    def expire(self, token: str | None = None) -> list[str] | None:
        """End what is late."""
        return self.store.run(s.expire(token or self.token))

    # --- workers

    def register(self, inc: str, random: str = "g", **more: Any) -> s.Registered:
        """Announce an incarnation of a worker with room for 100 tokens in 8 rows."""
        worker, _, start = inc.rpartition(":")
        announced: dict[str, Any] = {
            "worker": worker,
            "number": int(start.partition("-")[0]),
            "identity": "m",
            "card": b"\x80",
            "capacity": 100,
            "rows": 8,
            "budget": 64,
            "mode": "continuous",
            "cache": "paged",
        }
        return self.store.run(s.register(s.Registration(inc=inc, **(announced | more)), random, self.config))

    def beat(self, inc: str, **more: Any) -> s.Beaten:
        """Beat as an idle, healthy worker of `register` would."""
        said: dict[str, Any] = {"generation": "g", "accepting": True, "capacity": 100, "figures": {}, "costs": {}}
        return self.store.run(s.beat(s.Beat(inc=inc, **(said | more)), self.config))

    def entry(self, inc: str, delivery: str) -> str:
        """Return the stream entry of a delivery's first doorbell, 0-1 when it is gone."""
        for entry, pairs in self.redis.xrange(self.keys.stream(inc)):
            if pairs[b"delivery"].decode() == delivery:
                return str(entry.decode())
        return "0-1"

    def read(self, inc: str) -> list[reads.Doorbell]:
        """Read new doorbells as a child does, so that they are pending."""
        return self.store.read(reads.doorbells(self.keys, inc, own=False, block_ms=1, count=100))

    def begin(self, inc: str, delivery: str, *ids: str) -> list[str]:
        """Begin; give the word of each id."""
        return [begun.word for begun in self.begun(inc, delivery, *ids)]

    def begun(self, inc: str, delivery: str, *ids: str) -> list[s.Begun]:
        """Begin; give the whole answers."""
        return self.store.run(s.begin(inc, self.entry(inc, delivery), delivery, ids))

    def start(self, inc: str, *ids: str, **more: Any) -> str:
        """Dispatch and begin what must run; give the delivery."""
        delivery = self.dispatch(inc, *ids, **more)
        assert self.begin(inc, delivery, *ids) == ["RUN"] * len(ids)
        return delivery

    def settle(self, inc: str, *items: s.Settlement, jitter: float = 0.5) -> list[str]:
        """Report ends."""
        return self.store.run(s.settle(inc, jitter, items))

    def hand_back(self, inc: str, *items: tuple[str, str]) -> str:
        """Give back."""
        return self.store.run(s.hand_back(inc, items))

    def report(self, inc: str, cause: str, *crash_set: str, obituary: bytes = b"") -> str:
        """Announce a child's death."""
        return self.store.run(s.report(inc, cause, crash_set, obituary)).word

    def lose(self, inc: str, cause: str, *crash_set: str, obituary: bytes = b"") -> None:
        """Let an incarnation die and take back what it held."""
        self.report(inc, cause, *crash_set, obituary=obituary)
        assert self.reclaim(inc) == 0

    # --- what should be there

    def header(self, request_id: str) -> dict[str, Value]:
        """Return the header that an id was last accepted with."""
        return _headed(HEADER, self.sent[request_id].header)[0]

    def size(self, request_id: str) -> int:
        """Return the bytes by which an id counts as waiting."""
        return int(self.header(request_id)["bytes"])

    def payload(self, request_id: str) -> dict[str, Value]:
        """Return the payload that must lie in Redis."""
        return {
            "accepted": self.accepted[request_id],
            **self.header(request_id),
            "body": self.sent[request_id].body,
        }

    def deadline(self, request_id: str) -> int:
        """Return when an id is late, 0 for never."""
        timeout = int(self.header(request_id)["timeout"])
        return self.accepted[request_id] + timeout if timeout else 0

    def flight(self, request_id: str, **known: Value) -> dict[str, Value]:
        """Return a flight record: what was copied from the header, with `known` on top."""
        sent = self.header(request_id)
        blank = {"delivery": "", "state": "Q", "score": "", "attempts": 0, "failures": 0, "losses": 0}
        blank |= {"group": "", "solo": 0, "begun": "", "history": ""}
        copied = {name: sent[name] for name in FLIGHT if name in sent}
        times = {"accepted": self.accepted[request_id], "deadline": self.deadline(request_id)}
        return blank | copied | times | known

    def result(self, request_id: str, state: str, body: bytes = b"", **known: Value) -> dict[str, Value]:
        """Return a result that was settled now, with `known` on top."""
        sent = self.header(request_id)
        head = {"state": state, "nonce": sent["nonce"], "digest": sent["digest"], "id": plain(request_id)}
        head |= {"accepted": self.accepted[request_id], "begun": "", "settled": self.now, "attempts": 0}
        head |= {"reason": "", "inc": "", "history": "", "size": len(body), "body": body}
        return head | known

    def inc(self, inc: str, **known: Value) -> dict[str, Value]:
        """Return the record of an incarnation as `register` makes it, with `known` on top."""
        first = {"worker": inc.rpartition(":")[0], "identity": "m", "capacity": 100, "rows": 8, "budget": 64}
        first |= {"mode": "continuous", "cache": "paged", "life": "live", "accepting": 1, "drained": 0, "progress": 0}
        first |= {"rate": 0, "faults": 0, "successes": 0, "figures": "", "cause": "", "crashed": ""}
        return first | known

    def event(self, script: str, by: str, *lines: str) -> tuple[Value, ...]:
        """Return an entry of the history as `dump` shows it."""
        return (script, self.now, by, *lines)


MakeQueue = Callable[..., Queue]
