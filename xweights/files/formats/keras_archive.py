"""The .keras format: a zip file of a model's configuration and its weights in HDF5.

The configuration is read for names and axes; no object is ever created from it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace

from xweights.files.formats import h5
from xweights.files.formats.keras_config import WeightDescription, describe_weights
from xweights.files.formats.safetensors import json_object
from xweights.files.formats.zip_archive import Archive
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import OpenFile, damaged
from xweights.files.io.records import ByteRange, Index, Record

ENDING = ".keras"
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_MAX_CONFIG = 64 << 20


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a .keras file."""
    archive = Archive(file, limits)
    for name in (_WEIGHTS, _CONFIG):
        if name not in archive.members:
            raise damaged(file.path, "it has no such member", key=name)
    config = archive.members[_CONFIG]
    if config.size > _MAX_CONFIG:
        raise damaged(file.path, f"it claims {config.size:,} bytes", key=_CONFIG)
    limits.check_index(file.path, config.size)
    descriptions = describe_weights(json_object(file.path, archive.read(config), _CONFIG))
    weights = archive.members[_WEIGHTS]
    if weights.deflated:
        unpacked = io.BytesIO(archive.read(weights))
        index = h5.index_file(file, unpacked, limits, None)
    else:
        index = h5.read_at(file, limits, weights.offset, weights.size)
    end = weights.offset + weights.size
    records = []
    for record in index.records:
        location = record.location
        if isinstance(location, ByteRange):
            location = replace(location, checks=weights.checks, check_from=weights.offset, check_to=end)
        records.append(replace(record, location=location, metadata=_metadata_of(record, descriptions.get(record.key))))
    return Index(file.path, "keras", _sort_by_layer(records, descriptions), [file], ignored=index.ignored)


def _metadata_of(record: Record, description: WeightDescription | None) -> ArrayMetadata:
    if description is None:
        return record.metadata
    layout = description.entry.layout(record.shape)
    gates = description.entry.gates if layout.axes is not None else None
    role = description.entry.name.rpartition("/")[2]
    return ArrayMetadata(
        description.name, role, description.layer, layout, description.trainable, gates, native=record.key
    )


def _sort_by_layer(records: Iterable[Record], keys: Iterable[str]) -> list[Record]:
    """Return the records in the order of the layers, those without a description last."""
    positions = {key: position for position, key in enumerate(keys)}
    return sorted(records, key=lambda record: positions.get(record.key, len(positions)))
