"""The book of what a client waits for."""

from __future__ import annotations

import gc

import pytest

from stoker._outstanding import LEAST_SWEPT, Book, Pending, Phase
from stoker.errors import RequestLost
from stoker.store.codec import Outcome, Submission, encode_answer

ITEM = Submission("a", "n1", b"head", b"body")


def outcome(nonce: str = "n1", body: bytes | None = encode_answer(text="hi")) -> Outcome:
    return Outcome("succeeded", nonce, "digest", "a", 1, 2, 3, 1, "stop", "w:1-x", "", body)


def sent_and_accepted(book: Book, nonce: str = "n1") -> Pending:
    return book.accepted(book.expect(["a"], Phase.SENT)[0], nonce, "g", ITEM)


@pytest.fixture
def book() -> Book:
    return Book()


def test_a_wake_up_fulfils_who_waits_and_is_then_forgotten(book: Book) -> None:
    pending = sent_and_accepted(book)
    called = []
    book.on_done(pending, lambda: called.append(1))
    assert book.deliver([outcome()]) == []
    assert (pending.response.text, called, len(book), pending.submission) == ("hi", [1], 0, None)


def test_who_asks_late_is_called_at_once(book: Book) -> None:
    pending = sent_and_accepted(book)
    book.deliver([outcome()])
    called = []
    book.on_done(pending, lambda: called.append(1))
    assert called == [1]


def test_a_wake_up_may_be_faster_than_the_answer_to_its_submit(book: Book) -> None:
    pending = book.expect(["a"], Phase.SENT)[0]
    book.deliver([outcome()])
    assert book.accepted(pending, "n1", "g", ITEM) is pending
    assert pending.response.text == "hi"
    assert len(book) == 0


def test_what_nobody_holds_any_more_vanishes(book: Book) -> None:
    pending = sent_and_accepted(book)
    assert len(book) == 1
    del pending
    gc.collect()
    assert len(book) == 0
    assert book.deliver([outcome()]) == []


def test_what_nobody_holds_takes_no_memory_however_much_there_was(book: Book) -> None:
    kept = book.expect(["kept"], Phase.SENT)
    for number in range(5):
        book.expect((f"{number}-{i}" for i in range(LEAST_SWEPT)), Phase.SENT)
    assert len(book._waiting) <= 2 * LEAST_SWEPT + 1
    assert book.expect(["kept"], Phase.SENT) == kept


def test_one_id_has_one_pending_however_often_it_is_submitted(book: Book) -> None:
    first = sent_and_accepted(book)
    again = book.known(book.expect(["a"], Phase.SENT)[0], "g")
    assert again is first
    assert first.phase is Phase.OWN


def test_an_earlier_life_of_an_id_does_not_get_the_answer_of_the_next(book: Book) -> None:
    earlier = sent_and_accepted(book)
    later = sent_and_accepted(book, "n2")
    assert later is not earlier
    assert isinstance(earlier.response.error, RequestLost)
    book.deliver([outcome("n2")])
    assert later.response.text == "hi"


def test_a_wake_up_of_an_earlier_life_is_ignored(book: Book) -> None:
    pending = sent_and_accepted(book, "n2")
    book.deliver([outcome("n1")])
    assert pending.response is None


def test_a_result_too_large_for_its_wake_up_is_to_be_fetched(book: Book) -> None:
    pending = sent_and_accepted(book)
    assert book.deliver([outcome(body=None)]) == [pending]
    assert pending.response is None


def test_another_generation_loses_what_has_no_result(book: Book) -> None:
    pending = sent_and_accepted(book)
    book.judge([pending], "g", [None])
    assert pending.response is None
    book.judge([pending], "other", [None])
    assert isinstance(pending.response.error, RequestLost)


def test_a_result_counts_whatever_the_generation(book: Book) -> None:
    pending = sent_and_accepted(book)
    book.judge([pending], "other", [outcome()])
    assert pending.response.text == "hi"


def test_what_is_neither_there_nor_ended_vanished_and_what_is_not_ours_is_lost(book: Book) -> None:
    ours, theirs = sent_and_accepted(book), book.expect(["b"], Phase.FOREIGN)[0]
    assert book.judge([ours, theirs], "g", [None, None], [True, True]) == []
    assert book.judge([ours, theirs], "g", [None, None], [False, False]) == [ours]
    assert ours.response is None
    assert isinstance(theirs.response.error, RequestLost)


def test_what_is_only_being_sent_is_never_judged(book: Book) -> None:
    pending = book.expect(["a"], Phase.SENT)[0]
    assert book.judge([pending], "g", [None], [False]) == []
    assert book.oldest(10, Phase.OWN) == book.oldest(10, Phase.FOREIGN) == []
    assert pending.response is None


def test_all_are_asked_for_in_turn(book: Book) -> None:
    kept = [book.accepted(book.expect([name], Phase.SENT)[0], name, "g", ITEM) for name in "abcd"]
    asked = ["".join(pending.id for pending in book.oldest(3, Phase.OWN)) for _ in range(3)]
    assert asked == ["abc", "dab", "cda"]
    assert len(kept) == 4


def test_a_pending_of_before_a_fork_is_asked_for(book: Book) -> None:
    pending = sent_and_accepted(book)
    called = []
    book.on_done(pending, lambda: called.append("the parent's thread"))
    child = Book()
    assert child.watch(pending) is False
    child.judge([pending], "g", [outcome()])
    assert pending.response.text == "hi"
    assert called == []
