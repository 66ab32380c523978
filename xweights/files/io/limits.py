"""Limits on the memory that reading a file may take."""

from __future__ import annotations

from dataclasses import dataclass

from xweights.files.io.open_file import refused
from xweights.files.io.records import Record

MIB = 1 << 20
# Memory that an index may take on top of max_bytes, and the ratio of its parsed size to its size in the file.
_INDEX_ROOM = 48 * MIB
_PARSED = 12
# Without max_bytes: compressed data may grow by this factor, or up to this many bytes, whichever is more.
_GROWTH = 64
_ALWAYS = 256 * MIB


@dataclass(frozen=True)
class Limits:
    """Limits for one file; ``max_bytes`` is the largest size of one array in memory, None for the file's own size.

    ``dequantize``: arrays of a quantized type are read as float32, which takes more memory than they have in the file.
    """

    max_bytes: int | None = None
    dequantize: bool = False

    def check(self, path: str, record: Record) -> None:
        """Refuse an array that is larger than ``max_bytes``."""
        if self.max_bytes is not None and record.nbytes > self.max_bytes:
            reason = (
                f"it is larger than max_bytes\ngot:      {record.nbytes:,} bytes\nexpected: {self.max_bytes:,} bytes"
            )
            raise refused(path, reason, key=record.key, fix="give a larger max_bytes= if you trust the file")

    def check_growth(self, path: str, key: str, stored: int, unpacked: int) -> None:
        """Refuse compressed data that would grow beyond the limit."""
        most = max(_ALWAYS, _GROWTH * stored) if self.max_bytes is None else self.max_bytes
        if unpacked > most:
            reason = f"{stored:,} compressed bytes would become {unpacked:,}, and {most:,} are allowed"
            raise refused(path, reason, key=key, fix="give a larger max_bytes= if you trust the file")

    @property
    def index_room(self) -> int:
        """Bytes of memory that the index of a file (names, shapes) may take."""
        return 1 << 32 if self.max_bytes is None else self.max_bytes + _INDEX_ROOM

    def check_index(self, path: str, length: int) -> None:
        """Refuse an index that would take more memory than allowed."""
        if length * _PARSED > self.index_room:
            reason = f"its index of {length:,} bytes would take more memory than max_bytes={self.max_bytes:,} allows"
            raise refused(path, reason, fix="give a larger max_bytes= if you trust the file")
