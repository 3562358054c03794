"""hand_back: uncharged, with the original score, and only by who holds it under this delivery."""

from __future__ import annotations

from protocol.rig import BELL_TTL, GONE, NORMAL, A, Added, B, Queue, changes, member


def test_a_row_that_never_began_waits_again_uncharged_with_its_score(q: Queue) -> None:
    q.submit("a", tenant="t")
    score = q.now + NORMAL + 1
    delivery = q.dispatch(A, "a")
    q.now += 1_000_000
    before = q.before()
    assert q.hand_back(A, ("a", delivery)) == "OK"
    assert changes(before, q.dump()) == {
        "flight:a": {"delivery": "", "state": "Q"},
        "lane:normal:t": {"a:3:4:x": score},
        "active": {"normal": 1, "normal:t": 1},
        f"work:{A}": GONE,
        "credit": {A: 0},
        "counts": {
            "waiting": 1,
            "waiting_bytes": q.size("a"),
            "waiting_tokens": 7,
            "waiting:t": 1,
            "waiting_bytes:t": q.size("a"),
            "waiting_tokens:t": 7,
        },
        "events": Added([q.event("hand_back", A, f"a requeue {delivery} normal {score} 0 handed_back")]),
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_a_row_that_ran_notes_how_its_attempt_ended(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    before = q.before()
    q.hand_back(A, ("a", delivery))
    after = changes(before, q.dump())
    assert after["flight:a"] == {"delivery": "", "state": "Q", "history": f"{A},handed_back"}
    flight = q.dump()["flight:a"]
    assert (flight["attempts"], flight["failures"], flight["losses"]) == (1, 0, 0)


def test_handing_back_again_only_rings(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.hand_back(A, ("a", delivery))
    before = q.before()
    assert q.hand_back(A, ("a", delivery)) == "OK"
    assert changes(before, q.dump()) == {"bell": Added([1]), "ttl": {"bell": BELL_TTL}}


def test_a_late_hand_back_does_not_touch_the_row_that_came_again(q: Queue) -> None:
    q.submit("a")
    first = q.start(A, "a")
    q.hand_back(A, ("a", first))
    second = q.start(A, "a")
    before = q.before()
    assert q.hand_back(A, ("a", first)) == "OK"
    assert changes(before, q.dump()) == {"bell": Added([1]), "ttl": {"bell": BELL_TTL}}
    assert q.dump()[f"work:{A}"] == {"a": member(second, state="R", since=q.now, before=1)}


def test_a_late_hand_back_does_not_touch_another_incarnations_attempt(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    first = q.start(A, "a")
    q.hand_back(A, ("a", first))
    q.start(B, "a")
    before = q.before()
    q.hand_back(A, ("a", first))
    assert changes(before, q.dump()) == {"bell": Added([1]), "ttl": {"bell": BELL_TTL}}


def test_a_row_whose_request_was_cancelled_is_dropped_and_not_queued(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.cancel("a")
    before = q.before()
    q.hand_back(A, ("a", delivery))
    assert changes(before, q.dump()) == {
        f"work:{A}": GONE,
        "credit": {A: 0},
        "bell": Added([1]),
        "ttl": {"bell": BELL_TTL},
    }


def test_a_row_of_an_ids_earlier_life_leaves_the_later_one_alone(q: Queue) -> None:
    q.submit("a")
    first = q.start(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", nonce="n2")
    before = q.before()
    q.hand_back(A, ("a", first))
    after = changes(before, q.dump())
    assert set(after) == {f"work:{A}", "credit", "bell", "ttl"}


def test_a_suspect_goes_back_among_the_suspects(q: Queue) -> None:
    q.register("z:1-x")
    q.submit("a")
    score = q.now + NORMAL + 1
    q.start("z:1-x", "a")
    q.lose("z:1-x", "crash", "a")
    delivery = q.dispatch(A, "a")
    q.hand_back(A, ("a", delivery))
    assert q.dump()["lane:suspect"] == {"a:3:4:x": score}
    assert q.dump()["events"][-1] == q.event("hand_back", A, f"a requeue {delivery} suspect {score} 1 handed_back")


def test_one_call_hands_many_back_and_each_once(q: Queue) -> None:
    q.submit("a", "b", "c")
    delivery = q.start(A, "a", "b", "c")
    q.hand_back(A, ("a", delivery), ("b", delivery), ("a", delivery))
    assert q.dump()["credit"] == {A: 7}
    assert set(q.dump()[f"work:{A}"]) == {"c"}
    assert set(q.dump()["lane:normal"]) == {"a:3:4:x", "b:3:4:x"}
    assert q.dump()["counts"]["waiting"] == 2


def test_an_empty_delivery_gives_back_nothing_for_what_waits_again_has_one_too(q: Queue) -> None:
    q.submit("a")
    delivery = q.start(A, "a")
    q.hand_back(A, ("a", delivery), ("a", ""))
    assert q.dump()["counts"]["waiting"] == 1
    before = q.before()
    q.hand_back(A, ("a", ""))
    assert set(changes(before, q.dump())) <= {"bell", "ttl", "events"}


def test_handing_nothing_back_is_ok(q: Queue) -> None:
    before = q.before()
    assert q.hand_back(A) == "OK"
    assert changes(before, q.dump()) == {"bell": Added([1]), "ttl": {"bell": BELL_TTL}}


def test_512_go_back_in_one_call(q: Queue) -> None:
    q.register(B, capacity=10_000, rows=512)
    ids = [f"r{i}" for i in range(512)]
    q.submit(*ids)
    delivery = q.start(B, *ids)
    q.hand_back(B, *((i, delivery) for i in ids))
    assert len(q.dump()["lane:normal"]) == 512
    assert q.dump()["credit"][B] == 0
