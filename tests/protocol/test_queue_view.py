"""What the scheduler reads of the lanes: in padded batches nothing is generated, so only the prompts count."""

from __future__ import annotations

import pytest

from protocol.rig import A, B, Queue, settlement
from stoker.store import codec, lookups, views
from stoker.store import scripts as s
from stoker.store.records import LANES, parse_tail


def costs(q: Queue) -> list[int]:
    view = q.store.read(views.queue_view(q.keys, depth=10))
    page = q.store.read(views.lane_page(q.keys, "normal", 0, 10, view.workers))
    assert page == view.lanes["normal"]
    return [request.cost for request in page]


@pytest.mark.parametrize(("mode", "cost"), [("padded", 3), ("continuous", 19)])
def test_a_request_costs_what_the_mode_of_the_workers_makes_of_it(bare: Queue, mode: str, cost: int) -> None:
    bare.register(A, mode=mode)
    bare.submit("r", prompt_tokens=[1, 2, 3], max_tokens=16)
    assert costs(bare) == [cost]


def test_without_workers_and_with_both_kinds_the_larger_cost_is_kept(bare: Queue) -> None:
    bare.submit("r", prompt_tokens=[1, 2, 3], max_tokens=16)
    assert costs(bare) == [19]
    bare.register(A, mode="padded")
    bare.register(B, mode="continuous")
    assert costs(bare) == [19]


def test_a_queue_is_idle_while_nothing_waits_is_delayed_or_is_held(q: Queue) -> None:
    def idle() -> bool:
        known = q.store.read(views.queue_view(q.keys, depth=10)).workers
        return q.store.read(views.queue_view(q.keys, depth=10, known=known)).idle

    said = [idle()]
    q.submit("a")
    said.append(idle())
    delivery = q.start(A, "a")
    said.append(idle())
    q.settle(A, settlement("a", delivery, "retry"))
    said.append(idle())
    q.cancel("a")
    said.append(idle())
    q.submit("b", tenant="t")
    said.append(idle())
    assert said == [True, False, False, False, True, False]


def test_an_affinity_key_is_a_number_in_the_lane_and_whole_at_the_worker(q: Queue) -> None:
    q.submit("a", affinity_key="session/é 7", sheddable=True)
    q.submit("b", affinity_key="session/é 7")
    q.submit("c", affinity_key="another", metadata={"k": 1})
    q.submit("d")
    a, b, c, d = q.store.read(views.queue_view(q.keys, depth=10)).lanes["normal"]
    assert a.affinity == b.affinity is not None
    assert c.affinity not in (a.affinity, None)
    assert d.affinity is None
    assert [a.member[:6], c.member[:6], d.member] == ["a:3:4:", "c:3:4:", "d:3:4:x"]
    decoded = [codec.decode_payload(name, q.redis.get(q.key(f"payload:{name}")), 1).request for name in "acd"]
    assert [request.affinity_key for request in decoded] == ["session/é 7", "another", None]
    assert [(request.metadata, request.sheddable) for request in decoded] == [
        (None, True),
        ({"k": 1}, False),
        (None, False),
    ]


@pytest.mark.parametrize(
    ("tail", "parsed"),
    [
        ("3:4:x", (3, 4, True, None)),
        ("3:4:e", (3, 4, False, None)),
        ("3:4:xs", (3, 4, True, None)),
        ("3:4:e0000e00f", (3, 4, False, 0xE00F)),
        ("3:4:xffffffffs", (3, 4, True, 0xFFFFFFFF)),
    ],
)
def test_what_stands_behind_the_id_of_a_member_is_taken_apart(
    tail: str, parsed: tuple[int, int, bool, int | None]
) -> None:
    assert parse_tail(tail) == parsed


def test_the_lanes_of_tenants_are_named_with_what_waits_and_read_where_asked(q: Queue) -> None:
    q.submit("a", "b", tenant="t")
    q.submit("c", tenant="u")
    q.store.run(s.set_tenant("t", {"weight": "2.5"}))
    view = q.store.read(views.queue_view(q.keys, depth=4, shared={"normal:t": 1}))
    assert view.active == {"normal:t": 2, "normal:u": 1}
    assert [request.id for request in view.lanes["normal:t"]] == ["a"]
    assert "normal:u" not in view.lanes
    assert view.asked == dict.fromkeys(LANES, 4) | {"normal:t": 1}
    assert view.weights == {"t": 2.5}
    pages = q.store.read(views.tenant_pages(q.keys, {"normal:t": 9, "normal:u": 9}, view.workers, {}))
    assert {lane: [request.id for request in page] for lane, page in pages.lanes.items()} == {
        "normal:t": ["a", "b"],
        "normal:u": ["c"],
    }
    assert pages.weights == {"t": 2.5}


def test_of_a_tenant_is_expected_what_it_is_answered_and_of_others_what_their_class_is(q: Queue) -> None:
    q.register(A)
    q.submit("a", tenant="brief", max_tokens=9)
    q.submit("b", tenant="new", max_tokens=9)
    q.submit("c", max_tokens=9)
    expected, shared = {"normal": 6, "normal:brief": 2}, {"normal:brief": 4, "normal:new": 4}
    view = q.store.read(views.queue_view(q.keys, depth=4, expected=expected, shared=shared))
    pages = q.store.read(views.tenant_pages(q.keys, shared, view.workers, expected))
    for lanes in (view.lanes, pages.lanes | {"normal": view.lanes["normal"]}):
        kept = {lane: lanes[lane][0].reserve - lanes[lane][0].prompt_tokens for lane in (*shared, "normal")}
        assert kept == {"normal:brief": 2, "normal:new": 6, "normal": 6}


def test_the_overview_counts_tenants_requests_in_their_class(q: Queue) -> None:
    q.submit("a", "b", tenant="t")
    q.submit("c", tenant="u", priority="low")
    q.submit("d")
    found = q.store.read(lookups.overview(q.keys))
    assert (found.lanes["normal"], found.lanes["low"], found.lanes["high"]) == (3, 1, 0)
    assert found.tenant_lanes == ("low:u", "normal:t")


def test_the_part_of_class_batch_is_told_where_it_is_asked_for_and_what_was_asked_to_leave_is_not_counted(
    q: Queue,
) -> None:
    q.submit("a", "b", "c", priority="batch")
    q.submit("n")
    delivery = q.start(A, "a", "b", "c")
    q.start(A, "n")
    q.store.run(s.make_room(q.token, A, [("b", delivery)]))
    known = q.store.read(lookups.workers(q.keys))
    (worker,) = q.store.read(views.queue_view(q.keys, depth=10, known=known)).workers
    assert (worker.held_rows, worker.held_tokens, worker.batch_rows, worker.batch_tokens) == (4, 21, 0, 0)
    view = q.store.read(views.queue_view(q.keys, depth=10, known=known, members=True))
    (worker,) = view.workers
    assert (worker.held_rows, worker.held_tokens, worker.batch_rows, worker.batch_tokens) == (3, 21, 2, 14)
    held = {one.id: (one.delivery == delivery, one.cost, one.name) for one in view.held[A]}
    offline = {"a": (True, 7, "batch"), "b": (True, 0, "batch"), "c": (True, 7, "batch")}
    assert held == {**offline, "n": (False, 7, "normal")}
    assert q.store.read(views.held(q.keys, known)) == view.held
