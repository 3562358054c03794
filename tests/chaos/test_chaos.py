"""A short run of the chaos that `make chaos` is, and that such a run does not pass where something is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.arena import Recovery
from chaos.verdict import judge, late, table
from stoker_ops.history import Entry, HistoryChecker

ROOT = Path(__file__).parents[2]
KINDS = ("child-killed", "machine-lost", "zombie", "leader-killed", "redis-killed")
KINDS += ("worker-replies-lost", "client-killed", "poison")
# Whether a recovery is within its bound is asked where nothing else runs: `make chaos` does.
ANY_TIME = ("--slack", "1000")

LEADER = "lead s1:a - leader 1:s1:a"
SUBMIT = "submit - c0-0 submit n normal 1:2:x 0 100"
DISPATCH = "dispatch 1:s1:a c0-0 dispatch 1-a-1 w:1-x 100 normal 3"
BEGIN = "begin w:1-x c0-0 begin 1-a-1 1 n"
SUCCESS = "settle w:1-x c0-0 end succeeded n stop -"
FAILURE = "reclaim 1:s1:a c0-0 end failed n poison dead"
ONCE = [LEADER, SUBMIT, DISPATCH, BEGIN]
TOLD = "c0-0 succeeded right\n"


def chaos(*options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program; `path` goes before everything else that Python is to find."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT / "tests")]))}
    command = [sys.executable, "-m", "chaos", *ANY_TIME, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.chaos
@pytest.mark.usefixtures("no_stray_processes")
def test_a_run_of_some_seconds_outlives_closed_connections_and_killed_processes() -> None:
    kinds = ("connections-reset", "leader-cut-off", "leader-killed", "child-killed")
    done = chaos("--seed", "1", "--faults", "4", "--requests", "200", "--workers", "2", "--kinds", *kinds)
    verdict = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    assert verdict == "chaos: seed=1 faults=4 requests=200 lost=0 doubled=0 convicted_wrongly=0 ok", done.stdout
    assert done.returncode == 0


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.usefixtures("no_stray_processes")
def test_a_short_run_loses_doubles_and_convicts_nothing_that_it_should_not() -> None:
    done = chaos("--seed", "1", "--faults", "8", "--requests", "1000", "--workers", "3", "--kinds", *KINDS)
    verdict = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    assert verdict == "chaos: seed=1 faults=8 requests=1000 lost=0 doubled=0 convicted_wrongly=0 ok", done.stdout
    assert done.returncode == 0


@pytest.mark.chaos
@pytest.mark.long
def test_a_run_does_not_pass_on_a_stoker_that_cancels_nothing(short_tmp: Path) -> None:
    shutil.copytree(ROOT / "producer" / "stoker", short_tmp / "stoker")
    (short_tmp / "stoker" / "store" / "lua" / "cancel.lua").write_text("return {'OK'}\n")
    options = ("--faults", "1", "--requests", "120", "--workers", "1", "--kinds", "child-killed")
    done = chaos(*options, path=str(short_tmp))
    assert "VIOLATION I14: cancel of c0-0 was answered OK, it is succeeded" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].endswith(" FAILED")
    assert done.returncode == 1


def history(lines: list[str]) -> HistoryChecker:
    """What a checker makes of entries of one line each, written as `script by line`."""
    checker = HistoryChecker()
    for time_us, text in enumerate(lines):
        script, by, line = text.split(" ", 2)
        checker.feed(Entry(script, time_us, by, (line,)))
    return checker


@pytest.mark.parametrize(
    ("lines", "told", "wrong"),
    [
        (ONCE, "", "lost"),
        ([LEADER], "", "lost"),
        ([*ONCE, SUCCESS], "", "lost"),
        ([*ONCE, SUCCESS], "c0-0 lost right\n", "lost"),
        ([*ONCE, SUCCESS, SUCCESS], TOLD, "doubled"),
        ([*ONCE, SUCCESS, SUBMIT.replace(" n ", " m ").replace("100", "101")], TOLD, "doubled"),
        ([*ONCE, SUCCESS], "c0-0 failed right\n", "doubled"),
        ([*ONCE, SUCCESS], TOLD + "c0-0 succeeded wrong\n", "doubled"),
        ([*ONCE, FAILURE], "c0-0 failed right\n", "convicted_wrongly"),
        ([*ONCE, SUCCESS], "c0-0 succeeded wrong\n", "violations"),
        ([*ONCE, SUCCESS], "c0-0 cancel-ok -\n" + TOLD, "violations"),
        ([*ONCE, SUCCESS, SUBMIT.replace("c0-0", "x").replace("100", "200")], TOLD, "violations"),
    ],
)
def test_what_is_wrong_does_not_pass(lines: list[str], told: str, wrong: str) -> None:
    verdict = judge(history(lines), ["c0-0"], [], {"c0": told})
    assert getattr(verdict, wrong)
    assert not verdict.ok


def test_a_good_run_passes_unless_a_planted_poison_or_a_key_is_left() -> None:
    good = history([*ONCE, SUCCESS])
    assert judge(good, ["c0-0"], [], {"c0": TOLD}).ok
    assert not judge(good, ["c0-0"], ["poison-0"], {"c0": TOLD}).ok
    assert not judge(good, ["c0-0"], [], {"c0": TOLD}, ["work:w:1-x"]).ok
    convicted = history([LEADER, *(line.replace("c0-0", "poison-0") for line in [SUBMIT, DISPATCH, BEGIN, FAILURE])])
    assert judge(convicted, [], ["poison-0"], {}).ok


def test_a_recovery_beyond_its_bound_and_what_must_not_happen_are_said() -> None:
    seen = {"zombie": [Recovery(700, 800), Recovery(900, 800)], "pause": [Recovery(broken="it was lost")]}
    assert late(seen, 1) == ["I12: zombie: 900 ms, bound 800 ms", "pause: it was lost"]
    assert late(seen, 2) == ["pause: it was lost"]


def test_the_table_has_a_row_for_each_kind_with_its_times_and_its_bound() -> None:
    rows = table({"zombie": [Recovery(700, 800), Recovery(900, 1460)], "pause": [Recovery()]}).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["fault", "n", "p50 ms", "p99 ms", "max ms", "bound ms"]
    assert cells[2:] == [["pause", "1", "-", "-", "-", "-"], ["zombie", "2", "800", "900", "900", "800..1,460"]]
