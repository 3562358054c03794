"""promote: delays that are due end, with the ORIGINAL score."""

from __future__ import annotations

from protocol.rig import BELL_TTL, GONE, NORMAL, A, Added, MakeQueue, Queue, changes, settlement
from stoker.store import scripts as s

SECOND = 1_000_000


def _delay(q: Queue, *ids: str, jitter: float = 1.0) -> None:
    delivery = q.start(A, *ids)
    q.settle(A, *(settlement(i, delivery, "retry") for i in ids), jitter=jitter)


def test_what_is_due_waits_in_its_lane_with_its_original_score(q: Queue) -> None:
    q.submit("a", priority="low")
    score = q.now + 600 * SECOND + 1
    _delay(q, "a")
    q.now += SECOND // 2
    before = q.before()
    assert q.promote() == 1
    assert changes(before, q.dump()) == {
        "delayed": GONE,
        "flight:a": {"state": "Q"},
        "lane:low": {"a:3:4:x": score},
        "events": Added([q.event("promote", q.token, f"a promote low {score}")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }
    before = q.before()
    assert q.promote() == 0
    assert changes(before, q.dump()) == {}


def test_what_is_not_due_stays(q: Queue) -> None:
    q.submit("a")
    _delay(q, "a")
    q.now += SECOND // 2 - 1
    before = q.before()
    assert q.promote() == 0
    assert changes(before, q.dump()) == {}


def test_a_retry_goes_before_fresh_work_of_its_class(q: Queue) -> None:
    q.submit("a")
    _delay(q, "a")
    q.now += SECOND
    q.submit("b")
    q.promote()
    lane = q.dump()["lane:normal"]
    assert lane["a:3:4:x"] < lane["b:3:4:x"]


def test_what_is_due_further_ahead_than_the_longest_back_off_is_due_now(q: Queue) -> None:
    q.submit("a", "b")
    _delay(q, "a")
    due = q.dump()["delayed"]["a"]
    q.now = due - 30 * SECOND
    assert q.promote() == 0
    q.now -= 1
    assert q.promote() == 1
    assert "a:3:4:x" in q.dump()["lane:normal"]


def test_a_deposed_leader_promotes_nothing(q: Queue) -> None:
    q.submit("a")
    _delay(q, "a")
    q.now += SECOND
    before = q.before()
    assert q.promote(token="1:other:1") == s.FENCED
    assert changes(before, q.dump()) == {}


def test_many_go_in_groups(make_queue: MakeQueue) -> None:
    q = make_queue(group=2)
    q.submit("a", "b", "c")
    _delay(q, "a", "b", "c")
    q.now += SECOND
    assert [q.promote() for _ in range(3)] == [2, 1, 0]


def test_a_suspect_goes_back_among_the_suspects(q: Queue) -> None:
    q.register("z:1-x")
    q.submit("s")
    score = q.now + NORMAL + 1
    q.start("z:1-x", "s")
    q.lose("z:1-x", "crash", "s")
    _delay(q, "s")
    q.now += SECOND
    assert q.promote() == 1
    assert q.dump()["lane:suspect"] == {"s:3:4:x": score}
    assert q.dump()["events"][-1] == q.event("promote", q.token, f"s promote suspect {score}")


def test_what_waits_is_counted_once_over_a_delay(q: Queue) -> None:
    q.submit("a", tenant="t")
    _delay(q, "a")
    q.now += SECOND
    q.promote()
    counts = q.dump()["counts"]
    assert (counts["waiting"], counts["waiting:t"], counts["waiting_bytes"]) == (1, 1, q.size("a"))


def test_a_tenants_retry_comes_back_into_the_tenants_lane(q: Queue) -> None:
    q.submit("a", tenant="t")
    _delay(q, "a")
    assert "active" not in q.dump()
    q.now += SECOND
    q.promote()
    assert q.dump()["active"] == {"normal": 1, "normal:t": 1}
    assert "a:3:4:x" in q.dump()["lane:normal:t"]
