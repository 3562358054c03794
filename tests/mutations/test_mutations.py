"""Every planted bug is found: its check passes without it and fails with it."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mutations.plant import plant
from mutations.table import MUTATIONS, Mutation
from stoker.store import scripts

CASES = [pytest.param(mutation, id=mutation.name.replace(" ", "-")) for mutation in MUTATIONS]
OF_OTHERS = [case for case, mutation in zip(CASES, MUTATIONS, strict=True) if "mutations." not in mutation.check]
"""Those whose checks are tests of another folder: here they get fixtures of this one. The others run here anyway."""


@pytest.fixture
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mutation]:
    """A bug, for the time of a test."""
    mutation: Mutation = request.param
    scripts.load_scripts.cache_clear()
    plant(mutation, monkeypatch, tmp_path)
    yield mutation
    scripts.load_scripts.cache_clear()


def run_check(mutation: Mutation, request: pytest.FixtureRequest) -> None:
    """Call the check, with the fixtures that it asks for."""
    module, _, name = mutation.check.partition(":")
    check = getattr(importlib.import_module(module), name)
    wanted = inspect.signature(check).parameters.keys() - mutation.arguments.keys()
    check(**mutation.arguments, **{fixture: request.getfixturevalue(fixture) for fixture in wanted})


@pytest.mark.untraced
@pytest.mark.usefixtures("redis_url")
@pytest.mark.parametrize("mutation", OF_OTHERS)
def test_the_check_of_a_bug_passes_without_it(mutation: Mutation, request: pytest.FixtureRequest) -> None:
    run_check(mutation, request)


@pytest.mark.untraced
@pytest.mark.usefixtures("redis_url")
@pytest.mark.parametrize("planted", CASES, indirect=True)
def test_a_planted_bug_is_found(planted: Mutation, request: pytest.FixtureRequest) -> None:
    # Nothing but a wrong answer, or none, counts: a script that cannot run at all would be found by every test.
    with pytest.raises((AssertionError, LookupError)):
        run_check(planted, request)


def test_no_bug_is_planted_twice() -> None:
    edits = Counter((mutation.place, mutation.original, mutation.replacement) for mutation in MUTATIONS)
    names = Counter(mutation.name for mutation in MUTATIONS)
    assert max(edits.values()) == max(names.values()) == 1
