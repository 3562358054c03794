"""`stoker simulate`: what it prints, draws and refuses. Needs no Redis."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from stoker.cli import main

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "bench" / "data" / "trace.csv"
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "json.schema.json").read_text())


def simulate(*options: object, trace: Path = TRACE) -> Result:
    arguments = ["simulate", "--trace", trace, "--requests", 200, *options]
    return CliRunner().invoke(main, [str(one) for one in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("mode", ["continuous", "padded"])
def test_json_has_the_documented_form(mode: str) -> None:
    ran = simulate("--mode", mode, "--workers", 2, "--json")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    jsonschema.validate(found, {"$defs": SCHEMA["$defs"], **SCHEMA["properties"]["simulate"]})
    assert found["completed"] == found["requests"] == 200
    assert set(found["baselines"]) == ({"fifo", "static", "longest"} if mode == "continuous" else {"fifo"})


def test_the_table_has_a_column_for_each_policy() -> None:
    lines = simulate("--saturated").stdout.splitlines()
    assert lines[0] == "1 continuous worker"
    assert lines[1].split() == ["stoker", "fifo", "static", "longest"]
    assert next(line for line in lines if line.startswith("completed")).split() == ["completed", *["200"] * 4]
    assert simulate("--no-compare").stdout.splitlines()[1].split() == ["stoker"]


def test_a_cap_with_displacement_gives_every_request_its_outcome(tmp_path: Path) -> None:
    ranks = ("normal", "critical")
    lines = [{"at_s": 0, "prompt_tokens": 500, "output_tokens": 50, "priority": ranks[i // 150]} for i in range(200)]
    trace = tmp_path / "two.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = json.loads(simulate("--max-waiting", 100, "--displace", "--no-compare", "--json", trace=trace).stdout)
    counts = {name: found[name] for name in ("completed", "refused", "displaced", "preempted")}
    assert counts == {"completed": 100, "refused": 50, "displaced": 50, "preempted": 0}


def test_a_tenant_of_a_larger_weight_waits_less(tmp_path: Path) -> None:
    lines = [{"at_s": 0, "prompt_tokens": 500, "output_tokens": 50, "tenant": "ab"[place % 2]} for place in range(200)]
    trace = tmp_path / "two.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = json.loads(simulate("--weight", "b=4", "--no-compare", "--json", trace=trace).stdout)["tenants"]
    assert found["b"]["queue_ms"]["p50"] < 0.8 * found["a"]["queue_ms"]["p50"]


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_it_draws_what_the_name_of_the_file_says(tmp_path: Path, name: str, begins: bytes) -> None:
    ran = simulate("--plot", tmp_path / name)
    assert ran.exit_code == 0, ran.output
    content = (tmp_path / name).read_bytes()
    assert content.startswith(begins)
    assert len(content) > 5000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "a.jpg"], "plot: must end with .png or .svg, got 'a.jpg'"),
        (["--plot", "nowhere/a.png"], "plot: nowhere is no folder"),
        (["--weight", "acme"], "weight: must be TENANT=NUMBER, got 'acme'"),
        (["--weight", "acme=0"], "weight: must be a number from 0.001 to 1000, got 0.0"),
        (["--profile", "none.json"], "profile: none.json cannot be read"),
        (["--max-num-seqs", "9000"], "max_num_batched_tokens: must be at least max_num_seqs (9000), got 8192"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(options: list[str], words: str) -> None:
    ran = simulate(*options)
    assert ran.exit_code == 2
    assert words in ran.stderr


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = simulate("--plot", tmp_path / "a.png")
    assert ran.exit_code == 2
    assert 'pip install "stoker[simulate]"' in ran.stderr


def test_several_profiles_are_taken_in_turn_and_two_more_policies_compared(tmp_path: Path) -> None:
    slow = tmp_path / "slow.json"
    slow.write_text('{"base_ms": 70, "prefill_ms": 0.32, "row_ms": 0.2, "resident_ms": 0.0005}')
    fast = tmp_path / "fast.json"
    fast.write_text('{"base_ms": 7, "prefill_ms": 0.032, "row_ms": 0.02, "resident_ms": 0.00005}')
    shown = simulate("--workers", 2, "--profile", fast, "--profile", slow, "--saturated").stdout
    assert "in turn" in shown
    assert "least tokens" in shown
    assert "tokens by profile" in shown
    assert "affinity kept" not in shown


def test_a_profile_of_a_slower_model_makes_answers_late(tmp_path: Path) -> None:
    slow = tmp_path / "slow.json"
    slow.write_text('{"base_ms": 70, "prefill_ms": 0.32, "row_ms": 0.2, "resident_ms": 0.0005}')
    e2e = [
        json.loads(simulate("--no-compare", "--json", *options).stdout)["e2e_ms"]["p50"]
        for options in ([], ["--profile", slow])
    ]
    assert e2e[1] > 5 * e2e[0]


def test_the_synthetic_trace_is_what_its_generator_writes(tmp_path: Path) -> None:
    sys_path = [*sys.path]
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from make_trace import rows
    finally:
        sys.path[:] = sys_path
    lines = TRACE.read_text().splitlines()[1:]
    assert [",".join(map(str, row)) for row in rows(len(lines), seed=1)] == lines
