"""Runs every planted bug twice: against its own check, and for some seconds against the random state machine.

PYTHONPATH=tests python -m mutations.by_machine [--seconds S] [--seed N]

Every bug must be found by its check; what the machine finds as well says how much of it random calls can see.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import redis
from hypothesis import Phase, seed, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from machine.harness import ACTS, CLOCK, CONFIG, DICE, DUMP
from machine.test_state_machine import COMMON, OFTEN, Machine
from mutations.plant import plant
from mutations.table import MUTATIONS, Mutation
from stoker.store import scripts
from stoker_ops.embedded import start

TESTS = Path(__file__).parents[1]
ONCE = settings(COMMON, max_examples=250, stateful_step_count=50, phases=[Phase.generate], database=None)


def found_by_machine(mutation: Mutation, url: str, number: int, seconds: float) -> float | None:
    """Run the state machine with the bug in the scripts; gives after how many seconds it was found, None if not."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        scripts.load_scripts.cache_clear()
        plant(mutation, patch, Path(folder))
        sources = {name: script.source for name, script in scripts.load_scripts(CONFIG, CLOCK).items()}
    scripts.load_scripts.cache_clear()
    with redis.Redis.from_url(url, protocol=3, legacy_responses=False) as client:
        shas = {name: client.script_load(source) for name, source in (sources | {"dump": DUMP}).items()}
        often = {f"{name}_{i}": rule(dice=DICE)(ACTS[name]) for i, name in enumerate(OFTEN)}
        fields = {"client": client, "shas": shas, "seen": Counter()} | often
        machine = seed(number)(type("Bound", (Machine,), fields))
        started = time.monotonic()
        machine.until = started + seconds
        try:
            run_state_machine_as_test(machine, settings=ONCE)
        except Exception:
            return time.monotonic() - started
    return None


def found_by_checks() -> bool:
    """Run the directed checks, each without its bug and with it."""
    command = [sys.executable, "-m", "pytest", "-q", str(TESTS / "mutations")]
    return subprocess.run(command, check=False, cwd=TESTS.parent).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    directed = found_by_checks()
    in_scripts = [mutation for mutation in MUTATIONS if mutation.place.endswith(".lua")]
    found = 0
    with start(Path(tempfile.mkdtemp(prefix="stoker-m-", dir="/tmp")), ephemeral=True) as server:
        for mutation in in_scripts:
            after_s = found_by_machine(mutation, server.url, options.seed, options.seconds)
            found += after_s is not None
            say(f"{mutation.name:72} {'not found' if after_s is None else f'found after {after_s:.1f} s'}")
    say(f"seed {options.seed}: the state machine found {found} of {len(in_scripts)} bugs in scripts")
    say(f"mutations: {len(MUTATIONS)} planted, {'all found by their checks ok' if directed else 'some NOT found'}")
    return 0 if directed else 1


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
