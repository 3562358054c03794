"""Reading what a batch has so far: from its whole files when it is over, from its runs' files before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from stoker.batch import parts
from stoker.batch.files import CHUNK, Files, Folder
from stoker.batch.redis_files import RedisFiles
from stoker.batch.spec import Spec
from stoker.config import Config
from stoker.store.connection import Store


def answer_pieces(spec: Spec, config: Config) -> Iterator[bytes]:
    """Give the output so far, in pieces that end anywhere."""
    return _pieces(spec, config, Path(spec.output), errors=False)


def error_pieces(spec: Spec, config: Config) -> Iterator[bytes]:
    """Give the errors so far, in pieces that end anywhere."""
    return _pieces(spec, config, Path(spec.errors), errors=True)


def _pieces(spec: Spec, config: Config, whole: Path, *, errors: bool) -> Iterator[bytes]:
    with ExitStack() as opened:
        if spec.store == "redis":
            store = opened.enter_context(closing(Store(config.home)))
            files: Files = RedisFiles(store, spec.id)
        else:
            files = Folder(spec.parts)
        gone = None
        while (checkpoint := parts.last_checkpoint(files)) is not None:
            pieces = parts.read_segments(files, checkpoint.errors if errors else checkpoint.outputs)
            try:
                first = next(pieces, b"")
            except FileNotFoundError:
                if checkpoint == gone:
                    raise
                # Its run has made one file of its parts meanwhile; a later checkpoint names that.
                gone = checkpoint
                continue
            yield first
            yield from pieces
            return
        if spec.store == "folder" and whole.exists():
            file = opened.enter_context(whole.open("rb"))
            while piece := file.read(CHUNK):
                yield piece
