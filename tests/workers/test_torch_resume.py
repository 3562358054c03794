"""An answer that another attempt began goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answers import Answer, work
from stoker_workers.engine import Finished, Sampling, Tokens, Work
from stoker_workers.engines.torch import TorchEngine
from workers.torch_rig import load, make_llama, prompts

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a real tokenizer: its text is full of broken and multi-byte characters."""
    return make_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TorchEngine:
    """The one engine of these tests."""
    return load(folder)


def pieces(engine: TorchEngine, each: Work) -> tuple[list[tuple[list[int], str]], str]:
    """Return the pieces of an answer, and its end."""
    engine.admit(each)
    given: list[tuple[list[int], str]] = []
    end = ""
    while engine.resident():
        for event in engine.step():
            if isinstance(event, Tokens):
                given.append((event.token_ids, event.text))
            elif isinstance(event, Finished):
                end = event.finish_reason
    return given, end


def joined(given: list[tuple[list[int], str]], end: str) -> Answer:
    return Answer([token for ids, _ in given for token in ids], "".join(text for _, text in given), end)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.7, 1.5]),
    st.floats(0, 1),
    st.one_of(st.none(), st.tuples(st.floats(0, 1), st.integers(1, 6))),
)
def test_an_answer_cut_anywhere_is_the_undisturbed_one(
    engine: TorchEngine, seed: int, temperature: float, cut: float, stop: tuple[float, int] | None
) -> None:
    each = work("a", prompts(1, seed=seed)[0], 40, sampling=Sampling(temperature=temperature, seed=seed))
    given, end = pieces(engine, each)
    if stop:  # a piece of its own text, so that it spans tokens and may be reached at any of them
        text = joined(given, end).text
        start = int(stop[0] * len(text))
        each = replace(each, stop=tuple(filter(None, [text[start : start + stop[1]], "never this"])))
        given, end = pieces(engine, each)
    place = round(cut * len(given))
    before = joined(given[:place], "")
    rest, ended = pieces(engine, replace(each, generated=before.token_ids))
    after = joined(rest, ended)
    assert Answer(before.token_ids + after.token_ids, before.text + after.text, after.end) == joined(given, end)


def test_a_resumed_answer_prefills_what_was_given_and_gives_only_what_follows(engine: TorchEngine) -> None:
    engine.admit(work("a", [5] * 10, 30, generated=[7] * 20, ignore_eos=True))
    before = engine.prefilled_tokens
    [event] = engine.step()
    assert isinstance(event, Tokens)
    assert len(event.token_ids) == 1
    assert engine.prefilled_tokens == before + 30
    assert len([engine.step() for _ in range(9)]) == 9
    assert engine.resident() == []


def test_an_answer_that_was_whole_already_ends_without_a_step_of_the_model(engine: TorchEngine) -> None:
    before = engine.prefilled_tokens
    assert pieces(engine, work("a", [5], 3, generated=[7, 8, 9], ignore_eos=True)) == ([], "length")
    assert pieces(engine, work("a", [5], 30, generated=[7, 2])) == ([], "stop")
    assert engine.prefilled_tokens == before


def test_a_whole_answer_can_be_cancelled_before_it_ends(engine: TorchEngine) -> None:
    engine.admit(work("a", [5], 1, generated=[7]))
    engine.cancel("a")
    assert (engine.resident(), engine.step()) == ([], [])
