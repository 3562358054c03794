"""A scheduler and a worker in one thread, made of real script calls, whose answers tests can foretell."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import redis

from helpers import wait_until
from stoker.config import Config
from stoker.errors import InvalidRequest, RedisUnavailable
from stoker.request import InferenceRequest
from stoker.store import lookups, reads, scripts, views
from stoker.store.codec import Payload, decode_payload, encode_answer, encode_failure
from stoker.store.connection import Store, new_id
from stoker.store.pack import pack, pack_tokens
from stoker.store.scripts import Published, Settlement

WORKER = "w"
CARD = {"name": "echo", "dtype": "none", "vocabulary": 1000, "context": 100_000, "mode": "continuous"}
HOLDING = ("hold", "first")
Piece = tuple[int, str]


def cut_readers(redis_url: str) -> None:
    """Cut the connections on which clients wait for wake-ups, and no others."""
    with redis.Redis.from_url(redis_url) as server:

        def cut() -> list[str]:
            readers = [found["id"] for found in server.client_list() if found["cmd"] == "blpop"]
            return [reader for reader in readers if server.client_kill_filter(_id=reader)]

        wait_until(cut, what="a client waits for wake-ups")


def pieces(request: InferenceRequest) -> list[Piece]:
    """The answer, token by token: each token id plus one, or each word in capitals."""
    if request.prompt_tokens is not None:
        answer = [(token + 1, f"{token + 1} ") for token in request.prompt_tokens]
    else:
        answer = [(len(word), f"{word.upper()} ") for word in (request.prompt or "hello").split()]
    return answer[: request.max_tokens]


def text_of(request: InferenceRequest) -> str:
    return "".join(text for _, text in pieces(request))


@dataclass
class Running:
    """A begun request, under its delivery. `do`, out of its metadata, is what shall become of it."""

    delivery: str
    payload: Payload
    do: str = ""

    def __post_init__(self) -> None:
        self.do = (self.payload.request.metadata or {}).get("do", "")

    def published(self, offset: int, tokens: list[Piece]) -> Published:
        ids, text = pack_tokens([token for token, _ in tokens]), "".join(piece for _, piece in tokens)
        return Published(self.payload.id, self.delivery, self.payload.nonce, self.payload.attempt, offset, ids, text)

    def settlement(self) -> Settlement:
        outcome, reason, body = self.outcome()
        tokens, prompt = pieces(self.payload.request), len(self.payload.request.prompt_tokens or [1])
        figures = (self.payload.attempt, 10, prompt, len(tokens), 0)
        return Settlement(self.payload.id, self.delivery, self.payload.nonce, outcome, reason, body, *figures)

    def outcome(self) -> tuple[str, str, bytes]:
        request = self.payload.request
        match self.do:
            case "fail":
                return "failure", "error", encode_failure("it broke")
            case "bad":
                return "bad", "invalid", encode_failure("", InvalidRequest("prompt_tokens", "must fit the model", 5))
            case "unreadable":
                return "ok", "stop", b"\xc1"
            case "restart" | "retry" if self.payload.attempt == 1:
                return "retry", "error", encode_failure("try again")
            case "large":
                return "ok", "stop", encode_answer(text="x" * 100_000, completion=1)
        ids = [token for token, _ in pieces(request)]
        counts = {"prompt": len(request.prompt_tokens or [1]), "completion": len(ids), "first_token_us": 10}
        answer = encode_answer(text=text_of(request), token_ids=ids, metadata=request.metadata, **counts)
        return "ok", "stop", answer


@dataclass
class Fleet:
    """Leads, dispatches, begins and settles.

    Clear `open` to let requests wait. What becomes of one is said by "do" in its metadata: hold (runs until `release`),
    first (the same, after its first token), fail, bad, large, unreadable, retry, restart (the same, after two tokens).
    """

    config: Config
    open: threading.Event = field(default_factory=threading.Event)
    held: list[Running] = field(default_factory=list)
    most_waiting: int = 0

    def __post_init__(self) -> None:
        self.store = Store(self.config)
        self.open.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._beat_at = 0.0

    def __enter__(self) -> Fleet:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.store.close()

    def release(self) -> None:
        """Let what is held, one at least, finish."""
        wait_until(lambda: self.held, what="a request is held")
        for running in self.held:
            running.do = ""

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._join()
                idle = 0
                while not self._stop.is_set() and self._tend():
                    if self._dispatch():
                        idle = 0
                        self._begin()
                    else:
                        # Looking takes most of a core from the test: what waits for long is looked at less often.
                        idle += 1
                        self._stop.wait(min(0.02, 0.003 * idle))
                    self._settle()
            except RedisUnavailable:
                self._stop.wait(0.05)

    def _join(self) -> None:
        """Become the leader, and register, in whatever Redis history there is."""
        self.me, self.n, self.held = f"node:{new_id()}", 0, []
        lead = self.store.run(scripts.lead(self.me, "", new_id(), self.config))
        self.generation, self.token = lead.generation, lead.token
        number = self.store.run(scripts.incarnate())
        self.inc = f"{WORKER}:{number}-{new_id()}"
        registration = scripts.Registration(
            inc=self.inc,
            worker=WORKER,
            number=number,
            identity="echo-1",
            card=pack(CARD),
            capacity=1 << 40,
            rows=1 << 20,
            budget=8192,
            mode="continuous",
            cache="paged",
        )
        self.store.run(scripts.register(registration, new_id(), self.config))

    def _tend(self) -> bool:
        """Renew the lease and beat when it is time; gives whether this still is our Redis."""
        if time.monotonic() - self._beat_at < self.config.heartbeat_ms / 4000:
            return True
        self._beat_at = time.monotonic()
        lead = self.store.run(scripts.lead(self.me, self.generation, new_id(), self.config))
        beat = scripts.Beat(
            inc=self.inc, generation=self.generation, accepting=True, capacity=1 << 40, figures={}, costs={}
        )
        beaten = self.store.run(scripts.beat(beat, self.config))
        if beaten.named:
            gone = {request_id for request_id, _ in beaten.named}
            self.held = [running for running in self.held if running.payload.id not in gone]
            self.store.run(scripts.hand_back(self.inc, beaten.named))
        self.store.run(scripts.promote(self.token))
        self.store.run(scripts.expire(self.token))
        return lead.word == "LEADER" and beaten.word == "OK"

    def _dispatch(self) -> bool:
        """Hand over what waits; gives whether there was any."""
        shared = dict.fromkeys(self.store.read(lookups.overview(self.store.keys)).tenant_lanes, 512)
        view = self.store.read(views.queue_view(self.store.keys, depth=512, shared=shared))
        waiting = [entry for lane in view.lanes.values() for entry in lane]
        self.most_waiting = max(self.most_waiting, len(waiting))
        if not self.open.is_set() or not waiting:
            return False
        self.n += 1
        requests = [(entry, entry.cost) for entry in waiting[:512]]
        return self.store.run(scripts.dispatch(self.token, self.n, self.inc, requests)).word == "OK"

    def _begin(self) -> None:
        for bell in self.store.read(reads.doorbells(self.store.keys, self.inc, own=False, block_ms=5, count=1)):
            begun = self.store.run(scripts.begin(self.inc, bell.entry, bell.delivery, bell.ids))
            payloads = [decode_payload(b.id, b.payload, b.attempt) for b in begun if b.word == "RUN"]
            started = [Running(bell.delivery, payload) for payload in payloads]
            for running in started:
                self._publish(running)
            self.held += started

    def _settle(self) -> None:
        done = [running for running in self.held if running.do not in HOLDING]
        self.held = [running for running in self.held if running.do in HOLDING]
        for start in range(0, len(done), 512):
            group = done[start : start + 512]
            self.store.run(scripts.settle(self.inc, 0.0, [running.settlement() for running in group]))

    def _publish(self, running: Running) -> None:
        """Flush what is streamed, token by token, one call each."""
        tokens = pieces(running.payload.request) if running.payload.stream else []
        if running.payload.attempt == 1:
            tokens = tokens[: {"restart": 2, "first": 1, "hold": 0, "retry": 0}.get(running.do)]
        for offset, token in enumerate(tokens):
            self.store.run(scripts.flush(self.inc, [running.published(offset, [token])]))
