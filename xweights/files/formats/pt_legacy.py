"""The .pt format of PyTorch before 1.6, and of ``_use_new_zipfile_serialization=False``: pickles, then the storages.

Written after what PyTorch writes (torch/serialization.py, ``_legacy_save``): a number to know it by, a version, what
machine it was, the description of the tensors, the list of the storages; then of each storage how many entries it
has, and the entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xweights.files.formats.pt_pickle import PickledStorage, describe_next
from xweights.files.formats.pt_tensors import StorageLocation, index_of
from xweights.files.io.dtypes import dtype_named
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import PIECE, OpenFile, damaged, refused, shortened
from xweights.files.io.records import Index

_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_FIX = "save it again: torch.save(torch.load(path, weights_only=True), path)"


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of such a file."""
    if file.read(0, min(file.size, 1)) != b"\x80":
        if b"././@LongLink" in file.read(0, min(file.size, 512)):
            raise refused(file.path, "it is an archive of PyTorch before 0.2", fix=_FIX)
        raise damaged(file.path, "it begins neither as a zip file does nor as a pickle")
    values, storages, at = _pickles(file, limits)
    _, version, machine, tree, order = values
    if version != _VERSION or not isinstance(machine, dict) or type(machine.get("little_endian")) is not bool:
        raise damaged(
            file.path, f"its version is {shortened(version)}, or it doesn't say on what machine it was written"
        )
    if not isinstance(order, list) or not all(isinstance(key, str) and key in storages for key in order):
        raise damaged(file.path, "its list of storages names some that no tensor has")
    if len(set(order)) != len(order):
        raise damaged(file.path, "its list of storages names one twice")
    places: dict[str, StorageLocation] = {}
    for key in order:
        count = int.from_bytes(file.read(at, 8), "little" if machine["little_endian"] else "big", signed=True)
        if count != storages[key].count:
            reason = f"its storage {shortened(key)} has another size than described"
            raise damaged(file.path, f"{reason}\ngot:      {count:,} entries\nexpected: {storages[key].count:,}")
        size = count * dtype_named(storages[key].dtype).itemsize
        file.check_inside(at + 8, size)
        places[key] = StorageLocation(at + 8, size)
        at += 8 + size
    if at != file.size:
        raise damaged(file.path, f"{file.size - at:,} bytes after its last storage belong to none")

    def place_of(storage: PickledStorage, key: str) -> StorageLocation:
        if storage.key not in places:
            raise damaged(file.path, f"its storage {shortened(storage.key)} isn't in the list", key=key)
        return places[storage.key]

    swapped = machine["little_endian"] != np.little_endian
    return index_of(file, tree, place_of, swapped=swapped, notes={}, limits=limits)


def _pickles(file: OpenFile, limits: Limits) -> tuple[list[Any], dict[str, PickledStorage], int]:
    """Return what the five pickles describe, all storages, and where they end.

    Nothing says how long they are, so more and more of the file is looked at, up to what an index may take.
    """
    length = min(PIECE, file.size)
    while True:
        limits.check_index(file.path, length)
        data = file.read(0, length)
        values: list[Any] = []
        storages: dict[str, PickledStorage] = {}
        at = 0
        while len(values) < 5:
            found = describe_next(data, at, file.path, limits)
            if found is None:
                break
            if not values and found.value != _NUMBER:
                reason = "it is a pickle, and none that PyTorch has written: nothing of it was imported or run"
                raise refused(file.path, reason, fix="save a state dict with torch.save")
            values.append(found.value)
            storages |= found.storages
            at = found.end
        if len(values) == 5:
            return values, storages, at
        if length == file.size:
            raise damaged(file.path, "it ends before its description of the tensors does")
        length = min(4 * length, file.size)
