"""What runs of one batch leave in its folder, and the whole files made of it.

Every run writes files of its own, named by its epoch: `out-<epoch>`, `err-<epoch>`, `checkpoint-<epoch>`. A checkpoint
says how many bytes of which files count; that of the highest epoch holds. So a run that was taken for dead and writes
on is in nobody's way, a line that was cut short counts for nothing, and the run after it has each line once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from stoker.batch.checkpoint import Checkpoint
from stoker.batch.files import CHUNK, Files, Folder, link_or_copy, sync_folder
from stoker.errors import StokerError

SPEC = "spec.json"
INPUT = "input"
DEFAULTS = "defaults.json"
IDS = "custom_ids"
PUBLISHED = "published.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_EPOCH = re.compile(r"(?:(?:all-)?(?:out|err)|checkpoint)-(\d+)")

Segments = Sequence[tuple[str, int]]


class OutputTaken(StokerError):
    """A file that is not this batch's stands where its output goes; nothing is overwritten."""


def last_checkpoint(files: Files) -> Checkpoint | None:
    """Return the checkpoint that holds, None before the first."""
    epochs = [int(found[1]) for name in files.names() if (found := _CHECKPOINT.fullmatch(name))]
    data = files.get(f"checkpoint-{max(epochs)}") if epochs else None
    return Checkpoint.from_json(data) if data else None


def last_epoch(files: Files) -> int:
    """Return the highest epoch that wrote here, 0 for none."""
    return max((int(found[1]) for name in files.names() if (found := _EPOCH.fullmatch(name))), default=0)


def read_segments(files: Files, segments: Segments) -> Iterator[bytes]:
    """Give what counts of some segments, in pieces.

    All are open before the first piece, so that none goes away meanwhile; raises `FileNotFoundError` then.
    """
    with ExitStack() as opened:
        readers = [opened.enter_context(files.reader(name)) for name, _ in segments]
        for file, (name, size) in zip(readers, segments, strict=True):
            yield from _first(file, name, size)


def _first(file: BinaryIO, name: str, size: int) -> Iterator[bytes]:
    while size:
        piece = file.read(min(size, CHUNK))
        if not piece:
            raise StokerError(f"{name} is shorter than its checkpoint says by {size} bytes; was it changed?")
        size -= len(piece)
        yield piece


class Writer:
    """The segments of one run."""

    def __init__(self, files: Files, epoch: int, before: Checkpoint) -> None:
        """Go on behind what `before` says counts."""
        self._files = files
        self._epoch = epoch
        self._before = {"out": before.outputs, "err": before.errors}
        self._sizes = {"out": 0, "err": 0}
        self._buffers: dict[str, list[bytes]] = {"out": [], "err": []}
        self.buffered = 0
        """Bytes that are not written yet."""

    def answer(self, line: bytes) -> None:
        """Add a line of output."""
        self._add("out", line)

    def error(self, line: bytes) -> None:
        """Add a line of errors."""
        self._add("err", line)

    def _add(self, kind: str, line: bytes) -> None:
        self._buffers[kind].append(line)
        self.buffered += len(line)

    def flush(self) -> None:
        """Write what is buffered and make it safe. Raises `OSError` when the disk is full."""
        for kind, lines in self._buffers.items():
            if lines:
                data = b"".join(lines)
                self._files.append(f"{kind}-{self._epoch}", data)
                self._sizes[kind] += len(data)
                lines.clear()
        self.buffered = 0
        self._files.sync()

    def segments(self, kind: str) -> tuple[tuple[str, int], ...]:
        """Return what counts: the earlier runs' and this one's."""
        own = ((f"{kind}-{self._epoch}", self._sizes[kind]),) if self._sizes[kind] else ()
        return *self._before[kind], *own

    def commit(self, checkpoint: Checkpoint) -> None:
        """Make a checkpoint the one that holds."""
        self._files.put(f"checkpoint-{self._epoch}", checkpoint.to_json())


def merged(files: Folder, kind: str, segments: Segments, epoch: int) -> tuple[str, int]:
    """Return one file with all that counts: this run's own segment where that is all, else a new one.

    Never another run's, which may be thought dead and write on.
    """
    if len(segments) == 1 and segments[0][0] == f"{kind}-{epoch}":
        return segments[0]
    name = f"all-{kind}-{epoch}"
    files.remove(name)
    files.append(name, b"")
    for piece in read_segments(files, segments):
        files.append(name, piece)
    files.sync()
    return name, sum(size for _, size in segments)


def publish(files: Folder, name: str, target: Path) -> None:
    """Put a finished file where it was asked for; raises `OutputTaken` over a file that is not this batch's."""
    known: dict[str, list[int]] = json.loads(files.get(PUBLISHED) or b"{}")
    ours = known.setdefault(str(target), [])
    if target.exists() and target.stat().st_ino not in ours:
        raise OutputTaken(f"{target} is there and is not this batch's; move it away, then `stoker batch resume`")
    fresh = files.path / f"publish-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    link_or_copy(files.path / name, fresh)
    # Noted first: a file that was put in place and not noted would be taken for somebody else's.
    ours.append(fresh.stat().st_ino)
    files.put(PUBLISHED, json.dumps(known).encode())
    fresh.replace(target)
    # Where both names are one file already, replacing does nothing.
    fresh.unlink(missing_ok=True)
    sync_folder(target.parent)


def withdraw(files: Folder, target: Path) -> None:
    """Remove what an earlier round of this batch published."""
    known: dict[str, list[int]] = json.loads(files.get(PUBLISHED) or b"{}")
    if target.exists() and target.stat().st_ino in known.get(str(target), []):
        target.unlink()


def tidy(files: Files, checkpoint: Checkpoint, epoch: int) -> None:
    """Keep of a finished batch what a retry needs: its whole files, and a checkpoint that names them alone."""
    files.put(f"checkpoint-{epoch}", checkpoint.to_json())
    segments = checkpoint.outputs + checkpoint.errors
    needed = {f"checkpoint-{epoch}", SPEC, INPUT, DEFAULTS, PUBLISHED, IDS, *(name for name, _ in segments)}
    for name in files.names():
        found = _EPOCH.fullmatch(name)
        # Those of a later epoch belong to a run that took over meanwhile.
        if name not in needed and (found is None or int(found[1]) <= epoch):
            files.remove(name)
