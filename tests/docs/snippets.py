"""Finds the code blocks of a page of documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Snippet:
    """A code block. `reason`: why it is not run, out of a comment `<!-- not run: ... -->` on the line above it."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def find_snippets(root: Path, page: Path) -> Iterator[Snippet]:
    """Give every block of a page, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        name = str(page.relative_to(root))
        yield Snippet(name, line, found["language"], found["code"], found["reason"])
