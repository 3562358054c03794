"""What `import stoker` offers, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stoker
from stoker._calls import FIELDS, RequestFields


@pytest.mark.parametrize("name", stoker.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(stoker, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        stoker.Clinet  # noqa: B018 (it is the access that raises)


def test_all_public_names_are_listed() -> None:
    assert set(stoker.__all__) <= set(dir(stoker))


@pytest.mark.parametrize("module", ["stoker", "stoker.cli"])
def test_importing_it_loads_no_redis_no_pydantic_and_no_torch(module: str) -> None:
    program = (
        f"import {module}, sys; print([m for m in ('redis', 'pydantic', 'torch', 'structlog') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_keywords_of_submit_are_the_fields_of_a_request() -> None:
    assert set(RequestFields.__annotations__) == FIELDS
