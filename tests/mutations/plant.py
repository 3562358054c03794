"""Plants a bug: a textual edit of a copy of the scripts, or of one function of a service, for the time of a test."""

from __future__ import annotations
import __future__

import importlib
import inspect
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mutations.table import Mutation
from stoker.store import scripts


def edited(mutation: Mutation, text: str) -> str:
    """Return the text with the bug in it."""
    found = text.count(mutation.original)
    assert found == 1, f"{mutation.place}: the snippet of {mutation.name!r} is there {found} times: update the table"
    return text.replace(mutation.original, mutation.replacement)


def plant(mutation: Mutation, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Plant the bug; a changed copy of the scripts goes into `folder`."""
    if mutation.place.endswith(".lua"):
        _plant_in_scripts(mutation, monkeypatch, folder)
    else:
        _plant_in_function(mutation, monkeypatch)


def _plant_in_scripts(mutation: Mutation, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    copy = Path(shutil.copytree(str(scripts.lua_folder()), folder / "lua"))
    file = copy / mutation.place
    file.write_text(edited(mutation, file.read_text()))
    monkeypatch.setattr(scripts, "lua_folder", lambda: copy)


def _plant_in_function(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, path = mutation.place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = inspect.unwrap(getattr(owner, name))
    source = edited(mutation, textwrap.dedent(inspect.getsource(function)))
    code = compile(source, mutation.place, "exec", __future__.annotations.compiler_flag, dont_inherit=True)
    planted: dict[str, Any] = {}
    exec(code, function.__globals__, planted)  # noqa: S102  # our own source, with the bug in it
    monkeypatch.setattr(owner, name, planted[name])
