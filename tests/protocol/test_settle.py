"""settle: success from any attempt wins once, a failure counts from the current one only, rows are freed either way."""

from __future__ import annotations

import pytest

from protocol.rig import (
    BELL_TTL,
    DEAD_TTL,
    GONE,
    NORMAL,
    REPLY_TTL,
    RESULT_TTL,
    TOKENS_TTL,
    A,
    Added,
    B,
    MakeQueue,
    Queue,
    changes,
    ok,
    plain,
    settlement,
)
from stoker.store import reads
from stoker.store import scripts as s

MS = 1000
SECOND = 1_000_000
SLICE = RESULT_TTL * SECOND // 16
FREED = {f"work:{A}": GONE, "credit": {A: 0}}


def again(q: Queue, *items: object, inc: str = A) -> list[str]:
    """Settle once more; it must change nothing but the count of what was fenced off."""
    before = q.before()
    words = q.settle(inc, *items)  # type: ignore[arg-type]
    fenced = q.dump()["counts"].get("fenced", 0) - before["counts"].get("fenced", 0)
    assert fenced == len(items)
    after = changes(before, q.dump())
    assert set(after) == {"counts"}
    assert set(after["counts"]) == {"fenced"}
    return words


def kept(now: int, **bytes_of: int) -> dict[str, dict[str, int]]:
    """Return the keys that say when results of now lapse, and how long they are, by tenant."""
    number = now // SLICE
    return {"kept": {str(number): (number + 1) * SLICE + RESULT_TTL * SECOND}, f"kept:{number}": bytes_of}


# --- success ---------------------------------------------------------------------------------------------------------


def test_a_success_leaves_nothing_but_its_result(q: Queue) -> None:
    q.submit("a", timeout=50, tenant="t")
    q.now += 100 * MS
    delivery = q.start(A, "a")
    begun = q.now
    q.now += 300 * MS
    before = q.before()
    done = ok("a", delivery, first_token_us=60 * MS, prompt=3, completion=4)
    assert q.settle(A, done) == ["OK"]
    result = q.result("a", "succeeded", b"done", begun=begun, attempts=1, reason="stop", inc=A)
    assert changes(before, q.dump()) == FREED | {
        "payload:a": GONE,
        "flight:a": GONE,
        "deadlines": GONE,
        "result:a": result,
        "reply:c": Added([result]),
        "counts": {
            "succeeded": 1,
            "succeeded:t": 1,
            "prompt_tokens": 3,
            "generation_tokens": 4,
            "kept_bytes": 4,
            "kept_bytes:t": 4,
        },
        **kept(q.now, t=4),
        "histograms": {
            "queue:normal:14": 1,
            "queue:normal:sum": 100 * MS,
            "ttft:normal:15": 1,
            "ttft:normal:sum": 160 * MS,
            "e2e:normal:18": 1,
            "e2e:normal:sum": 400 * MS,
            "answer:normal:4": 1,
            "answer:normal:sum": 4 * MS,
        },
        "answers": Added(["normal:t:4"]),
        "rates": {"since": q.now, "settled": 1},
        "events": Added([q.event("settle", A, "a end succeeded n-a stop -")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL},
    }
    assert again(q, done) == ["DUPLICATE"]


def test_a_success_of_an_attempt_that_was_taken_back_leaves_the_lane(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.lose(A, "killed")
    begun = q.now
    before = q.before()
    assert q.settle(A, ok("a", delivery)) == ["OK"]
    ended = {"begun": begun, "attempts": 1, "reason": "stop", "inc": A, "history": f"{A},killed"}
    result = q.result("a", "succeeded", b"done", **ended)
    after = changes(before, q.dump())
    assert {name: after[name] for name in ("lane:normal", "payload:a", "flight:a", "result:a", "counts")} == {
        "lane:normal": GONE,
        "payload:a": GONE,
        "flight:a": GONE,
        "result:a": result,
        "counts": {"waiting": GONE, "waiting_bytes": GONE, "waiting_tokens": GONE, "succeeded": 1, "kept_bytes": 4},
    }
    assert set(after) - {"lane:normal", "payload:a", "flight:a", "result:a", "counts"} == {
        "reply:c",
        "histograms",
        "rates",
        *kept(q.now),
        "events",
        "ttl",
    }


def test_a_success_of_an_attempt_that_was_taken_back_leaves_the_suspects(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.lose(A, "crash", "a")
    assert q.settle(A, ok("a", delivery)) == ["OK"]
    assert "lane:suspect" not in q.dump()


def test_a_success_of_an_earlier_attempt_leaves_the_delays(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.start(A, "a")
    q.lose(A, "killed")
    q.settle(B, settlement("a", q.start(B, "a"), "retry", attempt=2))
    assert "delayed" in q.dump()
    assert q.settle(A, ok("a", first)) == ["OK"]
    assert "delayed" not in q.dump()
    assert q.dump()["result:a"]["state"] == "succeeded"


def test_a_success_of_an_earlier_attempt_leaves_the_later_ones_row_a_member(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.start(A, "a")
    q.lose(A, "killed")
    second = q.start(B, "a")
    assert q.settle(A, ok("a", first)) == ["OK"]
    assert q.dump()[f"work:{B}"]["a"]["delivery"] == second
    assert q.settle(B, ok("a", second, attempt=2)) == ["DUPLICATE"]
    assert f"work:{B}" not in q.dump()
    assert q.dump()["credit"] == {B: 0}


def test_the_first_success_is_the_result(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.start(A, "a")
    q.lose(A, "killed")
    second = q.start(B, "a")
    q.settle(B, ok("a", second, body=b"second", attempt=2))
    assert q.settle(A, ok("a", first, body=b"first")) == ["DUPLICATE"]
    assert q.dump()["result:a"]["body"] == b"second"
    assert [wake["body"] for wake in q.dump()["reply:c"]] == [b"second"]


def test_a_result_that_is_there_already_stays(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.redis.set(q.keys.result("a"), "cancelled|n-a|d|a|1||2|0||||0|")
    q.settle(A, ok("a", delivery))
    assert q.dump()["result:a"]["state"] == "cancelled"
    assert "reply:c" not in q.dump()
    assert q.dump()["events"][-1] == q.event("settle", A, "a twice succeeded")


# --- lives of an id --------------------------------------------------------------------------------------------------


def _second_life(q: Queue, inc: str) -> tuple[str, str]:
    """Let `A` run an id's first life, and `inc` its second: give both deliveries."""
    q.submit("a")
    first = q.start(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", nonce="n2")
    return first, q.start(inc, "a")


@pytest.mark.parametrize("others", [(), ("b",)], ids=["nothing waits", "another waits"])
def test_room_that_comes_free_wakes_the_scheduler_only_while_something_waits_for_it(
    q: Queue, others: tuple[str, ...]
) -> None:
    q.submit("a", *others)
    delivery = q.start(A, "a")
    q.before()
    assert q.settle(A, ok("a", delivery)) == ["OK"]
    assert ("bell" in q.dump()) is bool(others)


@pytest.mark.parametrize("outcome", ["ok", "bad", "failure", "retry"])
def test_a_zombie_of_an_ids_earlier_life_is_told_apart_by_the_nonce(q: Queue, outcome: str) -> None:
    q.register(B)
    first, second = _second_life(q, B)
    before = q.before()
    assert q.settle(A, settlement("a", first, outcome, body=b"old")) == ["DUPLICATE"]  # type: ignore[arg-type]
    assert changes(before, q.dump()) == FREED | {
        "credit": {A: 0},
        "counts": {"fenced": 1},
    }
    assert q.settle(B, ok("a", second, nonce="n2")) == ["OK"]


def test_another_nonce_is_no_success_even_with_the_right_delivery(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    assert q.settle(A, ok("a", delivery, nonce="other")) == ["DUPLICATE"]
    assert "result:a" not in q.dump()


def test_what_nobody_knows_is_a_duplicate(q: Queue) -> None:
    before = q.before()
    assert q.settle(A, ok("a", "1-1-1")) == ["DUPLICATE"]
    assert changes(before, q.dump()) == {"counts": {"fenced": 1}}


# --- members and credit ----------------------------------------------------------------------------------------------


def test_a_row_that_came_again_is_not_dropped_by_the_earlier_attempt(q: Queue) -> None:
    q.submit("a")
    first = q.start(A, "a")
    q.hand_back(A, ("a", first))
    second = q.start(A, "a")
    before = q.before()
    assert q.settle(A, settlement("a", first, "failure")) == ["STALE"]
    assert changes(before, q.dump()) == {"counts": {"fenced": 1}}
    assert q.dump()[f"work:{A}"]["a"]["delivery"] == second


def test_credit_falls_by_what_each_row_was_booked_with(q: Queue) -> None:
    q.submit("a", "b", "c")
    first = q.start(A, "a", "b", cost=5)
    q.start(A, "c", cost=3)
    assert q.settle(A, ok("a", first), ok("b", first)) == ["OK", "OK"]
    assert q.dump()["credit"] == {A: 3}


def test_one_attempt_twice_in_a_call_counts_and_frees_once(q: Queue) -> None:
    q.submit("a", "b")
    delivery = q.start(A, "a", "b")
    assert q.settle(A, ok("a", delivery, body=b"1"), ok("a", delivery, body=b"2")) == ["OK", "DUPLICATE"]
    assert q.dump()["credit"] == {A: 7}
    assert q.dump()["result:a"]["body"] == b"1"
    assert q.dump()["counts"]["succeeded"] == 1


def test_a_failure_twice_in_a_call_is_charged_once(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    assert q.settle(A, *[settlement("a", delivery, "retry")] * 2) == ["OK", "DUPLICATE"]
    assert q.dump()["flight:a"]["failures"] == 1
    assert q.dump()["counts"]["retries"] == 1


def test_512_successes_go_in_one_call(q: Queue) -> None:
    q.register(B, capacity=10_000, rows=512)
    ids = [f"r{i}" for i in range(512)]
    q.submit(*ids)
    delivery = q.start(B, *ids)
    assert q.settle(B, *(ok(i, delivery) for i in ids)) == ["OK"] * 512
    assert q.dump()["credit"][B] == 0
    assert q.dump()["counts"]["succeeded"] == 512


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_bad_request_fails_at_once_and_is_no_dead_letter(q: Queue) -> None:
    q.submit("a", tenant="t")
    delivery = q.start(A, "a")
    before = q.before()
    bad = settlement("a", delivery, "bad", reason="invalid", body=b"why")
    assert q.settle(A, bad) == ["OK"]
    ended = {"begun": q.now, "attempts": 1, "reason": "invalid", "inc": A, "history": f"{A},invalid"}
    result = q.result("a", "failed", b"why", **ended)
    assert changes(before, q.dump()) == FREED | {
        "payload:a": GONE,
        "flight:a": GONE,
        "result:a": result,
        "reply:c": Added([result]),
        "counts": {"failed": 1, "failed:t": 1, "kept_bytes": 3, "kept_bytes:t": 3},
        **kept(q.now, t=3),
        "rates": {"since": q.now, "settled": 1},
        "events": Added([q.event("settle", A, "a end failed n-a invalid -")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL},
    }
    assert again(q, bad) == ["DUPLICATE"]


def test_a_failure_without_a_retry_becomes_a_dead_letter(q: Queue) -> None:
    q.submit("a", timeout=50)
    delivery = q.start(A, "a")
    before = q.before()
    failed = settlement("a", delivery, "failure", reason="oom", body=b"why")
    assert q.settle(A, failed) == ["OK"]
    result = q.result("a", "failed", b"why", begun=q.now, attempts=1, reason="oom", inc=A, history=f"{A},oom")
    dead = {"time": q.now, "reason": "oom", "attempts": 1, "failures": 1, "losses": 0, "history": f"{A},oom"}
    assert changes(before, q.dump()) == FREED | {
        "payload:a": GONE,
        "flight:a": GONE,
        "deadlines": GONE,
        "result:a": result,
        "reply:c": Added([result]),
        "dead": {"a": q.now},
        "dead:a": dead | {"size": 3, "body": b"why", "payload": q.payload("a")},
        "counts": {"failed": 1, "kept_bytes": 3},
        "kept": kept(q.now)["kept"],
        f"kept:{q.now // SLICE}": {"": 3},
        "rates": {"since": q.now, "settled": 1},
        "events": Added([q.event("settle", A, f"a failure {delivery} 1", "a end failed n-a oom dead")]),
        "ttl": {"result:a": RESULT_TTL, "reply:c": REPLY_TTL, "dead:a": DEAD_TTL},
    }
    assert again(q, failed) == ["DUPLICATE"]


def test_a_retry_waits_uncounted_attempts_apart_and_charged(q: Queue) -> None:
    q.submit("a", tenant="t")
    delivery = q.start(A, "a")
    before = q.before()
    retry = settlement("a", delivery, "retry", reason="cuda")
    assert q.settle(A, retry) == ["OK"]
    due = q.now + 250 * MS
    assert changes(before, q.dump()) == FREED | {
        "flight:a": {"delivery": "", "state": "Y", "failures": 1, "history": f"{A},cuda"},
        "delayed": {"a": due},
        "counts": {
            "waiting": 1,
            "waiting_bytes": q.size("a"),
            "waiting_tokens": 7,
            "waiting:t": 1,
            "waiting_bytes:t": q.size("a"),
            "waiting_tokens:t": 7,
            "retries": 1,
        },
        "events": Added([q.event("settle", A, f"a failure {delivery} 1", f"a delay {due}")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }
    assert again(q, retry) == ["STALE"]


@pytest.mark.parametrize(
    ("failures", "longest_ms"), [(1, 500), (2, 1000), (3, 2000), (6, 16_000), (7, 30_000), (40, 30_000)]
)
def test_the_back_off_doubles_to_its_longest_and_is_jittered_in_full(
    make_queue: MakeQueue, failures: int, longest_ms: int
) -> None:
    q = make_queue(max_attempts=100)
    q.submit("a", "b")
    delivery = q.start(A, "a", "b")
    for request_id in "ab":
        record = q.redis.get(q.keys.flight(request_id)).split(b"|")
        record[4] = str(failures - 1).encode()
        q.redis.set(q.keys.flight(request_id), b"|".join(record))
    q.settle(A, settlement("a", delivery, "retry"), jitter=1.0)
    q.settle(A, settlement("b", delivery, "retry"), jitter=0.25)
    assert q.dump()["delayed"] == {"a": q.now + longest_ms * MS, "b": q.now + longest_ms * MS // 4}


def test_the_last_allowed_attempt_fails_for_good(make_queue: MakeQueue) -> None:
    q = make_queue(max_attempts=2)
    q.submit("a")
    q.settle(A, settlement("a", q.start(A, "a"), "retry"))
    q.now += SECOND
    q.promote()
    assert q.settle(A, settlement("a", q.start(A, "a"), "retry", attempt=2)) == ["OK"]
    dump = q.dump()
    assert "delayed" not in dump
    assert (dump["result:a"]["state"], dump["result:a"]["attempts"]) == ("failed", 2)
    assert (dump["dead:a"]["failures"], dump["dead:a"]["history"]) == (2, f"{A},error;{A},error")


def test_hand_backs_and_losses_do_not_count_as_failures(make_queue: MakeQueue) -> None:
    q = make_queue(max_attempts=2)
    q.register(B)
    q.submit("a")
    q.hand_back(A, ("a", q.start(A, "a")))
    q.start(A, "a")
    q.lose(A, "killed")
    assert q.settle(B, settlement("a", q.start(B, "a"), "retry", attempt=3)) == ["OK"]
    flight = q.dump()["flight:a"]
    assert (flight["attempts"], flight["failures"], flight["losses"], flight["state"]) == (3, 1, 1, "Y")


@pytest.mark.parametrize("outcome", ["bad", "failure", "retry"])
@pytest.mark.parametrize("moved", ["queued", "delayed", "dispatched", "running"])
def test_a_failure_of_an_attempt_that_does_not_count_is_stale(q: Queue, outcome: str, moved: str) -> None:
    q.register(B)
    q.submit("a")
    first = q.start(A, "a")
    q.lose(A, "killed")
    if moved == "dispatched":
        q.dispatch(B, "a")
    if moved == "running":
        q.start(B, "a")
    if moved == "delayed":
        q.settle(B, settlement("a", q.start(B, "a"), "retry", attempt=2))
    assert again(q, settlement("a", first, outcome)) == ["STALE"]  # type: ignore[arg-type]


def test_the_last_eight_ends_of_attempts_are_kept(q: Queue) -> None:
    q.submit("a")
    for _ in range(8):
        q.hand_back(A, ("a", q.start(A, "a")))
    q.settle(A, settlement("a", q.start(A, "a"), "bad", reason="ninth", attempt=9))
    history = q.dump()["result:a"]["history"]
    assert history == ";".join([f"{A},handed_back"] * 7 + [f"{A},ninth"])


# --- token streams ---------------------------------------------------------------------------------------------------


def test_a_streamed_success_closes_its_stream(q: Queue) -> None:
    q.submit("a", stream=True)
    delivery = q.start(A, "a")
    before = q.before()
    assert q.settle(A, ok("a", delivery)) == ["OK"]
    after = changes(before, q.dump())
    assert after["tokens:a:n-a"] == Added([{"end": "succeeded"}])
    assert after["ttl"]["tokens:a:n-a"] == TOKENS_TTL


def test_a_streamed_success_is_stale_once_a_later_attempt_has_begun(q: Queue) -> None:
    q.register(B)
    q.submit("a", stream=True)
    first = q.start(A, "a")
    q.lose(A, "killed")
    second = q.start(B, "a")
    assert again(q, ok("a", first)) == ["STALE"]
    assert q.settle(B, ok("a", second, attempt=2)) == ["OK"]


@pytest.mark.parametrize("moved", ["queued", "dispatched"])
def test_a_streamed_success_wins_while_no_later_attempt_has_begun(q: Queue, moved: str) -> None:
    q.register(B)
    q.submit("a", stream=True)
    first = q.start(A, "a")
    q.lose(A, "killed")
    if moved == "dispatched":
        q.dispatch(B, "a")
    assert q.settle(A, ok("a", first)) == ["OK"]
    assert q.dump()["result:a"]["state"] == "succeeded"
    assert "lane:normal" not in q.dump()


def test_a_success_that_is_not_streamed_wins_over_a_later_attempt(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.start(A, "a")
    q.lose(A, "killed")
    q.start(B, "a")
    assert q.settle(A, ok("a", first)) == ["OK"]


# --- wake-ups --------------------------------------------------------------------------------------------------------


def test_each_client_is_woken_once_with_all_that_ended(q: Queue) -> None:
    q.submit("a", "b", reply="c1")
    q.submit("x", reply="c2")
    q.submit("y", reply="")
    delivery = q.start(A, "a", "x", "b", "y")
    q.redis.config_resetstat()
    q.settle(A, *(ok(i, delivery) for i in ("a", "x", "b", "y")))
    assert q.redis.info("commandstats")["cmdstat_rpush"]["calls"] == 2  # the bell has rung already
    dump = q.dump()
    assert [wake["id"] for wake in dump["reply:c1"]] == ["a", "b"]
    assert [wake["id"] for wake in dump["reply:c2"]] == ["x"]
    assert sorted(name for name in dump if name.startswith("reply:")) == ["reply:c1", "reply:c2"]


@pytest.mark.parametrize(("size", "inside"), [(64, True), (65, False), (0, True)])
def test_a_wake_up_leaves_a_large_body_out(q: Queue, size: int, inside: bool) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    body = b"x" * size
    q.settle(A, ok("a", delivery, body=body))
    assert q.dump()["result:a"]["body"] == body
    [wake] = q.dump()["reply:c"]
    assert (wake["size"], wake["body"]) == (size, body if inside else b"")


def test_a_reply_channel_keeps_the_newest_wake_ups(q: Queue) -> None:
    ids = [f"r{i}" for i in range(20)]
    q.register(B, capacity=1000, rows=20)
    q.submit(*ids)
    delivery = q.start(B, *ids)
    q.settle(B, *(ok(i, delivery) for i in ids[:16]))
    assert [wake["id"] for wake in q.dump()["reply:c"]] == ids[:16]
    q.settle(B, *(ok(i, delivery) for i in ids[16:]))
    assert [wake["id"] for wake in q.dump()["reply:c"]] == ids[4:]


def test_a_body_of_any_bytes_comes_back_whole(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    body = bytes(range(256)) * 2 + b"|\r\n|"
    q.settle(A, ok("a", delivery, body=body))
    assert q.dump()["result:a"]["body"] == body


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("us", "bucket"),
    [
        (0, 0),
        (1000, 0),
        (1001, 1),
        (1414, 1),
        (1415, 2),
        (2000, 2),
        (2001, 3),
        (4000, 4),
        (1_000_000, 20),
        (1_024_000, 20),
        (1_025_000, 21),
        (10**12, 54),
    ],
)
def test_a_bucket_counts_times_up_to_its_power_of_the_root_of_two(q: Queue, us: int, bucket: int) -> None:
    q.submit("a", priority="high")
    delivery = q.start(A, "a")
    q.now += us
    q.settle(A, ok("a", delivery))
    assert q.dump()["histograms"] == {
        "queue:high:0": 1,
        "queue:high:sum": 0,
        f"e2e:high:{bucket}": 1,
        "e2e:high:sum": us,
    }


def test_a_call_adds_its_times_up(q: Queue) -> None:
    q.submit("a", "b")
    q.now += 2 * MS
    delivery = q.start(A, "a", "b")
    q.now += 2 * MS
    q.settle(A, ok("a", delivery, first_token_us=0), ok("b", delivery))
    assert q.dump()["histograms"] == {
        "queue:normal:2": 2,
        "queue:normal:sum": 4 * MS,
        "ttft:normal:2": 1,
        "ttft:normal:sum": 2 * MS,
        "e2e:normal:4": 2,
        "e2e:normal:sum": 8 * MS,
    }


def test_how_long_answers_of_tenants_became_is_remembered_in_their_order(q: Queue) -> None:
    q.register(B, rows=100, capacity=1000)
    q.submit("a", "d", tenant="t")
    q.submit("b", priority="batch", tenant="u.v")
    q.submit("c", "e")
    delivery = q.start(B, "a", "b", "c", "d", "e")
    answers = [ok(name, delivery, completion=tokens) for name, tokens in zip("abcd", (3, 200, 5, 0), strict=True)]
    q.settle(B, *answers, settlement("e", delivery, "failure"))
    assert q.dump()["answers"] == ["normal:t:3", "batch:u.v:200"]
    found = q.store.read(reads.answers(q.keys))
    assert found.lengths == {"normal:t": [3], "batch:u.v": [200]}


def test_of_tenants_answers_so_many_are_remembered_and_no_more(q: Queue) -> None:
    q.redis.rpush(q.keys.answers, *(f"normal:t{i}:7" for i in range(s.MOST_ANSWERS - 1)))
    q.register(B, rows=100, capacity=1000)
    q.submit("a", "b", tenant="t")
    delivery = q.start(B, "a", "b")
    q.settle(B, ok("a", delivery, completion=3))
    assert q.redis.llen(q.keys.answers) == s.MOST_ANSWERS
    q.settle(B, ok("b", delivery, completion=4))
    found = q.redis.lrange(q.keys.answers, 0, -1)
    assert (found[0], found[-1], len(found)) == (b"normal:t1:7", b"normal:t:4", s.MOST_ANSWERS)


def test_a_clock_set_back_makes_no_negative_times(q: Queue) -> None:
    q.submit("a")
    q.now -= SECOND
    delivery = q.start(A, "a")
    q.settle(A, ok("a", delivery, first_token_us=5))
    assert [q.dump()["histograms"][f"{name}:normal:sum"] for name in ("queue", "ttft", "e2e")] == [0, 5, 0]


def test_failures_are_not_measured(q: Queue) -> None:
    q.submit("a", "b", "c")
    delivery = q.start(A, "a", "b", "c")
    q.settle(A, *(settlement(i, delivery, o) for i, o in zip("abc", ("bad", "failure", "retry"), strict=True)))  # type: ignore[arg-type]
    assert "histograms" not in q.dump()


def test_the_drain_rate_is_measured_over_windows_of_five_seconds(q: Queue) -> None:
    q.register(B, rows=100, capacity=1000)
    ids = [f"r{i}" for i in range(10)]
    q.submit(*ids)
    delivery = q.start(B, *ids)
    first = q.now
    q.settle(B, ok("r0", delivery), settlement("r1", delivery, "bad"), settlement("r2", delivery, "failure"))
    assert q.dump()["rates"] == {"since": first, "settled": 3}
    q.now += 5 * SECOND - 1
    q.settle(B, ok("r3", delivery), ok("r4", delivery))
    assert q.dump()["rates"] == {"since": first, "settled": 5}
    q.now = first + 10 * SECOND
    q.settle(B, ok("r5", delivery))
    assert q.dump()["rates"] == {"since": q.now, "settled": 1, "drain": "0.500"}


def test_what_is_not_settled_does_not_drain(q: Queue) -> None:
    q.submit("a", "b")
    delivery = q.start(A, "a", "b")
    q.cancel("b")
    q.settle(A, settlement("a", delivery, "retry"), ok("b", delivery))
    assert "rates" not in q.dump()


def test_a_clock_set_back_begins_a_new_window(q: Queue) -> None:
    q.redis.hset(q.keys.rates, mapping={"since": q.now + 1, "settled": 5, "drain": "2.000"})
    q.submit("a")
    q.settle(A, ok("a", q.start(A, "a")))
    assert q.dump()["rates"] == {"since": q.now, "settled": 1, "drain": plain("2.000")}


def test_tokens_per_byte_of_text_are_learned_from_successes(q: Queue) -> None:
    q.submit("a", "b", "c", "d")
    delivery = q.start(A, "a", "b", "c", "d")
    q.settle(
        A,
        ok("a", delivery, prompt=10, text_bytes=45),
        ok("b", delivery, prompt=5, text_bytes=20),
        ok("c", delivery, prompt=100),
        settlement("d", delivery, "failure", prompt=7, text_bytes=70),
    )
    rates = q.dump()["rates"]
    assert (rates["text_bytes"], rates["text_tokens"]) == (65, 15)


def test_scores_survive_a_retry(q: Queue) -> None:
    q.submit("a")
    score = q.now + NORMAL + 1
    q.settle(A, settlement("a", q.start(A, "a"), "retry"))
    assert q.dump()["flight:a"]["score"] == score
