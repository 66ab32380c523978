"""The .keras format: a zip file of a model's configuration and its weights in HDF5.

The configuration is read for names and axes, and no object of it is ever made.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace

from xweights.files.formats import h5
from xweights.files.formats.keras_config import Described, described
from xweights.files.formats.safetensors import json_object
from xweights.files.formats.zip_archive import Archive
from xweights.files.io.limits import Limits
from xweights.files.io.notes import ArrayMetadata
from xweights.files.io.open_file import OpenFile, damaged
from xweights.files.io.records import ByteRange, Index, Record

ENDING = ".keras"
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_CONFIG_MOST = 64 << 20


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a .keras file."""
    archive = Archive(file, limits)
    for name in (_WEIGHTS, _CONFIG):
        if name not in archive.members:
            raise damaged(file.path, "it has no such member", key=name)
    config = archive.members[_CONFIG]
    if config.size > _CONFIG_MOST:
        raise damaged(file.path, f"it claims {config.size:,} bytes", key=_CONFIG)
    limits.check_index(file.path, config.size)
    known = described(json_object(file.path, archive.read(config), _CONFIG))
    weights = archive.members[_WEIGHTS]
    if weights.deflated:
        whole = io.BytesIO(archive.read(weights))
        found = h5.indexed(file, whole, limits, None)
    else:
        found = h5.read_at(file, limits, weights.offset, weights.size)
    end = weights.offset + weights.size
    records = []
    for record in found.records:
        place = record.place
        if isinstance(place, ByteRange):
            place = replace(place, checks=weights.checks, check_from=weights.offset, check_to=end)
        records.append(replace(record, place=place, note=_note(record, known.get(record.key))))
    return Index(file.path, "keras", _in_order(records, known), [file], ignored=found.ignored)


def _note(record: Record, one: Described | None) -> ArrayMetadata:
    if one is None:
        return record.note
    layout = one.entry.layout(record.shape)
    gates = one.entry.gates if layout.axes is not None else None
    role = one.entry.name.rpartition("/")[2]
    return ArrayMetadata(one.name, role, one.layer, layout, one.trainable, gates, native=record.key)


def _in_order(records: Iterable[Record], known: Iterable[str]) -> list[Record]:
    """Return the records in the order of the layers, those that nobody described last."""
    place = {key: position for position, key in enumerate(known)}
    return sorted(records, key=lambda record: place.get(record.key, len(place)))
