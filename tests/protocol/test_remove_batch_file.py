"""remove_batch_file: a file goes, and with the last one all that was known of them."""

from __future__ import annotations

from protocol.batches import write
from protocol.rig import GONE, Queue, changes
from stoker.store.batches import remove_batch_file


def test_a_removed_file_leaves_nothing(q: Queue) -> None:
    write(q, b"x", name="input")
    write(q, b"y")
    before = q.before()
    assert q.store.run(remove_batch_file("b", "out-1")) == "OK"
    found = changes(before, q.dump())
    assert found["file:b:out-1"] is GONE
    assert q.redis.hgetall(q.key("files:b")) in ({b"input": b"1"}, {"input": "1"})
    q.store.run(remove_batch_file("b", "input"))
    assert not q.redis.exists(q.key("files:b"), q.key("file:b:input"))


def test_what_is_not_there_is_removed_again(q: Queue) -> None:
    before = q.before()
    assert q.store.run(remove_batch_file("b", "out-1")) == "OK"
    assert changes(before, q.dump()) == {}
