"""The HDF5 layout of Keras 2, which Keras 3 still writes for ``model.save("model.h5")``.

The file, or its group ``model_weights`` in a whole model, lists its layers in the attribute ``layer_names``; each layer
is a group that lists its arrays in ``weight_names``. HDF5 holds at most 64 KiB in an attribute, so longer lists are
divided: ``weight_names0``, ``weight_names1``, ... A whole model has its configuration in an attribute, and the
optimizer's arrays in a group of their own.

Arrays of CuDNNLSTM and CuDNNGRU, which lie in cuDNN's order, are converted when they are read to those of LSTM and GRU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from xweights.core.dtypes import Array, is_floating
from xweights.files.formats.hdf5_texts import measure_texts
from xweights.files.formats.keras2_names import ListedLayer, ListedWeight, describe_listed
from xweights.files.formats.keras_config import WeightDescription
from xweights.files.formats.safetensors import json_object
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import OpenFile, damaged, refused, shorten
from xweights.files.io.records import Index, Record

_WHOLE, _OPTIMIZER, _OWN = "model_weights", "optimizer_weights", "top_level_model_weights"
_MAX_PARTS = 10_000
_MAX_NAME = 10_000


def is_keras2(structure: Any) -> bool:
    """Return whether an HDF5 file lists its layers as Keras 2 does."""
    groups = [structure, structure.get(_WHOLE, structure)]
    return any(name in group.attrs for group in groups for name in ("layer_names", "layer_names0"))


def arrange(
    file: OpenFile,
    source: Any,
    limits: Limits,
    structure: Any,
    groups: Mapping[str, Any],
    records: Mapping[str, Record],
) -> Index:
    """Return the index of a file of Keras 2 from its groups and records, all by their paths in the file.

    ``source`` is the HDF5 file as a file object.
    """
    reader = _Attributes(file, source, limits)
    whole = _WHOLE in groups
    home, root = (groups[_WHOLE], f"{_WHOLE}/") if whole else (structure, "")
    _check_origin(file.path, reader, home)
    layers = []
    names = reader.texts(home, "layer_names", root or "/")
    if f"{root}{_OWN}" in groups and _OWN not in names:
        names.append(_OWN)
    for name in _check_unique(file.path, names, root or "/"):
        group = groups.get(f"{root}{name}")
        if group is None:
            raise damaged(file.path, "it is listed as a layer, and there is no such group", key=f"{root}{name}")
        weights = _list_weights(file.path, reader, group, f"{root}{name}", records)
        layers.append(ListedLayer("" if name == _OWN else name, weights))
    text = reader.text(structure, "model_config") if whole else None
    config = None if text is None else json_object(file.path, text.encode(), "its model_config")
    described = describe_listed(layers, config)
    found = _convert_cudnn(file.path, layers, records)
    _refuse_flipped(file.path, reader, home, found.values())
    weights_here = _describe_records(layers, found, described, root)
    for record in weights_here:
        limits.check(file.path, record)
    ignored = [key for key in records if key not in described]
    tree: dict[str, Any] | None = None
    if whole:
        tree = {_WHOLE: {record.metadata.name: record for record in weights_here}}
        for key, record in records.items():
            if key.startswith(f"{_OPTIMIZER}/"):
                _put(tree, key.split("/"), record)
        tree |= _describe_optimizer(file.path, reader, structure, groups)
    return Index(file.path, "h5", weights_here, [file], ignored=ignored, tree=tree)


def _describe_optimizer(path: str, reader: _Attributes, structure: Any, groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a whole model says of its optimizer: its settings, and the names of its arrays in order."""
    if _OPTIMIZER not in groups:
        return {}
    text = reader.text(structure, "training_config")
    settings = {} if text is None else json_object(path, text.encode(), "its training_config")
    names = reader.texts(groups[_OPTIMIZER], "weight_names", _OPTIMIZER)
    return {"compile_config": {"optimizer": settings.get("optimizer_config")}, "optimizer_names": names}


def _put(tree: dict[str, Any], parts: list[str], record: Record) -> None:
    """Put a record into the dicts for its groups."""
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = record


def _check_unique(path: str, names: list[str], key: str) -> list[str]:
    name, count = Counter(names).most_common(1)[0] if names else ("", 1)
    if count > 1:
        raise damaged(path, f"it lists {shorten(name)} twice", key=key)
    return names


def _list_weights(
    path: str, reader: _Attributes, group: Any, key: str, records: Mapping[str, Record]
) -> list[ListedWeight]:
    weights = []
    for name in _check_unique(path, reader.texts(group, "weight_names", key), key):
        record = records.get(f"{key}/{name}")
        if record is None:
            raise damaged(path, "it is listed as a weight, and there is no such array", key=f"{key}/{name}")
        parts = tuple(part for part in name.removesuffix(":0").split("/") if part)
        weights.append(ListedWeight(record.key, parts or (name,), record.shape))
    return weights


def _check_origin(path: str, reader: _Attributes, home: Any) -> None:
    version = reader.text(home, "keras_version")
    if version is not None and version.startswith("1."):
        reason = f"Keras {shorten(version)} wrote it, whose layers keep their arrays in other orders"
        raise refused(path, reason, fix="load it with Keras 2 and save it again")


def _refuse_flipped(path: str, reader: _Attributes, home: Any, records: Any) -> None:
    if reader.text(home, "backend") != "theano":
        return
    for record in records:
        if len(record.shape) > 2 and record.key.removesuffix(":0").endswith("kernel"):
            reason = "Keras on Theano wrote it, whose convolutions have their kernels flipped"
            raise refused(path, reason, key=record.key, fix="load it with Keras 2 on TensorFlow and save it again")


class _Attributes:
    """Reader of the attributes of one file: texts alone, and no more of them than an index may take."""

    def __init__(self, file: OpenFile, source: Any, limits: Limits) -> None:
        self.file, self.source, self.limits = file, source, limits

    def texts(self, group: Any, name: str, key: str) -> list[str]:
        """Return a list of texts, which may be divided over several attributes."""
        if name in group.attrs:
            return self._read(group, name, key)
        texts: list[str] = []
        for number in range(_MAX_PARTS):
            if f"{name}{number}" not in group.attrs:
                break
            texts += self._read(group, f"{name}{number}", key)
        return texts

    def text(self, group: Any, name: str) -> str | None:
        """Return one text, None if there isn't any."""
        if name not in group.attrs:
            return None
        texts = self._read(group, name, name, longest=None)
        if len(texts) != 1:
            raise damaged(self.file.path, f"its attribute has {len(texts):,} texts, and one is wanted", key=name)
        return texts[0]

    def _read(self, group: Any, name: str, key: str, longest: int | None = _MAX_NAME) -> list[str]:
        if not self._check_size(group, name, key):
            return []
        texts = []
        for value in np.asarray(group.attrs[name], dtype=object).reshape(-1):
            try:
                text = value.decode() if isinstance(value, bytes) else value
            except UnicodeDecodeError:
                text = None
            if not isinstance(text, str) or not text or (longest is not None and len(text) > longest):
                raise damaged(self.file.path, f"its {name} has {shorten(value)}, which is no name", key=key)
            texts.append(text)
        return texts

    def _check_size(self, group: Any, name: str, key: str) -> bool:
        """Return whether an attribute has any texts; refuse other values, and more than an index may have."""
        import h5py

        path, attribute = self.file.path, group.attrs.get_id(name)
        stored, count = attribute.dtype, math.prod(attribute.shape or ())
        if attribute.shape is not None and not count:
            return False  # an empty list, which NumPy saves as one of numbers
        kind = h5py.check_string_dtype(stored)
        if attribute.shape is None or kind is None:
            raise damaged(path, f"its {name} is {shorten(stored.str)}, and no text", key=key)
        size = count * stored.itemsize
        if kind.length is None:
            address = group.file.userblock_size + h5py.h5o.get_info(group.id).addr
            texts = measure_texts(self.source, address, name, count)
            size = 64 * count + (count * self.file.size if texts is None else texts)
        self.limits.check_index(path, size)
        return True


def _describe_records(
    layers: list[ListedLayer], records: Mapping[str, Record], described: Mapping[str, WeightDescription], root: str
) -> list[Record]:
    """Return the records with their neutral names, roles, layers and axes."""
    done: list[Record] = []
    taken: set[str] = set()
    for weight in (weight for layer in layers for weight in layer.weights):
        record, description = records[weight.key], described[weight.key]
        layout = description.entry.layout(record.shape)
        gates = description.entry.gates if layout.axes is not None else None
        name, layer, native = description.name, description.layer, "/".join(weight.parts)
        if name in taken:  # another layer's weight has it already, so that it says too little
            name = native = record.key.removeprefix(root).removesuffix(":0")
            layer = name.rpartition("/")[0]
        trainable = description.trainable and is_floating(record.dtype)
        role = description.entry.name.rpartition("/")[2]
        metadata = ArrayMetadata(name, role, layer, layout, trainable, gates, native=native)
        done.append(replace(record, metadata=metadata, inner=name))
        taken.add(name)
    return done


# CuDNN


@dataclass(frozen=True, slots=True, eq=False)
class ConvertedEntries:
    """Location of entries that are computed from those of another array."""

    whole: ClassVar[bool] = True

    source: Record
    convert: Callable[[Array], Array]

    def read(self, record: Record) -> Array:
        return np.ascontiguousarray(self.convert(self.source.read())).reshape(record.shape)

    def read_into(self, record: Record, out: Array, start: int) -> None:
        out[...] = self.read(record).reshape(-1)[start : start + out.size]


def _convert_cudnn(path: str, layers: list[ListedLayer], records: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records, those of CuDNN layers as the arrays of the plain layer.

    As Keras 2 did, such a layer is told by its bias, which has the two halves of cuDNN's biases one after the other.
    """
    found = {weight.key: records[weight.key] for layer in layers for weight in layer.weights}
    together: dict[tuple[str, ...], dict[str, Record]] = {}
    for layer in layers:
        for weight in layer.weights:
            together.setdefault((layer.name, *weight.parts[:-1]), {})[weight.role] = records[weight.key]
    for arrays in together.values():
        if not {"kernel", "recurrent_kernel", "bias"} <= arrays.keys():
            continue
        kernel, recurrent, bias = (arrays[role] for role in ("kernel", "recurrent_kernel", "bias"))
        if len(recurrent.shape) != 2 or bias.shape != (2 * recurrent.shape[1],) or not recurrent.size:
            continue
        units, packed = recurrent.shape
        gates = packed // units
        if gates not in (3, 4) or packed % units or len(kernel.shape) != 2 or kernel.shape[1] != packed:
            reason = f"it is the bias of a CuDNN layer, and its kernels are {kernel.shape} and {recurrent.shape}"
            raise damaged(path, reason, key=bias.key)
        found[kernel.key] = _converted(kernel, kernel.shape, partial(_turn_blocks, gates=gates))
        found[recurrent.key] = _converted(recurrent, recurrent.shape, partial(_transpose_blocks, gates=gates))
        if gates == 4:
            found[bias.key] = _converted(bias, (packed,), _sum_halves)
        else:
            found[bias.key] = _converted(bias, (2, packed), lambda array: array)
    return found


def _converted(record: Record, shape: tuple[int, ...], convert: Callable[[Array], Array]) -> Record:
    return replace(record, shape=shape, location=ConvertedEntries(record, convert))


def _turn_blocks(kernel: Array, gates: int) -> Array:
    """Return an input kernel from cuDNN's, where each gate's block lies with its outputs first."""
    blocks = np.split(kernel, gates, axis=1)
    return np.concatenate([block.reshape(block.shape[::-1]).transpose() for block in blocks], axis=1)


def _transpose_blocks(kernel: Array, gates: int) -> Array:
    return np.concatenate([block.transpose() for block in np.split(kernel, gates, axis=1)], axis=1)


def _sum_halves(bias: Array) -> Array:
    """Return the one bias of an LSTM, which adds cuDNN's two anyway."""
    total: Array = bias[: bias.size // 2] + bias[bias.size // 2 :]
    return total
