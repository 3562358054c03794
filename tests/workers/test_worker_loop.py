"""What the loop of a worker's child does with an engine's answers, where a whole stack shows it by chance only."""

from __future__ import annotations

import io
import queue
import time
from collections.abc import Iterator
from typing import Any

import pytest

from stoker import Config, InferenceRequest
from stoker.store.codec import encode
from stoker.store.connection import Store
from stoker.store.pack import unpack_tokens
from stoker.store.reads import TokenRecord
from stoker.store.scripts import Begun, Published, Settlement
from stoker_workers.board import Board
from stoker_workers.engine import Admitted, Failed, Finished, Unavailable
from stoker_workers.engines.sim import SimEngine, load_profile
from stoker_workers.intake import Row, open_row
from stoker_workers.messages import Away, from_line
from stoker_workers.session import Session
from stoker_workers.worker import LAST_REPORTS_S, Inbox, Leave, Worker

CONFIG = Config(redis_url="redis://127.0.0.1:1/0")


class Elsewhere(SimEngine):
    """A model that is away, or fails as told."""

    answer: Any = Unavailable()
    event: Any = None

    def __init__(self) -> None:
        super().__init__(load_profile("zero"))

    def admit(self, work: Any) -> Any:
        return self.answer

    def step(self) -> list[Any]:
        return [self.event]


class Reports:
    """A reporter that keeps what it hears."""

    def __init__(self) -> None:
        self.settled: list[Settlement] = []
        self.back: list[tuple[str, str]] = []
        self.finished_within_s: float | None = None
        self.published: list[Published] = []

    def settle(self, items: list[Settlement]) -> None:
        self.settled += items

    def publish(self, items: list[Published]) -> None:
        assert not self.back, "the tokens must be there before the next attempt begins"
        self.published += items

    def hand_back(self, keys: list[tuple[str, str]]) -> None:
        self.back += keys

    def finish(self, most_s: float | None = None) -> None:
        self.finished_within_s = most_s


class Loop:
    """A worker's loop with one request that waits."""

    def __init__(self, engine: Any = None) -> None:
        self.engine = engine or Elsewhere()
        self.board = Board(Board.make_file())
        self.news = io.BytesIO()
        self.inbox: Inbox = queue.SimpleQueue()
        self.worker = Worker(CONFIG, self.engine, self.board, self.news, self.inbox)
        self.reports = Reports()
        self.session = Session("w:1-x", self.reports)  # type: ignore[arg-type]  # the two methods that are called
        self.payload = self.encoded("r", InferenceRequest(prompt="Hi"))
        self.session.waiting = [self.opened("r", self.payload)]

    @staticmethod
    def encoded(name: str, request: InferenceRequest) -> bytes:
        submission = encode(request, request_id=name, nonce="n", reply="", config=CONFIG)
        return b"1795533457829043" + submission.header + submission.body

    def opened(self, name: str, payload: bytes) -> Row:
        return open_row(Begun(name, "RUN", payload, 1), "d", self.engine, time.monotonic, 4 << 20)

    def step(self) -> None:
        self.worker._admit(self.session)
        self.worker._step(self.session)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.board.close()


def test_a_request_that_meets_a_model_that_is_away_is_given_back(loop: Loop) -> None:
    loop.worker._admit(loop.session)
    assert (loop.reports.back, loop.reports.settled, loop.session.rows) == ([("r", "d")], [], {})


def test_a_request_that_the_model_never_saw_is_given_back_and_counts_against_nobody(loop: Loop) -> None:
    loop.engine.answer, loop.engine.event = Admitted(1), Failed("r", "no connection", "returned")
    loop.step()
    assert (loop.reports.back, loop.reports.settled, loop.board.read()["faults"]) == ([("r", "d")], [], 0)


def test_a_request_that_the_model_refuses_is_invalid_and_counts_against_nobody(loop: Loop) -> None:
    loop.engine.answer, loop.engine.event = Admitted(1), Failed("r", "too long", "invalid", "HTTP 400")
    loop.step()
    (settled,) = loop.reports.settled
    assert (settled.outcome, settled.reason, loop.board.read()["faults"]) == ("bad", "invalid", 0)
    assert b"too long, got 'HTTP 400'" in settled.body


def test_a_result_that_is_too_large_fails_its_request_and_says_both_sizes(loop: Loop) -> None:
    loop.engine.answer, loop.engine.event = Admitted(1), Finished("r", "stop", "x" * (CONFIG.result_bytes + 1))
    loop.step()
    (settled,) = loop.reports.settled
    assert (settled.outcome, settled.reason, loop.board.read()["faults"]) == ("failure", "result_too_large", 0)
    assert f"over result_bytes ({CONFIG.result_bytes})".encode() in settled.body


@pytest.fixture
def one_row() -> Iterator[Loop]:
    """A loop whose engine has one row, and nothing in hand yet."""
    loop = Loop(SimEngine(load_profile("zero"), max_num_seqs=1))
    loop.session.waiting.clear()
    yield loop
    loop.board.close()


def test_what_waits_behind_a_full_engine_goes_in_by_its_class_as_rows_end(one_row: Loop) -> None:
    names, order = ["first", "low", "critical", "normal"], ["low", "low", "critical", "normal"]
    requests = [InferenceRequest(prompt="Hi", max_tokens=1, priority=priority) for priority in order]
    rows = [one_row.opened(name, one_row.encoded(name, request)) for name, request in zip(names, requests, strict=True)]
    one_row.session.waiting = rows[:1]
    one_row.worker._admit(one_row.session)
    one_row.session.waiting = rows[1:]
    for left in (3, 2, 1, 0):
        one_row.step()
        assert len(one_row.session.waiting) == left
    assert [item.id for item in one_row.reports.settled] == ["first", "critical", "normal", "low"]


def test_what_is_finished_is_reported_before_a_failed_engine_ends_the_process(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    loop.engine.answer = Admitted(1)
    monkeypatch.setattr(loop.engine, "step", fail)
    monkeypatch.setattr(loop.engine, "resident", lambda: ["r"])
    monkeypatch.setattr(loop.engine, "scheduled", lambda: ["r"])
    loop.worker._session = loop.session
    with pytest.raises(RuntimeError, match="device-side assert"):
        loop.worker.run()
    assert loop.reports.finished_within_s == LAST_REPORTS_S
    assert not loop.session.reading, "nothing more is begun"
    assert loop.board.crash_set() == ["r"], "and the step is still to blame"


def test_what_redis_says_runs_here_and_does_not_is_given_back(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(CONFIG)
    members = [("r", "d"), ("r", "older"), ("ended", "d")]
    monkeypatch.setattr(store, "read", lambda _: members)
    loop.session.begun.add(("r", "d"))
    loop.worker._reader._take_stock(store, loop.session)
    assert loop.reports.back == [("r", "older"), ("ended", "d")]
    assert loop.session.begun == {("r", "d")}


def test_that_a_model_went_away_is_passed_on_to_the_supervisor(loop: Loop) -> None:
    loop.inbox.put(Away("no connection"))
    loop.worker._hear(block=False)
    assert from_line(loop.news.getvalue()) == Away("no connection")


def test_a_row_that_is_asked_for_leaves_its_tokens_and_the_next_attempt_answers_alike(loop: Loop) -> None:
    engine = SimEngine(load_profile("zero"))
    loop.worker._engine = engine
    (row,) = loop.session.waiting
    for _ in range(5):
        loop.step()
    loop.worker._take(Leave(loop.session, [row.key]))
    assert (loop.session.rows, engine.resident(), loop.reports.back) == ({}, [], [("r", "d")])
    (left,) = loop.reports.published
    ids = unpack_tokens(left.ids, "token_ids")
    assert (left.attempt, left.offset, ids, left.text) == (1, 0, row.token_ids, "".join(row.texts))
    assert len(ids) == 5
    record = TokenRecord("0-1", left.attempt, left.offset, ids, left.text)
    payload = loop.payload
    again = open_row(Begun("r", "RUN", payload, 2), "e", engine, lambda: 0.0, 4 << 20, [record])
    whole = open_row(Begun("r", "RUN", payload, 1), "d", engine, lambda: 0.0, 4 << 20)
    for one in (again, whole):
        loop.session.waiting = [one]
        while loop.session.waiting or loop.session.rows:
            loop.step()
    assert [settled.outcome for settled in loop.reports.settled] == ["ok", "ok"]
    assert again.token_ids == whole.token_ids
    assert "".join(again.texts) == "".join(whole.texts)


def test_a_row_that_waits_for_the_engine_is_given_back_as_it_came(loop: Loop) -> None:
    loop.worker._take(Leave(loop.session, [("r", "d")]))
    assert (loop.session.waiting, loop.reports.back, loop.reports.published) == ([], [("r", "d")], [])


@pytest.fixture
def streaming() -> Iterator[Loop]:
    loop = Loop(SimEngine(load_profile("zero")))
    loop.worker._flushed_at = float("inf")  # the next interval is not over
    request = InferenceRequest(prompt="Hi", max_tokens=16, stream=True)
    loop.session.waiting = [loop.opened("first", loop.encoded("first", request))]
    step(loop)
    step(loop)
    loop.session.waiting = [loop.opened("second", loop.encoded("second", request))]
    step(loop)
    yield loop
    loop.board.close()


def step(loop: Loop) -> None:
    loop.step()
    loop.worker._publish(loop.session)


def places(loop: Loop) -> list[tuple[str, int]]:
    return [(item.id, item.offset) for item in loop.reports.published]


def test_the_first_token_of_a_stream_is_published_at_once_and_that_of_no_other_with_it(streaming: Loop) -> None:
    assert places(streaming) == [("first", 0), ("second", 0)]


def test_what_came_since_is_published_together_when_the_interval_is_over(streaming: Loop) -> None:
    streaming.worker._flushed_at = float("-inf")
    step(streaming)
    assert places(streaming)[2:] == [("first", 1), ("second", 1)]
