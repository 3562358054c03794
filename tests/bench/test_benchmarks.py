"""The page of benchmarks says what the results say."""

from __future__ import annotations

import benchmarks

LATE = {"date": "2026-01-02", "machine": "2 cores", "ratios": {"late": {"ratio": 2.0, "bar": 1.5, "at_most": True}}}


def test_the_page_of_benchmarks_is_what_the_results_make_it() -> None:
    assert benchmarks.PAGE.read_text() == benchmarks.written(), "run: make bench-all ARGS=--write"


def test_a_bar_that_is_short_has_its_reason_below_it() -> None:
    page = benchmarks.page({"latency": LATE}, {"late": {"what": "ms", "reason": "the wire."}})
    assert "| late | ms | 2.00 | <= 1.5 | short |" in page
    assert "- late is short: the wire." in page


def test_a_reason_is_not_shown_where_the_bar_holds() -> None:
    held = LATE | {"ratios": {"late": {"ratio": 1.0, "bar": 1.5, "at_most": True}}}
    page = benchmarks.page({"latency": held}, {"late": {"what": "ms", "reason": "the wire."}})
    assert "| ok |" in page
    assert "the wire" not in page
