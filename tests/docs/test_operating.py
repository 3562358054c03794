"""docs/operating.md shows what the commands print now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
def test_the_page_on_operating_shows_what_commands_print() -> None:
    spec = importlib.util.spec_from_file_location("write_operating", DOCS / "write_operating.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    written = writer.shape((DOCS / "operating.md").read_text())
    assert written == writer.shape(writer.operating()), "run: python docs/write_operating.py"
