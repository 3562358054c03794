"""The steps of the clients, carried out by hand: what no server answers on demand."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest

from stoker._flows import SWEEP_MOST, Collect, Flow, Post, R, State, Unsent, ask, retry_dead, submit, sweep
from stoker._outstanding import Pending, Phase
from stoker._window import Window
from stoker.config import Config
from stoker.errors import RedisUnavailable, RequestLost
from stoker.request import InferenceRequest
from stoker.store.codec import Submission
from stoker.store.connection import Read
from stoker.store.lookups import Census, Lives
from stoker.store.reads import QueueFacts
from stoker.store.scripts import Accepted, Call

GONE = Lives("g", [None], [False])


def carry_out(flow: Flow[R], *replies: Any) -> tuple[R, list[str]]:
    """Answer a flow's steps in turn; gives its value and what the steps were."""
    steps, answers = [], iter(replies)
    try:
        step = next(flow)
        while True:
            if isinstance(step, Post):
                step = flow.send(Unsent(step.call))
                continue
            if isinstance(step, Collect):
                step = step.posted.call
            steps.append(step.script if isinstance(step, Call) else step.what if isinstance(step, Read) else "pause")
            answer = next(answers)
            step = flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
    except StopIteration as end:
        return end.value, steps


@pytest.fixture
def state() -> State:
    return State(Config(redis_url="redis://nowhere"))


def accepted(state: State, request_id: str = "a", age_s: float = 0.0) -> Pending:
    submission = Submission(request_id, "n", b"head", b"body")
    pending = state.book.accepted(state.book.expect([request_id], Phase.SENT)[0], "n", "g", submission)
    pending.since -= age_s
    return pending


@pytest.mark.parametrize(
    ("word", "phase", "lost", "suspicious"),
    [
        ("ACCEPTED", Phase.OWN, False, False),
        ("SAME", Phase.FOREIGN, False, False),
        ("DONE", Phase.FOREIGN, False, False),
        ("FULL", Phase.OWN, False, True),
        ("CONFLICT", Phase.OWN, True, False),
    ],
)
def test_what_vanished_is_submitted_again(state: State, word: str, phase: Phase, lost: bool, suspicious: bool) -> None:
    pending = accepted(state)
    _, steps = carry_out(ask(state, [pending]), GONE, ("g", [Accepted(word)]))
    assert steps == ["read results", "submit"]
    assert (pending.phase, pending.response is not None, state.book.suspicious) == (phase, lost, suspicious)


def test_what_may_have_ended_unseen_is_not_run_twice(state: State) -> None:
    pending = accepted(state, age_s=state.config.result_ttl_s + 1)
    _, steps = carry_out(ask(state, [pending]), GONE)
    assert steps == ["read results"]
    assert isinstance(pending.response.error, RequestLost)


def test_results_alone_are_asked_for_unless_something_is_doubtful(state: State) -> None:
    kept = [accepted(state)]
    assert carry_out(sweep(state, quiet=True), Census("g", [None], 1))[1] == ["read results"]
    state.book.suspicious = True
    assert carry_out(sweep(state, quiet=True), Lives("g", [None], [True]))[1] == ["read results"]
    assert not state.book.suspicious
    kept.append(accepted(state, "old", age_s=state.config.result_ttl_s + 1))
    carry_out(sweep(state, quiet=True), GONE, Census("g", [None], 1))
    assert [pending.response is None for pending in kept] == [True, False]


def test_what_vanished_unnoticed_is_missed_and_submitted_again_by_the_next_sweep(state: State) -> None:
    pending = accepted(state)
    carry_out(sweep(state, quiet=True), Census("g", [None], 0))
    assert state.book.suspicious
    _, steps = carry_out(sweep(state, quiet=True), GONE, ("g", [Accepted("ACCEPTED")]))
    assert steps == ["read results", "submit"]
    assert (pending.response, pending.durability) == (None, "memory")


def test_a_sweep_that_fails_is_made_again(state: State) -> None:
    kept = accepted(state)
    state.book.suspicious = True
    with pytest.raises(RedisUnavailable):
        carry_out(sweep(state, quiet=True), RedisUnavailable("away"))
    assert state.book.suspicious
    assert kept.response is None


def test_under_load_a_sweep_asks_for_one_group(state: State) -> None:
    kept = [accepted(state, f"r{i}") for i in range(SWEEP_MOST + 600)]
    for quiet, calls in ((False, 1), (True, SWEEP_MOST // 512)):
        _, steps = carry_out(sweep(state, quiet=quiet), *[Census("g", [None] * 512, 512)] * calls)
        assert len(steps) == calls
    assert all(pending.response is None for pending in kept)


def test_an_unanswered_retry_leaves_nothing_that_waits_for_ever(state: State) -> None:
    state.facts, state.facts_at = QueueFacts("g", None, 0.0, 0), time.monotonic() + 60
    with pytest.raises(RedisUnavailable):
        carry_out(retry_dead(state, "dead"), RedisUnavailable("away"))
    gc.collect()  # the error's traceback held it
    assert len(state.book) == 0


def test_what_has_its_result_already_is_fetched_with_its_group(state: State) -> None:
    state.facts, state.facts_at = QueueFacts("g", None, 0.0, 0), time.monotonic() + 60
    answers = [Accepted("DONE"), Accepted("ACCEPTED"), Accepted("DONE")]
    jobs, steps = carry_out(submit(state, ["x", "y", "z"]), (("g", answers), []), ("g", [None, None]))
    assert steps == ["submit", "read results"]
    assert [job.phase for job in jobs] == [Phase.FOREIGN, Phase.OWN, Phase.FOREIGN]


@pytest.mark.parametrize("sent", [False, True])
def test_who_waits_for_an_id_whose_submit_failed_asks_for_it(state: State, sent: bool) -> None:
    state.facts, state.facts_at = QueueFacts("g", None, 0.0, 0), time.monotonic() + 60
    flow = submit(state, [InferenceRequest(prompt="hi", request_id="a")])
    step = next(flow)
    if sent:
        flow.send(Unsent(step.call))
    other = state.book.expect(["a"], Phase.FOREIGN)[0]
    assert other.phase is Phase.SENT
    with pytest.raises(StopIteration) as end:
        flow.throw(RedisUnavailable("away"))
    assert isinstance(end.value.value[0], RedisUnavailable)
    assert other.phase is Phase.FOREIGN


def test_another_generation_makes_all_doubtful_and_the_first_one_does_not(state: State) -> None:
    state.facts = QueueFacts(None, None, 0.0, 0)
    state.saw_generation(None)
    state.saw_generation("g")
    assert (state.book.suspicious, state.facts is None) == (False, False)
    state.saw_generation("h")
    assert (state.book.suspicious, state.facts is None) == (True, True)


def test_what_a_full_queue_refused_is_sent_again_in_its_order(state: State) -> None:
    state.facts, state.facts_at = QueueFacts("g", None, 0.0, 0), time.monotonic() + 60
    window = Window(state.config, {})
    full = Accepted("FULL", 0.0)
    flow = window.advance(state, window.take(iter("abcd")))
    first = next(flow).call
    flow.send(Unsent(first))
    again = flow.send((("g", [Accepted("ACCEPTED"), full, full, full]), [])).call
    assert again.args[3::3] == first.args[6::3]
    flow.send(Unsent(again))
    with pytest.raises(StopIteration):
        flow.send((("g", [Accepted("ACCEPTED")] * 3), []))
    assert window.pause_s is None
