"""Tell the format of a file by its first bytes: its ending is a hint only.

The functions return what a file certainly is, or None. What no reader takes is named as well, for the error.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterable

from xweights.files.formats.zip_archive import LOCAL
from xweights.files.io.open_file import OpenFile, Window

_HEAD = 1024
_MAGIC_OF_TABLES = 0xDB4775248B80FB57  # at the end of a TensorFlow index
_LONGEST_INDEX = 64 << 20
_LFS = b"version https://git-lfs.github.com/spec/"

# The members by which a zip file is told, in this order.
_MEMBERS = (
    ("pt", re.compile(r"([^/]+/)?data\.pkl")),
    ("keras", re.compile(r"model\.weights\.(h5|npz|json)|config\.json")),
    ("npz", re.compile(r".*\.npy")),
)
_SHARDS = (("sharded safetensors", ".safetensors"), ("sharded pt", ".bin"), ("sharded h5", ".h5"))

# Endings that say nothing where the beginning isn't that of their format, which is always the same.
_CERTAIN = (None, "pt", "npz", "keras", "h5", "gguf", "tensorflow")

# (beginning, what it is, how to go on)
_STRANGE: tuple[tuple[bytes, str, str | None], ...] = (
    (_LFS, "a pointer of git-lfs, and not the file itself", "git lfs pull"),
    (b"\x89PNG", "a PNG image", None),
    (b"\xff\xd8\xff", "a JPEG image", None),
    (b"GIF8", "a GIF image", None),
    (b"%PDF", "a PDF document", None),
    (b"\x1f\x8b", "a gzip archive", "unpack it first: gunzip, or tar -xzf"),
    (b"BZh", "a bzip2 archive", "unpack it first: bunzip2"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first: unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first: unzstd"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x7fELF", "a program or library of Linux", None),
    (b"MZ", "a program or library of Windows", None),
    (b"\x93NUMPY", "an .npy file of a single array", "numpy.load(path), and pass the array"),
    (b"PAR1", "a Parquet table", None),
    (b"SQLite format 3", "an SQLite database", None),
    (b"lmgg", "a file of ggml from before GGUF", "convert it with llama.cpp"),
    (b"tjgg", "a file of ggml from before GGUF", "convert it with llama.cpp"),
)


def recognize(file: OpenFile, named: str | None) -> str | None:
    """Return the name of the format that a file certainly has; ``named`` is the one that its ending names."""
    head = file.read(0, min(file.size, _HEAD))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _recognize_zip(file, head, named)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5"
    if head.startswith(b"GGUF"):
        return "gguf"
    # Before pickles: the length of a header may begin with the byte 0x80, too.
    if len(head) > 8 and 0 < int.from_bytes(head[:8], "little") <= file.size - 8 and head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        # The metadata of a distributed checkpoint is a pickle, too.
        return named if named == "torch distributed" else "pt"
    if file.size >= 48 and int.from_bytes(file.read(file.size - 8, 8), "little") == _MAGIC_OF_TABLES:
        return "tensorflow"
    if head.lstrip()[:1] == b"{" and not (named or "").startswith("sharded"):
        return _recognize_index(file)
    # A model of ONNX begins with its version, and then its producer, its operators or its graph.
    is_onnx = len(head) > 2 and head[0] == 0x08 and 3 <= head[1] < 32 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72"
    if is_onnx and named in _CERTAIN:
        return "onnx"
    is_map = head[:1] and (0x81 <= head[0] < 0x90 or head[0] in (0xDE, 0xDF))
    if is_map and named in _CERTAIN and re.match(rb"(?s)(.|\xde..|\xdf....)([\xa1-\xbf]|\xd9.)[\w.\-]", head):
        return "msgpack"
    return None


def _recognize_zip(file: OpenFile, head: bytes, named: str | None) -> str | None:
    """Return which of the formats that are zip files one is; look no further than its first member if that agrees."""
    if head.startswith(b"PK\x03\x04") and len(head) > LOCAL.size:
        length = LOCAL.unpack_from(head)[9]
        first = head[LOCAL.size : LOCAL.size + length].decode("utf-8", "replace")
        if _tell_by_members([first]) == named is not None:
            return named
    try:
        with zipfile.ZipFile(Window(file)) as archive:
            return _tell_by_members(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError, OverflowError):
        return None  # the reader that its ending names says what is wrong


def _tell_by_members(names: Iterable[str]) -> str | None:
    names = list(names)
    return next((name for name, member in _MEMBERS if any(map(member.fullmatch, names))), None)


def _recognize_index(file: OpenFile) -> str | None:
    """Return which kind of shards an index in JSON lists."""
    if file.size > _LONGEST_INDEX:
        return None
    try:
        shards = json.loads(file.read(0, file.size))["weight_map"]
        listed = [name for value in shards.values() for name in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    for name, ending in _SHARDS:
        if listed and all(isinstance(shard, str) and shard.endswith(ending) for shard in listed):
            return name
    return None


def describe_strange(file: OpenFile) -> tuple[str, str | None] | None:
    """Return what a file is that holds no weights, and how to go on; None if its first bytes don't tell."""
    if not file.size:
        return "empty", "get it again: its download or its writer was stopped"
    head = file.read(0, min(file.size, _HEAD))
    for beginning, what, fix in _STRANGE:
        if head.startswith(beginning):
            return what, fix
    if head[257:262] == b"ustar" or b"././@LongLink" in head:
        return _describe_tar(head)
    if head[4:8] == b"TFL3":
        return "a model of TensorFlow Lite", "use the model that it was converted from"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page", "download the file itself: this is a page about it, or one that asks for a login"
    if text.startswith(b"<?xml"):
        return "an XML document", "download the file itself: this may be an answer of a server"
    if not any(head):
        return "made of zeros", "get it again: its download was stopped"
    if text[:1] in (b"{", b"["):
        return "a text in JSON", None
    if not re.search(rb"[\x00-\x08\x0e-\x1a\x7f]", head) and _is_text(head):
        return "a text", None
    return None


def _describe_tar(head: bytes) -> tuple[str, str | None]:
    name = head[:100].rstrip(b"\0").decode("latin1")
    if name in ("sys_info", "pickle", "tensors", "storages") or name == "././@LongLink":
        return "an archive of PyTorch before 0.2", "load it with that version, and save it with a newer one"
    return "a tar archive", "unpack it first: tar -xf; then name the file in it"


def _is_text(head: bytes) -> bool:
    try:
        head[:-4].decode()
    except UnicodeDecodeError:
        return False
    return True
