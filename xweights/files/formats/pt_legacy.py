"""The .pt format of PyTorch before 1.6, and of ``_use_new_zipfile_serialization=False``: pickles, then the storages.

Implemented after PyTorch's writer (torch/serialization.py, ``_legacy_save``): a magic number, a version, facts about
the machine, the description of the tensors, the list of the storages; then for each storage the number of its entries,
and the entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xweights.files.formats.pt_names import PickledStorage
from xweights.files.formats.pt_pickle import describe_next
from xweights.files.formats.pt_tensors import StorageLocation, build_index
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import PIECE, OpenFile, damaged, refused, shorten
from xweights.files.io.records import Index

_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_FIX = "save it again: torch.save(torch.load(path, weights_only=True), path)"


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a file of the older .pt format."""
    if file.read(0, min(file.size, 1)) != b"\x80":
        if b"././@LongLink" in file.read(0, min(file.size, 512)):
            raise refused(file.path, "it is an archive of PyTorch before 0.2", fix=_FIX)
        raise damaged(file.path, "it begins neither as a zip file does nor as a pickle")
    values, storages, at = _read_pickles(file, limits)
    _, version, machine, tree, order = values
    if version != _VERSION or not isinstance(machine, dict) or type(machine.get("little_endian")) is not bool:
        raise damaged(file.path, f"its version is {shorten(version)}, or it doesn't say on what machine it was written")
    if not isinstance(order, list) or not all(isinstance(key, str) and key in storages for key in order):
        raise damaged(file.path, "its list of storages names some that no tensor has")
    if len(set(order)) != len(order):
        raise damaged(file.path, "its list of storages names one twice")
    locations: dict[str, StorageLocation] = {}
    for key in order:
        count = int.from_bytes(file.read(at, 8), "little" if machine["little_endian"] else "big", signed=True)
        if count != storages[key].count:
            reason = f"its storage {shorten(key)} has another size than described"
            raise damaged(file.path, f"{reason}\ngot:      {count:,} entries\nexpected: {storages[key].count:,}")
        size = count * dtype_from_name(storages[key].dtype).itemsize
        file.check_inside(at + 8, size)
        locations[key] = StorageLocation(at + 8, size)
        at += 8 + size
    if at != file.size:
        raise damaged(file.path, f"{file.size - at:,} bytes after its last storage belong to none")

    def locate(storage: PickledStorage, key: str) -> StorageLocation:
        if storage.key not in locations:
            raise damaged(file.path, f"its storage {shorten(storage.key)} isn't in the list", key=key)
        return locations[storage.key]

    swapped = machine["little_endian"] != np.little_endian
    return build_index(file, tree, locate, swapped=swapped, metadata_by_key={}, limits=limits)


def _read_pickles(file: OpenFile, limits: Limits) -> tuple[list[Any], dict[str, PickledStorage], int]:
    """Return the contents of the five pickles, all storages, and the offset where the pickles end.

    Their length isn't stored, so more and more of the file is read, up to the limit of an index.
    """
    length = min(PIECE, file.size)
    while True:
        limits.check_index(file.path, length)
        data = file.read(0, length)
        values: list[Any] = []
        storages: dict[str, PickledStorage] = {}
        at = 0
        while len(values) < 5:
            described = describe_next(data, at, file.path, limits)
            if described is None:
                break
            if not values and described.value != _NUMBER:
                reason = "it is a pickle, and none that PyTorch has written: nothing of it was imported or run"
                raise refused(file.path, reason, fix="save a state dict with torch.save")
            values.append(described.value)
            storages |= described.storages
            at = described.end
        if len(values) == 5:
            return values, storages, at
        if length == file.size:
            raise damaged(file.path, "it ends before its description of the tensors does")
        length = min(4 * length, file.size)
