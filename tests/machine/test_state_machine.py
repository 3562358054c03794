"""Random calls of every script against a real Redis, each answer and all of Redis compared with the model's.

The clock is virtual. A failure prints the calls that lead to it, and the seed. `HYPOTHESIS_PROFILE=long` looks further,
`HYPOTHESIS_SEED=<n>` repeats a run.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import time
from collections import Counter
from random import SystemRandom
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, note, seed, settings
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from machine.harness import (
    ACTS,
    CLOCK,
    CONFIG,
    DICE,
    DUMP,
    LEASE,
    OTHER_H,
    PLENTY,
    TEN_MINUTES,
    Compared,
    Dice,
    H,
    step,
)
from machine.model import renewed
from stoker.request import InferenceRequest, RequestPriority
from stoker.store import codec, reads, scripts
from stoker.store.records import Waiting
from stoker_ops.embedded import EmbeddedRedis

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


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a worker knows of a request that it was handed."""

    inc: str
    id: str
    delivery: str
    nonce: str = ""
    number: int = 0
    stream: bool = False


class Machine(Compared):
    """Clients, schedulers, supervisors and children, all confused, late and sometimes dead."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[str] = []
        self.schedulers = {name: [f"{name}:{self.new()}", ""] for name in ("s1", "s2")}
        self.submissions: list[codec.Submission] = []
        self.registrations: list[scripts.Registration] = []
        self.handed: list[Attempt] = []
        self.begun: list[Attempt] = []
        self.named: list[Attempt] = []
        self.rung: list[tuple[str, reads.Doorbell]] = []
        self.waited: list[Waiting] = []

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
            return renewed(dice.pick(known), self.new())
        fields: dict[str, Any] = {"prompt_tokens": [7] * (1 + dice.below(6))}
        if dice.chance(15):
            fields = {"prompt": "x" * (1 + dice.below(20))}
        request = InferenceRequest(
            max_tokens=1 + dice.below(10),
            priority=dice.pick([RequestPriority.NORMAL, *RequestPriority]),
            timeout=dice.pick([None, None, None, 0.4, 2.0, 9.0, 30.0]),
            tenant=dice.pick([None, "t1", "t2"]),
            stream=stream or dice.chance(25),
            sheddable=dice.chance(25),
            affinity_key=dice.pick([None, None, "k1", "k2"]),
            **fields,
        )
        name = f"r{dice.below(6)}" if dice.chance(40) else self.new()
        reply = dice.pick(["c1", "c2", ""])
        displace = dice.chance(30)
        return codec.encode(request, request_id=name, nonce=self.new(), reply=reply, config=CONFIG, displace=displace)

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
            self.do("submit", self.new(), 150 if self.dice.chance(5) else PLENTY, items)

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
        name = f"r{self.dice.below(6)}" if self.dice.chance(40) else self.new()
        self.do("retry_dead", self.dice.pick(letters), name, self.new(), "c1")

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
        if self.dice.chance(30):
            self._beat(inc, accepting=False)
        if self.dice.chance(40):
            self._dispatch(inc, self.dice.some(self.model.waiting, CONFIG.group))

    # --- schedulers -------------------------------------------------------------------------------------------------

    @step
    def lead(self) -> None:
        self._lead(self.dice.pick(["s1", "s2"]))

    def _lead(self, name: str) -> None:
        me, generation = self.schedulers[name]
        other = "h" in self.model.scalars and self.dice.chance(2)
        self._led(name, self.do("lead", me, generation, self.new(), OTHER_H if other else CONFIG))

    def _led(self, name: str, answer: scripts.Lead) -> None:
        if answer.word == "VOID":
            self.schedulers[name] = [f"{name}:{self.new()}", ""]
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
            calls.append((self.now, "lead", (me, generation, self.new(), CONFIG)))
        for answer in self.do_all(calls):
            self._led("s1", answer)

    @step
    def restart_scheduler(self) -> None:
        name = self.dice.pick(["s1", "s2"])
        self.schedulers[name] = [f"{name}:{self.new()}", ""]
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
    def make_room(self) -> None:
        fit = [attempt for attempt in self.handed[::-1] if self.holds(attempt)]
        if not fit or self.dice.chance(10):
            fit = self.handed[::-1]
        if fit:
            first = self.dice.pick(fit)
            items = [first, *self.dice.some([one for one in fit if one.inc == first.inc], 2)]
            self.do("make_room", self.token(), first.inc, [(item.id, item.delivery) for item in items])

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

    def _registration(self, worker: str) -> scripts.Registration:
        dice, number = self.dice, self.do("incarnate")
        item = scripts.Registration(
            inc=f"{worker}:{number}-{self.new()}",
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
        return item

    def _register(self, worker: str) -> str:
        item = self._registration(worker)
        if not self.dice.chance(6):
            other = "h" in self.model.scalars and self.dice.chance(2)
            self.do("register", item, self.new(), OTHER_H if other else CONFIG)
        return item.inc

    @step
    def register_in_the_wrong_order(self) -> None:
        worker = self.dice.pick(["w1", "w2", "w3"])
        items = [self._registration(worker), self._registration(worker)]
        for item in items[::-1]:
            self.do("register", item, self.new(), CONFIG)

    @step
    def register_late(self) -> None:
        fit = [item for item in self.registrations[::-1] if item.inc not in self.spent]
        if fit:
            self.do("register", self.dice.pick(fit), self.new(), CONFIG)

    @step
    def beat(self) -> None:
        self._beat(self.inc())

    def _beat(self, name: str, *, accepting: bool = True) -> None:
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
            accepting=accepting and not dice.chance(10),
            capacity=capacity + dice.pick([0, 0, 0, 5, -5]),
            progress=dice.below(9),
            rate=dice.below(9) / 7,
            figures={"steps": dice.below(9), "ahead": dice.below(9)},
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
        self.do("report", inc, cause, crash_set, b"last|words" if self.dice.chance(50) else b"")

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
            named = frozenset((*bell.ids, *(part for asked in bell.leave for part in asked)))
            assert (bell.delivery, named) == inc.bells.get(bell.entry, ("", frozenset()))
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
            delivery, ids = inc.bells[entry]
            if delivery and self.dice.chance(50):
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
        rest = self.dice.some([one for one in fit if one.inc == first.inc], 2)
        # A worker holds one row of an id at most, so that a call never names two attempts of it.
        return list({one.id: one for one in (*rest, first)}.values())

    @step
    def settle(self) -> None:
        self._settle(self._attempts())

    def _settle(self, attempts: list[Attempt], outcome: str = "") -> None:
        if not attempts:
            return
        inc, dice = attempts[0].inc, self.dice
        if dice.chance(3):
            inc = self.inc()
        items = [self._settlement(attempt, outcome) for attempt in attempts]
        if dice.chance(10):
            items.append(dice.pick(items))
        self.do("settle", inc, dice.pick([0.0, 1.0, 0.123457]), items)

    def _settlement(self, attempt: Attempt, outcome: str) -> scripts.Settlement:
        dice = self.dice
        how: Any = outcome or dice.pick(["ok", "retry", "ok", "retry", "failure", "bad"])
        nonce = attempt.nonce
        if dice.chance(4):
            nonce = dice.pick([one.nonce for one in self.submissions[::-1] if one.id == attempt.id] or ["n0"])
        return scripts.Settlement(
            attempt.id,
            attempt.delivery,
            nonce,
            how,
            "stop",
            dice.pick([b"a|b", b"", b"y" * 100]),
            attempt.number,
            first_token_us=dice.pick([-1, 0, 700]),
            prompt=dice.below(4),
            completion=dice.below(4),
            text_bytes=dice.below(2) * 9,
        )

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
        items = [
            scripts.Published(a.id, a.delivery, a.nonce, a.number, self.dice.below(4), b"H\1\0", "x") for a in attempts
        ]
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
            self._tick(self.dice.pick([6, 2, 8]))
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
        inc = self._serve(stream=self.dice.chance(40))
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
        self._fill(self._free()) if self.dice.chance(40) else self._serve()
        held = [one for one in self.handed[::-1] if self.holds(one)]
        if not held:
            return
        one = self.dice.pick(held[:3])
        if one.id in self.model.lives:
            self.do("cancel", one.id, "")
        if one.id in self.model.results:
            self._time_out(f"result:{one.id}")
        before = [item for item in self.submissions if item.id == one.id]
        if before:
            self._submit([renewed(before[-1], self.new())])
        waiting = [item for item in self.model.waiting if item.id == one.id]
        if waiting and self.dice.chance(60):
            inc = one.inc if self.dice.chance(50) else self.inc()
            self._dispatch(inc, waiting)
            self._begin_all(inc)
        begun = [attempt for attempt in self.begun if (attempt.id, attempt.delivery) == (one.id, one.delivery)]
        if begun:
            self._old_word(begun[0])
        else:
            self._begin_all(one.inc)

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
            self.begin_history()
            self._lead("s1")

    @initialize(dice=DICE)
    def populate(self, dice: bytes) -> None:
        if self.out_of_time:
            return
        self.begin_history()
        self.dice = Dice(dice)
        if not self.dice.chance(5):
            self._lead("s1")
            for worker in ("w1", "w2"):
                self._register(worker)
            self._submit([self._request() for _ in range(3)])


COMMON = settings(deadline=None, print_blob=True, report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
PROFILES = {  # and how many seconds of the processor they may take at most: on a busy machine as much is tried
    "default": (settings(COMMON, max_examples=130, stateful_step_count=50), 30.0),
    "long": (settings(COMMON, max_examples=20_000, stateful_step_count=60), 3600.0),
}


OF_REQUESTS = [name for name in scripts.script_names() if "_batch" not in name and name not in ("set_tenant", "agree")]
"""Batch files, what is set for tenants and the number of shards touch no request: tested script by script."""

COMMON_ANSWERS = {  # each comes dozens of times in a run
    "submit": ("ACCEPTED", "SAME", "DONE", "CONFLICT"),
    "dispatch": ("TOOK", "SEEN", "GONE", "REFUSED", "BUSY", "QUARANTINE"),
    "begin": ("RUN", "GONE", "LATE"),
    "settle": ("OK", "DUPLICATE", "STALE"),
    "reclaim": ("0", "-1"),
    "register": ("OK", "VOID"),
    "beat": ("OK", "VOID"),
    "end": ("succeeded stop", "failed stop", "failed unschedulable", "expired deadline", "expired late", "cancelled "),
}


def test_the_rules_drive_every_script() -> None:
    source = inspect.getsource(Machine)
    assert sorted(set(re.findall(r'self\.do\(\s*"(\w+)"', source))) == OF_REQUESTS


@pytest.mark.slow
@pytest.mark.untraced
def test_every_script_does_what_the_model_does(redis_server: EmbeddedRedis) -> None:
    client = redis.Redis.from_url(redis_server.url, protocol=3, legacy_responses=False)
    sources = {name: script.source for name, script in scripts.load_scripts(CONFIG, CLOCK).items()}
    shas = {name: client.script_load(source) for name, source in (sources | {"dump": DUMP}).items()}
    seen: Counter[tuple[str, str]] = Counter()
    number = int(os.environ.get("HYPOTHESIS_SEED") or SystemRandom().randrange(1 << 32))
    often = {f"{name}_{i}": rule(dice=DICE)(ACTS[name]) for i, name in enumerate(OFTEN)}
    factory = seed(number)(type("Bound", (Machine,), {"client": client, "shas": shas, "seen": seen} | often))
    profile, seconds = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "default")]
    factory.until = time.process_time() + seconds
    try:
        run_state_machine_as_test(factory, settings=profile)
    except Exception as error:
        error.add_note(f"HYPOTHESIS_SEED={number}")
        raise
    assert {script for script, _ in seen} >= set(OF_REQUESTS)
    missed = [(script, word) for script, known in COMMON_ANSWERS.items() for word in known if not seen[script, word]]
    assert not missed, f"rules that find nothing to do any more: {missed}"
