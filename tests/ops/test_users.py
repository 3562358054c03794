"""ops/redis/users.acl: each role may do exactly what its scripts and reads do, on the keys that they do it to."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from protocol import batches as on_batch
from protocol.rig import CLOCK, RESULT_TTL, SETTINGS, A, B, C, D, H, Queue, T, settlement
from redis_roles import OPS_REDIS, SUPERUSER, Guarded, has_selectors, start_with_roles
from stoker.config import Config
from stoker.store import agreement, backlog, batches, inspections, lookups, reads, traces, views
from stoker.store import scripts as s
from stoker.store.connection import Read, Store
from stoker_ops.embedded import ServerBinary

pytestmark = pytest.mark.servers("all")

V = TypeVar("V")
Use = tuple[str, str]
"""A command, and the key that it is used on: its name or its family."""

CALLS = {
    "producer": "submit cancel",
    "scheduler": "lead resign dispatch make_room reclaim promote expire refuse",
    "worker": "begin settle hand_back flush incarnate register beat report deregister",
    "batch": "create_batch lease_batch end_batch steer_batch enqueue_batch write_batch_file remove_batch_file",
    "admin": "drain retry_dead purge_dead set_model set_tenant",
}
ROLE_OF = {script: role for role, scripts in CALLS.items() for script in scripts.split()}


class ByRole:
    """A store that makes each call as the role whose script it is, and says so to whoever monitors the server."""

    def __init__(self, server: Guarded, config: Config) -> None:
        self.stores = {
            role: Store(config.model_copy(update={"redis_url": server.url(role)}), clock=CLOCK)
            for role in (*CALLS, "reader")
        }
        self.keys = self.stores["producer"].keys
        self.root = redis.Redis.from_url(server.url(SUPERUSER))

    def run(self, call: s.Call[V], role: str | None = None) -> V:
        with self._as(role or ROLE_OF[call.script]) as store:
            return store.run(call)

    def read(self, read: Read[V], role: str = "worker") -> V:
        with self._as(role) as store:
            return store.read(read)

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
        self.root.close()

    @contextlib.contextmanager
    def _as(self, role: str) -> Iterator[Store]:
        self.root.echo(f"as {role}")
        yield self.stores[role]
        self.root.echo("as nobody")


class Roles(Queue):
    """A queue on which every role acts under its own name."""

    def __init__(self, server: Guarded, **settings: Any) -> None:
        super().__init__(server.url(SUPERUSER), **settings)
        self.store.close()
        self.store = ByRole(server, self.config)  # type: ignore[assignment]  # it runs and reads like one

    def empty(self) -> None:
        self.redis.flushall()
        self.token, self.n = "", 0
        self.now = 1_700_000_000_000_000

    def close(self) -> None:
        self.store.close()
        self.redis.close()

    def ready(self) -> None:
        self.empty()
        self.lead()
        self.tick(4 * H)
        self.register(A)


# --- what each role does, all of it ----------------------------------------------------------------------------------


def starts(q: Roles) -> None:
    """Whoever finds an empty Redis writes what is for good."""
    q.empty()
    q.submit("a")
    q.empty()
    q.register(A)
    q.empty()
    assert q.lead().word == "LEADER"
    assert q.lead("other:1").word == "STANDBY"
    q.now -= H
    q.lead()
    q.store.run(s.incarnate())
    q.store.run(s.resign(q.token))
    for role in ("producer", "scheduler", "worker", "admin"):
        q.empty()
        q.store.read(agreement.number(q.keys), role)
        assert q.store.run(s.agree(3, tickets=int(role == "worker")), role).word == "OK"
    q.store.read(lookups.beats(q.keys), "worker")
    q.store.read(lookups.worker_count(q.keys), "admin")
    q.store.run(s.agree(1, instead_of=3), "admin")


def clients(q: Roles) -> None:
    """Submitting, asking, waiting, cancelling."""
    q.ready()
    q.submit("a", "b", timeout=100, tenant="t", stream=True)
    assert q.submit("a", timeout=100, tenant="t", stream=True) == ["SAME"]
    q.cancel("a")
    q.cancel("a")
    assert q.submit("a", timeout=100, tenant="t", stream=True) == ["DONE"]
    q.submit("big", max_bytes=1)
    q.lead(forecast="1|1|1|1")
    q.submit("dated", timeout=1, tenant="t")
    q.lead()
    q.submit("shed", sheddable=True)
    q.cancel("shed")
    q.cancel("b")
    for read in (
        reads.queue_facts(q.keys),
        reads.card(q.keys),
        reads.outcomes(q.keys, ["a"]),
        lookups.lives(q.keys, ["a"]),
        lookups.census(q.keys, ["a"]),
        lookups.nonce(q.keys, "a"),
        reads.status(q.keys, "a"),
        reads.wakeups(q.keys, "c", 0.01),
        reads.tokens(q.keys, "a", "n-a", "0", 0),
        lookups.token_streams(q.keys, [("a", "n-a", "0")], 1),
    ):
        q.store.read(read, "producer")
    q.submit("c", timeout=100)
    q.start(A, "c")
    q.cancel("c")
    q.submit("d")
    q.settle(A, settlement("d", q.start(A, "d"), "retry"))
    q.cancel("d")


def crowds(q: Roles) -> None:
    """Whoever ends a request may find its client's channel full, and the last one waiting ends its count."""
    for role in ("producer", "admin"):
        q.ready()
        ids = [f"a{i}" for i in range(SETTINGS["reply_len"] + 1)]
        q.submit(*ids, tenant="t")
        for request_id in ids:
            q.store.run(s.cancel(request_id), role)
    q.ready()
    q.submit(*ids, timeout=1, tenant="t")
    q.tick(2 * H)
    assert len(q.expire() or ()) == len(ids)
    q.submit("b1", tenant="t", sheddable=True)
    first = q.start(A, "b1")
    q.hand_back(A, ("b1", first))
    q.settle(A, settlement("b1", first, "ok"))
    q.submit("b2", tenant="t")
    first = q.start(A, "b2")
    q.hand_back(A, ("b2", first))
    q.settle(A, settlement("b2", q.start(A, "b2"), "retry"))
    q.redis.rpush(q.keys.answers, *["normal:t:7"] * s.MOST_ANSWERS)
    q.settle(A, settlement("b2", first, "ok", completion=7))


def answers(q: Roles) -> None:
    """Work goes out, is begun, published, finished, given back."""
    q.ready()
    q.submit("a", "b", "c", "d", timeout=100, stream=True)
    first = q.dispatch(A, "a", "b")
    q.read(A)
    q.store.read(reads.doorbells(q.keys, A, own=True, block_ms=1, count=10))
    assert q.begin(A, first, "a", "b") == ["RUN", "RUN"]
    q.store.run(s.flush(A, [s.Published("a", first, "n-a", 1, 0, b"H\x01\x00", "hi")]))
    q.store.read(reads.published(q.keys, [("a", "n-a")]))
    q.submit("gone")
    unseen = q.start(A, "gone")
    q.cancel("gone")
    q.store.run(s.flush(A, [s.Published("gone", unseen, "n-gone", 1, 0, b"H", "hi")]))
    q.hand_back(A, ("gone", unseen))
    q.settle(A, settlement("a", first, "ok", first_token_us=5, prompt=3, completion=2, text_bytes=9))
    q.beat(A, costs={("b", first): 5})
    q.hand_back(A, ("b", first))
    late = q.dispatch(A, "c")
    q.now += T + 1
    q.beat(A)
    q.now += 200_000_000
    assert q.begin(A, late, "c") == ["LATE"]
    q.lead()
    q.tick(T + H, A)
    assert set(q.expire() or ()) == {"b", "d"}
    q.store.run(s.deregister(A))
    q.ready()
    q.submit("long")
    q.settle(A, settlement("long", q.start(A, "long"), "ok", body=b"result"))
    q.now += 2 * RESULT_TTL * 1_000_000
    q.tick(5 * H)
    q.expire()


def failures(q: Roles) -> None:
    """Retries and dead letters, and what an operator does with them."""
    q.ready()
    q.submit("a", "b", "c", "bad", stream=True, timeout=2000, sheddable=True)
    delivery = q.start(A, "a", "b", "bad")
    q.settle(A, settlement("a", delivery, "retry"), settlement("b", delivery, "failure"))
    q.settle(A, settlement("bad", delivery, "bad"))
    q.submit("unborn", timeout=2000)
    q.now += 60_000_000
    assert q.promote() == 1
    assert q.store.run(s.refuse(q.token, q.waiting("c"))) == "OK"
    operate(q)
    q.store.run(s.retry_dead("b", "b2", "n-b2", "c"))
    q.store.run(s.retry_dead("b", "b2", "n-b2", "c"))
    q.store.run(s.purge_dead(["c"]))
    q.redis.delete(q.keys.bell)
    q.store.run(s.drain("a", True))
    q.submit("y")
    q.store.run(s.drain("a", False))
    q.beat(A)
    q.settle(A, settlement("y", q.start(A, "y"), "retry"))
    q.store.run(s.cancel("y"), "admin")
    q.store.run(s.cancel("a"), "admin")
    q.store.run(s.deregister(A))
    q.store.run(s.set_model("", b""))
    q.store.run(s.set_model("other", b"card"))


def operate(q: Roles) -> None:
    """What an operator looks at."""
    q.store.read(lookups.dead_ids(q.keys, 10), "admin")
    q.store.read(lookups.dead_letters(q.keys, ["b", "c"]), "admin")
    q.store.read(inspections.dead_request(q.keys, "b"), "admin")
    for request_id in ("a", "b"):
        q.store.read(traces.trace(q.keys, request_id), "admin")
    q.store.read(traces.place(q.keys, "a", q.waiting("a")), "admin")
    q.store.read(traces.place(q.keys, "a", None), "admin")
    q.store.read(traces.ahead(q.keys, "normal", 1.0), "admin")
    q.store.run(s.set_tenant("t", {"weight": "2"}))
    q.store.run(s.set_tenant("t", {"weight": ""}))
    q.store.read(traces.holder(q.keys, "a", [A]), "admin")
    q.store.read(inspections.key_page(q.keys, 0, 10), "admin")


def losses(q: Roles) -> None:
    """Workers die; what they held is blamed, set apart, given back or ended."""
    q.ready()
    q.submit("a", "b", "c", stream=True, timeout=2000, sheddable=True)
    q.start(A, "a", "b")
    q.lose(A, "crash", "a", obituary=b"why")
    q.register(B, cache="rect")
    q.dispatch(B, "b")
    assert q.offer(B, "a").word == "DRAIN"
    q.register(C, worker="b", number=2)
    q.reclaim(B)
    q.register(D)
    q.start(D, "a")
    assert q.offer(D, "b").word == "QUARANTINE"
    q.lose(D, "crash", "a", obituary=b"why")
    lost = "e:1-x"
    q.register(lost)
    q.start(lost, "b")
    q.now -= H
    q.reclaim(lost)
    q.tick(T + 2 * H)
    q.reclaim(lost)
    q.register("f:1-x")
    q.submit("s")
    q.start("f:1-x", "s")
    q.hand_back("f:1-x", ("s", q.token))
    q.reclaim("nobody:1-x")
    q.register("g:1-x")
    q.submit("p")
    q.start("g:1-x", "p")
    q.lose("g:1-x", "crash", "p")
    q.register("h:1-x")
    q.settle("h:1-x", settlement("p", q.start("h:1-x", "p"), "ok"))
    q.store.run(s.deregister("h:1-x"))


def schedulers(q: Roles) -> None:
    """What a scheduler reads to decide and to export."""
    q.ready()
    q.submit("a")
    for inc, cache in ((B, "rect"), (C, "paged")):
        q.register(inc, cache=cache)
    known = q.store.read(lookups.workers(q.keys), "scheduler")
    for read in (
        views.queue_view(q.keys, depth=4, known=known),
        views.queue_view(q.keys, depth=4, known=known, members=True),
        reads.bell(q.keys, 0.01),
        reads.suspect_groups(q.keys, ["a"]),
        views.held(q.keys, known),
        views.lane_page(q.keys, "normal", 0, 4),
        reads.counts(q.keys),
        reads.answers(q.keys),
        lookups.overview(q.keys),
        backlog.figures(q.keys),
        backlog.oldest(q.keys, q.store.read(backlog.backlog(q.keys), "scheduler")),
        inspections.info(),
    ):
        q.store.read(read, "scheduler")
    q.submit("offline", priority="batch")
    delivery = q.start(A, "offline")
    assert q.store.run(s.make_room(q.token, A, [("offline", delivery)])) == ["OK", "ASKED"]
    q.store.read(inspections.info(), "worker")


def watchers(q: Roles) -> None:
    """Figures and names, for whoever may not see more, and for an operator."""
    q.ready()
    on_batch.create(q)
    q.register(B, cache="rect")
    q.submit("a")
    for role in ("reader", "admin"):
        known = q.store.read(lookups.workers(q.keys), role)
        for read in (
            agreement.number(q.keys),
            lookups.overview(q.keys),
            lookups.held_rows(q.keys, [A]),
            lookups.tenant_settings(q.keys),
            views.queue_view(q.keys, depth=1, known=known),
            reads.answers(q.keys),
            backlog.figures(q.keys),
            inspections.heartbeat(q.keys),
            inspections.voids(q.keys, [A]),
            inspections.accepted(q.keys, ["a"]),
            inspections.server(),
            batches.batch_ids(q.keys),
            batches.records(q.keys, ["b"]),
        ):
            q.store.read(read, role)


def batch_files(q: Roles) -> None:
    """A batch is created, run, steered and ended, and its runs do what clients do."""
    q.ready()
    on_batch.create(q)
    on_batch.create(q)
    assert on_batch.enqueue(q) == 1
    epoch = on_batch.lease(q).epoch
    on_batch.lease(q, epoch=epoch, progress="{}")
    for word in ("pause", "resume", "cancel"):
        on_batch.steer(q, word)
    on_batch.write(q, b"x", name="input")
    on_batch.write(q, b"x", offset=None)
    q.store.read(batches.file_sizes(q.keys, "b"), "batch")
    q.store.read(batches.file_piece(q.keys, "b", "input", 0, 1), "batch")
    q.store.run(batches.remove_batch_file("b", "input"))
    on_batch.end(q, state="cancelled")
    on_batch.steer(q, "retry", 0)
    on_batch.enqueue(q, 1)
    on_batch.lease(q, "r2")
    on_batch.end(q, "r2", "failed", "why")
    on_batch.enqueue(q, 1)
    q.store.read(batches.due_ids(q.keys), "batch")
    q.store.read(batches.batch_ids(q.keys), "batch")
    q.store.read(batches.records(q.keys, ["b"]), "batch")


FLOWS: Sequence[Callable[[Roles], None]] = (
    starts,
    clients,
    crowds,
    answers,
    failures,
    losses,
    schedulers,
    watchers,
    batch_files,
)


# --- the users -------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(server_binary: ServerBinary, short_tmp: Path) -> Iterator[Guarded]:
    with start_with_roles(server_binary, short_tmp) as server:
        with redis.Redis.from_url(server.url(SUPERUSER)) as root:
            for role in (*CALLS, "reader"):
                clock = "(+get ~stoker:{*}:vclock)" if has_selectors(server_binary) else "+get"
                root.execute_command("ACL", "SETUSER", f"stoker-{role}", clock)
        yield server


def granted(role: str) -> set[Use]:
    """What users.acl grants a role on keys of Stoker, apart from running scripts."""
    [line] = re.findall(rf"^user stoker-{role} (.*)$", (OPS_REDIS / "users.acl").read_text(), re.MULTILINE)
    uses = set()
    for group in re.findall(r"\(([^)]*)\)", line):
        commands = [word[1:] for word in group.split() if word[0] == "+"]
        keys = [word.removeprefix("~stoker:{*}:") for word in group.split() if word.startswith("~stoker:")]
        uses |= {(command, key) for command in commands for key in keys if key}
    return uses


def used(lines: Sequence[str]) -> dict[str, set[Use]]:
    """What each role did, from what a monitor of the server saw."""
    found: dict[str, set[Use]] = {}
    role = "nobody"
    for line in lines:
        name, *arguments = re.findall(r'"((?:[^"\\]|\\.)*)"', line.partition("] ")[2])
        command = name.lower()
        if command == "echo":
            role = arguments[0].removeprefix("as ")
        if command in ("xgroup", "config"):
            command = f"{command}|{arguments[0].lower()}"
        keys = [word.partition("}:")[2] for word in arguments if word.startswith("stoker:{default}:")]
        keys = keys if command != "scan" else []
        places = {key.partition(":")[0] + ":*" if ":" in key else key for key in keys}
        found.setdefault(role, set()).update((command, place) for place in places - {"", "vclock"})
    return found


def test_each_role_is_granted_what_it_does_and_nothing_more(guarded: Guarded) -> None:
    q, small = Roles(guarded), Roles(guarded, max_waiting=1)
    lines: list[str] = []
    with q.redis.monitor() as monitor:
        for flow in FLOWS:
            flow(q)
        small.submit("a", "b")
        small.submit_all([small.encode("c", displace=True)])
        q.redis.echo("end")
        while '"ECHO" "end"' not in (line := monitor.connection.read_response().decode("utf-8", "replace")):
            lines.append(line)
    q.close()
    small.close()
    did = used(lines)
    did["batch"] |= did["producer"]
    excess = {role: sorted(granted(role) - did[role]) for role in (*CALLS, "reader")}
    lacking = {role: sorted(did[role] - granted(role)) for role in (*CALLS, "reader")}
    assert (excess, lacking) == ({role: [] for role in excess}, {role: [] for role in lacking})


def test_the_files_are_what_their_table_says() -> None:
    spec = importlib.util.spec_from_file_location("write_users", OPS_REDIS / "write_users.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    for name, text in writer.files().items():
        assert (OPS_REDIS / name).read_text() == text, "run: python ops/redis/write_users.py"
