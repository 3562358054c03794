"""The shape of the house: which package may import which, and what importing one must not bring in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "stoker": ("producer/stoker", set()),
    "stoker_scheduler": ("scheduler/stoker_scheduler", {"stoker"}),
    "stoker_workers": ("workers/stoker_workers", {"stoker"}),
    "stoker_ops": ("ops/stoker_ops", {"stoker", "stoker_scheduler", "stoker_workers"}),
}
NEVER = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}


def imports(path: Path) -> set[str]:
    """The top-level packages that a module imports, at whatever place in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_packages_point_one_way(package: str) -> None:
    folder, allowed = PACKAGES[package]
    for path in (ROOT / folder).rglob("*.py"):
        ours = imports(path) & set(PACKAGES) - {package}
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {sorted(ours - allowed)}"


def test_nothing_imports_a_format_that_runs_code() -> None:
    for folder, _ in PACKAGES.values():
        for path in (ROOT / folder).rglob("*.py"):
            assert not imports(path) & NEVER, path


def test_only_the_store_speaks_redis() -> None:
    for folder, _ in PACKAGES.values():
        for path in (ROOT / folder).rglob("*.py"):
            outside = "store" not in path.parts and path.name != "embedded.py"
            assert not (outside and "redis" in imports(path)), path


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


def test_importing_the_sdk_brings_no_heavy_module() -> None:
    assert not loaded_by("import stoker") & {"torch", "transformers", "redis", "pydantic", "rich"}
    assert not loaded_by("from stoker import Client, AsyncClient, DistributedServingEngine") & {"torch", "transformers"}


def test_help_is_quick_because_commands_import_late() -> None:
    statement = "from stoker.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not loaded_by(statement) & {"torch", "transformers", "redis", "pydantic", "rich"}
