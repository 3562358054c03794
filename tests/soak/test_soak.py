"""What a soak calls growth, and a short run of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from soak.measure import FIGURES, Course, Sample, course, courses, look, table, wrong

ROOT = Path(__file__).parents[2]
FLAT = [Sample(at_s, 50 + at_s % 3, 10, 4, 3) for at_s in range(120)]


def leaking(**a_second: float) -> list[Sample]:
    """Samples of a process that takes so much more of something each second."""
    fields = {"rss_mib": 50.0, "descriptors": 10.0, "threads": 4.0, "connections": 3.0}
    return [
        Sample(at_s, **{name: start + at_s * a_second.get(name, 0) for name, start in fields.items()})  # type: ignore[arg-type]
        for at_s in range(120)
    ]


def test_what_stays_as_it_is_passes() -> None:
    assert wrong(courses({"p": FLAT}, 30, 120)) == []


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_that_grows_is_found(figure: str) -> None:
    (found,) = wrong(courses({"p": leaking(**{figure: 0.2})}, 30, 120))
    assert found.startswith(f"p: {figure} went from ")


def test_what_grows_in_the_warm_up_alone_passes() -> None:
    warming = [Sample(at_s, min(at_s, 30) * 5, min(at_s, 30), 4, 3) for at_s in range(120)]
    assert wrong(courses({"p": warming}, 30, 120)) == []


def test_a_large_process_may_differ_by_a_share_of_its_size() -> None:
    assert not Course(1000, 1049, 1049).grown("rss_mib")
    assert Course(1000, 1051, 1051).grown("rss_mib")


def test_a_process_that_was_not_seen_to_the_end_does_not_pass() -> None:
    assert course(FLAT[:60], "rss_mib", 30, 120) is None
    assert len(wrong(courses({"p": FLAT[:60]}, 30, 120))) == len(FIGURES)
    assert "| -" in table(courses({"p": FLAT[:60]}, 30, 120))


def test_a_look_at_this_process_sees_what_it_holds_and_one_at_an_ended_process_nothing(tmp_path: Path) -> None:
    before = look(os.getpid(), 0)
    assert before is not None
    with (tmp_path / "a file").open("w"):
        after = look(os.getpid(), 1)
    assert after is not None
    assert after.descriptors == before.descriptors + 1
    assert after.rss_mib > 1
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert look(ended.pid, 0) is None


@pytest.mark.long
@pytest.mark.usefixtures("no_stray_processes")
def test_a_short_soak_is_flat_and_leaves_only_what_is_for_good() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "soak", "--minutes", "0.7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines()[-1].startswith("soak: seed=1 minutes=0.7 requests="), done.stderr
    assert done.stdout.splitlines()[-1].endswith(" ok"), done.stdout
    assert done.returncode == 0
