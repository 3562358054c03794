"""Batch files of the whole stack's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """The lines of answers or errors by their ids; fails if one is there twice."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def write(path: Path, bodies: list[dict[str, Any]], url: str = "/v1/completions") -> Path:
    """Write a line for each body, named c0, c1 and so on."""
    lines = [{"custom_id": f"c{i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
