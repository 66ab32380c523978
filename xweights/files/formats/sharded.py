"""Checkpoints of several files: an index in JSON, and the shards next to it.

A shard is a plain file name in the index's folder, and its real path is in the folder of the index's real path. Index
and shards are written together (`io/transaction.py`), and the shards that only the old index names are removed with it:
a reader has either the old index and its shards, or the new one and its own.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from xweights.errors import DamagedFileError, FileAccessError, RefusedFileError
from xweights.files.formats import h5, pt, safetensors
from xweights.files.io import journal
from xweights.files.io.arrays_to_write import ArrayToWrite
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import compact_json
from xweights.files.io.open_file import OpenFile, damaged, refused, shorten
from xweights.files.io.records import Index, Record
from xweights.files.io.transaction import has_litter, in_transaction, remove_litter, settle, transaction

ENDING = ".safetensors.index.json"
H5_ENDING = ".weights.json"
PT_ENDING = ".bin.index.json"
SHARD_BYTES = 5 * 10**9
_TRIES = 50
_MAX_SHARDS = 100_000


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a sharded safetensors checkpoint."""
    return _read(file, limits, "sharded safetensors", safetensors.read, _check_keys)


def read_h5(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a sharded .weights.h5 checkpoint."""
    return _read(file, limits, "sharded h5", h5.read, _check_groups)


def read_pt(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a sharded checkpoint of PyTorch's own files, as model hubs had them before safetensors."""
    return _read(file, limits, "sharded pt", pt.read, _check_tensors)


def _read(
    file: OpenFile,
    limits: Limits,
    name: str,
    reader: Callable[[OpenFile, Limits], Index],
    check: Callable[[str, Mapping[str, Any], str, Index], None],
) -> Index:
    for _ in range(_TRIES):
        for place in list_places(file.path):
            settle(place)
        weight_map, metadata = _read_index(file, limits)
        shards = list(dict.fromkeys(shard for value in weight_map.values() for shard in _check_names(file.path, value)))
        if len(shards) > _MAX_SHARDS:
            raise refused(file.path, f"it names {len(shards):,} shards")
        missing: FileAccessError | None = None
        opened: list[OpenFile] = []
        try:
            opened = [journal.open_recovered(resolve_shard(file.path, shard)) for shard in shards]
        except FileAccessError as error:
            missing = error
        if _are_current(file.path, [file, *opened]):
            break
        file = journal.open_recovered(file.path)
    else:
        raise damaged(file.path, "it was replaced again and again while it was being opened")
    if missing is not None and missing.errno != errno.ENOENT:
        raise missing
    if missing is not None:
        reason = f"its shard can't be opened: {missing.reason}"
        raise damaged(file.path, reason, key=os.path.basename(missing.path))
    _remove_litter(file.path, shards)
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
    if name != "sharded h5":
        record_of = {key: record for record in records.values() for key in _keys_of(record)}
        lost = next((key for key in weight_map if key not in record_of), None)
        if lost is not None:
            raise damaged(file.path, "it is in none of the shards", key=lost)
        records = {record_of[key].key: record_of[key] for key in weight_map}
        texts = metadata
    return Index(file.path, name, list(records.values()), [file, *opened], texts, ignored)


def _are_current(path: str, files: Iterable[OpenFile]) -> bool:
    """Return whether files that were opened one after the other are of one state of the checkpoint.

    This order tells it without a lock: if one was opened after a replacement had begun and another before it, the
    journal was there from the first until the second had been replaced too, which is seen here or there.
    """
    if any(map(in_transaction, list_places(path))):
        return False
    try:
        return all(os.path.samestat(os.fstat(file.descriptor), os.stat(file.path)) for file in files)
    except FileNotFoundError:
        return False


def list_places(path: str) -> list[str]:
    """Return the paths beside which there may be a journal: that of a link to an index, and that of the index."""
    shown = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return list(dict.fromkeys([shown, os.path.realpath(path)]))


def _remove_litter(path: str, shards: Iterable[str]) -> None:
    """Remove what was left behind beside an index by processes that have ended."""
    for place in list_places(path):
        if not has_litter(os.path.dirname(place)):
            continue
        name = os.path.basename(place)
        numbered = re.escape(name.removesuffix(ENDING)) + r"-\d{5,}-of-\d{5,}\.safetensors"
        ours = re.compile("|".join([numbered, *map(re.escape, {name, *shards})]))
        remove_litter(place, ours)


def _read_index(file: OpenFile, limits: Limits) -> tuple[dict[str, Any], dict[str, str]]:
    limits.check_index(file.path, file.size)
    parsed = safetensors.json_object(file.path, file.read(0, file.size), "its index")
    weight_map = parsed.get("weight_map")
    if not isinstance(weight_map, dict):
        raise damaged(file.path, "its index has no weight_map")
    if not weight_map:
        raise damaged(file.path, "its index lists nothing: its weight_map is empty")
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


def resolve_beside(path: str, name: Any) -> str:
    """Return the real path of a file that another names: a plain name of a file in the other's folder."""
    return resolve_shard(path, *_check_names(path, [name]))


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


def _check_tensors(path: str, weight_map: Mapping[str, Any], shard: str, index: Index) -> None:
    for key in (key for record in index.records for key in _keys_of(record)):
        if weight_map.get(key) != shard:
            raise damaged(path, f"it is in the shard {shorten(shard)}, and not there by the index", key=key)


def _keys_of(record: Record) -> list[str]:
    """Return the keys of an array, those of tied tensors included."""
    return list(dict.fromkeys((record.key, *record.metadata.native_aliases)))


def _check_groups(path: str, weight_map: Mapping[str, Any], shard: str, index: Index) -> None:
    for record in index.records:
        mapped = weight_map.get(f"/{record.key.rpartition('/')[0]}", [])
        if shard not in (mapped if isinstance(mapped, list) else [mapped]):
            raise damaged(path, f"it is in the shard {shorten(shard)}, and not there by the index", key=record.key)


def write(
    path: str,
    arrays: Sequence[ArrayToWrite],
    metadata: dict[str, str],
    durable: bool,
    shard_bytes: int = SHARD_BYTES,
    complete: Callable[[], None] = lambda: None,
) -> None:
    """Write arrays as a sharded safetensors checkpoint whose index is ``path``.

    ``complete`` is called when all that is written here is written, and before any file is replaced.
    """
    path = _find_place(path)
    folder, stem = os.path.dirname(path), os.path.basename(path).removesuffix(ENDING)
    if not arrays:
        raise refused(path, "there is nothing to save, and an index lists at least one array", fix="use .safetensors")
    groups = _group_by_size(arrays, shard_bytes)
    # The names that others give to shards, so that those who look for them by name find what the index says.
    names = [f"{stem}-{n + 1:05}-of-{len(groups):05}.safetensors" for n in range(len(groups))]
    _remove_litter(path, _list_shards(path))
    with transaction(path, durable=durable) as changes:
        for name, group in zip(names, groups, strict=True):
            with changes.replace(os.path.join(folder, name)) as sink:
                # transformers 4 looks for "format" in each shard.
                safetensors.write(sink, group, {key: metadata[key] for key in ("format",) if key in metadata})
        weight_map = {array.key: name for name, group in zip(names, groups, strict=True) for array in group}
        total = sum(array.nbytes for array in arrays)
        index = compact_json({"metadata": {**metadata, "total_size": total}, "weight_map": weight_map})
        with changes.replace(path) as sink:
            sink.write(index.encode())
        complete()
        changes.remove(lambda: _list_shards(path))


def _find_place(path: str) -> str:
    """Return the path of the file to replace, beside which the shards are.

    A link into another folder is replaced itself: caches of model hubs link to files that others link to as well.
    """
    real_path = os.path.realpath(path)
    folder = os.path.realpath(os.path.dirname(path) or ".")
    return real_path if os.path.dirname(real_path) == folder else os.path.join(folder, os.path.basename(path))


def _list_shards(path: str) -> list[str]:
    """Return the names of the shards of an index; none if there is none, or none that is sound."""
    try:
        weight_map, _ = _read_index(OpenFile(path), Limits())
        names = {name for value in weight_map.values() for name in _check_names(path, value)}
    except (DamagedFileError, RefusedFileError):
        return []
    except FileAccessError as error:
        if error.errno != errno.ENOENT:
            raise
        return []
    return sorted(name for name in names if name.endswith(safetensors.ENDING))


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
