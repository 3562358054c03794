"""Random calls of every script against a real Redis, each answer and all of Redis compared with the model's.

The clock is virtual. A failure prints the calls that lead to it, and the seed. `HYPOTHESIS_PROFILE=long` looks further,
`HYPOTHESIS_SEED=<n>` repeats a run.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import SystemRandom
from typing import Any, ClassVar, TypeVar

import hypothesis.strategies as st
import msgpack
import pytest
import redis
from hypothesis import HealthCheck, note, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from machine.model import Life, Model, renewed
from stoker.config import Config
from stoker.request import InferenceRequest, RequestPriority
from stoker.store import codec, reads, scripts
from stoker.store.connection import Read
from stoker.store.keys import Keys
from stoker.store.records import Waiting
from stoker_ops.embedded import EmbeddedRedis
from stoker_ops.history import HistoryChecker
from stoker_ops.history import Life as Told

T = TypeVar("T")

CONFIG = Config(
    events=True,
    max_waiting=10,
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


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a worker knows of a request that it was handed."""

    inc: str
    id: str
    delivery: str
    nonce: str = ""
    number: int = 0
    stream: bool = False


ACTS: dict[str, Callable[[Any, bytes], None]] = {}
OFTEN = (
    "submit",
    "dispatch",
    "begin",
    "settle",
    "settle",
    "serve",
    "serve",
    "hand_back",
    "id_comes_back",
    "lose",
    "time_out",
)


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


class Machine(RuleBasedStateMachine):
    """Clients, schedulers, supervisors and children, all confused, late and sometimes dead."""

    client: ClassVar[redis.Redis]
    shas: ClassVar[dict[str, str]]
    seen: ClassVar[Counter[tuple[str, str]]]
    until: ClassVar[float] = math.inf
    keys = Keys(CONFIG.queue)

    def __init__(self) -> None:
        super().__init__()
        self.now, self.unique, self.begun_at = START, 0, time.monotonic()
        self.dice, self.again = Dice(b""), False
        self.tokens: list[str] = []
        self.schedulers = {name: [f"{name}:{self._new()}", ""] for name in ("s1", "s2")}
        self.submissions: list[codec.Submission] = []
        self.registrations: list[scripts.Registration] = []
        self.handed: list[Attempt] = []
        self.begun: list[Attempt] = []
        self.named: list[Attempt] = []
        self.rung: list[tuple[str, reads.Doorbell]] = []
        self.waited: list[Waiting] = []

    def _begin_history(self) -> None:
        self.client.flushall()
        self.model, self.checker = Model(CONFIG, self.now), HistoryChecker(LEASE)
        self.place = b"0-0"
        self.sent: list[tuple[str, tuple[Any, ...]]] = []
        self.spent: set[tuple[str, str] | str] = set()

    @property
    def out_of_time(self) -> bool:
        """Whether the run's time is spent, or this history so old that keys with a TTL begin to go by themselves."""
        return time.monotonic() > min(self.until, self.begun_at + 30)

    def _new(self) -> str:
        self.unique += 1
        return f"x{self.unique}"

    # --- calling and comparing --------------------------------------------------------------------------------------

    def do(self, script: str, *args: Any) -> Any:
        """Make the call here and in the model; compare the answers and all of Redis; maybe do so again."""
        answer = self._once(script, args)
        self.sent.append((script, args))
        if self.again:
            before, entries = self.model.expected(), self.checker.entries
            second = self._once(script, args)
            assert alike(script, args, answer, second), f"{script} answers {answer}, then {second}"
            if not may_change(script, answer):
                assert self._told_apart(before) == {}, f"a repeated {script} changes something"
                assert self.checker.entries == entries, f"a repeated {script} makes history"
        return answer

    def _once(self, script: str, args: tuple[Any, ...]) -> Any:
        return self._all([(self.now, script, args)])[0]

    def _all(self, calls: list[tuple[int, str, tuple[Any, ...]]]) -> list[Any]:
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
                assert not self.checker.violations
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
        assert self._told_apart(values) == {}
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
        assert streams.keys() == self.model.incs.keys()
        for name, inc in self.model.incs.items():
            entries, pending = streams[name]
            bells = {}
            for entry, fields in entries:
                told = read_hash(fields)
                bells[entry.decode()] = (told["delivery"].decode(), frozenset(told["ids"].decode().split()))
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
        assert not self.checker.violations
        live = {request_id: told(life) for request_id, life in self.model.lives.items()}
        assert {request_id: told(life) for request_id, life in self.checker.live.items()} == live
        counts = {name: int(number) for name, number in values.get("counts", {}).items()}
        totals = self.checker.totals()
        ended = {name: totals[name] for name in ("submitted", "succeeded", "failed", "expired", "cancelled")}
        assert ended == {name: counts.get(name, 0) for name in ended}
        for suffix in ("", ":t1", ":t2"):  # I9
            alive = sum(suffix in ("", f":{life.head['tenant']}") for life in self.model.lives.values())
            over = sum(counts.get(name + suffix, 0) for name in ended if name != "submitted")
            assert counts.get("submitted" + suffix, 0) == alive + over

    # --- who is there -----------------------------------------------------------------------------------------------

    @property
    def generation(self) -> str:
        return str(self.model.scalars.get("generation", ""))

    def token(self) -> str:
        """The leader's token; sometimes that of one who led."""
        now = str(self.model.leader.get("token", "0:s1:x0"))
        return self.dice.pick(self.tokens[::-1] or [now]) if self.dice.chance(6) else now

    def incs(self) -> list[str]:
        """All incarnations that ever were, the latest first."""
        return [item.inc for item in reversed(self.registrations)] or ["w0:0-x0"]

    def inc(self, *, closed: bool = False) -> str:
        """An incarnation: one that is registered and live (or not), or sometimes any."""
        fit = [name for name, inc in self.model.incs.items() if (inc.life != "live") == closed]
        return self.dice.pick(self.incs() if not fit or self.dice.chance(8) else fit)

    def ready(self) -> list[str]:
        """The incarnations that take work."""
        return [n for n, inc in self.model.incs.items() if inc.life == "live" and inc.accepting and not inc.drained]

    def running(self, inc: str) -> list[str]:
        work = self.model.incs[inc].work if inc in self.model.incs else {}
        return [request_id for request_id, member in work.items() if member.state == "R"]

    def holds(self, attempt: Attempt) -> bool:
        inc = self.model.incs.get(attempt.inc)
        member = inc.work.get(attempt.id) if inc else None
        return member is not None and member.delivery == attempt.delivery

    # --- clients ----------------------------------------------------------------------------------------------------

    def _request(self, *, stream: bool = False) -> codec.Submission:
        dice, known = self.dice, self.submissions[-8:] if not stream else []
        if known and dice.chance(12):
            return dice.pick(known)
        if known and dice.chance(15):
            return renewed(dice.pick(known), self._new())
        fields: dict[str, Any] = {"prompt_tokens": [7] * (1 + dice.below(6))}
        if dice.chance(15):
            fields = {"prompt": "x" * (1 + dice.below(20))}
        request = InferenceRequest(
            max_tokens=1 + dice.below(10),
            priority=dice.pick([RequestPriority.NORMAL, *RequestPriority]),
            timeout=dice.pick([None, None, None, 0.4, 2.0, 9.0, 30.0]),
            tenant=dice.pick([None, "t1", "t2"]),
            stream=stream or dice.chance(25),
            **fields,
        )
        name = f"r{dice.below(6)}" if dice.chance(40) else self._new()
        reply = dice.pick(["c1", "c2", ""])
        return codec.encode(request, request_id=name, nonce=self._new(), reply=reply, config=CONFIG)

    @step
    def submit(self) -> None:
        items = [self._request() for _ in range(1 + self.dice.below(2))]
        if self.dice.chance(6):
            items.append(self.dice.pick(items))
        self._submit(items)

    @step
    def submit_again(self) -> None:
        # A repeated call of a client, in other company.
        items = self.dice.some(self.submissions[-12:], 4)
        fit = [item for item in items if (item.id, item.nonce) not in self.spent]
        self._submit(fit or [self._request()])

    def _submit(self, items: list[codec.Submission]) -> None:
        items = [item for item in items if (item.id, item.nonce) not in self.spent]
        if items:
            self.submissions += items
            self.do("submit", self._new(), 150 if self.dice.chance(5) else PLENTY, items)

    @step
    def cancel(self) -> None:
        names = list(self.model.lives) or ["r0"]
        if self.dice.chance(15):
            names = [item.id for item in self.submissions[::-1]] or names
        name = self.dice.pick(names)
        nonces = ["", *(item.nonce for item in self.submissions[::-1] if item.id == name)]
        self.do("cancel", name, self.dice.pick(nonces))

    @step
    def collect(self) -> None:
        for client, wakes in sorted(self.model.replies.items()):
            got = self.read(reads.wakeups(self.keys, client, 1))
            assert got == [codec.decode_outcome(wake) for wake in wakes]
        self.model.replies.clear()
        self.look()

    # --- the operator -----------------------------------------------------------------------------------------------

    @step
    def retry_dead(self) -> None:
        letters = sorted(self.model.letters) or ["r1"]
        name = f"r{self.dice.below(6)}" if self.dice.chance(40) else self._new()
        self.do("retry_dead", self.dice.pick(letters), name, self._new(), "c1")

    @step
    def purge_dead(self) -> None:
        self.do("purge_dead", self.dice.some([*self.model.letters, "r0", "r1"], 3))

    @step
    def set_model(self) -> None:
        self.do("set_model", self.dice.pick(["m1", "", "m2"]), b"\x80|")

    @step
    def drain(self) -> None:
        inc = self.inc()
        self.do("drain", inc.partition(":")[0], not self.dice.chance(40))
        if self.dice.chance(40):
            self._dispatch(inc, self.dice.some(self.model.waiting, CONFIG.group))

    # --- schedulers -------------------------------------------------------------------------------------------------

    @step
    def lead(self) -> None:
        self._lead(self.dice.pick(["s1", "s2"]))

    def _lead(self, name: str) -> None:
        me, generation = self.schedulers[name]
        other = "h" in self.model.scalars and self.dice.chance(2)
        self._led(name, self.do("lead", me, generation, self._new(), OTHER_H if other else CONFIG))

    def _led(self, name: str, answer: scripts.Lead) -> None:
        if answer.word == "VOID":
            self.schedulers[name] = [f"{name}:{self._new()}", ""]
        elif answer.word != "OTHER_H":
            self.schedulers[name][1] = answer.generation
            if answer.word == "LEADER" and answer.token not in self.tokens:
                self.tokens.append(answer.token)

    def _tick(self, beats: int) -> None:
        """Let time pass under a leader's eyes, so that it is no gap."""
        me, generation = self.schedulers["s1"]
        calls = []
        for _ in range(beats):
            self.now += H
            calls.append((self.now, "lead", (me, generation, self._new(), CONFIG)))
        for answer in self._all(calls):
            self._led("s1", answer)

    @step
    def restart_scheduler(self) -> None:
        name = self.dice.pick(["s1", "s2"])
        self.schedulers[name] = [f"{name}:{self._new()}", ""]
        self._lead(name)

    @step
    def resign(self) -> None:
        self.do("resign", self.token())
        if self.dice.chance(50):
            self._lead(self.dice.pick(["s2", "s1"]))

    @step
    def dispatch(self) -> None:
        waiting = self.model.waiting
        if not self.dice.chance(8):
            lanes = sorted({item.lane for item in waiting}, key=lambda lane: lane != "suspect")
            suspect = "suspect" in lanes and self.dice.chance(50)
            waiting = [item for item in waiting if (item.lane == "suspect") == suspect]
        busy = [name for name in self.ready() if self.model.incs[name].work]
        inc = self.dice.pick(busy) if busy and self.dice.chance(30) else self.inc()
        for _ in range(1 + self.dice.below(2)):
            self._dispatch(inc, self.dice.some(waiting, CONFIG.group))
            waiting = [item for item in self.model.waiting if item in waiting]

    def _dispatch(self, inc: str, chosen: list[Waiting]) -> Any:
        dice, token = self.dice, self.token()
        if self.waited and dice.chance(8):
            chosen = [*chosen, dice.pick(self.waited[::-1])]
        if chosen and dice.chance(3):
            chosen = [*chosen, dataclasses.replace(dice.pick(chosen), lane=dice.pick(["high", "low", "suspect"]))]
        n = int(self.model.leader.get("n", 0)) + 1
        if dice.chance(6):
            n = max(1, n - dice.below(4))
        costs = [max(1, item.cost - dice.below(3)) for item in chosen]
        answer = self.do("dispatch", token, n, inc, list(zip(chosen, costs, strict=True)))
        if answer.word == "OK":
            took = [item for item, word in zip(chosen, answer.words, strict=True) if word == "TOOK"]
            self.handed += [Attempt(inc, item.id, answer.delivery) for item in took]
            self.waited += took
        return answer

    @step
    def reclaim(self) -> None:
        self.do("reclaim", self.token(), self.inc(closed=True))

    @step
    def promote(self) -> None:
        due = [life.due for life in self.model.lives.values() if life.state == "Y"]
        if not due:
            self._settle(self._attempts(), "retry")
        match self.dice.below(3):
            case 0:
                self.now = max(self.now, min(due, default=0))
            case 1:
                self.now -= TEN_MINUTES
            case _:
                pass
        self.do("promote", self.token())

    @step
    def expire(self) -> None:
        if self.dice.chance(40):
            self.now += self.dice.pick([2 * H, 10 * H, 70 * H])
        if self.dice.chance(80):  # until no grace runs
            self._tick(5)
        self.do("expire", self.token())

    @step
    def refuse(self) -> None:
        waiting = self.model.waiting
        if self.waited and (not waiting or self.dice.chance(20)):
            waiting = self.waited[::-1]
        if waiting:
            self.do("refuse", self.token(), self.dice.pick(waiting))

    @step
    def answer_the_bell(self) -> None:
        if self.model.bell:
            assert self.read(reads.bell(self.keys, 1))
            self.model.bell = False
            self.look()

    # --- supervisors ------------------------------------------------------------------------------------------------

    @step
    def register(self) -> None:
        self._register(self.dice.pick(["w1", "w2", "w3"]))

    def _register(self, worker: str) -> str:
        dice, number = self.dice, self.do("incarnate")
        item = scripts.Registration(
            inc=f"{worker}:{number}-{self._new()}",
            worker=worker,
            number=number,
            identity="m2" if dice.chance(4) else "m1",
            card=b"\x81\xa1|\xa1|",
            capacity=dice.pick([40, 25, 100]),
            rows=dice.pick([8, 4]),
            budget=30,
            mode="continuous",
            cache=dice.pick(["paged", "rect"]),
        )
        self.registrations.append(item)
        if not dice.chance(8):
            other = "h" in self.model.scalars and dice.chance(2)
            self.do("register", item, self._new(), OTHER_H if other else CONFIG)
        return item.inc

    @step
    def register_late(self) -> None:
        fit = [item for item in self.registrations[::-1] if item.inc not in self.spent]
        if fit:
            self.do("register", self.dice.pick(fit), self._new(), CONFIG)

    @step
    def beat(self) -> None:
        self._beat(self.inc())

    def _beat(self, name: str) -> None:
        dice, inc = self.dice, self.model.incs.get(name)
        capacity, costs = (inc.capacity if inc else 40), {}
        if inc and dice.chance(30):
            costs = {(i, inc.work[i].delivery): 1 + dice.below(20) for i in dice.some(list(inc.work), 2)}
        if self.handed and dice.chance(5):
            old = dice.pick(self.handed[::-1])
            costs[old.id, old.delivery] = 1
        item = scripts.Beat(
            inc=name,
            generation="gx" if dice.chance(4) else self.generation,
            accepting=not dice.chance(10),
            capacity=capacity + dice.pick([0, 0, 0, 5, -5]),
            progress=dice.below(9),
            rate=dice.below(9) / 7,
            figures={"steps": dice.below(9)},
            costs=costs,
        )
        other = "h" in self.model.scalars and dice.chance(2)
        answer = self.do("beat", item, OTHER_H if other else CONFIG)
        self.named += [Attempt(name, request_id, delivery) for request_id, delivery in answer.named]

    @step
    def report(self) -> None:
        self._report(self.inc())

    def _report(self, inc: str, cause: str = "") -> None:
        cause, running = cause or self.dice.pick(["crash", "hung", "killed"]), self.running(inc)
        crash_set: list[str] = []
        if cause != "killed":
            crash_set = self.dice.some(running, 2) if self.dice.chance(35) else running
        if self.dice.chance(4):
            crash_set = [*crash_set, "r0"]
        self.do("report", inc, cause, crash_set)

    @step
    def lose(self) -> None:
        # A child dies, and what it held is taken back at once.
        full = sorted(self.model.incs, key=lambda name: -len(self.model.incs[name].work))
        inc = full[0] if full and self.dice.chance(50) else self.inc()
        self._report(inc)
        self.do("reclaim", self.token(), inc)
        if self.dice.chance(70):
            self._register(inc.partition(":")[0])

    @step
    def deregister(self) -> None:
        empty = [name for name, inc in self.model.incs.items() if not inc.work]
        self.do("deregister", self.dice.pick(empty) if empty and self.dice.chance(50) else self.inc())

    # --- children ---------------------------------------------------------------------------------------------------

    @step
    def read_doorbells(self) -> None:
        self._read_doorbells(self.inc())

    def _read_doorbells(self, name: str) -> list[reads.Doorbell]:
        inc, own = self.model.incs.get(name), self.dice.chance(20)
        if inc is None or not (own or set(inc.bells) - inc.pending):
            return []
        got = self.read(reads.doorbells(self.keys, name, own=own, block_ms=100, count=100))
        wanted = inc.pending if own else set(inc.bells) - inc.pending
        assert {bell.entry for bell in got} == wanted
        for bell in got:
            assert (bell.delivery, frozenset(bell.ids)) == inc.bells.get(bell.entry, ("", frozenset()))
        inc.pending |= wanted
        self.rung += [(name, bell) for bell in got]
        return got

    @step
    def begin(self) -> None:
        old = [name for name, _ in self.rung[::-1]]
        inc = self.dice.pick(old) if old and self.dice.chance(20) else self.inc()
        for bell in self._read_doorbells(inc) or [bell for name, bell in self.rung[::-1] if name == inc][:3]:
            self._begin(inc, bell)

    def _begin_all(self, inc: str) -> list[Attempt]:
        """Begin what the doorbells name; return the attempts that the incarnation holds now."""
        for bell in self._read_doorbells(inc):
            self._begin(inc, bell)
        return [one for one in self.begun if one.inc == inc and self.holds(one)]

    def _begin(self, inc: str, bell: reads.Doorbell) -> None:
        if self.dice.chance(3):
            inc = self.inc()  # a wrong one
        for begun in self.do("begin", inc, bell.entry, bell.delivery, list(bell.ids)):
            if begun.word == "RUN":
                payload = codec.decode_payload(begun.id, begun.payload, begun.attempt)
                attempt = Attempt(inc, begun.id, bell.delivery, payload.nonce, begun.attempt, payload.stream)
                if attempt not in self.begun:
                    self.begun.append(attempt)

    @step
    def lose_doorbell(self) -> None:
        name = self.inc()
        inc = self.model.incs.get(name)
        if inc and inc.bells:
            entry = self.dice.pick(sorted(inc.bells, reverse=True))
            if self.dice.chance(50):
                delivery, ids = inc.bells[entry]
                self.client.xadd(self.keys.stream(name), {"delivery": delivery, "ids": " ".join(sorted(ids))})
                inc.rung.append((delivery, ids))
            else:
                self.client.xdel(self.keys.stream(name), entry)
                del inc.bells[entry]
            self.look()

    def _attempts(self, *, stream: bool = False) -> list[Attempt]:
        """Up to three attempts of one incarnation that were begun, mostly such as it still holds."""
        known = [attempt for attempt in self.begun[::-1] if attempt.stream >= stream]
        fit = [attempt for attempt in known if self.holds(attempt)]
        if fit and self.dice.chance(20):
            fit = known
        if not fit and self._serve(stream=stream):
            fit = [attempt for attempt in self.begun[::-1] if attempt.stream >= stream]
        if not fit:
            return []
        first = self.dice.pick(fit)
        rest = self.dice.some([one for one in fit if one.inc == first.inc and one != first], 2)
        return [first, *rest]

    @step
    def settle(self) -> None:
        self._settle(self._attempts())

    def _settle(self, attempts: list[Attempt], outcome: str = "") -> None:
        if not attempts:
            return
        inc, dice = attempts[0].inc, self.dice
        if dice.chance(3):
            inc = self.inc()
        if dice.chance(4):
            attempts = [*attempts, dice.pick(attempts)]
        items = [self._settlement(attempt, outcome) for attempt in attempts]
        self.do("settle", inc, dice.pick([0.0, 1.0, 0.123457]), items)

    def _settlement(self, attempt: Attempt, outcome: str) -> scripts.Settlement:
        dice = self.dice
        how: Any = outcome or dice.pick(["ok", "retry", "ok", "retry", "failure", "bad"])
        nonce = attempt.nonce
        if dice.chance(4):
            nonce = dice.pick([one.nonce for one in self.submissions[::-1] if one.id == attempt.id] or ["n0"])
        body, first, prompt, most = (
            dice.pick([b"a|b", b"", b"y" * 100]),
            dice.below(3) - 1,
            dice.below(4),
            dice.below(4),
        )
        texts = (attempt.number, first * 700, prompt, most, dice.below(2) * 9) if first >= 0 else (attempt.number,)
        return scripts.Settlement(attempt.id, attempt.delivery, nonce, how, "stop", body, *texts)

    @step
    def hand_back(self) -> None:
        fit = [attempt for attempt in self.handed[::-1] if self.holds(attempt)]
        if self.dice.chance(40):
            fit = self.named[::-1] or fit
        if not fit or self.dice.chance(15):
            fit = self.handed[::-1]
        if fit:
            first = self.dice.pick(fit)
            items = [first, *self.dice.some([one for one in fit if one.inc == first.inc], 2)]
            self.do("hand_back", first.inc, [(item.id, item.delivery) for item in items])

    @step
    def flush(self) -> None:
        attempts = self._attempts(stream=True)
        if attempts:
            self._publish(attempts)

    def _publish(self, attempts: list[Attempt]) -> None:
        items = [scripts.Published(a.id, a.delivery, a.number, self.dice.below(4), b"H\1\0", "x") for a in attempts]
        self.do("flush", attempts[0].inc, items)

    # --- long ways --------------------------------------------------------------------------------------------------

    @step
    def serve(self) -> None:
        # One request goes all the way into an engine; its worker may be lost there, or give up, over and over.
        fate, wanted, cause = self.dice.below(4), "", self.dice.pick(["killed", "crash", "killed", "hung", ""])
        for _ in range(1 + self.dice.below(8)):
            inc = self._serve(wanted)
            mine = [one for one in self.begun if one.inc == inc and self.holds(one)]
            if not mine:
                return
            wanted = wanted or mine[0].id
            if fate == 0:
                return
            if fate == 1:
                self._settle(mine)
            elif fate == 2:
                self._settle(mine, "retry")
                self.now += 5 * H
                self.do("promote", self.token())
            else:
                self._report(inc, cause)
                self.do("reclaim", self.token(), inc)

    def _serve(self, wanted_id: str = "", *, stream: bool = False) -> str:
        """Dispatch a waiting request, with others or alone, and begin it; return where, or nothing if that failed."""
        if stream or not self.model.waiting:
            self._submit([self._request(stream=stream)])
        waiting = self.model.waiting
        if not waiting:
            return ""
        wanted = next((one for one in waiting if one.id == wanted_id), None)
        wanted = wanted or (waiting[-1] if stream else self.dice.pick(waiting[:3]))
        inc = self._free()
        fit = [one for one in waiting if one != wanted and (one.lane == "suspect") == (wanted.lane == "suspect")]
        if self._dispatch(inc, [wanted, *self.dice.some(fit, 2)]).word != "OK":
            return ""
        self._begin_all(inc)
        return inc

    def _free(self) -> str:
        """An incarnation that takes work and has none."""
        free = [name for name in self.ready() if not self.model.incs[name].work]
        return self.dice.pick(free) if free else self._register(self.dice.pick(["w1", "w2", "w3"]))

    def _fill(self, inc: str) -> None:
        if len(self.model.waiting) < CONFIG.group:
            self._submit([self._request() for _ in range(CONFIG.group)])
        clean = [one for one in self.model.waiting if one.lane != "suspect"]
        self._dispatch(inc, sorted(clean, key=lambda one: one.cost)[: CONFIG.group])

    @step
    def fill(self) -> None:
        # A worker gets more than one call of reclaim takes back.
        inc = self._free()
        self._fill(inc)
        self._fill(inc)
        if self.dice.chance(60):
            self._begin_all(inc)
        if self.dice.chance(40):
            self._report(inc)
            for _ in range(3):
                self.do("reclaim", self.token(), inc)

    @step
    def halve(self) -> None:
        # A set of suspects is lost in company.
        if sum(one.lane == "suspect" for one in self.model.waiting) < 2:
            inc = self._free()
            self._fill(inc)
            self._begin_all(inc)
            self.do("report", inc, "crash", self.running(inc))
            self.do("reclaim", self.token(), inc)
        inc = self._free()
        self._dispatch(inc, [one for one in self.model.waiting if one.lane == "suspect"][: CONFIG.group])
        self._begin_all(inc)
        if self.dice.chance(70):
            self._report(inc)
            self.do("reclaim", self.token(), inc)

    @step
    def isolate(self) -> None:
        # A suspect is meant for a worker that holds clean requests.
        if not any(one.lane == "suspect" for one in self.model.waiting):
            inc = self._serve()
            self._report(inc, "crash")
            self.do("reclaim", self.token(), inc)
        clean = [name for name in self.ready() if self.model.incs[name].work]
        inc = self.dice.pick(clean) if clean else self._serve()
        self._dispatch(inc, self.dice.some([one for one in self.model.waiting if one.lane == "suspect"], CONFIG.group))
        if self.dice.chance(50):
            self._tick(2 + self.dice.below(5))
            self._beat(inc)

    @step
    def ring_again(self) -> None:
        # A doorbell is not heard for long, or the clock goes back under it.
        inc = self._free()
        self._fill(inc)
        if self.dice.chance(50):
            self._tick(4)
        else:
            self.now -= TEN_MINUTES
        self._beat(inc)

    @step
    def lapse(self) -> None:
        # A worker is silent until its lease is over; perhaps its last beat is older than a clock that went back.
        inc = self.inc()
        if self.dice.chance(50):
            self.now -= self.dice.pick([TEN_MINUTES, LEASE])
            self.do("reclaim", self.token(), inc)
        self._tick(1 + self.dice.below(8))
        self.do("reclaim", self.token(), inc)

    @step
    def heard_twice(self) -> None:
        # A doorbell of what runs comes again, perhaps after the deadline.
        inc = self._serve()
        late = max([self.model.lives[i].deadline for i in self.running(inc) if i in self.model.lives], default=0)
        if self.dice.chance(60):
            self.now = max(self.now, late)
        for bell in [bell for name, bell in self.rung if name == inc]:
            self._begin(inc, bell)

    @step
    def comes_back_to_the_same(self) -> None:
        # A worker gets a request again, and then an old word of its attempt before arrives.
        inc = self._serve()
        before = [one for one in self.begun if one.inc == inc and self.holds(one)]
        if not before:
            return
        old = self.dice.pick(before)
        if self.dice.chance(50):
            self.do("hand_back", inc, [(old.id, old.delivery)])
        else:
            self._settle([old], "retry")
            self.now += 5 * H
            self.do("promote", self.token())
        self._dispatch(inc, [one for one in self.model.waiting if one.id == old.id])
        self._begin_all(inc)
        self._old_word(old)

    def _old_word(self, old: Attempt) -> None:
        """A call of a worker that does not know what happened to its attempt since."""
        match self.dice.below(5):
            case 0:
                self._settle([old])
            case 1:
                self.do("hand_back", old.inc, [(old.id, old.delivery)])
            case 2:
                self._publish([old])
            case 3:
                for bell in [bell for name, bell in self.rung if name == old.inc and bell.delivery == old.delivery]:
                    self._begin(old.inc, bell)
            case _:
                self._report(old.inc)
                self.do("reclaim", self.token(), old.inc)

    @step
    def id_comes_back(self) -> None:
        # A request ends while a worker still holds it, its result's time is over, and its id begins a new life.
        held = [one for one in self.handed[::-1] if self.holds(one)]
        if not held and not self._serve():
            return
        held = held or [one for one in self.handed[::-1] if self.holds(one)]
        if not held:
            return
        one = self.dice.pick(held)
        if one.id in self.model.lives:
            self.do("cancel", one.id, "")
        if one.id in self.model.results:
            self._time_out(f"result:{one.id}")
        before = [item for item in self.submissions if item.id == one.id]
        if before:
            self._submit([renewed(before[-1], self._new())])
        waiting = [item for item in self.model.waiting if item.id == one.id]
        if waiting and self.dice.chance(60):
            inc = one.inc if self.dice.chance(50) else self.inc()
            self._dispatch(inc, waiting)
            self._begin_all(inc)
        begun = [attempt for attempt in self.begun if (attempt.id, attempt.delivery) == (one.id, one.delivery)]
        if begun:
            self._old_word(begun[0])

    @step
    def late_duplicate(self) -> None:
        script, args = self.dice.pick(self.sent[:-40:-1] or [("incarnate", ())])
        if not self._overdue(script, args):
            self.do(script, *args)

    def _overdue(self, script: str, args: tuple[Any, ...]) -> bool:
        """Whether the call is older than what bounds its repetition: a result's or a void's end."""
        match script:
            case "submit":
                return any((item.id, item.nonce) in self.spent for item in args[2])
            case "retry_dead":
                return (args[1], args[2]) in self.spent
            case "register":
                return args[0].inc in self.spent
            case _:
                return False

    @step
    def time_out(self) -> None:
        # A key with a limited life ends.
        names = sorted(name for name in self.model.expected() if self.model.ttl(name))
        if not names:
            return
        self._time_out(self.dice.pick(names))

    def _time_out(self, name: str) -> None:
        kind, _, rest = name.partition(":")
        if kind == "result":
            self.spent.add((rest, self.model.results[rest].nonce))
        elif kind == "void":
            self.spent.add(rest)
        self.client.delete(self.keys.prefix + name)
        self.model.forget(name)
        note(f"{name} is over")
        self.look()

    @step
    def wait(self) -> None:
        # Time passes, and no gap in it; some workers beat, others are lost.
        awake = self.dice.some([name for name, inc in self.model.incs.items() if inc.life == "live"], 3)
        for _ in range(self.dice.below(3)):
            self._tick(2)
            for inc in awake:
                self._beat(inc)
        self._tick(1 + self.dice.below(3))
        if self.dice.chance(50):
            self.do("reclaim", self.token(), self.inc())
        if self.dice.chance(50):
            self.do("expire", self.token())

    @step
    def step_the_clock(self) -> None:
        self.now += self.dice.pick([H, H + 1, LEASE + 1, 3 * LEASE, -TEN_MINUTES, -LEASE, TEN_MINUTES, -1])

    @step
    def lose_everything(self) -> None:
        # Redis comes back empty: another history, in which all that was known is worth nothing.
        if self.dice.chance(5):
            self._begin_history()
            self._lead("s1")

    @initialize(dice=DICE)
    def populate(self, dice: bytes) -> None:
        if self.out_of_time:
            return
        self._begin_history()
        self.dice = Dice(dice)
        if not self.dice.chance(5):
            self._lead("s1")
            for worker in ("w1", "w2"):
                self._register(worker)
            self._submit([self._request() for _ in range(3)])

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.seen.update(("end", end) for end in self.model.ends)

    def read(self, read: Read[T]) -> T:
        return read.parse([self.client.execute_command(*command) for command in read.commands])


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


def may_change(script: str, answer: Any) -> bool:
    """Whether a repeated call may change more: a number is used up, a fenced settlement is counted, and what moves a
    group at a time moves the next one.
    """
    match script:
        case "incarnate" | "settle":
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

COMMON = settings(deadline=None, print_blob=True, report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
PROFILES = {  # and how many seconds they may take at most
    "default": (settings(COMMON, max_examples=150, stateful_step_count=50), 50.0),
    "long": (settings(COMMON, max_examples=20_000, stateful_step_count=60), 3600.0),
}


def test_the_rules_drive_every_script() -> None:
    source = inspect.getsource(Machine)
    assert sorted(set(re.findall(r'self\.do\(\s*"(\w+)"', source))) == scripts.script_names()


@pytest.mark.slow
def test_every_script_does_what_the_model_does(redis_server: EmbeddedRedis) -> None:
    client = redis.Redis.from_url(redis_server.url, protocol=3, legacy_responses=False)
    sources = {name: script.source for name, script in scripts.load_scripts(CONFIG, CLOCK).items()}
    shas = {name: client.script_load(source) for name, source in (sources | {"dump": DUMP}).items()}
    seen: Counter[tuple[str, str]] = Counter()
    number = int(os.environ.get("HYPOTHESIS_SEED") or SystemRandom().randrange(1 << 32))
    often = {f"{name}_{i}": rule(dice=DICE)(ACTS[name]) for i, name in enumerate(OFTEN)}
    factory = seed(number)(type("Bound", (Machine,), {"client": client, "shas": shas, "seen": seen} | often))
    profile, seconds = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "default")]
    factory.until = time.monotonic() + seconds
    try:
        run_state_machine_as_test(factory, settings=profile)
    except Exception as error:
        error.add_note(f"HYPOTHESIS_SEED={number}")
        raise
    assert {script for script, _ in seen} >= set(scripts.script_names())
