"""What a local stack is to run, and what its processes are given."""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stoker_ops.gpus import engine_kind
from stoker_workers.card import read_config, weight_files
from stoker_workers.cli import worker
from stoker_workers.demo import DEMO
from stoker_workers.engines import TORCH
from stoker_workers.messages import EngineOptions

_LONGEST_TEMP = 70  # bytes of a folder for temporary files that leave room for a socket's path


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """What to run.

    `workers`: how many; None: one for each GPU that the model can use, else one. `share_gpus`: whether several may use
    one. `home`: the folder of the Redis, kept at the end; None: a private one that is removed. `quiet`: what the
    processes print goes into files, else to standard error. `worker_path`: where workers look for a model's own code,
    besides the current folder. `batch`: whether to run batch files too. `ready_timeout_s`: None: as long as a model may
    take to load, and a little more.
    """

    options: EngineOptions
    workers: int | None = None
    share_gpus: bool = False
    home: Path | None = None
    quiet: bool = False
    log_level: str = "info"
    ready_timeout_s: float | None = None
    worker_path: tuple[str, ...] = ()
    batch: bool = False


def check_model(options: EngineOptions) -> None:
    """Raise `ConfigError` for a folder without a model: here, before a worker needs seconds to find out."""
    if engine_kind(options) == TORCH and options.model != DEMO:
        folder = Path(options.model)
        read_config(folder)
        weight_files(folder)


def arguments_of(options: EngineOptions) -> list[str]:
    """Return the options of `stoker worker` that mean the same."""
    names = {option.name: option.opts[0] for option in worker.params}
    given = {name: value for name, value in dataclasses.asdict(options).items() if value not in (None, False)}
    flags = {names[name]: value for name, value in given.items()}
    return [word for flag, value in flags.items() for word in ([flag] if value is True else [flag, str(value)])]


def worker_names(count: int, *, alone: bool) -> list[str]:
    """Name the workers: always the same on a Redis of our own, so that those of a stack that was killed are superseded
    at once; else unique."""
    prefix = "w" if alone else f"{socket.gethostname().split('.')[0]}-{os.getpid()}-w"
    return [f"{prefix}{number}" for number in range(count)]


def short_temp() -> str:
    """Return the folder for temporary files, or a shorter one where a socket in it would have too long a path."""
    usual = tempfile.gettempdir()
    return "/tmp" if len(os.fsencode(usual)) > _LONGEST_TEMP and os.access("/tmp", os.W_OK) else usual  # noqa: S108  # mkdtemp makes a private one in it
