"""How much a file is, before anything of it is sent."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker import _flows
from stoker.batch.format import Defaults, Entry, Parser
from stoker.batch.seen import SeenIds
from stoker.batch.source import check_input, count_lines, kind_of, lines
from stoker.request import RequestPriority
from stoker.store.codec import BYTES_PER_TOKEN, prompt_tokens

if TYPE_CHECKING:
    from stoker.client import Client

MOST_EXAMPLES = 10


@dataclass(slots=True)
class Estimate:
    """A file in figures. `examples`: messages of the first lines with an error. `tokens_per_s`: of all workers now."""

    lines: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    max_tokens: int = 0
    tokens_per_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """The longest that it takes at this rate, None where there is none."""
        return (self.prompt_tokens + self.max_tokens) / self.tokens_per_s if self.tokens_per_s else None


def estimate_file(client: Client, path: Path, defaults: Mapping[str, Any]) -> Estimate:
    """Read a file as a run would, against what the queue knows now. Raises `InvalidRequest`."""
    check_input(path)
    facts = client._drive(_flows.queue_facts)
    parser = Parser(
        source=str(path),
        batch="estimate",
        round=0,
        kind=kind_of(path),
        priority=RequestPriority.BATCH,
        defaults=Defaults.of(defaults, facts.card),
        any_model=True,
    )
    found = Estimate(tokens_per_s=sum(worker.rate for worker in client.workers() if worker.available))
    with path.open("rb") as file, tempfile.TemporaryDirectory(prefix="stoker-") as folder:
        seen = SeenIds(Path(folder) / "custom_ids", count_lines(file))
        for line in lines(file, client.config.batch_line_bytes):
            found.lines += 1
            parsed = parser.parse(line.number, line.data, None) if line.data is not None else None
            if isinstance(parsed, Entry) and seen.first(parsed.custom_id, line.number) == line.number:
                found.prompt_tokens += prompt_tokens(parsed.request, facts.bytes_per_token or BYTES_PER_TOKEN)[0]
                found.max_tokens += 0 if parser.defaults.encodes else parsed.request.max_tokens
                continue
            found.failed += 1
            if len(found.examples) < MOST_EXAMPLES:
                found.examples.append(_message(parser, line.number, parsed))
        seen.close()
    return found


def _message(parser: Parser, number: int, parsed: Any) -> str:
    if parsed is None:
        return parser.problem(number, None, "line_too_long", "the line is over batch_line_bytes").message
    if isinstance(parsed, Entry):
        return parser.problem(number, None, "duplicate_custom_id", f"custom_id {parsed.custom_id!r} was there").message
    return str(parsed.message)
