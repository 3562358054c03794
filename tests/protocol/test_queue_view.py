"""What the scheduler reads of the lanes: in padded batches nothing is generated, so only the prompts count."""

from __future__ import annotations

import pytest

from protocol.rig import A, B, Queue
from stoker.store import reads


def costs(q: Queue) -> list[int]:
    view = q.store.read(reads.queue_view(q.keys, depth=10))
    page = q.store.read(reads.lane_page(q.keys, "normal", 0, 10, view.workers))
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
