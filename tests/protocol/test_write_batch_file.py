"""write_batch_file: a batch's files grow in pieces, within a limit, and live on together."""

from __future__ import annotations

from protocol.batches import FILES_KEPT, contents, write
from protocol.rig import Queue, changes
from stoker.store.batches import file_sizes


def test_pieces_stand_where_they_belong(q: Queue) -> None:
    assert write(q, b"one ") == (True, 4)
    assert write(q, b"two", offset=4) == (True, 7)
    assert contents(q) == b"one two"
    assert q.store.read(file_sizes(q.store.keys, "b")) == {"out-1": 7}


def test_a_piece_that_is_written_again_after_a_lost_reply_is_there_once(q: Queue) -> None:
    write(q, b"one ")
    write(q, b"two", offset=4)
    before = q.before()
    assert write(q, b"two", offset=4) == (True, 7)
    assert changes(before, q.dump()) == {}


def test_a_whole_file_is_replaced(q: Queue) -> None:
    write(q, b"a longer one", offset=None)
    assert write(q, b"short", offset=None) == (True, 5)
    assert contents(q) == b"short"


def test_an_empty_file_is_known(q: Queue) -> None:
    assert write(q, b"") == (True, 0)
    assert q.store.read(file_sizes(q.store.keys, "b")) == {"out-1": 0}
    assert contents(q) == b""


def test_what_all_files_have_no_room_for_is_not_written(q: Queue) -> None:
    write(q, b"12345", most=8)
    before = q.before()
    assert write(q, b"6789", name="err-1", most=8) == (False, 9)
    assert write(q, b"6789", offset=5, most=8) == (False, 9)
    assert changes(before, q.dump()) == {}
    assert write(q, b"678", name="err-1", most=8) == (True, 8)


def test_a_file_may_become_smaller_even_over_the_limit(q: Queue) -> None:
    write(q, b"12345", offset=None)
    assert write(q, b"1234", offset=None, most=2) == (True, 4)


def test_each_write_keeps_all_files(q: Queue) -> None:
    write(q, b"x", name="input")
    for key in ("files:b", "file:b:input"):
        q.redis.expire(q.key(key), 5)
    write(q, b"y")
    assert {q.redis.ttl(q.key(key)) for key in ("files:b", "file:b:input", "file:b:out-1")} == {FILES_KEPT}
