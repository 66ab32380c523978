"""The .keras format: a zip file of a model's configuration and its weights in HDF5.

The configuration is read for names and axes; no object is ever created from it. A whole model can only be written by
its framework: see ``xweights.core.backend.SavesModels``.
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
from xweights.files.io.open_file import OpenFile, damaged, refused
from xweights.files.io.records import ByteRange, Index, Record

ENDING = ".keras"
WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"
# Where Keras may keep weights in other ways, which we don't read.
_OTHER_WEIGHTS = ("model.weights.npz", "model.weights.json")
_MAX_CONFIG = 64 << 20


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a .keras file."""
    archive = Archive(file, limits)
    other = next((name for name in _OTHER_WEIGHTS if name in archive.members), None)
    if other is not None and WEIGHTS not in archive.members:
        reason = f"its weights are in another form than {WEIGHTS!r}, which alone is read"
        raise refused(file.path, reason, key=other, fix="load it with Keras and save it again")
    for name in (WEIGHTS, _CONFIG):
        if name not in archive.members:
            raise damaged(file.path, "it has no such member", key=name)
    config = archive.members[_CONFIG]
    if config.size > _MAX_CONFIG:
        raise damaged(file.path, f"it claims {config.size:,} bytes", key=_CONFIG)
    limits.check_index(file.path, config.size)
    settings = json_object(file.path, archive.read(config), _CONFIG)
    descriptions = describe_weights(settings)
    index = _read_weights(archive, limits)
    records = [replace(record, metadata=_metadata_of(record, descriptions.get(record.key))) for record in index.records]
    records = _sort_by_layer(records, descriptions)
    tree = index.tree
    if tree is not None:
        tree = {
            **tree,
            "model_weights": {record.key: record for record in records},
            "compile_config": settings.get("compile_config"),
        }
    return Index(file.path, "keras", records, [file], ignored=index.ignored, tree=tree)


def _read_weights(archive: Archive, limits: Limits) -> Index:
    """Return the index of the weights, whose bytes are checked against the archive's CRC-32 before the first is used.

    A compressed member is unpacked, and so checked, as a whole.
    """
    file, member = archive.file, archive.members[WEIGHTS]
    if member.deflated:
        return h5.index_file(file, io.BytesIO(archive.read(member)), limits, None)
    index = h5.read_at(file, limits, member.offset, member.size)
    verify = archive.make_crc_check(member)
    end = member.offset + member.size

    def check(record: Record) -> Record:
        location = record.location
        if isinstance(location, ByteRange):
            location = replace(location, checks=member.checks, check_from=member.offset, check_to=end, verify=verify)
        elif isinstance(location, h5.PackedDataset):
            location = replace(location, verify=lambda: verify(member.offset, None))
        return replace(record, location=location)

    index.records = [check(record) for record in index.records]
    if index.tree is not None:
        optimizer = {key: check(record) for key, record in index.tree["optimizer_weights"].items()}
        index.tree = {**index.tree, "optimizer_weights": optimizer}
    return index


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
