"""Reading what a batch has so far: from its whole files when it is over, from its runs' files before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from stoker.batch import parts
from stoker.batch.files import Folder
from stoker.batch.spec import Spec


def answer_pieces(spec: Spec) -> Iterator[bytes]:
    """Give the output so far, in pieces that end anywhere."""
    return _pieces(spec, Path(spec.output), errors=False)


def error_pieces(spec: Spec) -> Iterator[bytes]:
    """Give the errors so far, in pieces that end anywhere."""
    return _pieces(spec, Path(spec.errors), errors=True)


def _pieces(spec: Spec, whole: Path, *, errors: bool) -> Iterator[bytes]:
    files = Folder(spec.parts)
    checkpoint = parts.last_checkpoint(files)
    if checkpoint is not None:
        yield from parts.read_segments(files, checkpoint.errors if errors else checkpoint.outputs)
    elif whole.exists():
        with whole.open("rb") as file:
            while piece := file.read(parts.CHUNK):
                yield piece


def whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give the lines of pieces that end anywhere, without their ends."""
    rest = b""
    for piece in pieces:
        *complete, rest = (rest + piece).split(b"\n")
        yield from complete
    if rest:
        yield rest
