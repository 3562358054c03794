"""When a request would be finished: what the leader publishes, and submit holds deadlines against. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a fleet does when it is full. `tokens_per_s`: of prompts and max_tokens together, as they are reserved.

    `base_us` is what any request takes, `prompt_us` and `answer_us` what each token of its prompt and of its max_tokens
    adds.
    """

    tokens_per_s: float
    base_us: float
    prompt_us: float
    answer_us: float

    def finish_us(self, ahead_tokens: float, prompt_tokens: int, max_tokens: int) -> float:
        """Return how long a request takes behind so many tokens that wait: its turn, and its own time."""
        own = self.base_us + self.prompt_us * prompt_tokens + self.answer_us * max_tokens
        return ahead_tokens * 1e6 / self.tokens_per_s + own

    def text(self) -> str:
        """Return it as the scripts read it: four numbers between `|`."""
        return f"{self.tokens_per_s:.3f}|{self.base_us:.0f}|{self.prompt_us:.3f}|{self.answer_us:.3f}"
