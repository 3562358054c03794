"""What an error that came out of a model means: too little memory, or a device that is of no more use."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from stoker_workers.engine import OutOfMemory

EXIT_DEVICE = 4
"""How a worker's child ends when its device is of no more use to it."""

# By name and text, not by type: the user's framework may be any, and a worker without torch imports none.
_MEMORY_TYPES = ("OutOfMemoryError", "MemoryError", "OutOfMemory")
_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_STICKY_TEXTS = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "invalid program counter",
    "misaligned address",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ECC error",
    "context is destroyed",
    "CUDA error: unknown error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
)
"""After these every later call of the process fails too, whatever it asks for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a step failed for want of memory alone: with fewer rows it may succeed."""
    if any(kind.__name__ in _MEMORY_TYPES for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and _says(error, _MEMORY_TEXTS)


def is_sticky(error: BaseException) -> bool:
    """Return whether the process can use its device no more."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and _says(error, _STICKY_TEXTS)


@contextlib.contextmanager
def telling_memory() -> Iterator[None]:
    """Turn a framework's own errors for want of memory into `OutOfMemory`; all others pass."""
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(described(error)) from error
        raise


def free_memory() -> None:
    """Give cached memory back to the device, after the frames of the failed step are gone."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def described(error: BaseException) -> str:
    """Return the first line of an error, short enough for a message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}".rstrip(": ")


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    message = str(error).lower()
    return any(text.lower() in message for text in texts)
