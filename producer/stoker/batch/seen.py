"""Which custom ids a file had so far: a hash table on disk, for a million of them must not be in memory."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

SLOT = struct.Struct("<12sI")
PAGE_SLOTS = 8
_EMPTY = bytes(12)


class SeenIds:
    """The first line of each custom id.

    Open addressing in slots of a 96-bit hash and a line's number. Reading a line again finds its own number, so that
    the table may be ahead of the checkpoint that a run goes on from.
    """

    def __init__(self, path: Path, lines: int) -> None:
        """Use the table at `path`, made with room for `lines`, twice over."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        slots = 1 << max(10, (2 * lines - 1).bit_length())
        self._mask = slots - 1
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(self._file).st_size != slots * SLOT.size:
            os.ftruncate(self._file, slots * SLOT.size)

    def first(self, custom_id: str, number: int) -> int:
        """Return the line that first had this id: `number`, which is noted, or an earlier one."""
        digest = hashlib.blake2b(custom_id.encode(), digest_size=12).digest()
        slot = int.from_bytes(digest[:8], "little") & self._mask
        while True:
            count = min(PAGE_SLOTS, self._mask + 1 - slot)
            page = os.pread(self._file, count * SLOT.size, slot * SLOT.size)
            for known, line in SLOT.iter_unpack(page):
                if known == _EMPTY:
                    os.pwrite(self._file, SLOT.pack(digest, number), slot * SLOT.size)
                    return number
                if known == digest:
                    return min(int(line), number)
                slot += 1
            slot &= self._mask

    def sync(self) -> None:
        """Make it safe."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)
