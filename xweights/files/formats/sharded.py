"""Checkpoints of several files: an index in JSON, and the shards next to it.

A shard is a plain file name in the index's folder, and its real path is in the folder of the index's real path. When
written, shards get names that no earlier save has used, the index is written last, and the old shards are removed after
that: a reader has either the old index and its shards, or the new one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from xweights.errors import FileAccessError
from xweights.files.formats import h5, safetensors
from xweights.files.io import journal
from xweights.files.io.arrays_to_write import ArrayToWrite
from xweights.files.io.atomic import lock, replace_file, sweep, sync_folder
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import compact_json
from xweights.files.io.open_file import OpenFile, damaged, refused, shorten
from xweights.files.io.records import Index, Record

ENDING = ".safetensors.index.json"
H5_ENDING = ".weights.json"
SHARD_BYTES = 5 * 10**9
_TRIES = 50
_MAX_SHARDS = 100_000


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a sharded safetensors checkpoint."""
    return _read(file, limits, "sharded safetensors", safetensors.read, _check_keys)


def read_h5(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a sharded .weights.h5 checkpoint."""
    return _read(file, limits, "sharded h5", h5.read, _check_groups)


def _read(
    file: OpenFile,
    limits: Limits,
    name: str,
    reader: Callable[[OpenFile, Limits], Index],
    check: Callable[[str, Mapping[str, Any], str, Index], None],
) -> Index:
    for _ in range(_TRIES):
        weight_map, metadata = _read_index(file, limits)
        shards = list(dict.fromkeys(shard for value in weight_map.values() for shard in _check_names(file.path, value)))
        if len(shards) > _MAX_SHARDS:
            raise refused(file.path, f"it names {len(shards):,} shards")
        try:
            opened = [journal.open_recovered(resolve_shard(file.path, shard)) for shard in shards]
            break
        except FileAccessError as missing:
            # The checkpoint may have been replaced meanwhile: then there is another index by now.
            reopened = journal.open_recovered(file.path)
            if os.path.sameopenfile(reopened.descriptor, file.descriptor):
                reason = f"its shard can't be opened: {missing.reason}"
                raise damaged(file.path, reason, key=os.path.basename(missing.path)) from None
            file.close()
            file = reopened
    else:
        raise damaged(file.path, "it was replaced again and again while it was being opened")
    records: dict[str, Record] = {}
    ignored: list[str] = []
    texts: dict[str, str] = {}
    for shard, file_of_shard in zip(shards, opened, strict=True):
        index = reader(file_of_shard, limits)
        check(file.path, weight_map, shard, index)
        repeated = next((record.key for record in index.records if record.key in records), None)
        if repeated is not None:
            raise damaged(file.path, "it is in two shards", key=repeated)
        records.update({record.key: record for record in index.records})
        ignored += index.ignored
        texts.update(index.metadata)
    if name == "sharded safetensors":
        lost = next((key for key in weight_map if key not in records), None)
        if lost is not None:
            raise damaged(file.path, "it is in none of the shards", key=lost)
        records = {key: records[key] for key in weight_map}
        texts = metadata
    return Index(file.path, name, list(records.values()), [file, *opened], texts, ignored)


def _read_index(file: OpenFile, limits: Limits) -> tuple[dict[str, Any], dict[str, str]]:
    limits.check_index(file.path, file.size)
    parsed = safetensors.json_object(file.path, file.read(0, file.size), "its index")
    weight_map = parsed.get("weight_map")
    if not isinstance(weight_map, dict):
        raise damaged(file.path, "its index has no weight_map")
    metadata = parsed.get("metadata", {})
    texts = metadata if isinstance(metadata, dict) else {}
    return weight_map, {key: value for key, value in texts.items() if isinstance(value, str)}


def _check_names(path: str, value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set('/\\\0:*?"<>|')
        if not plain:
            raise refused(path, f"its shard {shorten(name)} is no plain name of a file beside it")
    return names


def resolve_shard(path: str, shard: str) -> str:
    """Return the real path of a shard; refuse one outside the index's folder."""
    index, real_path = os.path.realpath(path), os.path.realpath(os.path.join(os.path.dirname(path), shard))
    folders = {os.path.dirname(index), os.path.realpath(os.path.dirname(path) or ".")}
    if os.path.dirname(real_path) not in folders:
        raise refused(path, f"its shard {shorten(shard)} is a link out of its folder")
    return real_path


def _check_keys(path: str, weight_map: Mapping[str, Any], shard: str, index: Index) -> None:
    for record in index.records:
        if weight_map.get(record.key) != shard:
            raise damaged(path, f"it is in the shard {shorten(shard)}, and not there by the index", key=record.key)


def _check_groups(path: str, weight_map: Mapping[str, Any], shard: str, index: Index) -> None:
    for record in index.records:
        mapped = weight_map.get(f"/{record.key.rpartition('/')[0]}", [])
        if shard not in (mapped if isinstance(mapped, list) else [mapped]):
            raise damaged(path, f"it is in the shard {shorten(shard)}, and not there by the index", key=record.key)


def write(
    path: str, arrays: Sequence[ArrayToWrite], metadata: dict[str, str], durable: bool, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write arrays as a sharded safetensors checkpoint whose index is ``path``."""
    path = os.path.realpath(path)
    folder, stem = os.path.dirname(path), os.path.basename(path).removesuffix(ENDING)
    groups = _group_by_size(arrays, shard_bytes)
    token = secrets.token_hex(4)
    names = [f"{stem}-{token}-{n + 1:05}-of-{len(groups):05}.safetensors" for n in range(len(groups))]
    with ExitStack() as stack:
        # Each stays open, and so locked, until the index names it; shards of a killed process aren't locked.
        done = stack.enter_context(_remove_unless_done([os.path.join(folder, name) for name in names]))
        for name, group in zip(names, groups, strict=True):
            shard = os.path.join(folder, name)
            with replace_file(shard, durable=durable) as sink:
                safetensors.write(sink, group, {})
                stack.callback(os.close, os.dup(sink.file.fileno()))
        weight_map = {array.key: name for name, group in zip(names, groups, strict=True) for array in group}
        total = sum(array.nbytes for array in arrays)
        index = compact_json({"metadata": {**metadata, "total_size": total}, "weight_map": weight_map})
        with replace_file(path, durable=durable) as sink:
            sink.write(index.encode())
        done.append(True)
    remove_orphans(path, keep=set(names))
    if durable:
        sync_folder(path)


@contextlib.contextmanager
def _remove_unless_done(paths: list[str]) -> Any:
    done: list[bool] = []
    try:
        yield done
    finally:
        for path in [] if done else paths:
            with contextlib.suppress(OSError):
                os.unlink(path)


def remove_orphans(path: str, keep: set[str]) -> None:
    """Remove shards of earlier saves of ``path`` that no index names, unless they are being written."""
    folder, stem = os.path.dirname(path), os.path.basename(path).removesuffix(ENDING)
    ours = re.compile(re.escape(stem) + r"-[0-9a-f]{8}-\d{5,}-of-\d{5,}\.safetensors")
    sweep(path, ours)
    for entry in list(os.scandir(folder or ".")):
        if entry.name in keep or not ours.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(entry.path, os.O_RDONLY)
            try:
                if lock(descriptor, wait=False):
                    os.unlink(entry.path)
            finally:
                os.close(descriptor)


def _group_by_size(arrays: Sequence[ArrayToWrite], shard_bytes: int) -> list[list[ArrayToWrite]]:
    groups: list[list[ArrayToWrite]] = [[]]
    size = 0
    for array in arrays:
        if groups[-1] and size + array.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(array)
        size += array.nbytes
    return groups
