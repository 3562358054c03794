"""A step that finds no memory: what the worker's loop makes of it, with a simulated engine that has too little."""

from __future__ import annotations

import io
import queue
from collections.abc import Iterator

import pytest

from stoker import Config, InferenceRequest
from stoker.store.codec import encode
from stoker.store.pack import unpack
from stoker.store.scripts import Begun, Published, Settlement
from stoker_workers.board import Board
from stoker_workers.engine import Event, OutOfMemory, Work
from stoker_workers.engines.sim import SimEngine, load_profile
from stoker_workers.intake import open_row
from stoker_workers.messages import Holds, from_line
from stoker_workers.session import Session
from stoker_workers.worker import Inbox, Worker

CONFIG = Config(redis_url="redis://127.0.0.1:1/0")
TOKENS = 10
COST = 1 + TOKENS


class Tight(SimEngine):
    """Has too little memory for more than `most` rows, once a step is past `from_step`."""

    def __init__(self, most: int, from_step: int = 0) -> None:
        super().__init__(load_profile("zero"))
        self.most, self.from_step, self.steps = most, from_step, 0

    def step(self) -> list[Event]:
        self.steps += 1
        if self.steps > self.from_step and len(self.resident()) > self.most:
            raise OutOfMemory("OutOfMemoryError: tried to allocate 2 GiB")
        return super().step()


class Reports:
    """A reporter that keeps what it hears."""

    def __init__(self) -> None:
        self.settled: dict[str, Settlement] = {}
        self.back: list[str] = []
        self.published: list[Published] = []

    def settle(self, items: list[Settlement]) -> None:
        self.settled |= {item.id: item for item in items}

    def hand_back(self, keys: list[tuple[str, str]]) -> None:
        self.back += [request_id for request_id, _ in keys]

    def publish(self, items: list[Published]) -> None:
        self.published += items


class Loop:
    """A worker's loop with requests that wait, stepped by hand."""

    def __init__(self, engine: SimEngine, requests: int) -> None:
        self.engine = engine
        self.board = Board(Board.make_file())
        self.news = io.BytesIO()
        inbox: Inbox = queue.SimpleQueue()
        self.worker = Worker(CONFIG, engine, self.board, self.news, inbox)
        self.reports = Reports()
        self.session = Session("w:1-x", self.reports)  # type: ignore[arg-type]  # the methods that are called
        self.arrive(*(f"r{i}" for i in range(requests)))

    def arrive(self, *names: str) -> None:
        for name in names:
            request = InferenceRequest(prompt_tokens=[ord(name[-1])], max_tokens=TOKENS)
            submission = encode(request, request_id=name, nonce="n", reply="", config=CONFIG)
            payload = b"1795533457829043" + submission.header + submission.body
            begun = Begun(name, "RUN", payload, 1)
            self.session.waiting.append(open_row(begun, "d", self.engine, lambda: 0.0, 4 << 20, cost=COST))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.worker._admit(self.session)
            self.worker._step(self.session)

    def finish(self) -> None:
        while self.session.rows or self.session.waiting:
            self.step()

    def told(self) -> list[int]:
        """What the supervisor was told that this worker holds."""
        messages = [from_line(line) for line in self.news.getvalue().splitlines()]
        return [message.tokens for message in messages if isinstance(message, Holds)]


@pytest.fixture
def loops() -> Iterator[list[Loop]]:
    made: list[Loop] = []
    yield made
    for loop in made:
        loop.board.close()


def run(loops: list[Loop], engine: SimEngine, requests: int) -> Loop:
    loops.append(Loop(engine, requests))
    return loops[-1]


def said(item: Settlement) -> tuple[str, bytes]:
    answer = unpack(item.body, "result")
    return answer["text"], answer["token_ids"]


def test_half_of_the_rows_go_on_the_others_are_given_back_and_nobody_is_charged(loops: list[Loop]) -> None:
    loop = run(loops, Tight(most=4), 8)
    loop.step()
    assert loop.reports.back == ["r4", "r5", "r6", "r7"]
    assert loop.told() == [4 * COST]
    loop.finish()
    assert {name: item.outcome for name, item in loop.reports.settled.items()} == dict.fromkeys(
        ["r0", "r1", "r2", "r3"], "ok"
    )
    assert loop.board.read()["faults"] == 0


def test_it_is_halved_again_until_the_rows_fit(loops: list[Loop]) -> None:
    loop = run(loops, Tight(most=2), 16)
    loop.finish()
    assert loop.told() == [8 * COST, 4 * COST, 2 * COST]
    assert sorted(loop.reports.settled) == ["r0", "r1"]
    assert len(loop.reports.back) == 14


def test_answers_go_on_where_they_stood(loops: list[Loop]) -> None:
    undisturbed = run(loops, Tight(most=99), 4)
    undisturbed.finish()
    loop = run(loops, Tight(most=2, from_step=5), 4)
    loop.finish()
    assert loop.engine.prefilled_tokens > 4, "two rows were prefilled again, with what they had said"
    for name, item in loop.reports.settled.items():
        assert said(item) == said(undisturbed.reports.settled[name])
    assert sorted(loop.reports.settled) == ["r0", "r1"]
    assert loop.session.resident_tokens == 0


def test_a_request_that_is_too_large_alone_fails_with_what_it_asked_for(loops: list[Loop]) -> None:
    loop = run(loops, Tight(most=0), 1)
    loop.finish()
    failed = loop.reports.settled["r0"]
    assert (failed.outcome, failed.reason, loop.reports.back) == ("retry", "out_of_memory", [])
    assert b"too large for this worker's memory even alone (prompt of 1 tokens, max_tokens 10, cost 11)" in failed.body
    assert b"tried to allocate 2 GiB" in failed.body
    assert loop.board.read()["faults"] == 1
    assert loop.told() == [], "one request says nothing about how many fit"


def test_what_arrives_meanwhile_waits_until_it_fits(loops: list[Loop]) -> None:
    loop = run(loops, Tight(most=2), 4)
    loop.step()
    loop.arrive("r8", "r9")
    loop.step()
    assert sorted(loop.session.rows) == ["r0", "r1"]
    loop.finish()
    assert sorted(loop.reports.settled) == ["r0", "r1", "r8", "r9"]
    assert loop.told() == [2 * COST]


def test_a_step_without_memory_blames_nobody_for_a_later_death(loops: list[Loop]) -> None:
    loop = run(loops, Tight(most=2), 4)
    loop.step()
    assert loop.board.crash_set() == []


def test_work_made_ready_again_goes_on_behind_its_tokens(loops: list[Loop]) -> None:
    loop = run(loops, Tight(most=2, from_step=3), 4)
    loop.step(4)
    works: list[Work] = [row.work for row in loop.session.waiting]
    assert [len(work.generated) for work in works] == [3, 3]
