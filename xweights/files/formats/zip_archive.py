"""Zip archives: their members, and the location of each member's bytes.

``zipfile`` reads the directory. Faults that it doesn't check are refused here: a repeated name, overlapping members,
encryption, a local header that contradicts the directory, data before the first member.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xweights.files.io.limits import Limits
from xweights.files.io.open_file import PIECE, OpenFile, Window, damaged, refused

LOCAL = struct.Struct("<4s5HLLL2H")
_ENCRYPTED = 0x1
_LATER = 0x8  # sizes and checksum follow the data
EXTRA = 0x5877  # "wX": the extra field with a member's metadata, in the directory


@dataclass(frozen=True, slots=True)
class Member:
    """One file in the archive. ``checks`` are the offsets of its CRC-32 in the archive."""

    name: str
    size: int
    stored_size: int
    offset: int
    deflated: bool
    crc: int
    checks: tuple[int, ...]
    metadata: bytes | None


class Archive:
    """An open zip file.

    ``may_lack_sums``: a CRC-32 of 0 says nothing, as in files of ``torch.serialization.set_crc32_options(False)``.
    """

    def __init__(self, file: OpenFile, limits: Limits, *, may_lack_sums: bool = False) -> None:
        self.file, self.limits, self.may_lack_sums = file, limits, may_lack_sums
        self.members: dict[str, Member] = {}
        try:
            with zipfile.ZipFile(Window(file)) as archive:
                infos = archive.infolist()
                self.start_of_directory = archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError, OverflowError) as wrong:
            raise damaged(file.path, f"it is no sound zip file: {str(wrong)[:120]}") from None
        limits.check_index(file.path, file.size - self.start_of_directory)
        entries = self._find_entries(infos)
        ends = []
        for info in infos:
            member = self._member(info, entries[info.filename])
            self.members[member.name] = member
            ends.append((info.header_offset, member.offset + member.stored_size, member.name))
        self._check_apart(ends)

    def _find_entries(self, infos: list[zipfile.ZipInfo]) -> dict[str, int]:
        """Return the offset in the archive of each member's directory entry."""
        entries: dict[str, int] = {}
        at = self.start_of_directory
        directory = self.file.read(at, self.file.size - at)
        position = 0
        for info in infos:
            if directory[position : position + 4] != b"PK\x01\x02":
                raise damaged(self.file.path, "its directory isn't where its end says")
            name, extra, comment = struct.unpack_from("<3H", directory, position + 28)
            if info.filename in entries:
                raise damaged(self.file.path, "it has two members of one name", key=info.filename)
            entries[info.filename] = at + position
            position += 46 + name + extra + comment
        return entries

    def _member(self, info: zipfile.ZipInfo, directory_entry: int) -> Member:
        path, name = self.file.path, info.filename
        if info.flag_bits & _ENCRYPTED:
            raise refused(path, "it is encrypted", key=name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refused(path, f"it is compressed by method {info.compress_type}, and only deflate is read", key=name)
        header = self.file.read(info.header_offset, LOCAL.size, key=name)
        magic, _, flags, method, _, _, crc, stored, size, name_length, extra_length = LOCAL.unpack(header)
        start = info.header_offset + LOCAL.size
        local_name = self.file.read(start, name_length, key=name)
        if magic != b"PK\x03\x04" or method != info.compress_type or local_name != _encode_name(info):
            raise damaged(path, "its own header and the archive's directory contradict each other", key=name)
        if not flags & _LATER:
            sizes = ((crc, info.CRC), (stored, info.compress_size), (size, info.file_size))
            if any(local not in (listed, 0xFFFFFFFF) for local, listed in sizes):
                raise damaged(path, "its own header and the archive's directory contradict each other", key=name)
        offset = start + name_length + extra_length
        self.file.check_inside(offset, info.compress_size, name)
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        if not deflated and info.compress_size != info.file_size:
            raise damaged(path, "it is stored, and yet has another size than its data", key=name)
        if deflated:
            self.limits.check_growth(path, name, info.compress_size, info.file_size)
        checks = [directory_entry + 16]
        if not flags & _LATER:
            checks.append(info.header_offset + 14)
        else:
            end = offset + info.compress_size
            signed = self.file.read(end, 4, key=name) == b"PK\x07\x08"
            checks.append(end + 4 * signed)
        if self.may_lack_sums and not info.CRC:
            checks = []  # and it stays so when the member is edited
        metadata = _find_extra(info.extra)
        return Member(name, info.file_size, info.compress_size, offset, deflated, info.CRC, tuple(checks), metadata)

    def _check_apart(self, ends: list[tuple[int, int, str]]) -> None:
        at = 0
        for first, last, name in sorted(ends):
            if first < at:
                raise damaged(self.file.path, "it overlaps the member before it", key=name)
            if not at and first:
                raise damaged(self.file.path, f"{first:,} bytes stand before its first member", key=name)
            at = last
        if at > self.start_of_directory:
            raise damaged(self.file.path, "its members run into its directory")

    def read(self, member: Member, most: int | None = None) -> bytes:
        """Return a member's bytes, or the first ``most`` of them."""
        count = member.size if most is None else min(most, member.size)
        return b"".join(self.stream(member, count))

    def stream(self, member: Member, most: int | None = None) -> Iterator[bytes]:
        """Yield a member's bytes in parts; check all of them against its CRC-32."""
        wanted = member.size if most is None else most
        done, crc = 0, 0
        step = min(PIECE, max(wanted, 64))
        for part in self._inflate(member, step) if member.deflated else self.read_stored(member, step):
            cut = part[: wanted - done]
            done += len(cut)
            crc = zlib.crc32(cut, crc)
            yield cut
            if done >= wanted and wanted < member.size:
                return
            if len(cut) < len(part):
                raise damaged(self.file.path, f"it has more than the {member.size:,} bytes it claims", key=member.name)
        if done < wanted:
            raise damaged(self.file.path, f"it has {done:,} of the {member.size:,} bytes it claims", key=member.name)
        if crc != member.crc and member.checks:
            raise damaged(self.file.path, "its CRC-32 is wrong: its bytes have changed", key=member.name)

    def make_crc_check(self, member: Member) -> CrcCheck:
        """Return the check of a stored member against its CRC-32, which is made at the first read."""
        return CrcCheck(self, member)

    def read_stored(self, member: Member, step: int) -> Iterator[bytes]:
        for start in range(0, member.size, step):
            count = min(step, member.size - start)
            yield self.file.read(member.offset + start, count, key=member.name)

    def _inflate(self, member: Member, step: int) -> Iterator[bytes]:
        inflate = zlib.decompressobj(-15)
        try:
            for start in range(0, member.stored_size, step):
                count = min(step, member.stored_size - start)
                data = self.file.read(member.offset + start, count, key=member.name)
                while data:
                    yield inflate.decompress(data, step)
                    data = inflate.unconsumed_tail
            yield inflate.flush()
        except zlib.error as wrong:
            raise damaged(self.file.path, f"its data can't be unpacked: {wrong}", key=member.name) from None


class CrcCheck:
    """The check of a stored member against its CRC-32. ``sound``: it was made, and the member is what it was."""

    def __init__(self, archive: Archive, member: Member) -> None:
        self.archive, self.member, self.sound = archive, member, False

    def __call__(self, start: int, rest: memoryview | None) -> bool:
        """Check the member once; raise DamagedFileError if its bytes have changed.

        ``start`` is the offset of the bytes in the file, ``rest`` these bytes if they are the rest of the member, else
        None. Returns True if they have to be read again, because an entry was set in place just then.
        """
        if self.sound:
            return False
        file, member = self.archive.file, self.member
        before = start - member.offset
        if rest is not None and self._fits((file.read(member.offset, before, key=member.name), rest)):
            self.sound = True
            return False
        with file.lock_shared():
            self.sound = self._fits(self.archive.read_stored(member, PIECE))
        if not self.sound:
            raise damaged(file.path, "its CRC-32 is wrong: its bytes have changed", key=member.name)
        return rest is not None

    def _fits(self, parts: Iterable[bytes | memoryview]) -> bool:
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        # An entry may have been set in place since the file was opened, and the checksums updated.
        file = self.archive.file
        return crc in {self.member.crc, *(int.from_bytes(file.read(at, 4), "little") for at in self.member.checks)}


def _encode_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _find_extra(extra: bytes) -> bytes | None:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == EXTRA:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return None


def pack_extra(extra: bytes) -> bytes:
    """Return metadata as an extra field of a member."""
    return struct.pack("<HH", EXTRA, len(extra)) + extra if 0 < len(extra) < 1 << 15 else b""
