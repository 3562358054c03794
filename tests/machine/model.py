"""The rules of every script once more, on plain dicts: what Redis must hold and what each call must answer.

`Model` has a method for each function of `stoker.store.scripts` that makes a call, with the same arguments and the same
kind of answer. `expected` gives every key with its value, `ttl` how long each may live.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stoker.config import Config
from stoker.store import scripts
from stoker.store.codec import Submission
from stoker.store.records import Waiting, parse_tail

FIELDS = ["version", "nonce", "digest", "cls", "tenant", "timeout", "term", "tail", "bytes", "reply", "stream", "link"]
WINDOW_US = scripts.RATE_WINDOW_US
BELL_MS = 60_000


@dataclass
class Life:
    """A live request. `state`: Q, D, R or Y, as in its flight record, which it has once it `flew`."""

    id: str
    head: dict[str, str]
    body: bytes
    accepted: int
    score: int
    state: str = "Q"
    flew: bool = False
    delivery: str = ""
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    group: str = ""
    solo: int = 0
    begun: str = ""
    history: list[str] = field(default_factory=list)
    due: int = 0

    @property
    def nonce(self) -> str:
        return self.head["nonce"]

    @property
    def deadline(self) -> int:
        timeout = int(self.head["timeout"])
        return self.accepted + timeout if timeout else 0

    @property
    def sheddable(self) -> bool:
        return self.head["tail"].endswith("s")

    @property
    def lane(self) -> str:
        own = f"{self.head['cls']}:{self.head['tenant']}" if self.head["tenant"] else self.head["cls"]
        return "suspect" if self.group else own

    @property
    def member(self) -> str:
        return f"{self.id}:{self.head['tail']}"

    @property
    def waits(self) -> bool:
        return self.state in "QY"

    @property
    def payload(self) -> bytes:
        return f"{self.accepted:016d}{'|'.join(self.head.values())}|".encode() + self.body

    @property
    def flight(self) -> bytes:
        head = self.head
        parts = (self.delivery, self.state, self.score, self.attempts, self.failures, self.losses, self.group)
        parts += (self.solo, self.begun, ";".join(self.history), head["nonce"], head["digest"], head["cls"])
        parts += (head["tenant"], head["tail"], head["bytes"], head["reply"], head["stream"])
        return text(*parts, self.accepted, self.deadline)

    def note_end(self, inc: str, cause: str) -> None:
        self.history = [*self.history, f"{inc},{cause}"][-8:]


@dataclass
class Member:
    """What an incarnation holds of a request."""

    delivery: str
    cost: int
    state: str
    since: int
    name: str
    before: int

    @property
    def suspect(self) -> bool:
        return self.name == "suspect"


@dataclass
class Inc:
    """An incarnation, with what belongs to it: members, beat, doorbells by stream entry, and those that were read."""

    worker: str
    identity: str
    capacity: int
    rows: int
    budget: int
    mode: str
    cache: str
    beat: int
    life: str = "live"
    accepting: bool = True
    drained: bool = False
    vitals: tuple[str, ...] = ("0", "0", "0", "0", "")
    cause: str = ""
    crashed: tuple[str, ...] = ()
    work: dict[str, Member] = field(default_factory=dict)
    bells: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    rung: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    pending: set[str] = field(default_factory=set)

    @property
    def credit(self) -> int:
        return sum(member.cost for member in self.work.values())

    @property
    def ahead(self) -> int:
        """How many requests it takes beside its rows, by its figures."""
        return int(re.search(r"(?:^|,)ahead=(\d+)|$", self.vitals[-1])[1] or 0)  # type: ignore[index]

    @property
    def record(self) -> bytes:
        parts: tuple[object, ...] = (self.worker, self.identity, self.capacity, self.rows, self.budget, self.mode)
        parts += (self.cache, self.life, int(self.accepting), int(self.drained))
        return text(*parts, *self.vitals, self.cause, " ".join(self.crashed))


@dataclass
class Result:
    """How a life ended."""

    state: str
    nonce: str
    digest: str
    value: bytes


def text(*parts: object) -> bytes:
    return "|".join(str(part) for part in parts).encode()


def tokens_of(head: dict[str, str]) -> int:
    return sum(map(int, head["tail"].split(":")[:2]))


def split_header(header: bytes) -> dict[str, str]:
    return dict(zip(FIELDS, header.decode().split("|"), strict=False))


class Model:
    def __init__(self, config: Config, now: int) -> None:
        self.config, self.now = config, now
        self.h = config.heartbeat_ms * 1000
        self.lives: dict[str, Life] = {}
        self.results: dict[str, Result] = {}
        self.letters: dict[str, bytes] = {}
        self.obituaries: dict[str, bytes] = {}
        self.dead: dict[str, int] = {}
        self.incs: dict[str, Inc] = {}
        self.void: dict[str, str] = {}
        self.replies: dict[str, list[bytes]] = {}
        self.fresh_replies: Counter[str] = Counter()
        self.tokens: dict[str, list[dict[bytes, bytes]]] = {}
        self.last_tokens: dict[str, tuple[int, int]] = {}
        self.ended: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.histograms: dict[str, int] = {}
        self.answers: list[bytes] = []
        self.rates: dict[str, float] = {}
        self.kept: dict[int, Counter[str]] = {}
        self.quarantine: tuple[str, int] | None = None
        self.scalars: dict[str, int | str] = {}
        self.leader: dict[str, int | str] = {}
        self.card: tuple[str, bytes] | None = None
        self.bell = False
        self.ends: list[str] = []

    # --- what others see -----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Waiting]:
        queued = sorted(
            (life for life in self.lives.values() if life.state == "Q"), key=lambda life: (life.score, life.member)
        )
        found = []
        for life in queued:
            prompt, most, exact, affinity = parse_tail(life.head["tail"])
            waiting = Waiting(life.id, life.lane, life.member, life.score, prompt, most, exact, affinity=affinity)
            found.append(waiting)
        return found

    def all_counts(self) -> dict[str, int]:
        counts = Counter(self.counts)
        for life in self.lives.values():
            if life.waits:
                self._count(counts, "waiting", life.head["tenant"], 1)
                self._count(counts, "waiting_bytes", life.head["tenant"], int(life.head["bytes"]))
                self._count(counts, "waiting_tokens", life.head["tenant"], tokens_of(life.head))
        return {name: number for name, number in counts.items() if number}

    def expected(self) -> dict[str, Any]:
        """Every key, without the queue's prefix, that holds something, and its value."""
        keys: dict[str, Any] = {
            "sheddable": {life.id: life.score for life in self.lives.values() if life.state == "Q" and life.sheddable},
            "delayed": {life.id: life.due for life in self.lives.values() if life.state == "Y"},
            "deadlines": {life.id: life.deadline for life in self.lives.values() if life.deadline},
            "dead": dict(self.dead),
            "inc": {name: inc.record for name, inc in self.incs.items()},
            "credit": {name: str(inc.credit).encode() for name, inc in self.incs.items()},
            "beats": {name: inc.beat for name, inc in self.incs.items()},
            "counts": {name: str(number).encode() for name, number in self.all_counts().items()},
            "histograms": {name: str(number).encode() for name, number in self.histograms.items()},
            "answers": list(self.answers),
            "rates": {name: self._rate_text(name).encode() for name in self.rates},
            "leader": {name: str(value).encode() for name, value in self.leader.items()},
            "bell": [b"1"] if self.bell else [],
            "quarantine": text(*self.quarantine) if self.quarantine else b"",
            "card": self.card[0].encode() + b"|" + self.card[1] if self.card else b"",
        }
        shared: Counter[str] = Counter()
        for waiting in self.waiting:
            keys.setdefault(f"lane:{waiting.lane}", {})[waiting.member] = waiting.score
            shared.update((waiting.lane, waiting.lane.partition(":")[0]) if ":" in waiting.lane else ())
        keys["active"] = {name: str(number).encode() for name, number in shared.items()}
        for life in self.lives.values():
            keys[f"payload:{life.id}"] = life.payload
            keys[f"flight:{life.id}"] = life.flight if life.flew else b""
        for name, inc in self.incs.items():
            keys[f"work:{name}"] = {
                request_id: text(m.delivery, m.cost, m.state, m.since, m.name, m.before)
                for request_id, m in inc.work.items()
            }
        keys["kept"] = {str(number): self._lapse(number) for number in self.kept}
        keys |= {
            f"kept:{number}": {tenant: str(size).encode() for tenant, size in sizes.items()}
            for number, sizes in self.kept.items()
        }
        keys |= {f"result:{request_id}": result.value for request_id, result in self.results.items()}
        keys |= {f"dead:{request_id}": letter for request_id, letter in self.letters.items()}
        keys |= {f"obituary:{name}": words for name, words in self.obituaries.items()}
        keys |= {f"void:{name}": reason.encode() for name, reason in self.void.items()}
        keys |= {f"reply:{client}": list(wakes) for client, wakes in self.replies.items()}
        keys |= {f"tokens:{name}": list(records) for name, records in self.tokens.items()}
        keys |= {name: str(value).encode() for name, value in self.scalars.items()}
        return {name: value for name, value in keys.items() if value}

    def ttl(self, name: str) -> int:
        """How long the key may live from its last change, in milliseconds; 0: for good, or as long as its owner."""
        kind, _, rest = name.partition(":")
        config = self.config
        seconds = {"result": config.result_ttl_s, "reply": config.reply_ttl_s, "void": 3600.0, "bell": BELL_MS / 1000}
        seconds["obituary"] = seconds["void"]
        if kind == "dead" and rest:
            return int(config.dead_ttl_s * 1000)
        if kind == "tokens":
            return int(1000 * (config.tokens_ttl_s if rest in self.ended else config.max_age_s))
        return int(1000 * seconds.get(kind, 0))

    def forget(self, name: str) -> None:
        """The key reached the end of its life."""
        kind, _, rest = name.partition(":")
        stores: dict[str, Any] = {"result": self.results, "dead": self.letters, "void": self.void}
        stores |= {"reply": self.replies, "tokens": self.tokens, "obituary": self.obituaries}
        if kind == "bell":
            self.bell = False
        else:
            del stores[kind][rest]
            self.ended.discard(rest)

    def _rate_text(self, name: str) -> str:
        return f"{self.rates[name]:.3f}" if name == "drain" else str(int(self.rates[name]))

    # --- pieces ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _count(counts: Counter[str], name: str, tenant: str, number: int) -> None:
        counts[name] += number
        if tenant:
            counts[f"{name}:{tenant}"] += number

    def _gap(self) -> bool:
        tick, lease = self.scalars.get("tick"), self.config.lease_us
        if tick is None or self.now < int(tick) or self.now - int(tick) > self.h:
            self.scalars["grace"] = self.now + lease
            if tick is not None and self.now < int(tick):
                self.scalars["skew"] = int(self.scalars.get("skew", 0)) + int(tick) - self.now
        self.scalars["tick"] = self.now
        return self.now < int(self.scalars.get("grace", 0)) <= self.now + lease

    def _leads(self, token: str) -> bool:
        return self.leader.get("token") == token

    def _base(self) -> int:
        return max(self.now + int(self.scalars.get("skew", 0)), int(self.scalars.get("mark", 0)))

    def _room_came_free(self, worker: Inc | None, held: int) -> None:
        """Ring for the room that a worker has since it held so many, if anything waits for it."""
        if worker and len(worker.work) < held and any(life.waits for life in self.lives.values()):
            self.bell = True

    def _requeue(self, life: Life) -> None:
        life.delivery, life.state = "", "Q"

    def _finish(
        self, life: Life, state: str, reason: str, *, body: bytes = b"", inc: str = "", dead: bool = False
    ) -> None:
        del self.lives[life.id]
        self.ends.append(f"{state} {reason}")
        parts = (state, life.nonce, life.head["digest"], life.id, life.accepted, life.begun, self.now)
        head = text(*parts, life.attempts, reason, inc, ";".join(life.history), len(body)) + b"|"
        assert life.id not in self.results
        self.results[life.id] = Result(state, life.nonce, life.head["digest"], head + body)
        if dead:
            parts = (self.now, reason, life.attempts, life.failures, life.losses, ";".join(life.history), len(body))
            self.letters[life.id] = text(*parts) + b"|" + body + life.payload
            self.dead[life.id] = self.now
        if life.head["stream"] == "1":
            name = f"{life.id}:{life.nonce}"
            self.tokens.setdefault(name, []).append({b"end": state.encode()})
            self.ended.add(name)
        client = life.head["reply"]
        if client:
            wake = head + body if len(body) <= self.config.wakeup_bytes else head
            self.replies[client] = [*self.replies.get(client, []), wake][-self.config.reply_len :]
            self.fresh_replies[client] += 1
        self._count(self.counts, state, life.head["tenant"], 1)

    def _forget_inc(self, name: str) -> None:
        del self.incs[name]
        if self.quarantine and self.quarantine[0] == name:
            self.quarantine = None

    def _observe(self, metric: str, cls: str, us: int) -> None:
        ms = us / 1000
        bucket = 0 if ms <= 1 else min(54, math.ceil(2 * math.log(ms) / math.log(2) - 1e-9))
        for cell, number in ((bucket, 1), ("sum", us)):
            name = f"{metric}:{cls}:{cell}"
            self.histograms[name] = self.histograms.get(name, 0) + number

    # --- clients ----------------------------------------------------------------------------------------------------

    def submit(self, random: str, max_bytes: int, items: Sequence[Submission]) -> tuple[str, list[scripts.Accepted]]:
        generation = str(self.scalars.setdefault("generation", random))
        base, taken, words = self._base(), 0, []
        displaced: dict[str, tuple[Life, int]] = {}
        before = set(self.lives)
        for item in items:
            head = split_header(item.header)
            word = self._known(item.id, head["digest"], displaced)
            limit = self._limit_met(head, max_bytes) if word is None else None
            if limit and not limit[0].startswith("tenant_") and item.displace:
                score = base + int(head["term"]) + taken + 1
                limit = self._make_room(head, max_bytes, score, before, displaced) and limit
            if limit:
                words.append(self._full(*limit, tenant=head["tenant"]))
                continue
            if word is None:
                word, taken = "ACCEPTED", taken + 1
                score = base + int(head["term"]) + taken
                self.lives[item.id] = Life(item.id, head, item.body, self.now, score)
                self._count(self.counts, "submitted", head["tenant"], 1)
            words.append(scripts.Accepted(word))
        for life, wait_ms in displaced.values():
            self.lives[life.id] = life
            body = b"\x81\xaeretry_after_ms\xcd" + wait_ms.to_bytes(2, "big")
            self._finish(life, "failed", "displaced", body=body)
        if taken:
            self.scalars["mark"] = base + taken
            self.bell = True
        return generation, words

    def _known(self, request_id: str, digest: str, displaced: dict[str, tuple[Life, int]]) -> str | None:
        """The word for an id that is there already; what this call displaces is there until its end."""
        life, result = self.lives.get(request_id), self.results.get(request_id)
        if request_id in displaced:
            life, _ = displaced[request_id]
        if life:
            return "SAME" if life.head["digest"] == digest else "CONFLICT"
        if result:
            return "DONE" if result.digest == digest else "CONFLICT"
        return None

    def _limit_met(self, head: dict[str, str], max_bytes: int) -> tuple[str, int, int, float] | None:
        """Return the first limit that has no room: its name, itself, what it would come to, and so many too many."""
        config, counts, tenant = self.config, self.all_counts(), head["tenant"]
        sizes = {"waiting": 1, "waiting_bytes": int(head["bytes"]), "waiting_tokens": tokens_of(head), "kept_bytes": 0}
        limits: list[tuple[str, int | None, str, tuple[str, ...]]] = [
            ("max_waiting", config.max_waiting, "", ("waiting",)),
            ("max_waiting_bytes", max_bytes, "", ("waiting_bytes",)),
            ("max_waiting_tokens", config.max_waiting_tokens, "", ("waiting_tokens",)),
            ("max_stored_bytes", config.max_stored_bytes, "", ("waiting_bytes", "kept_bytes")),
        ]
        if tenant:
            limits += [
                ("tenant_max_waiting", config.tenant_max_waiting, f":{tenant}", ("waiting",)),
                ("tenant_max_tokens", config.tenant_max_tokens, f":{tenant}", ("waiting_tokens",)),
                ("tenant_max_bytes", config.tenant_max_bytes, f":{tenant}", ("waiting_bytes", "kept_bytes")),
            ]
        for name, most, of, parts in limits:
            has = sum(counts.get(part + of, 0) for part in parts)
            value = has + sum(sizes[part] for part in parts)
            if most is not None and value > most:
                over = value - most
                own = counts.get("waiting" + of, 0)
                return name, most, value, over if parts == ("waiting",) or not has else over * own / has
        return None

    def _make_room(
        self, head: dict[str, str], max_bytes: int, score: int, before: set[str], displaced: dict[str, Any]
    ) -> bool:
        """Take the worst sheddable ones out until there is room; returns whether there is still none.

        None of the same call: these are not yet waiting.
        """
        there = (self.lives[id_] for id_ in before - displaced.keys() if id_ in self.lives)
        worst = sorted(
            (life for life in there if life.state == "Q" and life.sheddable), key=lambda life: (life.score, life.id)
        )
        chosen = []
        while limit := self._limit_met(head, max_bytes):
            if limit[0].startswith("tenant_") or not worst or worst[-1].score <= score:
                self.lives |= {life.id: life for life, _ in chosen}
                return True
            life = worst.pop()
            chosen.append((life, int(1000 * self._full(*limit, tenant=head["tenant"]).retry_after)))
            del self.lives[life.id]
        displaced.update({life.id: (life, wait_ms) for life, wait_ms in chosen})
        return False

    def _full(self, name: str, most: int, value: int, requests: float, tenant: str) -> scripts.Accepted:
        age = max(self.now - self.rates.get("since", self.now), 1)
        rate = self.rates.get("drain", 0)
        if age > WINDOW_US or rate == 0:
            rate = self.rates.get("settled", 0) * 1e6 / max(age, 1e6)
        counts = self.all_counts()
        if name.startswith("tenant_") and counts.get(f"waiting:{tenant}", 0) < counts.get("waiting", 0):
            rate *= counts.get(f"waiting:{tenant}", 0) / counts["waiting"]
        wait = min(max(1000 * requests / rate, 50), 60_000) if rate > 0 else 1000
        if name in ("max_stored_bytes", "tenant_max_bytes"):
            wait = min(self.config.result_ttl_s * 1000, 60_000)
        workers = any(self.now - self.config.lease_us <= inc.beat for inc in self.incs.values())
        return scripts.Accepted("FULL", float(f"{wait:.0f}") / 1000, name, most, value, workers)

    def cancel(self, request_id: str, nonce: str = "") -> str:
        life, result = self.lives.get(request_id), self.results.get(request_id)
        if life:
            if nonce and life.nonce != nonce:
                return "UNKNOWN"
            self._finish(life, "cancelled", "")
            return "OK"
        if result is None or (nonce and result.nonce != nonce):
            return "UNKNOWN"
        return "OK" if result.state == "cancelled" else "DONE"

    def retry_dead(self, request_id: str, new_id: str, nonce: str, reply: str) -> str:
        before = self.lives.get(new_id) or self.results.get(new_id)
        if before:
            return "OK" if before.nonce == nonce else "CONFLICT"
        letter = self.letters.pop(request_id, None)
        if letter is None:
            return "UNKNOWN"
        self.dead.pop(request_id, None)
        *_, size, rest = letter.split(b"|", 7)
        payload = rest[int(size) + 16 :]
        *fields, body = payload.split(b"|", len(FIELDS))
        head = dict(zip(FIELDS, (part.decode() for part in fields), strict=True))
        head |= {"nonce": nonce, "reply": reply, "link": request_id}
        base = self._base() + 1
        self.lives[new_id] = Life(new_id, head, body, self.now, base + int(head["term"]))
        self.scalars["mark"] = base
        self._count(self.counts, "submitted", head["tenant"], 1)
        self.bell = True
        return "OK"

    def purge_dead(self, ids: Sequence[str]) -> int:
        for request_id in ids:
            self.dead.pop(request_id, None)
        return sum(self.letters.pop(request_id, None) is not None for request_id in ids)

    def set_model(self, identity: str, card: bytes) -> str:
        if any(inc.identity != identity for inc in self.incs.values()):
            return "BUSY"
        self.card = (identity, card) if identity else None
        return "OK"

    def drain(self, worker: str, drained: bool) -> str:
        live = [inc for inc in self.incs.values() if inc.worker == worker and inc.life == "live"]
        for inc in live:
            self.bell = self.bell or inc.drained != drained
            inc.drained = drained
        return "OK" if live else "UNKNOWN"

    # --- schedulers -------------------------------------------------------------------------------------------------

    def lead(self, me: str, generation: str, random: str, config: Config) -> scripts.Lead:
        h = config.heartbeat_ms * 1000
        if self.scalars.setdefault("h", h) != h:
            return scripts.Lead("OTHER_H", detail=str(self.scalars["h"]))
        self._gap()
        known = str(self.scalars.setdefault("generation", random))
        if generation and generation != known:
            return scripts.Lead("VOID", generation=known)
        lease, token = self.config.leader_lease_us, str(self.leader.get("token", ""))
        if token and token.partition(":")[2] == me:
            self.leader["until"] = self.now + lease
            return scripts.Lead("LEADER", token, known)
        if token and self.now < int(self.leader["until"]) <= self.now + lease:
            return scripts.Lead("STANDBY", token, known)
        self.scalars["epoch"] = int(self.scalars.get("epoch", 0)) + 1
        token = f"{self.scalars['epoch']}:{me}"
        self.leader = {"token": token, "until": self.now + lease, "n": 0}
        return scripts.Lead("LEADER", token, known)

    def resign(self, token: str) -> str:
        if self._leads(token) and self.leader["until"] != 0:
            self.leader["until"] = 0
            self.bell = True
        return "OK"

    def dispatch(self, token: str, n: int, inc: str, requests: Iterable[tuple[Waiting, int]]) -> scripts.Dispatched:
        if not self._leads(token):
            return scripts.Dispatched("FENCED")
        asked = list(requests)
        epoch, _, nonce = token.split(":", 2)
        delivery = f"{epoch}-{nonce}-{n}"
        worker = self.incs.get(inc)
        if n <= int(self.leader["n"]):
            held = worker.work if worker else {}
            ids = (waiting.id for waiting, _ in asked if waiting.id in held)
            return scripts.Dispatched("SEEN", delivery, tuple(i for i in ids if held[i].delivery == delivery))
        self.leader["n"] = n
        if not worker or worker.life != "live" or not worker.accepting or worker.drained or inc in self.void:
            return scripts.Dispatched("REFUSED", delivery)
        lanes = {waiting.lane for waiting, _ in asked}
        refused = self._quarantine(inc, worker, lanes)
        if refused:
            return scripts.Dispatched(refused, delivery)
        words = [self._hand(worker, delivery, waiting, cost, lanes) for waiting, cost in asked]
        took = [waiting.id for (waiting, _), word in zip(asked, words, strict=True) if word == "TOOK"]
        if took:
            worker.rung.append((delivery, frozenset(took)))
        return scripts.Dispatched("OK", delivery, tuple(words))

    def _quarantine(self, inc: str, worker: Inc, lanes: set[str]) -> str:
        holder = self.quarantine[0] if self.quarantine else ""
        counts = holder in self.incs and bool(self.incs[holder].work)
        if "suspect" in lanes:
            if len(lanes) > 1:
                return "REFUSED"
            if counts:
                return "BUSY"
            self.quarantine = (inc, self.now)
            return "DRAIN" if worker.work else ""
        if holder == inc:
            if counts:
                return "QUARANTINE"
            self.quarantine = None
        return ""

    def _hand(self, worker: Inc, delivery: str, waiting: Waiting, cost: int, lanes: set[str]) -> str:
        life = self.lives.get(waiting.id)
        if not life or life.state != "Q" or (life.lane, life.member) != (waiting.lane, waiting.member):
            return "GONE"
        if waiting.id in worker.work:
            return "HELD"
        longest = max([cost, *(member.cost for member in worker.work.values())])
        rows = sum(member.cost > 0 for member in worker.work.values()) + 1
        need = rows * longest if worker.cache == "rect" else worker.credit + cost
        if rows > worker.rows + min(worker.rows, worker.ahead) or need > worker.capacity:
            return "FULL"
        life.delivery, life.state, life.flew = delivery, "D", True
        worker.work[life.id] = Member(delivery, cost, "D", self.now, life.lane.partition(":")[0], life.attempts)
        return "TOOK"

    def make_room(self, token: str, inc: str, items: Iterable[tuple[str, str]]) -> list[str]:
        if not self._leads(token):
            return ["FENCED"]
        worker, asked = self.incs.get(inc), []
        out = ["OK"]
        for request_id, delivery in items:
            member, life = worker.work.get(request_id) if worker else None, self.lives.get(request_id)
            if not member or not life or not member.delivery == delivery == life.delivery:
                out.append("GONE")
            elif not member.cost:
                out.append("ASKED")
            elif self._spared(member):
                out.append("SPARED")
            else:
                member.cost = 0
                asked += [request_id, delivery]
                out.append("ASKED")
        if asked and worker:
            worker.rung.append(("", frozenset(asked)))
        return out

    def _spared(self, member: Member) -> bool:
        if member.name in ("critical", "suspect"):
            return True
        undisturbed_us = self.config.preempt_ms * 1000 * 2.0 ** (member.before - 1) if member.before else 0
        return 0 <= self.now - member.since < undisturbed_us

    def reclaim(self, token: str, inc: str) -> int:
        if not self._leads(token):
            return scripts.FENCED
        grace, lost = self._gap(), self.incs.get(inc)
        if lost is None:
            return 0
        if inc not in self.void and lost.life == "live":
            lost.beat = min(lost.beat, self.now)
            if grace or self.now - lost.beat <= self.config.lease_us:
                return -1
            lost.life = "lost"
        self.void.setdefault(inc, lost.life)
        taken = dict(list(lost.work.items())[: self.config.group])
        company = sum(member.state == "R" for member in taken.values()) > 1
        for request_id, member in taken.items():
            del lost.work[request_id]
            life = self.lives.get(request_id)
            if life and life.delivery == member.delivery:
                self._take_back(inc, lost, life, member, company)
        left = len(lost.work)
        if not left:
            self._forget_inc(inc)
        self.bell = True
        return left

    def _take_back(self, inc: str, lost: Inc, life: Life, member: Member, company: bool) -> None:
        verdict = ""
        if member.state == "R":
            life.note_end(inc, lost.cause or lost.life)
            if member.suspect and company:
                life.group = inc
            else:
                verdict = self._blame(inc, lost, life)
        if verdict:
            self._finish(life, "failed", verdict, body=self.obituaries.get(inc, b""), inc=inc, dead=True)
        else:
            self._requeue(life)

    def _blame(self, inc: str, lost: Inc, life: Life) -> str:
        life.losses += 1
        if lost.cause in ("crash", "hung") and life.id in lost.crashed:
            life.group = inc
            life.solo += lost.crashed == (life.id,)
            if life.solo == 2:
                return "poison"
        elif life.losses > 3:
            life.group = inc
        return "worker_lost" if life.losses >= self.config.max_losses else ""

    def promote(self, token: str) -> int:
        if not self._leads(token):
            return scripts.FENCED
        delayed = sorted((life.due, life.id) for life in self.lives.values() if life.state == "Y")
        most = self.config.backoff_max_ms * 1000
        due = [i for at, i in delayed if at <= self.now][: self.config.group]
        due += [i for at, i in delayed if at > self.now + most][: self.config.group]
        for request_id in due:
            self.lives[request_id].state = "Q"
        self.bell = self.bell or bool(due)
        return len(due)

    def expire(self, token: str) -> list[str] | None:
        if not self._leads(token):
            return None
        if self._gap():
            return []
        late = sorted((life.deadline, life.id) for life in self.lives.values() if life.deadline)
        reasons = {i: "deadline" for at, i in late[: self.config.group] if at <= self.now}
        heads: defaultdict[str, list[str]] = defaultdict(list)
        for waiting in self.waiting:
            heads[waiting.lane].append(waiting.id)
        for request_id, reason in reasons.items():
            self._finish(self.lives[request_id], "expired", reason)
        for lane, ids in heads.items():
            heads[lane] = [i for i in ids if i in self.lives][:8]
        old = [i for ids in heads.values() for i in ids if self.now - self.lives[i].accepted > self._max_age]
        for request_id in old:
            self._finish(self.lives[request_id], "expired", "age")
        kept = self.now - int(self.config.dead_ttl_s * 1e6)
        self.dead = {i: at for i, at in self.dead.items() if at > kept}
        for number in [number for number in self.kept if self._lapse(number) <= self.now]:
            for tenant, size in self.kept.pop(number).items():
                self._count(self.counts, "kept_bytes", tenant, -size)
        return [*reasons, *old]

    @property
    def _max_age(self) -> int:
        return self.config.max_age_s * 1_000_000

    def refuse(self, token: str, waiting: Waiting) -> str:
        if not self._leads(token):
            return "FENCED"
        life = self.lives.get(waiting.id)
        if not life or life.state != "Q" or (life.lane, life.member) != (waiting.lane, waiting.member):
            return "GONE"
        self._finish(life, "failed", "unschedulable", dead=True)
        return "OK"

    # --- workers ----------------------------------------------------------------------------------------------------

    def begin(self, inc: str, entry: str, delivery: str, ids: Sequence[str]) -> list[scripts.Begun]:
        worker = self.incs.get(inc)
        if worker:
            worker.bells.pop(entry, None)
            worker.pending.discard(entry)
        held = len(worker.work) if worker else 0
        begun = [self._begin(inc, request_id, delivery) for request_id in ids]
        self._room_came_free(worker, held)
        return begun

    def _begin(self, inc: str, request_id: str, delivery: str) -> scripts.Begun:
        worker, life = self.incs.get(inc), self.lives.get(request_id)
        member = worker.work.get(request_id) if worker else None
        if not worker or not member or member.delivery != delivery:
            return scripts.Begun(request_id, "GONE")
        if not life or life.delivery != delivery:
            if member.state == "D":
                del worker.work[request_id]
            return scripts.Begun(request_id, "GONE")
        if member.state == "D":
            if life.deadline and self.now >= life.deadline:
                self._finish(life, "expired", "late")
                del worker.work[request_id]
                return scripts.Begun(request_id, "LATE")
            member.state, member.since = "R", self.now
            life.state, life.begun, life.attempts = "R", str(self.now), life.attempts + 1
        return scripts.Begun(request_id, "RUN", life.payload, life.attempts)

    def settle(self, inc: str, jitter: float, items: Sequence[scripts.Settlement]) -> list[str]:
        worker, words, settled, done = self.incs.get(inc), [], 0, set()
        held = len(worker.work) if worker else 0
        for item in items:
            member = worker.work.get(item.id) if worker else None
            if worker and member and member.delivery == item.delivery:
                del worker.work[item.id]
            life = self.lives.get(item.id)
            if not life or not life.flew or life.nonce != item.nonce or item.id in done:
                words.append("DUPLICATE")
            else:
                words.append(self._judge(inc, float(f"{jitter:.6f}"), life, item))
            if words[-1] == "OK":
                done.add(item.id)
                settled += item.id not in self.lives
            else:
                self.counts["fenced"] += 1
        if settled:
            self._settled(settled)
        self._room_came_free(worker, held)
        return words

    def _judge(self, inc: str, jitter: float, life: Life, item: scripts.Settlement) -> str:
        current = life.delivery == item.delivery
        if item.outcome == "ok":
            if not current and life.head["stream"] == "1" and item.attempt < life.attempts:
                return "STALE"
            self._measure(life, item)
            self._end(life, "succeeded", item, inc)
            return "OK"
        if not current:
            return "STALE"
        life.note_end(inc, item.reason)
        if item.outcome == "bad":
            self._end(life, "failed", item, inc)
            return "OK"
        life.failures += 1
        if item.outcome == "failure" or life.failures >= self.config.max_attempts:
            self._end(life, "failed", item, inc, dead=True)
            return "OK"
        cap = min(self.config.backoff_max_ms, self.config.backoff_min_ms * 2 ** (life.failures - 1)) * 1000
        life.delivery, life.state, life.due = "", "Y", int(f"{self.now + cap * jitter:.0f}")
        self.counts["retries"] += 1
        return "OK"

    def _end(self, life: Life, state: str, item: scripts.Settlement, inc: str, dead: bool = False) -> None:
        self._finish(life, state, item.reason, body=item.body, inc=inc, dead=dead)
        tenant, size = life.head["tenant"], len(item.body)
        if size:
            self._count(self.counts, "kept_bytes", tenant, size)
            self.kept.setdefault(self.now // self._slice, Counter())[tenant] += size

    @property
    def _slice(self) -> int:
        return int(self.config.result_ttl_s * 1e6 / scripts.RESULT_SLICES)

    def _lapse(self, number: int) -> int:
        return (number + 1) * self._slice + int(self.config.result_ttl_s * 1000) * 1000

    def _measure(self, life: Life, item: scripts.Settlement) -> None:
        cls = life.head["cls"]
        if life.begun:
            queued = max(int(life.begun) - life.accepted, 0)
            self._observe("queue", cls, queued)
            if item.first_token_us >= 0:
                self._observe("ttft", cls, queued + item.first_token_us)
        self._observe("e2e", cls, max(self.now - life.accepted, 0))
        if item.completion:
            self._observe("answer", cls, 1000 * item.completion)
            if life.head["tenant"]:
                self.answers.append(f"{cls}:{life.head['tenant']}:{item.completion}".encode())
        self.counts["prompt_tokens"] += item.prompt
        self.counts["generation_tokens"] += item.completion
        if item.text_bytes:
            for name, number in (("text_bytes", item.text_bytes), ("text_tokens", item.prompt)):
                self.rates[name] = self.rates.get(name, 0) + number

    def _settled(self, number: int) -> None:
        since = self.rates.get("since")
        if since is None or self.now < since:
            self.rates |= {"since": self.now, "settled": number}
        elif self.now - since >= WINDOW_US:
            drain = self.rates["settled"] * 1e6 / (self.now - since)
            self.rates |= {"since": self.now, "settled": number, "drain": float(f"{drain:.3f}")}
        else:
            self.rates["settled"] += number

    def hand_back(self, inc: str, items: Iterable[tuple[str, str]]) -> str:
        worker = self.incs.get(inc)
        for request_id, delivery in items:
            member, life = worker.work.get(request_id) if worker else None, self.lives.get(request_id)
            asked = False
            if worker and member and member.delivery == delivery:
                asked = not member.cost
                del worker.work[request_id]
            if life and life.delivery == delivery:
                if life.state == "R":
                    life.note_end(inc, "preempted" if asked else "handed_back")
                self.counts["preempted"] += asked
                self._requeue(life)
        self.bell = True
        return "OK"

    def flush(self, inc: str, items: Iterable[scripts.Published]) -> list[str]:
        return ["OK" if self._publish(inc, item) else "STOP" for item in items]

    def _publish(self, inc: str, item: scripts.Published) -> bool:
        worker, life = self.incs.get(inc), self.lives.get(item.id)
        member = worker.work.get(item.id) if worker else None
        if not member or not life or not member.delivery == item.delivery == life.delivery or life.nonce != item.nonce:
            return False
        name = f"{life.id}:{life.nonce}"
        attempt, offset = self.last_tokens.get(name, (0, 0))
        if attempt != item.attempt or offset < item.offset:
            self.tokens.setdefault(name, []).append({b"ids": item.ids, b"text": item.text.encode()})
            self.last_tokens[name] = item.attempt, item.offset
        return True

    def incarnate(self) -> int:
        self.scalars["incs"] = int(self.scalars.get("incs", 0)) + 1
        return int(self.scalars["incs"])

    def register(self, item: scripts.Registration, random: str, config: Config) -> scripts.Registered:
        if item.inc in self.void:
            return scripts.Registered("VOID", self.void[item.inc].encode())
        h, before = self.scalars.get("h"), self.incs.get(item.inc)
        if h is not None and h != config.heartbeat_ms * 1000:
            return scripts.Registered("OTHER_H", str(h).encode())
        if before:
            if before.life != "live":
                return scripts.Registered("VOID", before.life.encode())
            return scripts.Registered("OK", str(self.scalars.get("generation", "")).encode())
        if self.card and self.card[0] != item.identity:
            return scripts.Registered("OTHER_MODEL", self.card[0].encode() + b"|" + self.card[1])
        same = {name: inc for name, inc in self.incs.items() if inc.worker == item.worker}
        if any(int(re.findall(r":(\d+)-", name)[-1]) > item.number for name in same):
            return scripts.Registered("VOID", b"superseded")
        for inc in same.values():
            inc.life = "superseded" if inc.life == "live" else inc.life
        self.card = self.card or (item.identity, item.card)
        limits = (item.capacity, item.rows, item.budget, item.mode, item.cache)
        self.incs[item.inc] = Inc(item.worker, item.identity, *limits, beat=self.now)
        self.bell = True
        return scripts.Registered("OK", str(self.scalars.setdefault("generation", random)).encode())

    def beat(self, item: scripts.Beat, config: Config) -> scripts.Beaten:
        worker, h = self.incs.get(item.inc), self.scalars.get("h")
        if item.inc in self.void:
            return scripts.Beaten("VOID", detail=self.void[item.inc])
        if not worker:
            return scripts.Beaten("VOID", detail="unknown")
        if self.scalars.get("generation") != item.generation:
            return scripts.Beaten("VOID", detail="generation")
        if worker.life != "live":
            return scripts.Beaten("VOID", detail=worker.life)
        if h is not None and h != config.heartbeat_ms * 1000:
            return scripts.Beaten("OTHER_H", detail=str(h))
        worker.beat = self.now
        if (worker.accepting, worker.capacity) != (item.accepting, item.capacity):
            self.bell = True
        worker.accepting, worker.capacity = item.accepting, item.capacity
        figures = ",".join(f"{name}={number}" for name, number in item.figures.items())
        worker.vitals = (str(item.progress), f"{item.rate:.3f}", str(item.faults), str(item.successes), figures)
        self._correct(worker, item)
        named = [(i, m.delivery) for i, m in worker.work.items() if self._moved_on(item.inc, i, m)]
        self._ring_again(worker, {request_id for request_id, _ in named})
        return scripts.Beaten("OK", worker.drained, tuple(named))

    def _correct(self, worker: Inc, item: scripts.Beat) -> None:
        before = worker.credit
        for (request_id, delivery), cost in item.costs.items():
            member = worker.work.get(request_id)
            if member and member.delivery == delivery and member.cost:
                member.cost = cost
        self.bell = self.bell or worker.credit < before

    def _moved_on(self, inc: str, request_id: str, member: Member) -> bool:
        life, evict = self.lives.get(request_id), False
        if self.quarantine and self.quarantine[0] == inc:
            age = self.now - self.quarantine[1]
            evict = age > scripts.QUARANTINE_PATIENCE_US or age < 0
        return not life or life.delivery != member.delivery or (evict and not member.suspect)

    def _ring_again(self, worker: Inc, named: set[str]) -> None:
        again: defaultdict[str, set[str]] = defaultdict(set)
        for request_id, member in worker.work.items():
            age = self.now - member.since
            if request_id not in named and member.state == "D" and (age > self.config.lease_us or age < 0):
                member.since = self.now
                again[member.delivery].add(request_id)
        worker.rung += [(delivery, frozenset(ids)) for delivery, ids in again.items()]

    def report(self, inc: str, cause: str, crash_set: Sequence[str], obituary: bytes = b"") -> scripts.Reported:
        worker = self.incs.get(inc)
        if worker and worker.life != "dead":
            worker.life, worker.cause, worker.crashed = "dead", cause, tuple(crash_set)
            if obituary:
                self.obituaries[inc] = obituary
            self.bell = True
        return scripts.Reported("OK", bool(self.quarantine and self.quarantine[0] == inc))

    def deregister(self, inc: str) -> str:
        worker = self.incs.get(inc)
        if worker and worker.work:
            return "HELD"
        if worker:
            self._forget_inc(inc)
            self.void[inc] = "gone"
            self.bell = True
        return "OK"


def renewed(item: Submission, nonce: str) -> Submission:
    """The same request submitted anew: a deliberate resubmission has a nonce of its own."""
    head = split_header(item.header) | {"nonce": nonce}
    return replace(item, nonce=nonce, header="|".join([*head.values(), ""]).encode())
