"""Table of the formats: file name endings, readers and writers; and what a path stands for when it is read.

For writing the ending decides, for reading the first bytes of the file: the ending is a hint where those don't tell.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from xweights.core.groups import Group
from xweights.errors import DamagedFileError, near
from xweights.files.formats import (
    dcp,
    dcp_write,
    gguf_file,
    h5,
    keras_archive,
    msgpack_file,
    npz,
    onnx_file,
    pt,
    safetensors,
    saved_model,
    sharded,
    tf_checkpoint,
)
from xweights.files.formats.contents import describe_strange, recognize
from xweights.files.formats.folders import find_weights
from xweights.files.io.arrays_to_write import ArrayToWrite, Sink, StateValues
from xweights.files.io.journal import open_recovered
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import OpenFile, damaged, inaccessible, refused
from xweights.files.io.records import Index, Record

Reader = Callable[[OpenFile, Limits], Index]
Writer = Callable[[Sink, Sequence[ArrayToWrite], dict[str, str]], None]
StateWriter = Callable[[Sink, Sequence[ArrayToWrite], StateValues], None]
FolderWriter = Callable[[str, Sequence[ArrayToWrite], dict[str, str], bool, int, Callable[[], None]], None]
BlockWriter = Callable[[str, Sequence[ArrayToWrite], bool, Group | None], None]


@dataclass(frozen=True)
class Format:
    """One format: the endings of its files, its reader and its writer (None: only read).

    ``write_shards`` replaces ``write`` where a checkpoint consists of several files. ``write_state`` is the writer of a
    format that also holds values that are no arrays. ``write_blocks`` is called on every rank of a sharded model, and
    each writes its own. ``places``: arrays lie where they are as plain bytes, so that ranks can write into one file.
    """

    name: str
    endings: tuple[str, ...]
    read: Reader
    write: Writer | None = None
    write_shards: FolderWriter | None = None
    write_state: StateWriter | None = None
    write_blocks: BlockWriter | None = None
    keeps_metadata: bool = False
    places: bool = False
    editable: bool = True


def _read_nothing(file: OpenFile, limits: Limits) -> Index:
    raise refused(file.path, "several files are no file")


SEVERAL = "several files"
FORMATS = (
    Format(
        "sharded safetensors",
        (sharded.ENDING,),
        sharded.read,
        write_shards=sharded.write,
        keeps_metadata=True,
        places=True,
    ),
    Format("sharded h5", (sharded.H5_ENDING,), sharded.read_h5),
    Format("sharded pt", (sharded.PT_ENDING,), sharded.read_pt),
    Format("safetensors", (safetensors.ENDING,), safetensors.read, safetensors.write, keeps_metadata=True, places=True),
    Format("npz", (npz.ENDING,), npz.read, npz.write),
    Format("keras", (keras_archive.ENDING,), keras_archive.read),
    Format("h5", h5.ENDINGS, h5.read, h5.write),
    Format("tensorflow", (tf_checkpoint.ENDING,), tf_checkpoint.read, editable=False),
    Format("saved model", (saved_model.ENDING,), saved_model.read, editable=False),
    Format("torch distributed", (dcp.ENDING,), dcp.read, write_blocks=dcp_write.write),
    Format("onnx", (onnx_file.ENDING,), onnx_file.read, editable=False),
    Format("gguf", (gguf_file.ENDING,), gguf_file.read, editable=False),
    Format("msgpack", (msgpack_file.ENDING,), msgpack_file.read, editable=False),
    Format("pt", pt.ENDINGS, pt.read, pt.write, write_state=pt.write_state),
    Format(SEVERAL, (), _read_nothing, editable=False),
)
# Files that stand for another one beside them: a data file of TensorFlow for its index.
_DATA_FILE = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}")


def format_of(path: str) -> Format:
    """Return the format that a path's ending names."""
    fmt = _find_by_ending(path)
    if fmt is None:
        raise _refuse_ending(path, "its ending names no format of weights")
    return fmt


def _refuse_ending(path: str, reason: str, fix: str | None = None) -> Exception:
    endings = [ending for fmt in FORMATS for ending in fmt.endings]
    ending = os.path.splitext(path)[1].lower()
    reason = f"{reason}\n{near(ending, endings)}" if ending else reason
    return refused(path, reason, fix=fix or f"use one of {', '.join(endings)}")


def _find_by_ending(path: str) -> Format | None:
    name = os.path.basename(path).lower()
    return next((fmt for fmt in FORMATS if name.endswith(fmt.endings)), None)


def find_format(name: str) -> Format:
    """Return the format of this name."""
    return next(fmt for fmt in FORMATS if fmt.name == name)


def read(path: str, limits: Limits) -> Index:
    """Return the index of a file of any format, of the weights in a folder, or of all files that a pattern matches."""
    if not os.path.lexists(path):
        if os.path.isfile(path + tf_checkpoint.ENDING):  # TensorFlow names its checkpoints without an ending
            return _read_file(path + tf_checkpoint.ENDING, limits)
        if glob.has_magic(path):
            return _read_pattern(path, limits)
    elif os.path.isdir(path):
        found = find_weights(path).paths
        return _read_file(found[0], limits) if len(found) == 1 else read_many(found, limits)
    elif (data := _DATA_FILE.fullmatch(path)) and os.path.isfile(data["prefix"] + tf_checkpoint.ENDING):
        return _read_file(data["prefix"] + tf_checkpoint.ENDING, limits)
    return _read_file(path, limits)


def _read_pattern(pattern: str, limits: Limits) -> Index:
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise inaccessible(pattern, OSError(errno.ENOENT, "no file matches this pattern"), "open it")
    return read(paths[0], limits) if len(paths) == 1 else read_many(paths, limits, pattern)


def read_many(paths: Iterable[str], limits: Limits, name: str | None = None) -> Index:
    """Return the index of several files that are one checkpoint: no two of them have a key in common.

    Args:
        paths: The files, or folders.
        limits: The limits for each of them.
        name: What to call them together. Default: the first one's path.
    """
    indexes: list[Index] = []
    try:
        for path in paths:
            indexes.append(read(path, limits))  # noqa: PERF401 - those that are open are closed if one fails
        return _join(indexes, name)
    except BaseException:
        for index in indexes:
            index.close()
        raise


def _join(indexes: Sequence[Index], name: str | None) -> Index:
    if not indexes:
        raise refused(name or "", "there are no files", fix="name at least one")
    if len(indexes) == 1:
        return indexes[0]
    path = name or indexes[0].path
    first_in: dict[str, str] = {}
    records: dict[str, Record] = {}
    metadata: dict[str, str] = {}
    trees: dict[Any, Any] = {}
    for index in indexes:
        for record in index.records:
            for key in dict.fromkeys((record.key, *record.metadata.native_aliases)):
                if key in first_in:
                    reason = f"it is in {os.path.basename(first_in[key])!r}, too: they are no parts of one checkpoint"
                    raise refused(index.path, reason, key=key, fix="load them one by one")
                first_in[key] = index.path
            records[record.key] = record
        metadata |= index.metadata
        flat = {record.key: record for record in index.records}
        if not _merge(trees, flat if index.tree is None else index.tree):
            raise refused(index.path, "its parts and those of another file have one name", fix="load them one by one")
    tree = trees if any(index.tree is not None for index in indexes) else None
    ignored = [key for index in indexes for key in index.ignored]
    files = [file for index in indexes for file in index.files]
    return Index(path, SEVERAL, list(records.values()), files, metadata, ignored, tree)


def _merge(into: dict[Any, Any], tree: Any) -> bool:
    """Put one tree's contents into another's dicts; return False if something is in the way."""
    if not isinstance(tree, dict):
        return False
    for key, value in tree.items():
        there = into.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            if not _merge(there, value):
                return False
        elif key in into and (isinstance(there, (dict, Record)) or isinstance(value, (dict, Record))):
            return False
        else:
            into[key] = dict(value) if isinstance(value, dict) else value
    return True


def _read_file(path: str, limits: Limits) -> Index:
    named = _find_by_ending(path)
    if named is None and not os.path.lexists(path):
        raise _refuse_ending(path, "there is no such file, and its ending names no format of weights")
    file = open_recovered(path)
    recognized = recognize(file, None if named is None else named.name)
    fmt = named if recognized is None else find_format(recognized)
    if fmt is None:
        raise _refuse_unknown(file)
    with file.lock_shared():  # checksums and sizes are read in several places, which are changed one after the other
        try:
            return fmt.read(file, limits)
        except DamagedFileError as error:
            strange = describe_strange(file) if error.path == file.path and error.key is None else None
            if strange is None:
                raise
            raise damaged(path, f"it is {strange[0]}: {error.reason}", fix=strange[1]) from None


def _refuse_unknown(file: OpenFile) -> Exception:
    strange = describe_strange(file)
    if strange is not None:
        return _refuse_ending(file.path, f"it is {strange[0]}, and its ending names no format of weights", strange[1])
    reason = "its ending names no format of weights, and its first bytes aren't those of one"
    return _refuse_ending(file.path, reason)
