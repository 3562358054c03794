"""What is expected of answers follows what they were lately."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.store.reads import Answers
from stoker_scheduler.answers import FEWEST, AnswerLengths


def histogram(**buckets: int) -> Answers:
    """NORMAL answers: `b12=3` are three in bucket 12."""
    return Answers({f"answer:normal:{name[1:]}": number for name, number in buckets.items()}, {})


def test_nothing_is_expected_before_there_were_enough_answers() -> None:
    answers = AnswerLengths()
    assert answers.expected() == {}
    answers.observe(histogram(b4=int(FEWEST) - 1))
    assert answers.expected() == {}
    answers.observe(histogram(b4=int(FEWEST) + 10))
    assert answers.expected() == {"normal": 4}


def test_four_of_five_answers_are_no_longer_than_expected() -> None:
    answers = AnswerLengths()
    answers.observe(histogram(b6=400, b14=400, b20=200))
    assert answers.expected() == {"normal": 128}
    answers.observe(histogram(b6=400, b14=400, b20=210))
    assert answers.expected() == {"normal": 1024}


def test_each_class_has_its_own_and_other_metrics_do_not_count() -> None:
    answers = AnswerLengths()
    fields = {"answer:high:2": 100, "answer:high:sum": 7, "answer:low:10": 100, "e2e:normal:9": 500}
    answers.observe(Answers(fields, {}))
    assert answers.expected() == {"high": 2, "low": 32}


def test_old_answers_are_forgotten() -> None:
    answers = AnswerLengths()
    answers.observe(histogram(b20=1000))
    for n in range(1, 200):
        answers.observe(histogram(b20=1000, b2=100 * n))
    assert answers.expected() == {"normal": 2}


def test_an_emptied_redis_begins_anew() -> None:
    answers = AnswerLengths()
    answers.observe(histogram(b20=1000))
    answers.observe(histogram(b2=60))
    assert answers.expected() == {"normal": 2}


@given(st.dictionaries(st.integers(0, 54), st.integers(0, 10_000)))
def test_it_is_an_edge_of_a_bucket_that_has_answers(buckets: dict[int, int]) -> None:
    answers = AnswerLengths()
    answers.observe(Answers({f"answer:low:{bucket}": number for bucket, number in buckets.items()}, {}))
    expected = answers.expected().get("low")
    total = sum(buckets.values())
    assert (expected is not None) == (total >= FEWEST)
    if expected:
        assert sum(n for bucket, n in buckets.items() if round(2 ** (bucket / 2)) <= expected) >= 0.8 * total


def test_a_tenant_with_enough_answers_is_expected_by_its_own_and_others_by_their_class() -> None:
    answers = AnswerLengths()
    few, many = [7] * (int(FEWEST) - 1), list(range(1, 101))
    answers.observe(Answers({"answer:normal:14": 1000}, {"normal:brief": many, "normal:rare": few, "low:brief": few}))
    assert answers.expected() == {"normal": 128, "normal:brief": 80}


def test_a_tenant_whose_answers_became_longer_is_expected_by_its_last_ones() -> None:
    answers = AnswerLengths()
    answers.observe(Answers({}, {"normal:a": [10] * 60}))
    answers.observe(Answers({}, {"normal:a": [500] * 60}))
    assert answers.expected() == {"normal:a": 500}
    answers.observe(Answers({}, {"normal:b": [20] * 60}))
    assert answers.expected() == {"normal:b": 20}


@given(st.lists(st.integers(1, 10_000), min_size=int(FEWEST), max_size=200))
def test_a_tenants_is_the_least_that_four_of_five_of_its_answers_fit(lengths: list[int]) -> None:
    answers = AnswerLengths()
    answers.observe(Answers({}, {"low:t": lengths}))
    expected = answers.expected()["low:t"]
    assert sum(length <= expected for length in lengths) >= 0.8 * len(lengths)
    assert sum(length < expected for length in lengths) < 0.8 * len(lengths)
