"""Checkpoints of several files: an index in JSON, and the shards beside it.

A shard is a plain name beside the index, and its real place is beside the index' real place. When written, shards get
names that no earlier save has used, the index goes last, and the shards before are removed after that: whoever reads
has either the old index and its shards, or the new one.
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
from xweights.files.io.atomic import lock, replacing, sweep, sync_folder
from xweights.files.io.items import ArrayToWrite
from xweights.files.io.limits import Limits
from xweights.files.io.notes import packed
from xweights.files.io.open_file import OpenFile, damaged, refused, shortened
from xweights.files.io.records import Index, Record

ENDING = ".safetensors.index.json"
H5_ENDING = ".weights.json"
SHARD_BYTES = 5 * 10**9
_TRIES = 50
_SHARDS_MOST = 100_000


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
        weight_map, metadata = _index(file, limits)
        shards = list(dict.fromkeys(one for value in weight_map.values() for one in _names(file.path, value)))
        if len(shards) > _SHARDS_MOST:
            raise refused(file.path, f"it names {len(shards):,} shards")
        try:
            opened = [journal.opened(beside(file.path, shard)) for shard in shards]
            break
        except FileAccessError as missing:
            # Somebody may have replaced the checkpoint meanwhile: then there is another index by now.
            again = journal.opened(file.path)
            if os.path.sameopenfile(again.descriptor, file.descriptor):
                reason = f"its shard can't be opened: {missing.reason}"
                raise damaged(file.path, reason, key=os.path.basename(missing.path)) from None
            file.close()
            file = again
    else:
        raise damaged(file.path, "it was replaced again and again while it was being opened")
    records: dict[str, Record] = {}
    ignored: list[str] = []
    words: dict[str, str] = {}
    for shard, one in zip(shards, opened, strict=True):
        found = reader(one, limits)
        check(file.path, weight_map, shard, found)
        twice = next((record.key for record in found.records if record.key in records), None)
        if twice is not None:
            raise damaged(file.path, "it is in two shards", key=twice)
        records.update({record.key: record for record in found.records})
        ignored += found.ignored
        words.update(found.metadata)
    if name == "sharded safetensors":
        lost = next((key for key in weight_map if key not in records), None)
        if lost is not None:
            raise damaged(file.path, "it is in none of the shards", key=lost)
        records = {key: records[key] for key in weight_map}
        words = metadata
    return Index(file.path, name, list(records.values()), [file, *opened], words, ignored)


def _index(file: OpenFile, limits: Limits) -> tuple[dict[str, Any], dict[str, str]]:
    limits.check_index(file.path, file.size)
    found = safetensors.json_object(file.path, file.read(0, file.size), "its index")
    weight_map = found.get("weight_map")
    if not isinstance(weight_map, dict):
        raise damaged(file.path, "its index has no weight_map")
    metadata = found.get("metadata", {})
    texts = metadata if isinstance(metadata, dict) else {}
    return weight_map, {key: value for key, value in texts.items() if isinstance(value, str)}


def _names(path: str, value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set('/\\\0:*?"<>|')
        if not plain:
            raise refused(path, f"its shard {shortened(name)} is no plain name of a file beside it")
    return names


def beside(path: str, shard: str) -> str:
    """Return the real place of a shard; refuse one that lies elsewhere than the index."""
    index, place = os.path.realpath(path), os.path.realpath(os.path.join(os.path.dirname(path), shard))
    homes = {os.path.dirname(index), os.path.realpath(os.path.dirname(path) or ".")}
    if os.path.dirname(place) not in homes:
        raise refused(path, f"its shard {shortened(shard)} is a link out of its folder")
    return place


def _check_keys(path: str, weight_map: Mapping[str, Any], shard: str, found: Index) -> None:
    for record in found.records:
        if weight_map.get(record.key) != shard:
            raise damaged(path, f"it is in the shard {shortened(shard)}, and not there by the index", key=record.key)


def _check_groups(path: str, weight_map: Mapping[str, Any], shard: str, found: Index) -> None:
    for record in found.records:
        mapped = weight_map.get(f"/{record.key.rpartition('/')[0]}", [])
        if shard not in (mapped if isinstance(mapped, list) else [mapped]):
            raise damaged(path, f"it is in the shard {shortened(shard)}, and not there by the index", key=record.key)


def write(
    path: str, items: Sequence[ArrayToWrite], metadata: dict[str, str], durable: bool, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write items as a sharded safetensors checkpoint whose index is ``path``."""
    path = os.path.realpath(path)
    folder, stem = os.path.dirname(path), os.path.basename(path).removesuffix(ENDING)
    groups = _grouped(items, shard_bytes)
    token = secrets.token_hex(4)
    names = [f"{stem}-{token}-{n + 1:05}-of-{len(groups):05}.safetensors" for n in range(len(groups))]
    with ExitStack() as stack:
        # Each stays open, and so locked, until the index names it: that tells it from what a killed process left.
        landed = stack.enter_context(_removed_unless_done([os.path.join(folder, name) for name in names]))
        for name, group in zip(names, groups, strict=True):
            shard = os.path.join(folder, name)
            with replacing(shard, durable=durable) as sink:
                safetensors.write(sink, group, {})
                stack.callback(os.close, os.dup(sink.file.fileno()))
        weight_map = {item.key: name for name, group in zip(names, groups, strict=True) for item in group}
        total = sum(item.nbytes for item in items)
        index = packed({"metadata": {**metadata, "total_size": total}, "weight_map": weight_map})
        with replacing(path, durable=durable) as sink:
            sink.write(index.encode())
        landed.append(True)
    remove_orphans(path, keep=set(names))
    if durable:
        sync_folder(path)


@contextlib.contextmanager
def _removed_unless_done(paths: list[str]) -> Any:
    done: list[bool] = []
    try:
        yield done
    finally:
        for one in [] if done else paths:
            with contextlib.suppress(OSError):
                os.unlink(one)


def remove_orphans(path: str, keep: set[str]) -> None:
    """Remove shards that earlier saves of ``path`` wrote and no index names, unless somebody is writing them."""
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


def _grouped(items: Sequence[ArrayToWrite], shard_bytes: int) -> list[list[ArrayToWrite]]:
    groups: list[list[ArrayToWrite]] = [[]]
    size = 0
    for item in items:
        if groups[-1] and size + item.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.nbytes
    return groups
