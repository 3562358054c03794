"""`stoker profile`, on real workers of the sim engine."""

from __future__ import annotations

import json
from pathlib import Path

from cli.conftest import Cli, cli
from stack_processes import Stack
from stoker_workers.engines.sim import load_profile

__all__ = ["cli"]


def test_a_profile_of_a_running_worker_is_near_its_own_and_can_be_used(stack: Stack, cli: Cli, short_tmp: Path) -> None:
    costs = short_tmp / "costs.json"
    costs.write_text(json.dumps({"base_ms": 4, "prefill_ms": 0.02, "row_ms": 0.5, "resident_ms": 0.003}))
    stack.scheduler()
    stack.worker("one", "--profile", str(costs))
    found = short_tmp / "found.json"
    shown = cli("profile", "one", "--rounds", "1", "--output", str(found))
    assert shown.exit_code == 0, shown.output
    assert "one: 18 samples, off by" in shown.stderr
    profile = load_profile(found)
    # Within a factor of two: a loaded machine sleeps longer than it is told to.
    for price, true in {"base_ms": 4, "prefill_ms": 0.02, "row_ms": 0.5, "resident_ms": 0.003}.items():
        assert 0.5 < getattr(profile, price) / true < 2, profile


def test_a_worker_is_named_where_there_are_several(stack: Stack, cli: Cli) -> None:
    refused = cli("profile")
    assert refused.exit_code == 2
    assert "found none" in refused.stderr
    stack.scheduler()
    stack.worker("one", "--profile", "zero")
    stack.worker("two", "--profile", "zero")
    refused = cli("profile")
    assert refused.exit_code == 2
    assert "found one, two" in refused.stderr


def test_a_worker_that_does_nothing_cannot_be_watched(stack: Stack, cli: Cli) -> None:
    stack.scheduler()
    stack.worker("one", "--profile", "zero")
    idle = cli("profile", "--no-load", "--seconds", "1")
    assert idle.exit_code == 1
    assert "did too little in 1 s; leave out --no-load" in idle.stderr
