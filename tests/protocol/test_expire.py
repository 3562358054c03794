"""expire: what is past its deadline or too old ends as EXPIRED, whatever it is doing; nothing does in a grace."""

from __future__ import annotations

import pytest

from protocol.rig import (
    DEAD_TTL,
    GONE,
    REPLY_TTL,
    RESULT_TTL,
    A,
    Added,
    H,
    MakeQueue,
    Queue,
    T,
    changes,
    ok,
    settlement,
)

SECOND = 1_000_000


def test_what_is_past_its_deadline_expires(q: Queue) -> None:
    q.submit("a", timeout=5, tenant="t")
    q.submit("later", timeout=6)
    q.submit("never")
    q.tick(5 * SECOND)
    before = q.before()
    assert q.expire() == ["a"]
    result = q.result("a", "expired", reason="deadline")
    assert changes(before, q.dump()) == {
        "payload:a": GONE,
        "lane:normal:t": GONE,
        "active": GONE,
        "deadlines": {"a": GONE},
        "result:a": result,
        "reply:c": Added([result]),
        "counts": {
            "waiting": 2,
            "waiting_bytes": 2 * q.size("a"),
            "waiting_tokens": 14,
            "waiting:t": GONE,
            "waiting_bytes:t": GONE,
            "waiting_tokens:t": GONE,
            "expired": 1,
            "expired:t": 1,
        },
        "events": Added([q.event("expire", q.token, "a end expired n-a deadline -")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL},
    }
    before = q.before()
    assert q.expire() == []
    assert changes(before, q.dump()) == {}


def test_the_last_microsecond_is_in_time(q: Queue) -> None:
    q.submit("a", timeout=5)
    q.tick(5 * SECOND - 1)
    assert q.expire() == []


def test_a_deposed_leader_expires_nothing(q: Queue) -> None:
    q.submit("a", timeout=5)
    q.tick(6 * SECOND)
    q.now += 2 * H
    before = q.before()
    assert q.expire(token="1:s:2") is None
    assert changes(before, q.dump()) == {}


@pytest.mark.parametrize("state", ["dispatched", "running", "delayed", "suspect"])
def test_every_live_state_expires(q: Queue, state: str) -> None:
    q.submit("a", timeout=5)
    if state == "dispatched":
        q.dispatch(A, "a")
    if state in ("running", "delayed", "suspect"):
        delivery = q.start(A, "a")
    if state == "delayed":
        q.settle(A, settlement("a", delivery, "retry"))
    if state == "suspect":
        q.lose(A, "crash", "a")
    q.tick(5 * SECOND, A)
    assert q.expire() == ["a"]
    dump = q.dump()
    assert dump["result:a"]["state"] == "expired"
    assert {"payload:a", "flight:a", "deadlines", "delayed", "lane:normal", "lane:suspect"} & set(dump) == set()
    assert (f"work:{A}" in dump) is (state in ("dispatched", "running"))


def test_a_running_row_stays_a_member_and_is_named(q: Queue) -> None:
    q.submit("a", timeout=5)
    delivery = q.start(A, "a")
    q.tick(5 * SECOND, A)
    q.expire()
    assert q.beat(A).named == (("a", delivery),)
    assert q.dump()["credit"] == {A: 7}
    assert q.settle(A, ok("a", delivery)) == ["DUPLICATE"]


def test_nothing_expires_in_a_grace(q: Queue) -> None:
    q.submit("a", timeout=5)
    q.now += 6 * SECOND
    before = q.before()
    assert q.expire() == []
    assert changes(before, q.dump()) == {
        "tick": q.now,
        "grace": q.now + T,
        "events": Added([q.event("expire", q.token, f"- grace {6 * SECOND}")]),
    }
    q.tick(T - 1)
    assert q.expire() == []
    q.now += 1
    assert q.expire() == ["a"]


def test_a_missing_tick_is_a_gap(q: Queue) -> None:
    q.submit("a", timeout=1)
    q.tick(2 * SECOND)
    q.redis.delete(q.key("tick"))
    assert q.expire() == []


def test_many_expire_in_groups(make_queue: MakeQueue) -> None:
    q = make_queue(group=2)
    q.submit("a", "b", "c", timeout=5)
    q.tick(5 * SECOND)
    assert [sorted(q.expire() or []) for _ in range(3)] == [["a", "b"], ["c"], []]


# --- age -------------------------------------------------------------------------------------------------------------


def test_what_is_older_than_the_maximum_age_expires_at_the_head_of_its_lane(make_queue: MakeQueue) -> None:
    q = make_queue(max_age_s=10)
    q.submit("old")
    q.submit("batch", priority="batch")
    q.tick(5 * SECOND)
    q.submit("young")
    q.tick(5 * SECOND)
    assert q.expire() == []
    q.tick(1)
    assert sorted(q.expire() or []) == ["batch", "old"]
    dump = q.dump()
    assert (dump["result:old"]["reason"], dump["result:old"]["state"]) == ("age", "expired")
    assert list(dump["lane:normal"]) == ["young:3:4:x"]


def test_old_suspects_expire_too(make_queue: MakeQueue) -> None:
    q = make_queue(max_age_s=10)
    q.submit("a")
    q.start(A, "a")
    q.lose(A, "crash", "a")
    q.tick(10 * SECOND + 1)
    assert q.expire() == ["a"]
    assert "lane:suspect" not in q.dump()


def test_what_is_late_and_too_old_ends_once(make_queue: MakeQueue) -> None:
    q = make_queue(max_age_s=10)
    q.submit("a", timeout=10)
    q.tick(10 * SECOND + 1)
    assert q.expire() == ["a"]
    assert q.dump()["counts"]["expired"] == 1


def test_nothing_grows_too_old_in_a_grace(make_queue: MakeQueue) -> None:
    q = make_queue(max_age_s=10)
    q.submit("a")
    q.now += 20 * SECOND
    assert q.expire() == []


# --- dead letters ----------------------------------------------------------------------------------------------------


def _bury(q: Queue) -> int:
    q.submit("a")
    q.settle(A, settlement("a", q.start(A, "a"), "failure"))
    return q.now


def test_the_list_of_dead_letters_forgets_what_is_past_its_retention(q: Queue) -> None:
    died = _bury(q)
    q.now = died + DEAD_TTL * SECOND - 1
    q.redis.set(q.key("tick"), q.now)
    q.expire()
    assert q.dump()["dead"] == {"a": died}
    q.now += 1
    q.expire()
    assert "dead" not in q.dump()


def test_no_dead_letter_is_forgotten_in_a_grace(q: Queue) -> None:
    died = _bury(q)
    q.now += 2 * DEAD_TTL * SECOND
    q.expire()
    assert q.dump()["dead"] == {"a": died}


def test_what_is_too_old_expires_in_a_tenants_lane_too(q: Queue) -> None:
    q.submit("a", tenant="t")
    q.now += 86_400 * SECOND - 1
    q.lead()
    q.tick(T + H)
    assert q.expire() == ["a"]
    assert "active" not in q.dump()
