"""Files of a batch in Redis, for clients and batch workers that share no folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

from stoker.batch.files import CHUNK
from stoker.errors import StokerError
from stoker.store import batches
from stoker.store.connection import Store


class StoreFull(StokerError):
    """A batch has more to keep in Redis than `batch_store_bytes`."""


class RedisFiles:
    """Files of one batch by name, as `files.Files`. Each write keeps all of them for `kept_s()` seconds from then."""

    def __init__(self, store: Store, batch_id: str, kept_s: Callable[[], float] = lambda: 0.0) -> None:
        """Use a store, which `close` leaves open."""
        self._store = store
        self._id = batch_id
        self._kept_s = kept_s
        self._most = store.config.batch_store_bytes
        self._ends: dict[str, int] = {}

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file."""
        return self._store.read_patiently(batches.file_sizes(self._store.keys, self._id))

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(self.sizes())

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file that only this run writes. Raises `StoreFull`, `RedisUnavailable`."""
        if name not in self._ends:
            self._ends[name] = self.sizes().get(name, 0)
        for start in range(0, max(len(data), 1), CHUNK):
            piece = data[start : start + CHUNK]
            self._write(name, self._ends[name], piece)
            self._ends[name] += len(piece)

    def sync(self) -> None:
        """Do nothing: what Redis answered is as safe as its persistence makes it."""

    def put(self, name: str, data: bytes) -> None:
        """Replace a whole file at once. Raises `StoreFull`, `RedisUnavailable`."""
        self._write(name, None, data)
        self._ends[name] = len(data)

    def get(self, name: str) -> bytes | None:
        """Return a whole small file, None where there is none."""
        return self.reader(name).read() if name in self.sizes() else None

    def reader(self, name: str) -> BinaryIO:
        """Open a file for reading; raises `FileNotFoundError`."""
        size = self.sizes().get(name)
        if size is None:
            raise FileNotFoundError(f"batch {self._id!r} keeps no file {name!r} in Redis")
        return io.BufferedReader(_Reader(self._piece_of(name), size), CHUNK)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._store.run_patiently(batches.remove_batch_file(self._id, name))
        self._ends.pop(name, None)

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _write(self, name: str, offset: int | None, piece: bytes) -> None:
        kept_ms = int(self._kept_s() * 1000)
        call = batches.write_batch_file(self._id, name, offset, piece, kept_ms, self._most)
        fits, size = self._store.run_patiently(call)
        if not fits:
            raise StoreFull(f"batch_store_bytes: a batch may keep {self._most} bytes in Redis, this one needs {size}")

    def _piece_of(self, name: str) -> Callable[[int, int], bytes]:
        store = self._store
        return lambda offset, size: store.read_patiently(batches.file_piece(store.keys, self._id, name, offset, size))


class _Reader(io.RawIOBase):
    """A file that is read in pieces of `piece(offset, size)`."""

    def __init__(self, piece: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._piece = piece
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the stub asks for any buffer
        data = self._piece(self._at, min(len(buffer), self._size - self._at)) if self._at < self._size else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
