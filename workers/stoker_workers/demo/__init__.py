"""A tiny real language model that ships with Stoker, so that a first run needs no download.

It knows the Python documentation topics and nothing else. Nothing here imports torch: paths and texts only.
"""

import json
from dataclasses import dataclass
from pathlib import Path

DEMO = "demo"
"""The model name that stands for the shipped weights."""

PRIORITIES = ("critical", "high", "normal", "low", "batch")
"""The priorities a sample prompt may carry, most urgent first."""

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class SamplePrompt:
    """One request of the sample load: either `prompt` or `messages` is set."""

    prompt: str | None
    messages: list[dict[str, str]] | None
    max_tokens: int
    priority: str

    def __post_init__(self) -> None:
        """Refuse what could not be submitted, so that a typing slip in the file shows here and not at a worker."""
        if not self.prompt and not self.messages:
            raise ValueError("a sample prompt needs either prompt or messages")
        if self.prompt and self.messages:
            raise ValueError("a sample prompt takes prompt or messages, not both")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.priority not in PRIORITIES:
            raise ValueError(f"priority must be one of {', '.join(PRIORITIES)}, got {self.priority!r}")


def demo_model_path() -> Path:
    """Return the folder of the shipped model, in Hugging Face format."""
    return _HERE / "model"


def held_out_text() -> str:
    """Return the documentation topics that the shipped model never saw, for measuring its loss."""
    return (_HERE / "held_out.txt").read_text(encoding="utf-8")


def sample_prompts() -> list[SamplePrompt]:
    """Return about a hundred prompts of mixed length and priority that make sense for the shipped model."""
    lines = (_HERE / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [_sample(json.loads(line)) for line in lines]


def _sample(entry: dict[str, object]) -> SamplePrompt:
    unknown = entry.keys() - SamplePrompt.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"unknown field in a sample prompt: {', '.join(sorted(unknown))}")
    return SamplePrompt(**{"prompt": None, "messages": None, **entry})  # type: ignore[arg-type]  # checked there
