"""Runs the calls of a state machine, and compares every answer and all of Redis with the model's.

A rule is made by `step`: it draws nothing but bytes, and takes its choices from them, so that a step costs one draw.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import hypothesis.strategies as st
import msgpack
import redis
from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine, rule

from machine.model import Life, Model
from stoker.config import Config
from stoker.store import scripts
from stoker.store.connection import Read
from stoker.store.keys import Keys
from stoker_ops.history import HistoryChecker
from stoker_ops.history import Life as Told

T = TypeVar("T")

CONFIG = Config(
    events=True,
    max_waiting=10,
    max_waiting_tokens=80,
    max_stored_bytes=20_000,
    tenant_max_waiting=5,
    tenant_max_tokens=40,
    max_losses=5,
    max_age_s=60,
    group=3,
    reply_len=16,
    wakeup_bytes=64,
    backoff_max_ms=4000,
    window_normal_s=1,
    window_low_s=3,
    window_batch_s=10,
    result_ttl_s=7200,
    tokens_ttl_s=900,
)
OTHER_H = Config(heartbeat_ms=2000)
H, LEASE = CONFIG.heartbeat_ms * 1000, CONFIG.lease_us
START = 1_700_000_000_000_000
TEN_MINUTES = 600_000_000
PLENTY = 10**9

CLOCK = "local now = tonumber(redis.call('GET', KEYS[1] .. 'vclock'))\n"
DUMP = """
local K, out = KEYS[1], {}
for _, key in ipairs(redis.call('KEYS', K .. '*')) do
  local name, t, value = string.sub(key, #K + 1), redis.call('TYPE', key).ok, nil
  if name ~= 'events' and name ~= 'vclock' then
    if t == 'string' then value = redis.call('GET', key)
    elseif t == 'hash' then value = redis.call('HGETALL', key)
    elseif t == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    elseif t == 'list' then value = redis.call('LRANGE', key, 0, -1)
    else value = redis.call('XRANGE', key, '-', '+') end
    local pending = string.sub(name, 1, 7) == 'stream:' and redis.call('XPENDING', key, 'workers')[1] or 0
    out[#out + 1] = {name, t, value, redis.call('PTTL', key), pending}
  end
end
return cmsgpack.pack({out, redis.call('XRANGE', K .. 'events', '(' .. ARGV[1], '+')})
"""

DICE = st.binary(min_size=48, max_size=48)
TICKS_US = (1_000, 0, 1, 20_000, 50_000, 100_000, 200_000, 250_000)


class Dice:
    """The choices of one step; where they run out, and when a failure is made smaller, the first or none is taken."""

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)

    def below(self, n: int) -> int:
        return next(self._bytes, 0) % n

    def chance(self, percent: int) -> bool:
        return next(self._bytes, 0) * 100 >= 256 * (100 - percent)

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def some(self, choices: Sequence[T], most: int) -> list[T]:
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(self.below(most + 1)) if left]


ACTS: dict[str, Callable[[Any, bytes], None]] = {}


def step(act: Callable[[Any], None]) -> Any:
    """Make a rule of `act`: a little later, with dice of its own; its calls may each be repeated verbatim."""

    def run(self: Any, dice: bytes) -> None:
        if self.out_of_time:
            return
        self.dice = Dice(dice)
        self.now += self.dice.pick(TICKS_US)
        self.again = self.dice.chance(20)
        try:
            act(self)
        except BaseException:
            type(self).until = math.inf  # what failed has all the time it needs to be made smaller
            raise

    run.__name__ = act.__name__
    ACTS[act.__name__] = run
    return rule(dice=DICE)(run)


class Compared(RuleBasedStateMachine):
    """Makes calls in Redis and in the model at once, and compares everything after each."""

    client: ClassVar[redis.Redis]
    shas: ClassVar[dict[str, str]]
    seen: ClassVar[Counter[tuple[str, str]]]
    until: ClassVar[float] = math.inf
    keys = Keys(CONFIG.queue)

    def __init__(self) -> None:
        super().__init__()
        self.now, self.unique, self.begun_at = START, 0, time.monotonic()
        self.dice, self.again = Dice(b""), False
        self.sent: list[tuple[str, tuple[Any, ...]]] = []
        self.spent: set[tuple[str, str] | str] = set()

    def begin_history(self) -> None:
        self.client.flushall()
        self.model, self.checker = Model(CONFIG, self.now), HistoryChecker(LEASE)
        self.place = b"0-0"
        self.sent.clear()
        self.spent.clear()

    @property
    def out_of_time(self) -> bool:
        """Whether the run's time is spent, or this history so old that keys with a TTL begin to go by themselves."""
        return time.process_time() > self.until or time.monotonic() > self.begun_at + 30

    def new(self) -> str:
        """Return a name that was never used."""
        self.unique += 1
        return f"x{self.unique}"

    def do(self, script: str, *args: Any) -> Any:
        """Make the call here and in the model; compare the answers and all of Redis; maybe do so again."""
        answer = self._once(script, args)
        self.sent.append((script, args))
        if self.again:
            before, entries = unfenced(self.model.expected()), self.checker.entries
            second = self._once(script, args)
            assert alike(script, args, answer, second), f"{script} answers {answer}, then {second}"
            if not may_change(script, answer):
                assert unfenced(self.model.expected()) == before, f"a repeated {script} changes something"
                assert self.checker.entries == entries, f"a repeated {script} makes history"
        return answer

    def _once(self, script: str, args: tuple[Any, ...]) -> Any:
        return self.do_all([(self.now, script, args)])[0]

    def do_all(self, calls: list[tuple[int, str, tuple[Any, ...]]]) -> list[Any]:
        """Make the calls, each at its time, and compare: every answer, and Redis after the last one."""
        pipeline = self.client.pipeline(transaction=False)
        expected, parsers, answers = [], [], []
        for now, script, args in calls:
            self.model.now = now
            call = getattr(scripts, script)(*args)
            parsers.append(call.parse)
            expected.append(tidy(getattr(self.model, script)(*args)))
            pipeline.set(self.keys.prefix + "vclock", now)
            pipeline.evalsha(self.shas[script], 1, self.keys.prefix, *call.args)
        pipeline.evalsha(self.shas["dump"], 1, self.keys.prefix, self.place)
        *replies, dump = pipeline.execute()
        for (now, script, args), parse, reply, wanted in zip(calls, parsers, replies[1::2], expected, strict=True):
            answer = tidy(parse(reply))
            answers.append(answer)
            plain = ", ".join(repr(arg) for arg in args if not isinstance(arg, Config))
            note(f"{now - START:>12} {script}({plain}) -> {answer}")
            self.seen[script, "calls"] += 1
            self.seen.update((script, word) for word in words("FENCED" if answer is None else answer))
            assert answer == wanted, f"{script} answers {answer}, expected {wanted}"
        self._compare(dump)
        for (_, script, args), answer in zip(calls, answers, strict=True):
            if script == "cancel" and answer == "OK":
                self.checker.cancelled(*args)
                assert not self.checker.violations, self.checker.violations
        return answers

    def look(self) -> None:
        """Compare all of Redis after something that no script did."""
        self._compare(self.client.evalsha(self.shas["dump"], 1, self.keys.prefix, self.place))

    def _compare(self, dump: bytes) -> None:
        rows, history = msgpack.unpackb(dump, raw=True)
        values, ttls, streams = {}, {}, {}
        for name, kind, value, ttl, pending in rows:
            key = name.decode()
            ttls[key] = ttl
            if key.startswith("stream:"):
                streams[key.removeprefix("stream:")] = (value, pending)
            else:
                values[key] = READ[kind](value)
        self._adopt(values)
        apart = self._told_apart(values)
        assert not apart, f"Redis is not as it should be: {apart}"
        self._compare_streams(streams)
        self._compare_ttls(ttls)
        self._compare_history(history, values)

    def _told_apart(self, values: dict[str, Any]) -> dict[str, Any]:
        expected = self.model.expected()
        if values == expected:
            return {}
        names = sorted(name for name in {*values, *expected} if values.get(name) != expected.get(name))
        return {name: {"is": values.get(name), "expected": expected.get(name)} for name in names}

    def _adopt(self, values: dict[str, Any]) -> None:
        """Take over the order of a hash, and of what one call pushed, where any order is right."""
        for name, inc in self.model.incs.items():
            order = values.get(f"work:{name}", {})
            if order.keys() == inc.work.keys():
                inc.work = {request_id: inc.work[request_id] for request_id in order}
        for client, n in self.model.fresh_replies.items():
            wakes, actual = self.model.replies[client], values.get(f"reply:{client}", [])
            if sorted(wakes[-n:]) == sorted(actual[-n:]):
                self.model.replies[client] = wakes[:-n] + actual[-n:]
        self.model.fresh_replies.clear()

    def _compare_streams(self, streams: dict[str, Any]) -> None:
        assert streams.keys() == self.model.incs.keys(), f"streams of {list(streams)}"
        for name, inc in self.model.incs.items():
            entries, pending = streams[name]
            bells = {}
            for entry, fields in entries:
                told = read_hash(fields)
                named = told["leave"] if "leave" in told else told["ids"]
                bells[entry.decode()] = (told["delivery"].decode(), frozenset(named.decode().split()))
            fresh = Counter(bell for entry, bell in bells.items() if entry not in inc.bells)
            assert inc.bells.items() <= bells.items(), f"doorbells of {name}: {bells}, expected {inc.bells}"
            assert fresh == Counter(inc.rung), f"new doorbells of {name}: {fresh}, expected {inc.rung}"
            assert pending == len(inc.pending), f"{pending} pending doorbells of {name}, expected {inc.pending}"
            inc.bells, inc.rung = bells, []

    def _compare_ttls(self, ttls: dict[str, int]) -> None:
        for name, ttl in ttls.items():
            most = self.model.ttl(name) if not name.startswith("stream:") else 0
            assert (most - 50_000 < ttl <= most) if most else ttl == -1, f"TTL of {name} is {ttl}, expected {most}"

    def _compare_history(self, history: list[Any], values: dict[str, Any]) -> None:
        for entry, fields in history:
            self.place = entry
            self.checker.feed_all([dict(zip(fields[::2], fields[1::2], strict=True))])
        assert not self.checker.violations, self.checker.violations
        live = {request_id: told(life) for request_id, life in self.model.lives.items()}
        theirs = {request_id: told(life) for request_id, life in self.checker.live.items()}
        assert theirs == live, f"the history tells {theirs}, expected {live}"
        counts = {name: int(number) for name, number in values.get("counts", {}).items()}
        totals = self.checker.totals()
        ended = {name: totals[name] for name in ("submitted", "succeeded", "failed", "expired", "cancelled")}
        assert ended == {name: counts.get(name, 0) for name in ended}, f"counts are {counts}, the history tells {ended}"
        for suffix in ("", ":t1", ":t2"):  # I9
            alive = sum(suffix in ("", f":{life.head['tenant']}") for life in self.model.lives.values())
            over = sum(counts.get(name + suffix, 0) for name in ended if name != "submitted")
            assert counts.get("submitted" + suffix, 0) == alive + over, f"I9: {counts}, {alive} live"

    def read(self, read: Read[T]) -> T:
        """Read as a process does."""
        return read.parse([self.client.execute_command(*command) for command in read.commands])

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.seen.update(("end", end) for end in self.model.ends)


def words(answer: Any) -> list[str]:
    """The words in an answer, to count which of them a run has seen."""
    if isinstance(answer, list | tuple):
        return [word for part in answer for word in words(part)] or ["none"]
    if isinstance(answer, scripts.Dispatched):
        return [answer.word, *(words(list(answer.words)) if answer.word == "OK" else [])]
    if isinstance(answer, scripts.Beaten):
        return [answer.word, "named"] if answer.named else [answer.word]
    if isinstance(answer, int):
        return ["more" if answer > 0 else str(answer)]
    return [getattr(answer, "word", "") or (answer if isinstance(answer, str) and answer.isupper() else "some")]


def told(life: Life | Told) -> tuple[object, ...]:
    """A live request as the history tells it, and as the model knows it."""
    if isinstance(life, Told):
        delivery = life.delivery if life.state in ("dispatched", "running") else ""
        return (life.nonce, life.state[0], life.attempts, life.failures, delivery)
    state = {"Q": "q", "D": "d", "R": "r", "Y": "d"}[life.state]
    return (life.nonce, state, life.attempts, life.failures, life.delivery)


def tidy(answer: Any) -> Any:
    """Put in order what may come in any."""
    if isinstance(answer, scripts.Beaten):
        return dataclasses.replace(answer, named=tuple(sorted(answer.named)))
    if isinstance(answer, list) and answer and all(isinstance(part, str) and not part.isupper() for part in answer):
        return sorted(answer)
    return answer


def alike(script: str, args: tuple[Any, ...], first: Any, second: Any) -> bool:
    """Whether the caller treats the answer to a repeated call as it does the first one."""
    match script:
        case "submit":
            same = {"ACCEPTED": "SAME"}
            again = [same.get(one.word, one.word) for one in first[1]]
            return first[0] == second[0] and again == [one.word for one in second[1]]
        case "dispatch" if first.word == "FENCED":
            return bool(second.word == "FENCED")
        case "dispatch":
            took = set(first.words)
            if first.word == "OK":
                took = {item.id for (item, _), word in zip(args[3], first.words, strict=True) if word == "TOOK"}
            return (second.word, second.delivery, set(second.words)) == ("SEEN", first.delivery, took)
        case "begin":
            same = {"LATE": "GONE"}
            return [(one.id, same.get(one.word, one.word), one.payload, one.attempt) for one in first] == [
                (one.id, one.word, one.payload, one.attempt) for one in second
            ]
        case "refuse":
            return second == ("GONE" if first == "OK" else first)
        case "settle" | "incarnate" | "expire" | "reclaim" | "promote" | "purge_dead":
            return type(first) is type(second)
        case _:
            return bool(first == second)


def unfenced(keys: dict[str, Any]) -> dict[str, Any]:
    """Everything but the number of fenced settlements: each of them counts, repeated ones too."""
    return keys | {"counts": {name: number for name, number in keys.get("counts", {}).items() if name != "fenced"}}


def may_change(script: str, answer: Any) -> bool:
    """Whether a repeated call may change more: a number is used up, and what moves a group at a time moves the next."""
    match script:
        case "incarnate":
            return True
        case "expire":
            return len(answer or ()) >= CONFIG.group
        case "promote":
            return bool(answer >= CONFIG.group)
        case "reclaim":
            return bool(answer > 0)
        case _:
            return False


def read_hash(value: list[bytes]) -> dict[str, bytes]:
    return {name.decode(): part for name, part in zip(value[::2], value[1::2], strict=True)}


READ: dict[bytes, Callable[[Any], Any]] = {
    b"string": bytes,
    b"list": list,
    b"hash": read_hash,
    b"zset": lambda value: {name: int(float(score)) for name, score in read_hash(value).items()},
    b"stream": lambda value: [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in value],
}
