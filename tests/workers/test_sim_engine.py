"""The simulated engine takes the time that its profile says, and answers by the request alone."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import ConfigError
from stoker_workers.engine import Admitted, Event, Finished, Full, Invalid, Sampling, Tokens, Work
from stoker_workers.engines.sim import Profile, SimEngine, load_profile


@dataclass
class Answer:
    """What became of a request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    end: str = ""


def make(**options: Any) -> SimEngine:
    engine = SimEngine(load_profile("zero"), **options)
    engine.load()
    return engine


def work(name: str, prompt: Sequence[int] = b"hello", max_tokens: int = 16, **options: Any) -> Work:
    return Work(id=name, batch="b", prompt=list(prompt), max_tokens=max_tokens, **options)


def collect(answers: dict[str, Answer], events: Iterable[Event]) -> None:
    for event in events:
        answer = answers.setdefault(event.id, Answer())
        assert not answer.end, "an event after the end"
        if isinstance(event, Tokens):
            answer.token_ids += event.token_ids
            answer.text += event.text
        else:
            assert isinstance(event, Finished)
            answer.end = event.finish_reason


def run(engine: SimEngine, *works: Work) -> dict[str, Answer]:
    for each in works:
        assert isinstance(engine.admit(each), Admitted)
    answers: dict[str, Answer] = {}
    while engine.resident():
        collect(answers, engine.step())
    return answers


def test_an_answer_is_printable_text_of_one_byte_a_token() -> None:
    answer = run(make(), work("a", max_tokens=500))["a"]
    assert (len(answer.token_ids), len(answer.text), answer.end) == (500, 500, "length")
    assert answer.text.isascii()
    assert answer.text.isprintable()
    assert bytes(answer.token_ids).decode() == answer.text
    assert len(set(answer.text)) > 20


def test_an_answer_depends_on_the_prompt_alone_and_not_on_company_or_chunks() -> None:
    numbers = random.Random(1)
    works = [work(str(i), numbers.randbytes(numbers.randint(1, 90)), numbers.randint(1, 40)) for i in range(30)]
    small = make(max_num_seqs=30, max_num_batched_tokens=37)
    together = run(small, *works)
    assert together == {each.id: run(make(), each)[each.id] for each in works}
    assert len({answer.text for answer in together.values()}) == 30


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5, seed=7)])
def test_an_answer_continued_from_its_middle_goes_on_the_same(sampling: Sampling) -> None:
    whole = run(make(), work("a", b"begin", 30, sampling=sampling))["a"].token_ids
    rest = run(make(), work("a", [*b"begin", *whole[:12]], 18, sampling=sampling))["a"].token_ids
    assert whole[:12] + rest == whole


@pytest.mark.parametrize("stop", [(), (" ",), ("ab", "zzz")])
def test_an_answer_of_another_attempt_goes_on_from_anywhere(stop: tuple[str, ...]) -> None:
    each = work("a", b"begin", 30, sampling=Sampling(temperature=0.5, seed=7), stop=stop)
    whole = run(make(), each)["a"]
    for cut in range(len(whole.token_ids) + 1):
        rest = run(make(), replace(each, generated=whole.token_ids[:cut]))["a"]
        assert whole.token_ids[:cut] + rest.token_ids == whole.token_ids
        assert whole.text.endswith(rest.text)
        assert rest.end == whole.end


@pytest.mark.untraced
@given(st.integers(0, 10_000), st.sampled_from([1, 30, 1000]))
def test_what_is_preempted_answers_the_same_and_the_cache_never_holds_too_much(seed: int, expected: int) -> None:
    numbers = random.Random(seed)
    engine = make(max_num_seqs=8, max_num_batched_tokens=60, kv_cache_tokens=300)
    waiting = [
        work(str(i), numbers.randbytes(numbers.randint(1, 100)), numbers.randint(1, 200), expected=expected)
        for i in range(8)
    ]
    wanted = {each.id: run(make(), each)[each.id] for each in waiting}
    answers: dict[str, Answer] = {}
    while waiting or engine.resident():
        while waiting and isinstance(engine.admit(waiting[0]), Admitted):
            waiting.pop(0)
        collect(answers, engine.step())
        assert sum(row.tokens for row in engine._resident.values()) <= 300
    assert answers == wanted
    assert engine.preemptions == 0 or expected < 1000


def test_greedy_ignores_the_seed_and_sampling_follows_it() -> None:
    def answer(temperature: float, seed: int) -> str:
        return run(make(), work("a", sampling=Sampling(temperature=temperature, seed=seed)))["a"].text

    assert answer(0.0, 1) == answer(0.0, 2)
    assert answer(0.7, 1) == answer(0.7, 1)
    assert len({answer(0.7, 1), answer(0.7, 2), answer(0.8, 1), answer(0.0, 1)}) == 4


def test_a_stop_string_ends_the_answer_and_is_left_out() -> None:
    plain = run(make(), work("a", max_tokens=40))["a"]
    stop = plain.text[9:12]
    answer = run(make(), work("a", max_tokens=40, stop=("no such text", stop)))["a"]
    assert answer == Answer(plain.token_ids[:12], plain.text[:9], "stop")


def test_what_was_held_back_for_a_stop_string_comes_at_the_end() -> None:
    plain = run(make(), work("a"))["a"]
    assert run(make(), work("a", stop=(plain.text[-1] + "!",)))["a"] == plain


def test_every_row_advances_by_one_token_a_step_from_the_step_of_its_prefill_on() -> None:
    engine = make()
    engine.admit(work("a", max_tokens=3))
    assert [type(event) for event in engine.step()] == [Tokens]
    engine.admit(work("b", max_tokens=2))
    assert [event.id for event in engine.step()] == ["a", "b"]
    events = engine.step()
    assert [(event.id, type(event)) for event in events] == [
        ("a", Tokens),
        ("a", Finished),
        ("b", Tokens),
        ("b", Finished),
    ]
    assert engine.step() == []


def test_an_instant_engine_gives_in_one_step_what_another_gives_token_by_token() -> None:
    works = [work("a", b"one", 40), work("b", b"two", 7), work("c", b"three", 30, stop=("e",))]
    instant = make(whole_answers=True)
    for each in works:
        instant.admit(each)
    answers: dict[str, Answer] = {}
    collect(answers, instant.step())
    assert not instant.resident()
    assert answers == run(make(), *works)


def test_prefill_takes_what_the_decoding_rows_leave_of_the_budget() -> None:
    engine = make(max_num_seqs=4, max_num_batched_tokens=10)
    for name, size in (("a", 4), ("b", 20), ("c", 5), ("d", 1)):
        engine.admit(work(name, b"x" * size))
    assert engine.scheduled() == ["a", "b"]
    spent = []
    for _ in range(4):
        before = engine.prefilled_tokens
        tokens = len(engine.step())
        spent.append((engine.prefilled_tokens - before, tokens))
    assert spent == [(10, 1), (9, 1), (9, 2), (2, 4)]
    assert engine.scheduled() == ["a", "b", "c", "d"]


def test_a_cancelled_row_makes_room_wherever_it_is() -> None:
    engine = make(max_num_seqs=2, max_num_batched_tokens=2)
    engine.admit(work("decoding", b"x"))
    engine.admit(work("prefilling", b"xyz"))
    engine.step()
    for name in ("decoding", "prefilling"):
        assert engine.admit(work("new")) == Full()
        engine.cancel(name)
        assert isinstance(engine.admit(work(f"after {name}")), Admitted)
    engine.cancel("unknown")
    assert set(engine.resident()) == {"after decoding", "after prefilling"}
    engine.close()
    assert (engine.resident(), engine.scheduled(), engine.step()) == ([], [], [])


def test_the_cache_is_full_when_reserved_tokens_say_so() -> None:
    engine = make(kv_cache_tokens=50)
    assert engine.admit(work("a", b"x" * 10, 20)) == Admitted(30)
    assert engine.admit(work("b", b"x" * 10, 11)) == Full()
    assert engine.admit(work("b", b"x" * 10, 10)) == Admitted(20)
    assert isinstance(engine.admit(work("c", b"x" * 10, 41)), Invalid)
    run(engine)
    assert engine.admit(work("c", b"x" * 10, 40)) == Admitted(50)


def test_another_attempt_at_a_request_takes_the_place_of_the_first() -> None:
    engine = make(max_num_seqs=1)
    engine.admit(work("a", max_tokens=9))
    engine.step()
    assert len(run(engine, work("a", max_tokens=5))["a"].token_ids) == 5


@pytest.mark.parametrize(
    ("request_", "field_"),
    [
        (work("a", b"x" * 90, 11), "max_tokens"),
        (work("a", b"x", 0), "max_tokens"),
        (work("a", b""), "prompt"),
        (work("a", b"", inputs=[1]), "inputs"),
        (work("a", [65_536]), "prompt_tokens"),
    ],
)
def test_what_can_never_run_is_refused(request_: Work, field_: str) -> None:
    answer = make(context=100).admit(request_)
    assert isinstance(answer, Invalid)
    assert answer.field == field_


def test_text_is_encoded_a_byte_a_token() -> None:
    engine = make()
    assert bytes(engine.encode("é!")).decode() == "é!"
    assert bytes(engine.encode_chat([{"role": "user", "content": "hi"}])) == b"user: hi\n"


def test_a_step_really_takes_the_time_of_its_profile() -> None:
    engine = SimEngine(Profile(base_ms=10, prefill_ms=2, row_ms=5, resident_ms=1))
    engine.admit(work("a", b"x" * 4))
    engine.admit(work("b", b"x" * 6))
    began = time.perf_counter()
    engine.step()
    assert 0.03 <= time.perf_counter() - began - 0.010 < 2  # 10 + 10 x 2 + 2 x 5 ms
    began = time.perf_counter()
    engine.step()
    assert time.perf_counter() - began >= 0.032  # 10 + 2 x 5 + 12 tokens


def test_an_empty_engine_and_the_zero_profile_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    assert SimEngine(Profile()).step() == []
    run(make(), work("a"))


def test_thousands_of_requests_take_a_second_at_no_cost() -> None:
    works = [work(str(i), b"x" * 50) for i in range(4000)]
    engine = make()
    began = time.perf_counter()
    finished = 0
    while finished < 4000:
        while works and isinstance(engine.admit(works[-1]), Admitted):
            works.pop()
        finished += sum(type(event) is Finished for event in engine.step())
    assert time.perf_counter() - began < 4  # measured: 0.1 s on an idle machine


def test_a_profile_is_read_from_a_file_with_exactly_its_four_numbers(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    values = {"base_ms": 1, "prefill_ms": 0.5, "row_ms": 0, "resident_ms": 2.5}
    file.write_text(json.dumps(values))
    assert load_profile(file) == load_profile(str(file)) == Profile(**values)
    assert load_profile(None) == Profile()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[1]", "exactly base_ms, prefill_ms, row_ms, resident_ms"),
        ('{"base_ms": 1}', "exactly"),
        ('{"base_ms": 1, "prefill_ms": 1, "row_ms": 1, "resident_ms": 1, "more": 1}', "exactly"),
        ('{"base_ms": -1, "prefill_ms": NaN, "row_ms": true, "resident_ms": "1"}', "base_ms must be a finite number"),
    ],
)
def test_a_wrong_profile_is_refused_with_what_is_wrong(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_profile(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs: must be at least 1"),
        ({"max_num_batched_tokens": 63}, "max_num_batched_tokens: must be at least max_num_seqs"),
        ({"kv_cache_tokens": 0}, "kv_cache_tokens: must be at least 2"),
    ],
)
def test_limits_that_cannot_work_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**options)
