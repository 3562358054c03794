"""The input of a batch: lines of a file with their places, read with bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stoker.batch.format import Kind
from stoker.errors import InvalidRequest

CHUNK = 1 << 20
SNIFFED = 8192
MAGIC = {
    b"\x1f\x8b": "gzip data; unpack it first: gunzip -c FILE | stoker batch submit -",
    b"\x28\xb5\x2f\xfd": "zstandard data; unpack it first: zstd -dc FILE | stoker batch submit -",
    b"BZh": "bzip2 data; unpack it first: bzip2 -dc FILE | stoker batch submit -",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xff\xfe": "text in UTF-16; convert it to UTF-8 first",
    b"\xfe\xff": "text in UTF-16; convert it to UTF-8 first",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line and where it begins. `data` is None for one that is over the limit; `size` is its length in bytes."""

    number: int
    offset: int
    data: bytes | None
    size: int


def lines(file: BinaryIO, limit: int, *, number: int = 1, offset: int = 0) -> Iterator[Line]:
    """Give the lines from line `number`, which begins at byte `offset`; none over `limit` bytes is held in memory."""
    file.seek(offset)
    while data := file.readline(limit + 2):
        whole, size = data.endswith(b"\n") or len(data) <= limit, len(data)
        if not whole:
            size += _skip(file)
        yield Line(number, offset, data if whole else None, size)
        number, offset = number + 1, offset + size


def _skip(file: BinaryIO) -> int:
    """Pass over the rest of a line; gives its bytes."""
    skipped = 0
    while piece := file.readline(CHUNK):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give the lines of pieces that end anywhere, without their ends."""
    rest = b""
    for piece in pieces:
        *complete, rest = (rest + piece).split(b"\n")
        yield from complete
    if rest:
        yield rest


def count_lines(file: BinaryIO) -> int:
    """Return how many lines a file has; what follows the last newline is one."""
    file.seek(0)
    count, last = 0, b"\n"
    while piece := file.read(CHUNK):
        count += piece.count(b"\n")
        last = piece[-1:]
    return count + (last != b"\n")


def check_input(path: Path) -> None:
    """Raise `InvalidRequest` naming the file for what cannot be a batch: no file, a folder, packed or binary data."""
    if path.is_dir():
        raise InvalidRequest("input", "must be a file of lines, not a folder", str(path))
    if not path.exists():
        raise InvalidRequest("input", "there is no such file", str(path))
    if not path.is_file():
        raise InvalidRequest("input", "must be a regular file (for a pipe give - and pipe into it)", str(path))
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED)
    except OSError as error:
        raise InvalidRequest("input", f"cannot be read ({error.strerror})", str(path)) from error
    if not head:
        raise InvalidRequest("input", "the file is empty", str(path))
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise InvalidRequest("input", f"is {what}", str(path))
    if b"\0" in head:
        raise InvalidRequest("input", "is binary, not lines of text", str(path))


def kind_of(path: Path) -> Kind:
    """Return how a file's lines are read: as prompts in a `.txt` file, else as JSON."""
    return "text" if path.suffix.lower() == ".txt" else "jsonl"
