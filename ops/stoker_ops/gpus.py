"""Which devices the workers of a stack run on."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE

from stoker.errors import ConfigError
from stoker_workers.engines import AUTO, OPENAI, SIM, kind_of
from stoker_workers.messages import EngineOptions

DEVICES = Path("/dev")
# Of NVIDIA, of AMD, and of a GPU under Windows. Without any of them torch is not asked, for that takes 2 s.
DEVICE_FILES = ("nvidia[0-9]*", "kfd", "dxg")
_ASK_TORCH = "import torch; print(torch.cuda.device_count())"


def engine_kind(options: EngineOptions) -> str:
    """Return the kind of engine that runs the model."""
    return kind_of(options.model) if options.engine == AUTO else options.engine


async def pick_devices(options: EngineOptions, workers: int | None, *, share: bool = False) -> list[str]:
    """Return a device for each worker: the first GPUs, or what `options` ask for; without GPUs that as often as asked.

    `workers` None means one for each GPU, else one; a tensor-parallel worker takes several, from its device on. Raises
    `ConfigError` for more workers than GPUs, unless they may `share` them.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers: must be at least 1, got {workers}")
    gpus = 0 if engine_kind(options) in (SIM, OPENAI) or options.device != AUTO else await count_gpus()
    if not gpus:
        return [options.device] * (workers or 1)
    each = options.tensor_parallel
    room = gpus // each
    if room == 0 or (workers and workers > room and not share):
        own = "a GPU of its own" if each == 1 else f"{each} GPUs of its own"
        raise ConfigError(
            f"workers: {workers or 1} were asked for, each on {own}, but torch finds {gpus};"
            " ask for fewer, or name the device for all of them (device=cpu, or --device cpu)"
        )
    return [f"cuda:{number % room * each}" for number in range(workers or room)]


async def count_gpus() -> int:
    """Return how many GPUs torch can use. It is asked in a process of its own: it would take 200 MB of this one."""
    if not _may_have_gpus() or not importlib.util.find_spec("torch"):
        return 0
    ask = [sys.executable, "-P", "-c", _ASK_TORCH]
    asked = await asyncio.create_subprocess_exec(*ask, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    answer, _ = await asked.communicate()
    return int(answer) if asked.returncode == 0 else 0


def _may_have_gpus() -> bool:
    return any(next(DEVICES.glob(pattern), None) for pattern in DEVICE_FILES)
