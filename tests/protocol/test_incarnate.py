"""incarnate: starts of engine processes are numbered in order."""

from __future__ import annotations

from protocol.rig import Queue, changes
from stoker.store import scripts as s


def test_starts_are_numbered_from_one_on(bare: Queue) -> None:
    before = bare.dump()
    assert bare.store.run(s.incarnate()) == 1
    assert changes(before, bare.dump()) == {"incs": 1}


def test_no_two_starts_share_a_number(q: Queue) -> None:
    assert [q.store.run(s.incarnate()) for _ in range(3)] == [1, 2, 3]


def test_the_counter_is_for_good(q: Queue) -> None:
    q.store.run(s.incarnate())
    assert q.redis.ttl(q.key("incs")) == -1
