"""Pages that list something list all of it, and nothing that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import stoker
from chaos.faults import FAULTS
from stoker import Config, errors
from stoker.config import MIB

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "ops" / "RUNBOOK.md", *sorted((ROOT / "docs").glob("*.md")))


def rows(page: str) -> list[list[str]]:
    """The cells of all rows of a page's tables."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]


def test_the_page_of_errors_has_every_error() -> None:
    public = {name for name in stoker.__all__ if hasattr(errors, name)}
    assert {name for row in rows("errors.md") for name in re.findall(r"^`([A-Z]\w+)`", row[0])} == public


def test_the_page_on_tuning_has_every_setting_with_its_default_and_meaning() -> None:
    listed = {row[0].strip("`"): row[1:] for row in rows("tuning.md") if re.fullmatch(r"`[a-z_]+`", row[0])}
    assert set(listed) == set(Config.model_fields)
    for name, field in Config.model_fields.items():
        assert listed[name][:2] == [shown(name, field.default), field.description], name
        assert listed[name][2], f"{name}: when to change it"


def shown(name: str, default: object) -> str:
    match default:
        case None:
            return "unset"
        case bool():
            return "on" if default else "off"
        case int() if name.endswith("_bytes") and default % MIB == 0:
            return f"{default // MIB} MiB"
        case int() | float():
            return f"{default:,}"
    return f"`{default}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_test_that_a_page_names_is_there(page: Path) -> None:
    tests = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    for file, name in re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", page.read_text()):
        assert file in tests, file
        assert f"def {name}" in tests[file].read_text(), name
    for path in re.findall(r"`(tests/[\w/.]+)", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_test_and_every_fault_that_the_page_of_faults_names_exists() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    tests = re.findall(r"`([\w/]+\.py)::(test_\w+)`", page)
    assert len(tests) > 20
    for file, name in tests:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), (file, name)
    cells = re.findall(r"chaos ((?:`[a-z-]+`(?:, )?)+)", page)
    assert {kind for cell in cells for kind in re.findall(r"`([a-z-]+)`", cell)} == set(FAULTS)
