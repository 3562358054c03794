"""Histograms in shared memory: how they count, and that what a dead child counted stays."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry

from stoker.buckets import EDGES, bucket_of, cumulated, edges
from stoker_workers.board import Board
from stoker_workers.figures import LOADING, SERVING, WorkerFigures
from stoker_workers.tallies import INTER_TOKEN, KINDS, SIZE, STEP_ROWS, Tallies, added


@pytest.mark.parametrize(
    ("value", "bucket"), [(-1, 0), (0, 0), (1, 0), (125, 0), (126, 1), (250, 1), (251, 2), (500, 2)]
)
def test_a_value_lies_in_the_bucket_whose_edge_is_the_first_not_below_it(value: int, bucket: int) -> None:
    assert bucket_of(value, 125) == bucket


def test_every_edge_belongs_to_its_own_bucket_and_one_more_to_the_next() -> None:
    for k, edge in enumerate(edges(125)):
        assert (bucket_of(int(edge), 125), bucket_of(int(edge) + 1, 125)) == (k, k + 1)
    assert bucket_of(10**15, 125) == EDGES


def test_families_have_cumulated_buckets_up_to_infinity() -> None:
    counts = [0] * (EDGES + 1)
    counts[1], counts[EDGES] = 3, 2
    buckets = cumulated(0.001, counts)
    assert buckets[:3] == [("0.001", 0.0), ("0.002", 3.0), ("0.004", 3.0)]
    assert buckets[-1] == ("+Inf", 5.0)
    assert all(low[1] <= high[1] for low, high in pairwise(buckets))


def test_each_histogram_keeps_apart_from_its_neighbours() -> None:
    tallies = Tallies(bytearray(SIZE))
    for kind, (labels, _) in KINDS.items():
        for number, label in enumerate(labels):
            for _ in range(number + 1):
                tallies.observe(kind, label, 10**9)
    read = tallies.read()
    for kind, (labels, _) in KINDS.items():
        for number, label in enumerate(labels):
            *buckets, total = read[kind, label]
            assert (sum(buckets), total) == (number + 1, (number + 1) * 10**9)


def test_what_a_process_that_was_killed_counted_can_be_read() -> None:
    file = Board.make_file()
    code = (
        "import os, signal, sys; from stoker_workers.board import Board\n"
        "board = Board(os.fdopen(int(sys.argv[1]), 'r+b'))\n"
        "board.tallies.observe('inter_token', 'high', 300); board.add('finished'); board.begin_step(['x'], 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(file.fileno())], pass_fds=[file.fileno()], timeout=60, check=False)
    board = Board(file)
    assert board.read()["finished"] == 1
    assert board.crash_set() == ["x"]
    assert board.tallies.read()[INTER_TOKEN, "high"][-1] == 300
    board.close()


def test_a_crash_set_never_runs_into_the_histograms() -> None:
    board = Board(Board.make_file())
    board.begin_step(["i" * 100] * 10_000, 1)
    assert all(not any(cells) for cells in board.tallies.read().values())
    board.close()


# --- what the supervisor makes of it ------------------------------------------------------------------------------


def sample(figures: WorkerFigures, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(figures)
    return registry.get_sample_value(name, {"worker": "w", **labels})


def lived(figures: WorkerFigures, tokens: int, gap_us: int) -> None:
    """A child comes, generates, and is gone."""
    board = Board(Board.make_file())
    figures.begin(board)
    board.add("generation_tokens", tokens)
    board.tallies.observe(INTER_TOKEN, "normal", gap_us)
    board.publish()
    figures.end()
    board.close()


def test_counters_go_on_where_the_child_before_ended() -> None:
    figures = WorkerFigures("w")
    figures.serve("m")
    lived(figures, 10, 1000)
    lived(figures, 5, 3000)
    board = Board(Board.make_file())
    figures.begin(board)
    board.add("generation_tokens", 1)
    board.publish()
    assert sample(figures, "stoker_engine_generation_tokens_total", model="m") == 16
    labels = {"model": "m", "priority": "normal"}
    assert sample(figures, "stoker_inter_token_latency_seconds_count", **labels) == 2
    assert sample(figures, "stoker_inter_token_latency_seconds_sum", **labels) == pytest.approx(0.004)
    assert sample(figures, "stoker_inter_token_latency_seconds_bucket", le="0.001", **labels) == 1
    board.close()


def test_deaths_states_and_own_scripts_are_exported() -> None:
    figures = WorkerFigures("w")
    figures.enter(LOADING)
    figures.died("crash")
    figures.timed("beat", 0.003)
    assert figures.ready() == "loading"
    assert sample(figures, "stoker_engine_deaths_total", cause="crash") == 1
    assert sample(figures, "stoker_engine_deaths_total", cause="killed") == 0
    assert sample(figures, "stoker_script_seconds_bucket", script="beat", le="0.004") == 1
    assert sample(figures, "stoker_engine_state", state=LOADING) == 1
    figures.serve("m")
    assert figures.ready() == ""
    assert sample(figures, "stoker_engine_state", state=LOADING) == 0
    assert sample(figures, "stoker_engine_state", state=SERVING) == 1


def test_the_engines_figures_wait_for_its_model_and_the_heartbeats_for_the_first() -> None:
    figures = WorkerFigures("w")
    assert sample(figures, "stoker_heartbeat_age_seconds") is None
    assert not [family.name for family in figures.collect() if family.name.startswith("stoker_engine_step")]
    figures.beat()
    age = sample(figures, "stoker_heartbeat_age_seconds")
    assert age is not None
    assert age >= 0


def test_sums_of_tallies_are_by_place() -> None:
    one, other = Tallies(bytearray(SIZE)), Tallies(bytearray(SIZE))
    one.observe(STEP_ROWS, "", 3)
    other.observe(STEP_ROWS, "", 4)
    total = added(one.read(), other.read())
    assert total[STEP_ROWS, ""][2:3] == [2]
    assert total[STEP_ROWS, ""][-1] == 7
