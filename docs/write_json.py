"""Writes docs/json.md out of docs/json.schema.json, which is the source: what each command prints with --json.

python docs/write_json.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCHEMA = FOLDER / "json.schema.json"
PAGE = FOLDER / "json.md"

HEAD = """\
# What `--json` prints

<!-- Written by docs/write_json.py out of json.schema.json: change that one. -->

With `--json` a command prints one JSON document to standard output and nothing else; `stoker top` one a line. Errors
are lines on standard error, and the exit codes are the same as without. Units are the last part of a name: `_s`, `_ms`,
`_us`. Within a minor version fields are added, but none is renamed or dropped.

[json.schema.json](json.schema.json) has all of this as JSON Schema: the property `stats` describes what
`stoker stats --json` prints. It lies beside this page and not in the package, for nothing at run time reads it; the
tests hold real output of every command against it, and refuse a field that it does not know.
"""


def page(schema: Mapping[str, Any]) -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for command, shape in schema["properties"].items():
        parts.append(f"## stoker {command}\n\n{shape['description']}\n\n{_body(shape)}")
    parts.append("# Parts that several have\n")
    for name, shape in schema["$defs"].items():
        parts.append(f"## {name}\n\n{_sentence(shape['description'])}\n\n{_body(shape)}")
    return "\n".join(parts).rstrip() + "\n"


def _body(shape: Mapping[str, Any]) -> str:
    rows = list(_rows(shape, ""))
    if not rows:
        return f"{_sentence(_kind(shape))}\n"
    lines = [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in rows]
    return "\n".join([f"{_sentence(_kind(shape))}\n", "| Field | Type | Meaning |", "|---|---|---|", *lines, ""])


def _rows(shape: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    """Give name, type and meaning of each field below, with those of objects inside."""
    for part in shape.get("anyOf", ()):
        yield from _rows(part, path)
    if "items" in shape:
        yield from _rows(shape["items"], f"{path}[]")
    if isinstance(shape.get("additionalProperties"), dict):
        yield from _rows(shape["additionalProperties"], f"{path}.*" if path else "*")
    for name, field in shape.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        if "description" in field:  # else its name says all
            yield where, _kind(field), field["description"]
        yield from _rows(field, where)


def _kind(shape: Mapping[str, Any]) -> str:
    if "$ref" in shape:
        name = shape["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "anyOf" in shape:
        return " or ".join(_kind(part) for part in shape["anyOf"])
    if "enum" in shape:
        return ", ".join(shape["enum"])
    kinds = shape.get("type", "anything")
    kind = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if "items" in shape:
        kind = f"{kind} of {_kind(shape['items'])}"
    if isinstance(shape.get("additionalProperties"), dict):
        kind = f"{kind} of {_kind(shape['additionalProperties'])} by name"
    return kind


def _sentence(text: str) -> str:
    return text if text.startswith("[") else f"{text[0].upper()}{text[1:].rstrip('.')}."


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(SCHEMA.read_text())))
