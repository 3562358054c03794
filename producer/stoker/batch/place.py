"""Where a batch lies: in a folder that all who run it share, or in Redis."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from stoker.batch import parts
from stoker.batch.checkpoint import Checkpoint
from stoker.batch.files import CHUNK, Files, Folder
from stoker.batch.redis_files import RedisFiles
from stoker.batch.source import check_input
from stoker.batch.spec import Spec, check_places
from stoker.command import state_dir
from stoker.config import Config
from stoker.store.connection import Store


class Place(Protocol):
    """A batch's input, the files of its runs, and where its answers go."""

    files: Files
    ids: Path
    """A file of this machine for the table of custom ids; it may be lost."""

    def stamp(self) -> tuple[int, int]:
        """Return what tells that the input was changed; raises `InvalidRequest` where it is no input any more."""
        ...

    def open_input(self) -> BinaryIO:
        """Open the input."""
        ...

    def publish(self, checkpoint: Checkpoint, epoch: int, confirm: Callable[[], None]) -> Checkpoint:
        """Give what counts to whoever asked for it; gives the checkpoint of what there is then.

        `confirm` raises where the run has lost the batch: asked last before anything is removed.
        """
        ...

    def clear(self) -> None:
        """Remove what nobody needs of a batch without errors."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class FolderPlace:
    """Files beside the output, made whole under the output's name."""

    def __init__(self, spec: Spec, config: Config) -> None:
        """Raises `ConfigError` for files outside `batch_root`."""
        check_places(spec, config)
        self._spec = spec
        self.files: Files
        self._folder = self.files = Folder(spec.parts)
        self.ids = spec.parts / parts.IDS

    def stamp(self) -> tuple[int, int]:
        """Return the input's size and when it was last changed."""
        path = Path(self._spec.input)
        check_input(path)
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns

    def open_input(self) -> BinaryIO:
        """Open the input."""
        return Path(self._spec.input).open("rb")

    def publish(self, checkpoint: Checkpoint, epoch: int, confirm: Callable[[], None]) -> Checkpoint:
        """Make whole files of the segments and put them where they were asked for."""
        output = parts.merged(self._folder, "out", checkpoint.outputs, epoch)
        errors = parts.merged(self._folder, "err", checkpoint.errors, epoch)
        parts.publish(self._folder, output[0], Path(self._spec.output))
        if errors[1]:
            parts.publish(self._folder, errors[0], Path(self._spec.errors))
        else:
            parts.withdraw(self._folder, Path(self._spec.errors))
        confirm()
        whole = dataclasses.replace(checkpoint, outputs=(output,), errors=(errors,))
        parts.tidy(self.files, whole, epoch)
        return whole

    def clear(self) -> None:
        """Remove the folder: the answers are in the output."""
        shutil.rmtree(self._spec.parts, ignore_errors=True)

    def close(self) -> None:
        """Close the files."""
        self._folder.close()


class RedisPlace:
    """Files in Redis, where clients read the answers as they stand: they are never made one file."""

    def __init__(self, spec: Spec, config: Config, left_s: Callable[[], float]) -> None:
        """Keep the files for `batch_ttl_s` behind the window, of which `left_s()` seconds are left."""
        self._store = Store(config.home)
        self.files: Files
        self._redis = self.files = RedisFiles(self._store, spec.id, lambda: max(0.0, left_s()) + config.batch_ttl_s)
        self._scratch = state_dir(config) / "batches" / spec.id
        self.ids = self._scratch / parts.IDS

    def stamp(self) -> tuple[int, int]:
        """Return the input's size; nobody changes it."""
        return self._redis.sizes().get(parts.INPUT, 0), 0

    def open_input(self) -> BinaryIO:
        """Open the input."""
        return self.files.reader(parts.INPUT)

    def send(self, path: Path) -> None:
        """Bring the input. Raises `StoreFull`, `RedisUnavailable`, `OSError`."""
        self.files.remove(parts.INPUT)
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                self.files.append(parts.INPUT, piece)

    def publish(self, checkpoint: Checkpoint, epoch: int, confirm: Callable[[], None]) -> Checkpoint:
        """Leave the segments as they are: clients read what the checkpoint counts."""
        confirm()
        parts.tidy(self.files, checkpoint, epoch)
        return checkpoint

    def clear(self) -> None:
        """Remove what lies on this machine."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def close(self) -> None:
        """Close the connections."""
        self._store.close()


def place_of(spec: Spec, config: Config, left_s: Callable[[], float]) -> Place:
    """Return where a batch lies, of whose window `left_s()` seconds are left. Raises `ConfigError`."""
    return RedisPlace(spec, config, left_s) if spec.store == "redis" else FolderPlace(spec, config)
