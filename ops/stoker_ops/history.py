"""Checks the history that the scripts write into the stream `events`, entry by entry, against the invariants.

An entry is one call of a script; it has a line per request, and all lines share its place. The checker is pure: feed it
every entry in order, and look at `violations` whenever you like, for each invariant holds at every prefix:

- I2: at most one submit event per life of an id, a life being an id and a nonce, and none while the id lives.
- I3: one terminal event per life, never two. I4: nothing happens to an id after it.
- I5: attempts count 1, 2, 3..., failures too; begin, failure, ask and requeue carry the latest dispatch's delivery,
  and begin is called by the incarnation that it went to. A delivery belongs to one dispatch alone.
- I6: leader epochs strictly rise, and every act of a leader carries the latest token.
- I11: no begin at or after the deadline.
- I13, the part that a history shows: a score never changes, and within a class the requests without a deadline have
  scores in the order of their acceptance.
- I14: after a cancel was answered OK there is no other outcome (tell the checker of such answers by `cancelled`).
- Incarnations: nothing is dispatched to one that was superseded, reported, voided or deregistered, and it does not
  register again.
- Grace, where the lease is given: nothing lapses by time within a lease of an announced gap.

`totals` and `live` are there for what needs more than the history: I9 (the counts) and I1 (quiescence).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

OUTCOMES = ("succeeded", "failed", "expired", "cancelled")
LEADERS_ACTS = ("dispatch", "make_room", "reclaim", "promote", "expire", "refuse")
HELD = ("dispatched", "running")


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of a script as the history has it."""

    script: str
    time_us: int
    by: str
    lines: tuple[str, ...]

    @classmethod
    def of(cls, fields: Mapping[bytes, bytes]) -> Entry:
        """Return the entry in the fields of a stream entry."""
        text = {name.decode(): value.decode() for name, value in fields.items()}
        return cls(text["script"], int(text["time"]), text["by"], tuple(text["lines"].split("\n")))


@dataclass(slots=True)
class Life:
    """One life of an id. `state`: queued, dispatched, running, delayed, or its outcome."""

    id: str
    nonce: str
    cls: str
    deadline_us: int
    score: str
    state: str = "queued"
    delivery: str = ""
    inc: str = ""
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    reason: str = ""

    @property
    def over(self) -> bool:
        """Whether it ended."""
        return self.state in OUTCOMES


@dataclass(slots=True)
class HistoryChecker:
    """Follows one queue's history from its beginning; an emptied Redis needs a new checker.

    `lease_us` is T; without it the rule of the grace is not checked.
    """

    lease_us: int = 0
    violations: list[str] = field(default_factory=list)
    entries: int = 0
    token: str = ""
    epoch: int = 0
    grace_until_us: int = 0
    lives: dict[tuple[str, str], Life] = field(default_factory=dict)
    latest: dict[str, Life] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    _deliveries: dict[str, int] = field(default_factory=dict)
    _highest: dict[str, float] = field(default_factory=dict)
    _place: str = ""

    def feed(self, entry: Entry) -> None:
        """Take the next entry of the history."""
        self.entries += 1
        self._place = f"entry {self.entries} ({entry.script} by {entry.by} at {entry.time_us})"
        if entry.script in LEADERS_ACTS and entry.by != self.token:
            self._violated("I6", f"not by the leader {self.token}")
        for line in entry.lines:
            self._line(entry, line)

    def feed_all(self, entries: Iterable[Mapping[bytes, bytes]]) -> None:
        """Take the fields of entries as the stream has them."""
        for fields in entries:
            self.feed(Entry.of(fields))

    def cancelled(self, request_id: str, nonce: str = "") -> None:
        """Take note that a cancel of a life (without a nonce: of the latest) was answered OK."""
        life = self.lives.get((request_id, nonce)) if nonce else self.latest.get(request_id)
        if life is None or life.state != "cancelled":
            self._violated("I14", f"cancel of {request_id} was answered OK, it is {life.state if life else 'unknown'}")

    @property
    def live(self) -> dict[str, Life]:
        """The lives without an end, by id; I1 asks that there are none at quiescence."""
        return {request_id: life for request_id, life in self.latest.items() if not life.over}

    def totals(self) -> Counter[str]:
        """Return how many lives were submitted, are live, and ended in each way (I9)."""
        states = Counter(life.state if life.over else "live" for life in self.lives.values())
        states["submitted"] = len(self.lives)
        return states

    def _violated(self, invariant: str, what: str) -> None:
        self.violations.append(f"{self._place}: {invariant}: {what}")

    def _line(self, entry: Entry, line: str) -> None:
        request_id, word, *rest = line.split(" ")
        if request_id == "-":
            self._of_queue(entry, word, rest)
        elif word == "submit":
            self._submit(request_id, rest)
        else:
            life = self.latest.get(request_id)
            if life is None or life.over:
                both = life is not None and word in ("end", "twice")
                self._violated("I3" if both else "I4", f"{line}, but it is {life.state if life else 'unknown'}")
            else:
                self._of_life(entry, life, word, rest)

    # --- what concerns no request ---------------------------------------------------------------------------------

    def _of_queue(self, entry: Entry, word: str, rest: list[str]) -> None:
        match word:
            case "leader":
                self._lead(rest[0])
            case "grace":
                self.grace_until_us = entry.time_us + self.lease_us
            case "superseded" | "report":
                self.closed.setdefault(rest[0], word)
            case "void":
                self.closed[rest[0]] = word
                if rest[1] == "lost" and self._in_grace(entry):
                    self._violated("grace", f"{rest[0]} was lost")
            case "deregister":
                self.closed[rest[0]] = word
            case "register":
                if rest[0] in self.closed:
                    self._violated("incarnations", f"register of {rest[0]} after {self.closed[rest[0]]}")
            case "resign" | "drain":
                pass
            case _:
                self._violated("history", f"unknown word {word}")

    def _lead(self, token: str) -> None:
        epoch = int(token.partition(":")[0])
        if epoch <= self.epoch:
            self._violated("I6", f"epoch {epoch} after {self.epoch}")
        self.epoch, self.token = epoch, token

    def _in_grace(self, entry: Entry) -> bool:
        return self.grace_until_us - self.lease_us <= entry.time_us < self.grace_until_us

    # --- what concerns one ----------------------------------------------------------------------------------------

    def _submit(self, request_id: str, rest: list[str]) -> None:
        nonce, cls, _, deadline, score = rest
        before = self.latest.get(request_id)
        if before is not None and not before.over:
            self._violated("I2", f"submit of {request_id} while it is {before.state}")
        if (request_id, nonce) in self.lives:
            self._violated("I2", f"second submit of {request_id} with nonce {nonce}")
        life = Life(request_id, nonce, cls, int(deadline), score)
        self.lives[request_id, nonce] = self.latest[request_id] = life
        if not life.deadline_us:
            if float(score) <= self._highest.get(cls, 0.0):
                self._violated("I13", f"score {score} of {request_id} overtakes {self._highest[cls]:.0f}")
            self._highest[cls] = max(float(score), self._highest.get(cls, 0.0))

    def _of_life(self, entry: Entry, life: Life, word: str, rest: list[str]) -> None:
        match word:
            case "dispatch":
                self._dispatch(life, *rest)
            case "begin":
                self._begin(entry, life, *rest)
            case "ask":
                self._expect(life, word, HELD)
                self._latest_delivery(life, word, rest[0])
            case "failure":
                self._failure(life, *rest)
            case "delay":
                self._expect(life, word, HELD)
                life.state = "delayed"
            case "requeue":
                self._requeue(life, *rest)
            case "promote":
                self._expect(life, word, ("delayed",))
                self._same_score(life, rest[1])
                life.state = "queued"
            case "end":
                self._end(entry, life, *rest)
            case "twice":
                self._violated("I3", f"a second result of {life.id}")
            case _:
                self._violated("history", f"unknown word {word}")

    def _dispatch(self, life: Life, delivery: str, inc: str, score: str, _lane: str, _cost: str) -> None:
        self._expect(life, "dispatch", ("queued",))
        self._same_score(life, score)
        if self._deliveries.setdefault(delivery, self.entries) != self.entries:
            self._violated("I5", f"delivery {delivery} is used twice")
        if inc in self.closed:
            self._violated("incarnations", f"dispatch of {life.id} to {inc} after {self.closed[inc]}")
        life.state, life.delivery, life.inc = "dispatched", delivery, inc

    def _begin(self, entry: Entry, life: Life, delivery: str, attempts: str, nonce: str) -> None:
        self._expect(life, "begin", ("dispatched",))
        self._latest_delivery(life, "begin", delivery)
        if entry.by != life.inc:
            self._violated("I5", f"begin of {life.id} by {entry.by}, it went to {life.inc}")
        life.attempts += 1
        if int(attempts) != life.attempts:
            self._violated("I5", f"attempt {attempts} of {life.id}, expected {life.attempts}")
        if nonce != life.nonce:
            self._violated("I5", f"begin of {life.id} with nonce {nonce}, its life has {life.nonce}")
        if life.deadline_us and entry.time_us >= life.deadline_us:
            self._violated("I11", f"begin of {life.id} {entry.time_us - life.deadline_us} us late")
        life.state = "running"

    def _failure(self, life: Life, delivery: str, failures: str) -> None:
        self._expect(life, "failure", HELD)
        self._latest_delivery(life, "failure", delivery)
        life.failures += 1
        if int(failures) != life.failures:
            self._violated("I5", f"failure {failures} of {life.id}, expected {life.failures}")

    def _requeue(self, life: Life, delivery: str, _lane: str, score: str, losses: str, _why: str) -> None:
        self._expect(life, "requeue", HELD)
        self._latest_delivery(life, "requeue", delivery)
        self._same_score(life, score)
        if not life.losses <= int(losses) <= life.losses + 1:
            self._violated("I5", f"losses {losses} of {life.id} after {life.losses}")
        life.state, life.losses = "queued", int(losses)

    def _end(self, entry: Entry, life: Life, state: str, nonce: str, reason: str, _dead: str) -> None:
        if nonce != life.nonce:
            self._violated("I3", f"end of {life.id} with nonce {nonce}, its life has {life.nonce}")
        if state not in OUTCOMES:
            self._violated("history", f"unknown outcome {state}")
        if entry.script == "expire" and self._in_grace(entry):
            self._violated("grace", f"{life.id} expired")
        life.state, life.reason = state, reason

    def _expect(self, life: Life, word: str, states: tuple[str, ...]) -> None:
        if life.state not in states:
            self._violated("I5", f"{word} of {life.id} while it is {life.state}")

    def _latest_delivery(self, life: Life, word: str, delivery: str) -> None:
        if delivery != life.delivery:
            self._violated("I5", f"{word} of {life.id} with delivery {delivery}, the latest is {life.delivery}")

    def _same_score(self, life: Life, score: str) -> None:
        if score != life.score:
            self._violated("I13", f"score of {life.id} changed from {life.score} to {score}")
