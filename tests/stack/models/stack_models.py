"""Models of users, as small as they can be; workers of the tests import them by name."""

from __future__ import annotations

import os
import sys
import time


class Echo:
    """Answers each input with itself, and with how many shared its batch."""

    def load(self, device: str) -> None:
        self.device = device

    def cost(self, inputs: object) -> int:
        return len(str(inputs))

    def predict(self, batch: list[object]) -> list[object]:
        if os.environ.get("BROKEN_WORKER"):
            raise RuntimeError("this worker is broken")
        time.sleep(0.02)
        return [ValueError("bad word") if item == "bad" else {"echo": item, "batch": len(batch)} for item in batch]


class Deadly:
    """Takes its process with it when an input says so."""

    def load(self, device: str) -> None:
        self.device = device

    def predict(self, batch: list[object]) -> list[object]:
        if "abort" in batch:
            os.abort()
        if "exit" in batch:
            sys.exit(1)
        if "hang" in batch:
            time.sleep(3600)
        time.sleep(0.02)
        return list(batch)


class Unloadable:
    """Cannot be loaded."""

    def load(self, device: str) -> None:
        raise OSError("the disk is on fire")

    def predict(self, batch: list[object]) -> list[object]:
        return batch
