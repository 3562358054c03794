"""dispatch: out of the lanes into one incarnation's hands, once per n, within its credit; suspects alone."""

from __future__ import annotations

import pytest

from protocol.rig import GONE, NORMAL, A, Added, B, C, H, MakeQueue, Queue, T, changes, member, ok, settlement
from stoker.store import scripts as s


def test_a_taken_request_changes_hands_whole(q: Queue) -> None:
    q.submit("a", timeout=500, tenant="t")
    score = q.now + NORMAL + 1
    q.now += 5
    before = q.before()
    assert q.offer(A, "a") == s.Dispatched("OK", "1-1-1", ("TOOK",))
    assert changes(before, q.dump()) == {
        "leader": {"n": 1},
        "lane:normal:t": GONE,
        "active": GONE,
        "flight:a": q.flight("a", delivery="1-1-1", state="D", score=score),
        f"work:{A}": {"a": member("1-1-1", since=q.now)},
        "credit": {A: 7},
        f"stream:{A}": {"bells": Added(["1-1-1 a"])},
        "counts": {
            "waiting": GONE,
            "waiting_bytes": GONE,
            "waiting_tokens": GONE,
            "waiting:t": GONE,
            "waiting_bytes:t": GONE,
            "waiting_tokens:t": GONE,
        },
        "events": Added([q.event("dispatch", q.token, f"a dispatch 1-1-1 {A} {score} normal:t 7")]),
    }


def test_a_doorbell_says_what_is_reserved_for_each_also_when_it_rings_again(q: Queue) -> None:
    q.submit("a", "b")
    delivery = q.dispatch(A, "a", cost=5)
    q.begin(A, delivery, "a")
    q.dispatch(A, "b", cost=6)
    q.now += T + 1
    q.beat(A)
    bells = [fields[b"costs"] for _, fields in q.redis.xrange(q.keys.stream(A))]
    assert bells == [b"6", b"6"]  # the first was deleted when it began


def test_one_call_takes_from_many_lanes_with_one_doorbell(q: Queue) -> None:
    q.submit("x", priority="high")
    q.submit("y", "z")
    t = q.now
    before = q.before()
    assert q.offer(A, "x", "z", "y").words == ("TOOK", "TOOK", "TOOK")
    after = changes(before, q.dump())
    assert after["lane:high"] is GONE
    assert after["lane:normal"] is GONE
    names = {"x": "high", "y": "normal", "z": "normal"}
    assert after[f"work:{A}"] == {i: member("1-1-1", since=q.now, name=name) for i, name in names.items()}
    assert after["credit"] == {A: 21}
    assert after[f"stream:{A}"] == {"bells": Added(["1-1-1 x z y"])}
    assert after["events"] == Added(
        [
            q.event(
                "dispatch",
                q.token,
                f"x dispatch 1-1-1 {A} {t + 1} high 7",
                f"z dispatch 1-1-1 {A} {t + NORMAL + 3} normal 7",
                f"y dispatch 1-1-1 {A} {t + NORMAL + 2} normal 7",
            )
        ]
    )


def test_a_flight_that_is_there_is_kept_and_not_read_from_the_header_again(q: Queue) -> None:
    q.submit("a")
    score = q.now + NORMAL + 1
    first = q.start(A, "a")
    begun = q.now
    q.hand_back(A, ("a", first))
    q.now += 5
    before = q.before()
    assert q.offer(A, "a").words == ("TOOK",)
    assert changes(before, q.dump())["flight:a"] == {"delivery": "1-1-2", "state": "D"}
    kept = q.flight("a", delivery="1-1-2", state="D", score=score, attempts=1, begun=begun, history=f"{A},handed_back")
    assert q.dump()["flight:a"] == kept


def test_the_leaders_cost_is_what_is_reserved(q: Queue) -> None:
    q.submit("a")
    q.dispatch(A, "a", cost=5)
    assert q.dump()[f"work:{A}"]["a"]["cost"] == 5
    assert q.dump()["credit"] == {A: 5}


def test_credit_is_the_sum_of_the_costs_over_many_calls(q: Queue) -> None:
    q.submit("a", "b", "c")
    q.dispatch(A, "a", "b")
    q.dispatch(A, "c", cost=6)
    assert q.dump()["credit"] == {A: 20}


def test_512_requests_go_in_one_call(q: Queue) -> None:
    q.register(B, capacity=10_000, rows=512)
    ids = [f"r{i}" for i in range(512)]
    q.submit(*ids)
    assert q.offer(B, *ids).words == ("TOOK",) * 512
    assert q.dump()["credit"] == {A: 0, B: 512 * 7}


# --- once per n ------------------------------------------------------------------------------------------------------


def test_a_repeated_dispatch_names_what_is_still_held_and_changes_nothing(q: Queue) -> None:
    q.submit("a", "b")
    q.offer(A, "a", "b")
    before = q.before()
    assert q.offer_again(A, "a", "b") == s.Dispatched("SEEN", "1-1-1", ("a", "b"))
    assert changes(before, q.dump()) == {}


def test_a_repeated_dispatch_takes_nothing_that_came_back_meanwhile(q: Queue) -> None:
    q.submit("a", "b")
    q.offer(A, "a", "b")
    q.hand_back(A, ("a", "1-1-1"))
    before = q.before()
    assert q.offer_again(A, "a", "b") == s.Dispatched("SEEN", "1-1-1", ("b",))
    assert changes(before, q.dump()) == {}


def test_a_repeated_dispatch_does_not_name_a_later_deliverys_row(q: Queue) -> None:
    q.submit("a")
    q.offer(A, "a")
    q.hand_back(A, ("a", "1-1-1"))
    q.offer(A, "a")
    q.n = 1
    assert q.offer_again(A, "a") == s.Dispatched("SEEN", "1-1-1", ())


def test_an_earlier_n_was_seen_too(q: Queue) -> None:
    q.submit("a")
    q.n = 6
    q.offer(A)
    q.n = 3
    assert q.offer_again(A, "a") == s.Dispatched("SEEN", "1-1-3", ())
    assert "lane:normal" in q.dump()


def test_a_refused_call_uses_its_n_up(q: Queue) -> None:
    q.submit("a")
    assert q.offer("nobody:1-x", "a").word == "REFUSED"
    before = q.before()
    assert q.offer_again(A, "a") == s.Dispatched("SEEN", "1-1-1", ())
    assert changes(before, q.dump()) == {}


def test_a_dispatch_of_nothing_uses_its_n_up_and_rings_no_doorbell(q: Queue) -> None:
    before = q.before()
    assert q.offer(A) == s.Dispatched("OK", "1-1-1", ())
    assert changes(before, q.dump()) == {"leader": {"n": 1}}


def test_one_request_twice_in_a_call_is_taken_once(q: Queue) -> None:
    q.submit("a")
    before = q.before()
    assert q.offer(A, "a", "a").words == ("TOOK", "GONE")
    after = changes(before, q.dump())
    assert after["credit"] == {A: 7}
    assert after["counts"] == {"waiting": GONE, "waiting_bytes": GONE, "waiting_tokens": GONE}
    assert after[f"stream:{A}"] == {"bells": Added(["1-1-1 a"])}


def test_a_deposed_leader_dispatches_nothing(q: Queue) -> None:
    q.submit("a")
    before = q.before()
    q.n = 1
    for token in ("1:other:1", "2:s:1", "0:s:1", "1:s:2", ""):
        if token:
            assert q.offer_again(A, "a", token=token) == s.Dispatched("FENCED")
    assert changes(before, q.dump()) == {}


def test_the_delivery_names_the_leaders_epoch_and_nonce(q: Queue) -> None:
    q.redis.delete(q.keys.leader)
    token = q.lead("node.two:abc").token
    q.submit("a")
    q.n = 7
    assert q.offer_again(A, "a", token=token) == s.Dispatched("OK", "2-abc-7", ("TOOK",))


# --- to whom ---------------------------------------------------------------------------------------------------------


def _refused(q: Queue, inc: str) -> None:
    q.submit("a")
    before = q.before()
    answer = q.offer(inc, "a")
    assert answer == s.Dispatched("REFUSED", f"1-1-{q.n}")
    assert changes(before, q.dump()) == {"leader": {"n": q.n}}


def test_an_incarnation_that_nobody_registered_gets_nothing(q: Queue) -> None:
    _refused(q, B)


def test_a_superseded_incarnation_gets_nothing(q: Queue) -> None:
    q.register("a:2-y")
    _refused(q, A)


def test_a_dead_incarnation_gets_nothing(q: Queue) -> None:
    q.report(A, "killed")
    _refused(q, A)


def test_a_lost_incarnation_gets_nothing(q: Queue) -> None:
    q.register(B)
    q.tick(4 * H, B)
    assert q.reclaim(A) == 0
    _refused(q, A)


def test_a_void_incarnation_gets_nothing_while_it_is_taken_back_in_groups(make_queue: MakeQueue) -> None:
    q = make_queue(group=1)
    q.submit("x", "y")
    q.dispatch(A, "x", "y")
    q.tick(4 * H)
    assert q.reclaim(A) == 1
    _refused(q, A)


def test_a_void_key_alone_keeps_work_away(q: Queue) -> None:
    q.set(f"void:{A}", "lost")
    _refused(q, A)


def test_an_incarnation_that_does_not_accept_gets_nothing(q: Queue) -> None:
    q.beat(A, accepting=False)
    _refused(q, A)


def test_a_drained_worker_gets_nothing(q: Queue) -> None:
    q.store.run(s.drain("a", True))
    _refused(q, A)


# --- what ------------------------------------------------------------------------------------------------------------


def test_what_is_not_in_its_lane_is_gone(q: Queue) -> None:
    q.submit("a", "b", "c")
    q.cancel("b")
    before = q.before()
    assert q.offer(A, "a", "b", "c").words == ("TOOK", "GONE", "TOOK")
    after = changes(before, q.dump())
    assert after["credit"] == {A: 14}
    assert after[f"stream:{A}"] == {"bells": Added(["1-1-1 a c"])}
    assert set(after) == {"leader", "lane:normal", "flight:a", "flight:c", f"work:{A}", "credit", f"stream:{A}"} | {
        "counts",
        "events",
    }


def test_a_request_in_another_lane_than_named_is_gone(q: Queue) -> None:
    q.submit("a")
    before = q.before()
    assert q.offer(A, "a", lane="high").words == ("GONE",)
    assert changes(before, q.dump()) == {"leader": {"n": 1}}


@pytest.mark.parametrize("lanes", [("high", "normal"), ("normal", "high")])
def test_a_request_offered_in_two_lanes_is_found_in_its_own(q: Queue, lanes: tuple[str, str]) -> None:
    q.submit("a")
    q.n = 1
    answer = q.store.run(s.dispatch(q.token, 1, A, [(q.waiting("a", lane), 7) for lane in lanes]))
    assert answer.words == tuple("TOOK" if lane == "normal" else "GONE" for lane in lanes)
    assert "lane:normal" not in q.dump()
    assert q.dump()["credit"] == {A: 7}


def test_a_row_that_is_still_held_is_not_handed_over_again(q: Queue) -> None:
    q.submit("a")
    first = q.start(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", nonce="n2")
    before = q.before()
    assert q.offer(A, "a").words == ("HELD",)
    assert changes(before, q.dump()) == {"leader": {"n": 2}}
    assert q.dump()[f"work:{A}"]["a"] == member(first, state="R", since=q.now)


def test_a_row_that_one_incarnation_holds_another_one_may_take(q: Queue) -> None:
    q.register(B)
    q.submit("a")
    q.start(A, "a")
    q.cancel("a")
    q.redis.delete(q.keys.result("a"))
    q.submit("a", nonce="n2")
    assert q.offer(B, "a").words == ("TOOK",)
    assert set(q.dump()[f"work:{A}"]) == set(q.dump()[f"work:{B}"]) == {"a"}


# --- credit ----------------------------------------------------------------------------------------------------------


def test_a_paged_cache_is_full_when_the_costs_exceed_its_capacity(q: Queue) -> None:
    q.register(B, capacity=20, rows=8)
    q.submit("a", "b", "c", "d")
    assert q.offer(B, "a", "b", "c").words == ("TOOK", "TOOK", "FULL")
    before = q.before()
    assert q.offer(B, "c").words == ("FULL",)
    assert changes(before, q.dump()) == {"leader": {"n": 2}}
    assert q.offer(B, "c", cost=6).words == ("TOOK",)
    assert q.dump()["credit"][B] == 20
    assert q.offer(B, "d", cost=1).words == ("FULL",)


def test_what_is_full_for_one_may_fit_for_a_shorter_one_behind_it(q: Queue) -> None:
    q.register(B, capacity=10)
    q.submit("long", max_tokens=20)
    q.submit("short")
    assert q.offer(B, "long", "short").words == ("FULL", "TOOK")


def test_rows_are_limited_by_what_is_held(q: Queue) -> None:
    q.register(B, rows=2)
    q.submit("a", "b", "c")
    assert q.offer(B, "a", "b", "c").words == ("TOOK", "TOOK", "FULL")
    assert q.offer(B, "c").words == ("FULL",)


def test_a_worker_that_takes_requests_ahead_gets_so_many_beside_its_rows(q: Queue) -> None:
    q.register(B, rows=2)
    q.beat(B, figures={"row_steps": 9, "ahead": 1})
    q.submit("a", "b", "c", "d")
    assert q.offer(B, "a", "b", "c", "d").words == ("TOOK", "TOOK", "TOOK", "FULL")


def test_no_worker_gets_more_ahead_than_it_has_rows(q: Queue) -> None:
    q.register(B, rows=1)
    q.beat(B, figures={"ahead": 9})
    q.submit("a", "b", "c")
    assert q.offer(B, "a", "b", "c").words == ("TOOK", "TOOK", "FULL")


def test_what_is_taken_ahead_needs_room_as_all_else_does(q: Queue) -> None:
    q.register(B, capacity=20, rows=2)
    q.beat(B, capacity=20, figures={"ahead": 2})
    q.submit("a", "b", "c")
    assert q.offer(B, "a", "b", "c").words == ("TOOK", "TOOK", "FULL")


def test_a_row_of_a_cancelled_request_still_takes_its_place(q: Queue) -> None:
    q.register(B, rows=1)
    q.submit("a", "b")
    delivery = q.start(B, "a")
    q.cancel("a")
    assert q.offer(B, "b").words == ("FULL",)
    q.hand_back(B, ("a", delivery))
    assert q.offer(B, "b").words == ("TOOK",)


def test_a_rectangle_is_rows_times_the_longest(q: Queue) -> None:
    q.register(B, capacity=40, rows=8, cache="rect")
    q.submit("a", "b", max_tokens=7)
    q.submit("c", max_tokens=10)
    q.submit("d", "e", max_tokens=7)
    assert q.offer(B, "a", "b", "c", "d", "e").words == ("TOOK", "TOOK", "TOOK", "FULL", "FULL")


def test_a_rectangle_counts_the_new_row_and_what_it_makes_longer(q: Queue) -> None:
    q.register(B, capacity=40, rows=8, cache="rect")
    q.submit("a", "b", "c", max_tokens=7)
    q.submit("d", max_tokens=11)
    q.dispatch(B, "a", "b")
    assert q.offer(B, "d").words == ("FULL",)
    assert q.offer(B, "c").words == ("TOOK",)
    assert q.offer(B, "d", cost=10).words == ("TOOK",)


def test_a_rectangles_longest_is_that_of_all_held(q: Queue) -> None:
    q.register(B, capacity=40, rows=8, cache="rect")
    q.submit("long", max_tokens=17)
    q.submit("a", "b")
    q.dispatch(B, "long")
    assert q.offer(B, "a", "b").words == ("TOOK", "FULL")


# --- suspects --------------------------------------------------------------------------------------------------------


def _suspects(q: Queue, *ids: str) -> None:
    """Let a worker crash while it runs these, so that they become suspects."""
    q.register("z:1-x")
    q.submit(*ids)
    q.start("z:1-x", *ids)
    q.lose("z:1-x", "crash", *ids)


def test_suspects_go_alone_and_take_the_quarantine(q: Queue) -> None:
    _suspects(q, "a", "b")
    before = q.before()
    assert q.offer(A, "a", "b").words == ("TOOK", "TOOK")
    after = changes(before, q.dump())
    assert after["quarantine"] == f"{A}|{q.now}"
    assert after["lane:suspect"] is GONE
    assert after[f"work:{A}"] == {i: member(f"1-1-{q.n}", since=q.now, name="suspect", before=1) for i in "ab"}


def test_clean_work_never_goes_with_suspects(q: Queue) -> None:
    _suspects(q, "a")
    q.submit("b")
    before = q.before()
    assert q.offer(A, "b", "a").word == "REFUSED"
    assert changes(before, q.dump()) == {"leader": {"n": q.n}}


def test_there_is_one_quarantine_at_a_time(q: Queue) -> None:
    q.register(B)
    _suspects(q, "a", "b")
    q.dispatch(A, "a")
    before = q.before()
    assert q.offer(B, "b") == s.Dispatched("BUSY", f"1-1-{q.n}")
    assert changes(before, q.dump()) == {"leader": {"n": q.n}}


def test_a_quarantine_takes_one_dispatch_so_that_halves_never_meet_again(q: Queue) -> None:
    _suspects(q, "a", "b")
    q.dispatch(A, "a")
    before = q.before()
    assert q.offer(A, "b").word == "BUSY"
    assert changes(before, q.dump()) == {"leader": {"n": q.n}}


def test_a_quarantine_ends_when_its_holder_holds_nothing(q: Queue) -> None:
    q.register(B)
    _suspects(q, "a", "b")
    delivery = q.start(A, "a")
    q.settle(A, ok("a", delivery))
    q.now += 7
    assert q.offer(B, "b").words == ("TOOK",)
    assert q.dump()["quarantine"] == f"{B}|{q.now}"


def test_the_holder_takes_no_clean_work(q: Queue) -> None:
    _suspects(q, "a")
    q.submit("b")
    q.dispatch(A, "a")
    before = q.before()
    assert q.offer(A, "b") == s.Dispatched("QUARANTINE", f"1-1-{q.n}")
    assert changes(before, q.dump()) == {"leader": {"n": q.n}}


def test_others_take_clean_work_while_a_quarantine_runs(q: Queue) -> None:
    q.register(B)
    _suspects(q, "a")
    q.submit("b")
    q.dispatch(A, "a")
    quarantine = q.dump()["quarantine"]
    assert q.offer(B, "b").words == ("TOOK",)
    assert q.dump()["quarantine"] == quarantine


def test_clean_work_for_a_holder_that_holds_nothing_ends_its_quarantine(q: Queue) -> None:
    _suspects(q, "a")
    q.submit("b")
    q.settle(A, ok("a", q.start(A, "a")))
    assert q.offer(A, "b").words == ("TOOK",)
    assert "quarantine" not in q.dump()


def test_a_worker_with_clean_work_is_asked_to_drain_first(q: Queue) -> None:
    q.submit("clean", "more")
    delivery = q.start(A, "clean")
    _suspects(q, "a")
    before = q.before()
    assert q.offer(A, "a") == s.Dispatched("DRAIN", f"1-1-{q.n}")
    assert changes(before, q.dump()) == {"leader": {"n": q.n}, "quarantine": f"{A}|{q.now}"}
    assert q.offer(A, "a").word == "BUSY"
    assert q.offer(A, "more").word == "QUARANTINE"
    q.settle(A, ok("clean", delivery))
    assert q.offer(A, "a").words == ("TOOK",)


def test_only_one_worker_at_a_time_is_asked_to_drain(q: Queue) -> None:
    q.register(B)
    q.submit("clean", "other")
    q.dispatch(A, "clean")
    q.dispatch(B, "other")
    _suspects(q, "a")
    assert q.offer(A, "a").word == "DRAIN"
    assert q.offer(B, "a").word == "BUSY"
    q.register(C)
    assert q.offer(C, "a").word == "BUSY"


def test_suspects_that_are_gone_take_no_row_beside_them(q: Queue) -> None:
    _suspects(q, "a", "b")
    waiting = [q.waiting("a"), q.waiting("b")]
    q.cancel("a")
    q.n += 1
    answer = q.store.run(s.dispatch(q.token, q.n, A, [(w, w.cost) for w in waiting]))
    assert answer.words == ("GONE", "TOOK")


def test_a_suspect_that_fails_is_still_a_suspect(q: Queue) -> None:
    _suspects(q, "a")
    q.settle(A, settlement("a", q.start(A, "a"), "retry", attempt=2))
    q.now += H
    assert q.promote() == 1
    assert "lane:suspect" in q.dump()
