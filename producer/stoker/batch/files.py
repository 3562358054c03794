"""Where a batch keeps its files. A shared folder here; another kind of store needs the same few verbs."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Protocol

CHUNK = 1 << 20
"""Bytes that are read or written at a time."""


class Files(Protocol):
    """Files of one batch by name. What was appended outlives a crash once `sync` returned, what was put at once."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file that only this run writes."""
        ...

    def sync(self) -> None:
        """Make what was appended safe."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Replace a whole file at once and safely."""
        ...

    def get(self, name: str) -> bytes | None:
        """Return a whole small file, None where there is none."""
        ...

    def reader(self, name: str) -> BinaryIO:
        """Open a file for reading; raises `FileNotFoundError`."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class Folder:
    """Files in a folder, on a disk that all who run the batch see."""

    def __init__(self, path: Path) -> None:
        """Use a folder; it is made with the first file."""
        self.path = path
        self._open: dict[str, BinaryIO] = {}
        self._dirty: set[str] = set()

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file. Raises `OSError` when the disk is full."""
        file = self._open.get(name)
        if file is None:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self._open[name] = (self.path / name).open("ab", buffering=0)
        view = memoryview(data)
        try:
            while view:
                view = view[file.write(view) or 0 :]
        except OSError as error:  # which does not say of which file
            raise OSError(error.errno, error.strerror, str(self.path / name)) from error
        self._dirty.add(name)

    def sync(self) -> None:
        """Make what was appended safe."""
        for name in sorted(self._dirty):
            os.fsync(self._open[name].fileno())
        self._dirty.clear()

    def put(self, name: str, data: bytes) -> None:
        """Replace a whole file: it is the old or the new one, whenever the machine stops."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path / f"{name}.new-{os.getpid()}"
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path / name)
        sync_folder(self.path)

    def get(self, name: str) -> bytes | None:
        """Return a whole small file, None where there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def reader(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        return (self.path / name).open("rb")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if file := self._open.pop(name, None):
            file.close()
        self._dirty.discard(name)
        (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of what is open."""
        while self._open:
            self._open.popitem()[1].close()


def sync_folder(path: Path) -> None:
    """Make the names in a folder safe, where the system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy on a disk without hard links."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
