"""Processes end or stand still at some of the crash points; `make crash-points` tries all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_points.scenario import Point, Scenario

POINTS = [
    Point("child settle before", "exit"),
    Point("scheduler dispatch after", "exit"),
]


@pytest.mark.long
def test_every_request_ends_once_whatever_happens_at_a_point(redis_url: str, short_tmp: Path) -> None:
    scenario = Scenario(redis_url, short_tmp)
    try:
        for point in POINTS:
            scenario.run(point)
        scenario.leave()
    finally:
        scenario.end()
