"""When a fresh ratio is worse than the committed one; nothing here is timed."""

from __future__ import annotations

from typing import Any

import pytest
from check import Finding, compare


def found(ratio: float, *, at_most: bool = False) -> dict[str, Any]:
    return {"ratios": {"a": {"ratio": ratio, "bar": 1.0, "at_most": at_most}}}


@pytest.mark.parametrize(
    ("now", "at_most", "word"),
    [
        (9.0, False, "same"),
        (7.9, False, "worse"),
        (12.6, False, "better"),
        (12.4, True, "same"),
        (12.6, True, "worse"),
        (7.9, True, "better"),
    ],
)
def test_a_ratio_is_worse_where_it_differs_by_more_than_a_quarter(now: float, at_most: bool, word: str) -> None:
    assert compare(found(10.0, at_most=at_most), found(now, at_most=at_most), {}) == [Finding("a", 10.0, now, word)]


def test_a_bar_may_have_a_noise_of_its_own() -> None:
    assert compare(found(10.0), found(9.0), {"a": 0.03})[0].word == "worse"
    assert compare(found(10.0), found(6.5), {"a": 0.6})[0].word == "same"


def test_a_ratio_that_is_missing_is_told_and_so_is_a_new_one() -> None:
    other = {"ratios": {"b": {"ratio": 2.0, "bar": 1.0}}}
    assert compare(found(10.0), other, {}) == [Finding("a", 10.0, None, "gone"), Finding("b", None, 2.0, "new")]
