"""The model of the chaos runs: answers with a function of its input, takes its time, and dies of planted poison."""

from __future__ import annotations

import hashlib
import os
import time

POISON = "poison"
STEP_S = 0.1


def answer(text: str) -> str:
    """What the one right answer to an input is."""
    return hashlib.sha256(text.encode()).hexdigest()


class Model:
    """One step is a batch; inputs that begin with `poison` end the process."""

    def load(self, device: str) -> None:
        self.device = device

    def predict(self, batch: list[str]) -> list[str]:
        time.sleep(STEP_S)
        if any(text.startswith(POISON) for text in batch):
            os.abort()
        return [answer(text) for text in batch]
