"""Every invariant of the history is shown to be looked at: a history that breaks it is found out."""

from __future__ import annotations

import pytest

from stoker_ops.history import Entry, HistoryChecker

LEASE = 3_300_000
LEADER = "lead s1:a 1 - leader 1:s1:a"
SUBMIT = "submit - 2 r submit n normal 1:2:x 0 100"
DISPATCH = "dispatch 1:s1:a 3 r dispatch 1-a-1 w:1-x 100 normal 3"
BEGIN = "begin w:1-x 4 r begin 1-a-1 1 n"
SUCCESS = "settle w:1-x 5 r end succeeded n stop -"
CANCEL = "cancel - 5 r end cancelled n - -"
REQUEUE = "hand_back w:1-x 5 r requeue 1-a-1 normal 100 0 handed_back"
FAILURE = "settle w:1-x 5 r failure 1-a-1 1"
DELAY = "settle w:1-x 5 r delay 9"
PROMOTE = "promote 1:s1:a 9 r promote normal 100"
ONCE = [LEADER, SUBMIT, DISPATCH, BEGIN]
GRACE = "lead s1:a 10 - grace none"


def check(history: list[str]) -> HistoryChecker:
    """Feed entries of one line each, written as `script by time line`."""
    checker = HistoryChecker(LEASE)
    for text in history:
        script, by, time, line = text.split(" ", 3)
        checker.feed(Entry(script, int(time), by, (line,)))
    return checker


@pytest.mark.parametrize(
    ("history", "invariant"),
    [
        ([SUBMIT, SUBMIT.replace(" n ", " m ")], "I2: submit of r while it is queued"),
        ([SUBMIT, CANCEL, SUBMIT.replace("100", "101")], "I2: second submit of r with nonce n"),
        ([*ONCE, SUCCESS, CANCEL], "I3"),
        ([*ONCE, SUCCESS, "settle w:1-x 5 r twice succeeded"], "I3"),
        ([*ONCE, "settle w:1-x 5 r twice succeeded"], "I3: a second result of r"),
        ([*ONCE, SUCCESS.replace(" n ", " m ")], "I3: end of r with nonce m"),
        ([*ONCE, SUCCESS, REQUEUE], "I4"),
        ([CANCEL.replace("cancelled", "expired")], "I4"),
        ([*ONCE, BEGIN], "I5: begin of r while it is running"),
        ([LEADER, SUBMIT, DISPATCH, BEGIN.replace(" 1 n", " 2 n")], "I5: attempt 2 of r, expected 1"),
        ([LEADER, SUBMIT, DISPATCH, BEGIN.replace(" 1 n", " 1 m")], "I5: begin of r with nonce m"),
        ([LEADER, SUBMIT, DISPATCH, BEGIN.replace("1-a-1", "1-a-2")], "I5: begin of r with delivery 1-a-2"),
        ([LEADER, SUBMIT, DISPATCH, BEGIN.replace("w:1-x", "w:2-y")], "I5: begin of r by w:2-y"),
        ([*ONCE, DISPATCH.replace("1-a-1", "1-a-2")], "I5: dispatch of r while it is running"),
        ([*ONCE, REQUEUE, DISPATCH], "I5: delivery 1-a-1 is used twice"),
        ([*ONCE, REQUEUE.replace("1-a-1", "1-a-0")], "I5: requeue of r with delivery 1-a-0"),
        ([*ONCE, REQUEUE.replace("100 0", "100 2")], "I5: losses 2 of r after 0"),
        ([*ONCE, FAILURE.replace("1-a-1", "1-a-0")], "I5: failure of r with delivery 1-a-0"),
        ([*ONCE, FAILURE.replace("1-a-1 1", "1-a-1 2")], "I5: failure 2 of r, expected 1"),
        ([LEADER, SUBMIT, FAILURE], "I5: failure of r while it is queued"),
        ([LEADER, SUBMIT, PROMOTE], "I5: promote of r while it is queued"),
        ([LEADER, LEADER], "I6: epoch 1 after 1"),
        ([LEADER, LEADER.replace("1:s1:a", "2:s2:b"), SUBMIT, DISPATCH], "I6: not by the leader 2:s2:b"),
        (
            [LEADER, SUBMIT.replace(" 0 100", " 4 100"), DISPATCH, BEGIN],
            "I11: begin of r 0 us late",
        ),
        ([SUBMIT, SUBMIT.replace("r submit", "q submit")], "I13: score 100 of q overtakes 100"),
        ([LEADER, SUBMIT, DISPATCH.replace("100", "99")], "I13: score of r changed from 100 to 99"),
        ([*ONCE, REQUEUE.replace("100", "99")], "I13: score of r changed"),
        ([*ONCE, FAILURE, DELAY, PROMOTE.replace("100", "9")], "I13: score of r changed"),
        ([LEADER, SUBMIT, "report w:1-x 2 - report w:1-x killed 0 ", DISPATCH], "incarnations: dispatch of r to w:1-x"),
        ([LEADER, "reclaim 1:s1:a 2 - void w:1-x dead", "register w:1-x 3 - register w:1-x"], "incarnations: register"),
        (["deregister w:1-x 2 - deregister w:1-x", "register w:1-x 3 - register w:1-x"], "incarnations: register"),
        ([LEADER, GRACE, "reclaim 1:s1:a 11 - void w:1-x lost"], "grace: w:1-x was lost"),
        ([LEADER, SUBMIT, GRACE, "expire 1:s1:a 11 r end expired n deadline -"], "grace: r expired"),
        ([SUBMIT, "cancel - 3 r end vanished n - -"], "history: unknown outcome vanished"),
        ([SUBMIT, "cancel - 3 r vanish"], "history: unknown word vanish"),
        (["cancel - 3 - vanish"], "history: unknown word vanish"),
    ],
)
def test_a_broken_history_is_found_out(history: list[str], invariant: str) -> None:
    found = check(history).violations
    assert found, "nothing was found"
    assert invariant in found[0]


def test_a_whole_life_is_fine_and_counted() -> None:
    retried = [*ONCE, FAILURE, DELAY, PROMOTE]
    again = [DISPATCH.replace("1-a-1", "1-a-2"), BEGIN.replace("1-a-1 1", "1-a-2 2"), REQUEUE.replace("1-a-1", "1-a-2")]
    queue = ["drain w 5 - drain w:1-x 1", "resign 1:s1:a 6 - resign 1:s1:a"]
    other = SUBMIT.replace("r submit n", "q submit m").replace("100", "200")
    checker = check(
        [GRACE, *retried, *again, *queue, other, CANCEL, "expire 1:s1:a 3400000 q end expired m deadline -"]
    )
    assert checker.violations == []
    assert not checker.live
    assert checker.totals() == {"submitted": 2, "cancelled": 1, "expired": 1}
    assert (checker.latest["r"].attempts, checker.latest["r"].failures) == (2, 1)


def test_a_cancel_that_was_answered_ok_must_be_the_end() -> None:
    checker = check([*ONCE, SUCCESS])
    checker.cancelled("r", "n")
    checker.cancelled("q")
    assert [": I14: " in violation for violation in checker.violations] == [True, True]
    ended = check([SUBMIT, CANCEL])
    ended.cancelled("r")
    assert ended.violations == []


def test_entries_are_read_as_the_stream_has_them() -> None:
    checker = HistoryChecker()
    checker.feed_all([{b"script": b"lead", b"time": b"7", b"by": b"s1:a", b"lines": b"- grace none\n- leader 1:s1:a"}])
    assert (checker.token, checker.epoch, checker.entries, checker.violations) == ("1:s1:a", 1, 1, [])
