"""`stoker top`: on a terminal, elsewhere, as JSON; while Redis is away; and what it says of a queue between looks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli.conftest import Cli
from helpers import wait_until
from stack_processes import Stack
from stoker.figures import worker_table
from stoker.store.lookups import Overview
from stoker.store.records import LANES, WorkerRecord
from stoker.watch import Look, Watch
from stoker_ops.embedded import ServerBinary, start

STOKER = (sys.executable, "-c", "from stoker.cli import main; main()")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program on a terminal of its own; `text` is what it drew since the last `forget`, without the escapes."""

    def __init__(self, columns: int, lines: int, *arguments: str, **environment: str) -> None:
        self._leader, follower = pty.openpty()
        self.resize(columns, lines)
        self._drawn = b""
        plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [*STOKER, *arguments],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=plain | {"TERM": "xterm-256color"} | environment,
            start_new_session=True,
            # A run of the tests in the background is one without Ctrl-C, which its children would inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.settings = termios.tcgetattr(follower)
        self._follower = follower

    @property
    def text(self) -> str:
        while select.select([self._leader], [], [], 0)[0]:
            self._drawn += os.read(self._leader, 65536)
        return ESCAPE.sub("", self._drawn.decode(errors="replace"))

    def forget(self) -> None:
        assert self.text is not None
        self._drawn = b""

    def shows(self, word: str, timeout: float = 30) -> str:
        """Wait for a word; returns all that is drawn."""
        wait_until(lambda: word in self.text, timeout, what=f"{word!r} is shown")
        return self.text

    def press(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def ended(self) -> int:
        """Wait for the end; returns the exit code. The terminal must be as it was before."""
        wait_until(lambda: (self.text, self.process.poll())[1] is not None, 30, what="it ended")
        assert termios.tcgetattr(self._follower)[3] == self.settings[3], "echo and lines are back"
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self._leader)
        os.close(self._follower)


@contextlib.contextmanager
def top(url: str, *options: str, columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    terminal = Terminal(columns, lines, "top", "--interval", "0.2", *options, STOKER_REDIS_URL=url)
    try:
        yield terminal
    finally:
        terminal.close()


# --- on a terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 200])
def test_top_shows_classes_workers_and_latencies_on_one_screen_until_q(
    served: Stack, served_cli: Cli, short_tmp: Path, columns: int
) -> None:
    assert served_cli("submit", "hello", "--max-tokens", "4", "--priority", "high").exit_code == 0
    with top(served.url, columns=columns) as terminal:
        screen = terminal.shows("1 worker")
        for word in ("queue default", "critical", "batch", "oldest", "p50", "p99", "leader", "running", "q ends"):
            assert word in screen, word
        terminal.shows("requests/s")
        row = terminal.shows("s ago")
        for word in ("one", "live", "0/64", "tokens held", "tokens/s", "busy", "faults"):
            assert word in row, word
        assert "…" not in row
        terminal.press("q")
        assert terminal.ended() == 0


def test_ctrl_c_ends_top_with_130_and_leaves_the_terminal_as_it_was(redis_url: str, short_tmp: Path) -> None:
    with top(redis_url) as terminal:
        terminal.shows("no workers are registered")
        terminal.press("\x03")
        terminal.process.send_signal(signal.SIGINT)  # no shell is there to make this terminal the controlling one
        assert terminal.ended() == 130


def test_top_draws_for_the_size_that_the_terminal_has_now(served: Stack, short_tmp: Path) -> None:
    with top(served.url, columns=80) as terminal:
        assert "model" not in terminal.shows("heartbeat")
        terminal.resize(200, 50)
        terminal.forget()
        assert "model" in terminal.shows("heartbeat")
        terminal.press("q")
        assert terminal.ended() == 0


def test_with_a_count_the_last_picture_stays(served: Stack, short_tmp: Path) -> None:
    with top(served.url, "--count", "2") as terminal:
        assert terminal.ended() == 0
        assert terminal.text.rstrip().splitlines()[-1].startswith("one ")


def test_a_redis_that_goes_away_shows_a_banner_and_comes_back_by_itself(
    server_binary: ServerBinary, short_tmp: Path
) -> None:
    with start(short_tmp / "r", server=server_binary) as server:
        url = server.url
        terminal = Terminal(200, 24, "top", "--interval", "0.2", STOKER_REDIS_URL=url)
        terminal.shows("no workers are registered")
    try:
        terminal.shows("does not answer")
        assert "trying again" in terminal.text
        with start(short_tmp / "r", server=server_binary):
            terminal.forget()
            wait_until(lambda: "no workers" in terminal.text and "trying" not in latest(terminal), 30)
            terminal.press("q")
            assert terminal.ended() == 0
    finally:
        terminal.close()


def latest(terminal: Terminal) -> str:
    """What was drawn last, about a screen."""
    return terminal.text[-600:]


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_without_a_terminal_it_prints_tables_whose_lines_are_whole(served_cli: Cli) -> None:
    shown = served_cli("top", "--count", "2", "--interval", "0.1", COLUMNS=None)
    assert shown.exit_code == 0
    assert shown.output.count("1 worker") == 2
    assert "\x1b" not in shown.output
    first, _ = [line for line in shown.output.splitlines() if line.startswith("one ")]
    for word in ("live", "sim", "continuous", "0/64", "s ago"):
        assert word in first
    assert "rates come with the next look" in shown.output
    assert "requests/s" in shown.output


def test_json_is_an_object_a_line(served_cli: Cli) -> None:
    assert served_cli("submit", "hello", "--max-tokens", "4").exit_code == 0
    shown = served_cli("top", "--json", "--count", "3", "--interval", "0.1")
    assert shown.exit_code == 0
    looks = [json.loads(line) for line in shown.output.splitlines()]
    assert [look["recent"] is None for look in looks] == [True, False, False]
    assert looks[2]["counts"]["succeeded"] == looks[2]["counts"]["submitted"] > 0
    assert looks[2]["workers"][0]["worker"] == "one"
    assert looks[0]["at_s"] < looks[1]["at_s"] < looks[2]["at_s"]


def test_what_waits_has_an_age(cli: Cli) -> None:
    assert cli("submit", "x", "--no-wait", "--priority", "low").exit_code == 0
    [line] = cli("top", "--json", "--count", "1").output.splitlines()
    look = json.loads(line)
    assert look["queue"]["waiting"]["low"] == 1
    assert 0 <= look["oldest_s"]["low"] < 60
    assert look["oldest_s"]["high"] is None


def test_a_count_whose_last_look_failed_exits_with_3(cli: Cli) -> None:
    away = "unix:///nowhere/redis.sock"
    shown = cli("top", "--count", "1", url=away)
    assert shown.exit_code == 3
    assert "trying again" in shown.stdout
    lines = cli("top", "--count", "2", "--interval", "0.1", "--json", url=away)
    assert lines.exit_code == 3
    assert ["does not answer" in json.loads(line)["error"] for line in lines.stdout.splitlines()] == [True, True]


# --- between looks ----------------------------------------------------------------------------------------------------


def look(at_s: float, succeeded: int, histograms: dict[str, int], busy_us: int = 0, generation: str = "g") -> Look:
    overview = Overview(
        now_us=int(at_s * 1e6),
        generation=generation,
        lanes=dict.fromkeys(LANES, 0),
        delayed=0,
        dead=0,
        counts={"submitted": succeeded, "succeeded": succeeded},
        histograms=histograms,
        rates={},
        leader=None,
        leader_until_us=0,
        circuits={},
        card=None,
    )
    figures = {"busy_us": busy_us, "generation_tokens": 10 * succeeded, "prompt_tokens": succeeded}
    worker = WorkerRecord(
        inc="w:1-a", worker="w", rows=8, capacity=64, budget=64, mode="continuous", cache="paged", figures=figures
    )
    return Look(overview, [worker], {})


@pytest.fixture
def watch(stack: Stack) -> Watch:
    return Watch(stack.config)


def test_rates_are_of_the_last_ten_seconds_and_latencies_of_the_last_minute(watch: Watch) -> None:
    assert watch.add(look(1, 5, {"e2e:high:4": 5})).recent is None
    for second in range(2, 62):
        view = watch.add(look(second, 5 + second, {"e2e:high:4": 5, "e2e:high:20": second}, busy_us=500_000 * second))
    recent = view.recent
    assert recent is not None
    assert recent["rates_s"] == 10
    assert recent["requests_per_second"] == 1
    assert recent["generation_tokens_per_second"] == 10
    assert recent["prompt_tokens_per_second"] == 1
    assert recent["outcomes"]["succeeded"] == 10
    assert recent["busy"] == {"w:1-a": 0.5}
    assert recent["latencies_s"] == 60
    assert recent["latency_ms"]["e2e"]["count"] == 61
    high = recent["latency_ms_by_class"]["high"]["e2e"]
    assert high["p50"] is not None
    assert high["p50"] > 700, "those of before the minute are not in it"


def test_what_a_worker_holds_ahead_stands_behind_its_rows(watch: Watch) -> None:
    seen = look(1, 0, {})
    shown = []
    for held in (3, 8, 10):
        busy = replace(seen, workers=[replace(seen.workers[0], held_rows=held, ahead=4)])
        shown.append(worker_table("", watch.add(busy).stats).rows[0][4])
    assert shown == ["3/8", "8/8", "8/8+2"]


def test_a_redis_with_another_history_begins_anew(watch: Watch) -> None:
    watch.add(look(1, 50, {}))
    assert watch.add(look(2, 51, {})).recent is not None
    assert watch.add(look(3, 1, {})).recent is None, "fewer than before"
    assert watch.add(look(4, 2, {}, generation="other")).recent is None
    assert watch.add(look(5, 3, {}, generation="other")).recent is not None
