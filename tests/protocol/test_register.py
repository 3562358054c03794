"""register: an incarnation announces itself; a worker's younger one supersedes the older."""

from __future__ import annotations

import pytest

from protocol.rig import BELL_TTL, START, A, Added, B, H, MakeQueue, Queue, changes
from stoker.store import scripts as s


def test_a_worker_is_there_once_registered(bare: Queue) -> None:
    bare.lead()
    before = bare.before()
    assert bare.register(A, card=b"\x81\xa1k\x01") == s.Registered("OK", b"g")
    assert changes(before, bare.dump()) == {
        "card": "m|\ufffd\ufffdk\x01",
        "inc": {A: bare.inc(A)},
        "credit": {A: 0},
        "beats": {A: START},
        f"stream:{A}": {"bells": [], "pending": 0},
        "events": Added([bare.event("register", A, f"- register {A}")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }
    assert bare.redis.get(bare.keys.card) == b"m|\x81\xa1k\x01"


def test_all_that_is_announced_is_noted(q: Queue) -> None:
    q.register(B, capacity=5, rows=6, budget=7, mode="padded", cache="rect")
    noted = {"capacity": 5, "rows": 6, "budget": 7, "mode": "padded", "cache": "rect"}
    assert q.dump()["inc"][B] == q.inc(B, **noted)


def test_registering_again_changes_nothing(q: Queue) -> None:
    q.beat(A, capacity=50)
    q.now += 5
    before = q.before()
    assert q.register(A) == s.Registered("OK", b"g")
    assert changes(before, q.dump()) == {}


def test_a_worker_in_an_empty_redis_makes_the_generation(bare: Queue) -> None:
    assert bare.register(A, random="mine") == s.Registered("OK", b"mine")
    assert bare.dump()["generation"] == "mine"
    assert "h" not in bare.dump()


def test_doorbells_that_rang_before_the_first_read_are_read(q: Queue) -> None:
    q.submit("a")
    q.dispatch(A, "a")
    assert [bell.ids for bell in q.read(A)] == [("a",)]


# --- superseded ------------------------------------------------------------------------------------------------------


def test_the_workers_older_incarnation_is_superseded(q: Queue) -> None:
    before = q.before()
    assert q.register("a:2-y") == s.Registered("OK", b"g")
    after = changes(before, q.dump())
    assert after["inc"] == {A: {"life": "superseded"}, "a:2-y": q.inc("a:2-y")}
    assert after["events"] == Added([q.event("register", "a:2-y", f"- superseded {A}", "- register a:2-y")])
    assert q.register(A) == s.Registered("VOID", b"superseded")


def test_its_work_is_reclaimable_at_once(q: Queue) -> None:
    q.submit("a")
    q.start(A, "a")
    q.register("a:2-y")
    assert q.reclaim(A) == 0
    assert "a:3:4:x" in q.dump()["lane:normal"]


def test_a_late_register_of_an_older_incarnation_is_refused(q: Queue) -> None:
    q.register("b:3-x")
    before = q.before()
    assert q.register("b:2-x") == s.Registered("VOID", b"superseded")
    assert changes(before, q.dump()) == {}


def test_starts_are_compared_as_numbers(q: Queue) -> None:
    q.register("b:9-x")
    assert q.register("b:10-x") == s.Registered("OK", b"g")
    assert q.dump()["inc"]["b:9-x"]["life"] == "superseded"


def test_two_processes_of_one_number_do_not_both_live(q: Queue) -> None:
    q.register("a:1-other")
    assert q.dump()["inc"][A]["life"] == "superseded"


def test_another_worker_is_left_alone(q: Queue) -> None:
    q.register("aa:2-x")
    q.register("b:5-x")
    assert q.dump()["inc"][A]["life"] == "live"


def test_a_worker_with_colons_in_its_name_is_one_worker(q: Queue) -> None:
    q.register("host:0:1-x")
    q.register("host:1:1-x")
    assert {inc: record["life"] for inc, record in q.dump()["inc"].items()} == {
        A: "live",
        "host:0:1-x": "live",
        "host:1:1-x": "live",
    }
    q.register("host:0:2-x")
    assert q.dump()["inc"]["host:0:1-x"]["life"] == "superseded"


def test_a_reported_incarnation_stays_dead_when_a_younger_one_comes(q: Queue) -> None:
    q.report(A, "crash", "a")
    q.register("a:2-y")
    record = q.dump()["inc"][A]
    assert (record["life"], record["cause"], record["crashed"]) == ("dead", "crash", "a")


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["lost", "dead", "superseded", "gone"])
def test_a_void_incarnation_never_comes_back(q: Queue, reason: str) -> None:
    if reason == "lost":
        q.tick(4 * H)
    if reason == "dead":
        q.report(A, "killed")
    if reason == "superseded":
        q.register("a:2-y")
    if reason == "gone":
        q.store.run(s.deregister(A))
    else:
        assert q.reclaim(A) == 0
    before = q.before()
    assert q.register(A) == s.Registered("VOID", reason.encode())
    assert changes(before, q.dump()) == {}


def test_a_reported_incarnation_that_registers_late_is_void(q: Queue) -> None:
    q.report(A, "killed")
    before = q.before()
    assert q.register(A) == s.Registered("VOID", b"dead")
    assert changes(before, q.dump()) == {}


def test_another_model_is_refused_and_told_the_card(q: Queue) -> None:
    before = q.before()
    assert q.register(B, identity="other") == s.Registered("OTHER_MODEL", b"m|\x80")
    assert changes(before, q.dump()) == {}


def test_the_first_card_wins(q: Queue) -> None:
    q.register(B, card=b"\x81\xa1k\x01")
    assert q.redis.get(q.keys.card) == b"m|\x80"


def test_another_heartbeat_is_refused(q: Queue, make_bare: MakeQueue) -> None:
    other = make_bare(heartbeat_ms=500)
    other.now = q.now
    before = q.before()
    assert other.register(B) == s.Registered("OTHER_H", str(H).encode())
    assert changes(before, q.dump()) == {}


@pytest.mark.parametrize("name", ["inc", "credit", "beats", "card", f"stream:{A}"])
def test_what_registering_writes_has_no_ttl(q: Queue, name: str) -> None:
    assert q.redis.ttl(q.key(name)) == -1
