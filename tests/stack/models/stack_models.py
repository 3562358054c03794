"""Models of users, as small as they can be; workers of the tests import them by name."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path


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


class Quoting:
    """Quotes what it was given in whatever goes wrong with it."""

    def load(self, device: str) -> None:
        self.device = device

    def cost(self, inputs: object) -> int:
        if "unpriced" in str(inputs):
            raise ValueError(f"no price for {inputs}")
        return len(str(inputs))

    def predict(self, batch: list[object]) -> list[object]:
        for item in batch:
            if "raise" in str(item):
                raise ValueError(f"cannot read {item}")
            if "crash" in str(item):
                raise Crash(f"cannot go on after {item}") from ValueError(f"{item}")
        return [ValueError(f"refused: {item}") if "fail" in str(item) else {"echo": item} for item in batch]


class Crash(BaseException):
    """Passes by whoever catches exceptions."""


class Tight:
    """Has memory for a batch of `MOST` characters; one input of its own accord needs more than there is."""

    MOST = 8

    def load(self, device: str) -> None:
        self.device = device

    def cost(self, inputs: object) -> int:
        return len(str(inputs))

    def predict(self, batch: list[str]) -> list[object]:
        time.sleep(0.02)
        if sum(map(len, batch)) > self.MOST:
            raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(batch)} GiB")
        return [{"batch": len(batch)} for _ in batch]


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


class Sticky:
    """Loses its device over one input, as long as the file that it names stands; after that every call fails."""

    def load(self, device: str) -> None:
        self.lost = False

    def predict(self, batch: list[str]) -> list[str]:
        time.sleep(0.02)
        marks = [Path(item) for item in batch if item.startswith("/")]
        for mark in marks:
            if mark.exists():
                mark.unlink()
                self.lost = True
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return batch


class Gripping:
    """Sleeps with the interpreter's lock in its hand, as a kernel does that hangs: no thread of the process runs."""

    def load(self, device: str) -> None:
        self.device = device

    def predict(self, batch: list[str]) -> list[str]:
        for item in batch:
            if item.startswith("/") and Path(item).exists():
                Path(item).unlink()
                ctypes.PyDLL(None).sleep(3600)
        time.sleep(0.02)
        return batch


class FromFolder:
    """Answers with what is in its folder."""

    def load(self, device: str) -> None:
        self.weights = (Path(os.environ["MODEL_FOLDER"]) / "weights").read_text()

    def predict(self, batch: list[object]) -> list[object]:
        return [self.weights for _ in batch]
