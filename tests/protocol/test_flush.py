"""flush: tokens are published only by the attempt that member and flight both name."""

from __future__ import annotations

import pytest

from protocol.rig import DAY, TOKENS_TTL, A, Added, Queue, changes, ok
from stoker.store import scripts as s


def flush(q: Queue, inc: str, *items: s.Published) -> list[str]:
    """Publish."""
    return q.store.run(s.flush(inc, items))


def tokens(request_id: str, delivery: str, offset: int = 0, attempt: int = 1, text: str = "hi") -> s.Published:
    """Return two tokens of an attempt."""
    return s.Published(request_id, delivery, f"n-{request_id}", attempt, offset, b"H\x01\x00\x02\x00", text)


def test_tokens_go_into_the_stream_of_the_requests_life(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    before = q.before()
    assert flush(q, A, tokens("a", delivery)) == ["OK"]
    record = {"entry": "1-1", "ids": "H\x01\x00\x02\x00", "text": "hi"}
    assert changes(before, q.dump()) == {"tokens:a:n-a": Added([record]), "ttl": {"tokens:a:n-a": DAY}}


def test_one_call_publishes_for_many_rows(q: Queue) -> None:
    q.submit("a", "b", stream=True)
    delivery = q.start(A, "a", "b")
    q.hand_back(A, ("b", delivery))
    words = flush(q, A, tokens("a", delivery), tokens("b", delivery), tokens("a", delivery, 2, text="you"))
    assert words == ["OK", "STOP", "OK"]
    assert [(r["entry"], r["text"]) for r in q.dump()["tokens:a:n-a"]] == [("1-1", "hi"), ("1-3", "you")]
    assert "tokens:b:n-b" not in q.dump()


def test_a_repeated_flush_publishes_nothing_more(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    flush(q, A, tokens("a", delivery))
    flush(q, A, tokens("a", delivery, 2))
    before = q.before()
    assert flush(q, A, tokens("a", delivery, 2)) == ["OK"]
    assert changes(before, q.dump()) == {}


def test_a_repeated_flush_publishes_what_had_not_arrived(q: Queue) -> None:
    q.submit("a", "b", stream=True)
    delivery = q.start(A, "a", "b")
    flush(q, A, tokens("a", delivery))
    assert flush(q, A, tokens("a", delivery), tokens("b", delivery), tokens("a", delivery, 2)) == ["OK"] * 3
    dump = q.dump()
    assert [[r["entry"] for r in dump[f"tokens:{name}:n-{name}"]] for name in "ab"] == [["1-1", "1-3"], ["1-1"]]


def test_a_stream_that_was_lost_lapses_all_the_same(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    flush(q, A, tokens("a", delivery))
    q.redis.delete("stoker:{default}:tokens:a:n-a")
    flush(q, A, tokens("a", delivery, 2))
    assert q.dump()["ttl"]["tokens:a:n-a"] == DAY


def test_an_attempt_of_more_digits_than_an_entrys_id_has_is_refused(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    before = q.before()
    with pytest.raises(Exception, match="BADCALL: the tokens of a"):
        flush(q, A, tokens("a", delivery, 10**15))
    assert changes(before, q.dump()) == {}


def test_the_next_attempt_begins_its_offsets_anew(q: Queue) -> None:
    q.submit("a", stream=True)
    first = q.start(A, "a")
    flush(q, A, tokens("a", first))
    q.hand_back(A, ("a", first))
    second = q.start(A, "a")
    assert flush(q, A, tokens("a", second, attempt=2)) == ["OK"]
    assert [r["entry"] for r in q.dump()["tokens:a:n-a"]] == ["1-1", "2-1"]


def test_tokens_of_another_life_stop(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    before = q.before()
    for offset in (0, 2):
        assert flush(q, A, s.Published("a", delivery, "n2", 1, offset, b"H", "x")) == ["STOP"]
    assert changes(before, q.dump()) == {}


def test_what_was_cancelled_stops(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    q.cancel("a")
    before = q.before()
    assert flush(q, A, tokens("a", delivery)) == ["STOP"]
    assert changes(before, q.dump()) == {}


def test_what_was_handed_back_stops(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    q.hand_back(A, ("a", delivery))
    before = q.before()
    assert flush(q, A, tokens("a", delivery)) == ["STOP"]
    assert changes(before, q.dump()) == {}


def test_an_earlier_delivery_of_a_row_that_came_again_stops(q: Queue) -> None:
    q.submit("a", stream=True)
    first = q.start(A, "a")
    q.hand_back(A, ("a", first))
    second = q.start(A, "a")
    before = q.before()
    assert flush(q, A, tokens("a", first)) == ["STOP"]
    assert changes(before, q.dump()) == {}
    assert flush(q, A, tokens("a", second, attempt=2)) == ["OK"]


def test_a_member_whose_flight_moved_on_stops(q: Queue) -> None:
    q.register("b:1-x")
    q.submit("a", stream=True)
    first = q.start(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", stream=True, nonce="n2")
    second = q.start("b:1-x", "a")
    before = q.before()
    assert flush(q, A, tokens("a", first)) == ["STOP"]
    assert flush(q, A, tokens("a", second)) == ["STOP"]
    assert changes(before, q.dump()) == {}


def test_a_member_of_an_attempt_that_was_followed_by_another_stops(q: Queue) -> None:
    q.register("b:1-x")
    q.submit("a", stream=True)
    first = q.start(A, "a")
    member = q.redis.hget(q.keys.work(A), "a")
    q.hand_back(A, ("a", first))
    q.start("b:1-x", "a")
    q.redis.hset(q.keys.work(A), "a", member)
    before = q.before()
    assert flush(q, A, tokens("a", first)) == ["STOP"]
    assert changes(before, q.dump()) == {}


def test_a_flight_without_the_member_stops(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    q.redis.hdel(q.keys.work(A), "a")
    assert flush(q, A, tokens("a", delivery)) == ["STOP"]


def test_nothing_is_published_after_the_end(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    flush(q, A, tokens("a", delivery))
    q.settle(A, ok("a", delivery))
    assert flush(q, A, tokens("a", delivery, 2)) == ["STOP"]
    assert [record.get("end") for record in q.dump()["tokens:a:n-a"]] == [None, "succeeded"]


def test_a_stream_is_capped_at_four_times_what_it_may_generate(q: Queue) -> None:
    q.submit("a", stream=True, max_tokens=200)
    for attempt in range(1, 9):
        delivery = q.start(A, "a", cost=7)
        flush(q, A, *(tokens("a", delivery, offset, attempt) for offset in range(200)))
        q.hand_back(A, ("a", delivery))
    kept = len(q.dump()["tokens:a:n-a"])
    assert 3 * 200 + 16 <= kept < 4 * 200 + 16 + 200  # Redis trims whole nodes


def test_what_was_left_of_an_answer_that_nobody_streams_is_kept_from_the_last_time_on(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    flush(q, A, tokens("a", delivery))
    q.hand_back(A, ("a", delivery))
    q.redis.pexpire("stoker:{default}:tokens:a:n-a", 1000)
    flush(q, A, tokens("a", q.start(A, "a"), 2, attempt=2))
    assert q.dump()["ttl"]["tokens:a:n-a"] == TOKENS_TTL


def test_an_empty_flush_changes_nothing(q: Queue) -> None:
    before = q.before()
    assert flush(q, A) == []
    assert changes(before, q.dump()) == {}
