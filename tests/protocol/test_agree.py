"""agree: all who use a queue mean the same number of shards."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from protocol.rig import GONE, A, Queue, changes
from stoker.store import scripts as s
from stoker.store.scripts import Agreed


def agree(q: Queue, shards: int, tickets: int = 0) -> Agreed:
    """Come with a number."""
    return q.store.run(s.agree(shards, tickets))


def test_the_first_who_comes_fixes_the_number(bare: Queue) -> None:
    before = bare.before()
    assert agree(bare, 3) == Agreed("OK", 3, 0)
    assert changes(before, bare.dump()) == {"shards": 3}
    before = bare.before()
    assert agree(bare, 3) == Agreed("OK", 3, 0)
    assert changes(before, bare.dump()) == {}


def test_another_number_is_refused_with_the_one_that_counts(bare: Queue) -> None:
    agree(bare, 3)
    before = bare.before()
    assert agree(bare, 4, tickets=1) == Agreed("OTHER", 3, 0)
    assert changes(before, bare.dump()) == {}


def test_each_ticket_is_one_more_than_the_last(bare: Queue) -> None:
    assert [agree(bare, 3, tickets=1).ticket for _ in range(3)] == [1, 2, 3]
    assert bare.dump()["tickets"] == 3


def test_a_queue_with_a_worker_is_one_of_one_shard(q: Queue) -> None:
    assert agree(q, 3) == Agreed("OTHER", 1, 0)
    q.store.run(s.deregister(A))
    assert agree(q, 3).word == "OK"


@pytest.mark.parametrize("end", ["cancel", None])
def test_a_queue_with_a_request_is_one_of_one_shard_until_that_has_ended(q: Queue, end: str | None) -> None:
    q.store.run(s.deregister(A))
    q.submit("a")
    assert agree(q, 3) == Agreed("OTHER", 1, 0)
    if end:
        q.store.run(s.cancel("a"))
        assert agree(q, 3).word == "OK"


@pytest.mark.parametrize(("number", "left"), [(4, 4), (1, GONE)])
def test_an_operator_replaces_the_number_that_he_found(bare: Queue, number: int, left: object) -> None:
    agree(bare, 3)
    assert bare.store.run(s.agree(number, instead_of=2)) == Agreed("OTHER", 3, 0)
    before = bare.before()
    for _ in range(2):
        assert bare.store.run(s.agree(number, instead_of=3)).word == "OK"
        assert changes(before, bare.dump()) == {"shards": left}


@pytest.mark.parametrize("number", ["", "0", "x", "1000", "-1"])
def test_what_is_no_number_of_shards_writes_nothing(bare: Queue, number: str) -> None:
    before = bare.before()
    with pytest.raises(ResponseError, match="BADCALL: the number of shards"):
        bare.store.run(s.agree(number))  # type: ignore[arg-type]  # as a broken client would
    assert changes(before, bare.dump()) == {}
