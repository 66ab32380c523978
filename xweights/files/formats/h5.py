"""The HDF5 format, in which Keras writes its weights.

h5py reads the structure through our descriptor. Nothing that leads out of the file is followed (external links,
external storage, virtual datasets), only built-in filters are used, and plain arrays are read without h5py. When
writing, h5py creates the structure in memory, and the arrays are written straight to the file.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import BackendMissingError, CheckpointError
from xweights.files.formats import keras2_h5
from xweights.files.formats.safetensors import parse_metadata
from xweights.files.io.arrays_to_write import ArrayToWrite, Sink
from xweights.files.io.dtypes import dtype_from_name, is_number, is_special, to_native_byteorder
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import METADATA_KEY, compact_json
from xweights.files.io.open_file import OpenFile, Window, damaged, refused, shorten
from xweights.files.io.records import ByteRange, Index, Record, little_endian_bytes

ENDINGS = (".weights.h5", ".h5", ".hdf5")
# gzip, shuffle, fletcher32 and scale-offset come with HDF5, lzf with h5py; any other is code loaded from disk.
_FILTERS = frozenset({1, 2, 3, 6, 32000})
_DEPTH = 64
_HAS_STATISTICS = re.compile(r"(sync_)?batch_normalization(_\d+)?")
# Where Keras 3 keeps the variables of an optimizer.
_OPTIMIZER = "optimizer/vars/"
_CONTIGUOUS, _CHUNKED = 1, 2


def need_h5py(path: str) -> Any:
    """Return h5py; raise BackendMissingError if it isn't installed."""
    try:
        import h5py
    except ImportError:
        raise BackendMissingError(
            f"{path!r} is an HDF5 file, and h5py isn't installed\nFix: python -m pip install 'xweights-nn[files]'"
        ) from None
    return h5py


@dataclass(frozen=True, slots=True, eq=False)
class PackedDataset:
    """Location of entries that only h5py can unpack: chunked, compressed, or inside the structure.

    ``verify`` checks the bytes of the whole HDF5 file before the first read, where it is in an archive with checksums.
    """

    dataset: Any
    path: str
    verify: Callable[[], object] | None = None

    def read(self, record: Record) -> Array:
        array = np.empty(record.shape, record.dtype)
        if record.size:
            self._fill(array, (), record)
        return array

    def read_into(self, record: Record, out: Array, start: int) -> None:
        shape = record.shape
        row = math.prod(shape[1:])
        first, last = start // max(row, 1), -(-(start + out.size) // max(row, 1))
        if not shape or last - first >= shape[0]:
            out[...] = self.read(record).reshape(-1)[start : start + out.size]
            return
        rows = np.empty((last - first, *shape[1:]), record.dtype)
        self._fill(rows, (slice(first, last),), record)
        out[...] = rows.reshape(-1)[start - first * row : start - first * row + out.size]

    def _fill(self, out: Array, cut: tuple[slice, ...], record: Record) -> None:
        if self.verify is not None:
            self.verify()
        try:
            stored = self.dataset[cut] if cut else self.dataset[()]
        except CheckpointError:
            raise
        except Exception as wrong:  # noqa: BLE001 - whatever h5py makes of a damaged chunk
            raise damaged(self.path, f"its data can't be unpacked: {str(wrong)[:120]}", key=record.key) from None
        stored = np.asarray(stored)
        out[...] = stored.view(record.dtype) if stored.dtype.kind == "V" else stored


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of an HDF5 file."""
    return read_at(file, limits, 0, file.size)


def read_at(file: OpenFile, limits: Limits, start: int, size: int) -> Index:
    """Return the index of an HDF5 file inside another file."""
    return index_file(file, Window(file, start, size), limits, start)


def index_file(file: OpenFile, window: io.IOBase, limits: Limits, start: int | None) -> Index:
    """Return the index of an HDF5 file; ``start`` is its offset in ``file``, None if it is compressed there."""
    h5py = need_h5py(file.path)
    records: list[Record] = []
    ignored: list[str] = []
    optimizer: dict[str, Record] = {}
    try:
        structure = h5py.File(window, "r")
        reader = _Reader(h5py, file, limits, start)
        for key, dataset in reader.walk(structure, "", []):
            record = reader.make_record(key, dataset)
            if not _is_other_state(key):
                records.append(record)
                continue
            ignored.append(key)
            if key.startswith(_OPTIMIZER):
                optimizer[key.removeprefix(_OPTIMIZER)] = record
        if keras2_h5.is_keras2(structure):
            return keras2_h5.arrange(file, window, limits, structure, reader.groups, {r.key: r for r in records})
        names = reader.names
        records = _mark_statistics(records, names)
        records.sort(key=lambda record: reader.positions.get(record.key, len(records)))
    except CheckpointError:
        raise
    except Exception as wrong:  # noqa: BLE001 - whatever h5py makes of a damaged file
        raise damaged(file.path, f"it is no sound HDF5 file: {str(wrong)[:120]}") from None
    tree = {"model_weights": {record.key: record for record in records}, "optimizer_weights": optimizer}
    labels = {f"name:{key}": name for key, name in names.items()}
    return Index(file.path, "h5", records, [file], labels, ignored, tree if optimizer else None)


def _mark_statistics(records: list[Record], names: Mapping[str, str]) -> list[Record]:
    """Return the records, those of moving statistics marked as not trained.

    Keras names a layer's group after its class (or after its attribute, with the layer's own name beside), and keeps
    statistics last, as ``vars/2`` and ``vars/3``.
    """
    of_group: dict[str, list[str]] = {}
    for record in records:
        group = record.key.rpartition("/")[0]
        layer = group.removesuffix("/vars").rpartition("/")[2]
        if group.endswith("/vars") and (
            _HAS_STATISTICS.fullmatch(layer) or _HAS_STATISTICS.fullmatch(names.get(group, ""))
        ):
            of_group.setdefault(group, []).append(record.key)
    last = {key for keys in of_group.values() for key in sorted(keys)[-2:]}
    return [
        replace(record, metadata=replace(record.metadata, trainable=False)) if record.key in last else record
        for record in records
    ]


def _is_other_state(key: str) -> bool:
    """Return whether Keras has an optimizer variable or the state of a random generator under this key."""
    return key.startswith(_OPTIMIZER) or ("seed_generator" in key and "/vars/" in key)


class _Reader:
    """Reader of the groups and datasets of one file."""

    def __init__(self, h5py: Any, file: OpenFile, limits: Limits, start: int | None) -> None:
        self.h5py, self.file, self.limits, self.start = h5py, file, limits, start
        self.names: dict[str, str] = {}
        self.groups: dict[str, Any] = {}
        self.positions: dict[str, int] = {}
        self.seen: set[int] = set()
        self.room = limits.index_room

    def walk(self, group: Any, path: str, above: list[int]) -> Iterator[tuple[str, Any]]:
        for name in group:
            key = f"{path}{name}"
            self.room -= 2000
            if self.room < 0 or len(above) > _DEPTH:
                raise refused(self.file.path, "it has more or deeper groups than allowed", key=key)
            link = group.get(name, getlink=True)
            if not isinstance(link, self.h5py.HardLink):
                filename = getattr(link, "filename", None)
                kind_of_link = "a link into another file" if filename is not None else "a soft link"
                raise refused(self.file.path, f"it is {kind_of_link}, which is never followed", key=key)
            member = group[name]
            address = self.h5py.h5o.get_info(member.id).addr
            if address in self.seen:
                raise refused(self.file.path, "it is a second name of something that came before", key=key)
            self.seen.add(address)
            if isinstance(member, self.h5py.Group):
                label = member.attrs.get("name") if name == "vars" else None
                if isinstance(label, str):
                    self.names[key] = label
                self.groups[key] = member
                yield from self.walk(member, f"{key}/", [*above, address])
            elif isinstance(member, self.h5py.Dataset):
                yield key, member
            else:
                raise refused(self.file.path, "it is neither a group nor an array", key=key)

    def make_record(self, key: str, dataset: Any) -> Record:
        path = self.file.path
        shape, stored = dataset.shape, dataset.dtype
        if shape is None:
            raise refused(path, "it has no shape at all", key=key)
        fields = self._read_metadata(key, dataset)
        if isinstance(fields, dict) and type(fields.get("at")) is int:
            self.positions[key] = fields["at"]
        dtype = to_native_byteorder(stored)
        if stored.kind == "V" and stored.names is None:
            dtype = self._find_dtype(key, dataset, stored)
        if not is_number(dtype):
            raise refused(path, f"its dtype is {shorten(stored.str)}, and weights are numbers", key=key)
        properties = dataset.id.get_create_plist()
        if dataset.is_virtual or properties.get_external_count():
            raise refused(path, "its data lies in other files, which are never opened", key=key)
        filters = {properties.get_filter(position)[0] for position in range(properties.get_nfilters())}
        if filters - _FILTERS:
            reason = f"it is packed by the filter {min(filters - _FILTERS)}, which isn't built into HDF5"
            raise refused(path, reason, key=key)
        record = Record(
            key, dtype, shape, parse_metadata(path, fields, key, shape, dtype), PackedDataset(dataset, path)
        )
        self.limits.check(path, record)
        return self._locate(record, dataset, properties, stored)

    def _locate(self, record: Record, dataset: Any, properties: Any, stored: np.dtype[Any]) -> Record:
        """Return the record with a location that is quicker to read, if its bytes are plain in the file."""
        path, key = self.file.path, record.key
        layout = properties.get_layout()
        stored_bytes = dataset.id.get_storage_size()
        if layout == _CHUNKED:
            self.limits.check_growth(path, key, stored_bytes, record.nbytes)
            chunk = math.prod(dataset.chunks) * record.dtype.itemsize
            self.limits.check_growth(path, key, stored_bytes, chunk)
        elif record.nbytes != stored_bytes:
            reason = f"its data isn't all there\ngot:      {stored_bytes:,} bytes\nexpected: {record.nbytes:,} bytes"
            raise damaged(path, reason, key=key)
        if layout != _CONTIGUOUS or self.start is None or not record.size:
            return record
        offset = self.start + dataset.id.get_offset()
        self.file.check_inside(offset, record.nbytes, key)
        location = ByteRange(self.file, offset, record.dtype.itemsize > 1 and not stored.isnative)
        return Record(key, record.dtype, record.shape, record.metadata, location)

    def _read_metadata(self, key: str, dataset: Any) -> Any:
        text = dataset.attrs.get(METADATA_KEY)
        if text is None:
            return None
        try:
            return json.loads(text)
        except (TypeError, ValueError, RecursionError):
            raise damaged(self.file.path, "its note is no JSON", key=key) from None

    def _find_dtype(self, key: str, dataset: Any, stored: np.dtype[Any]) -> np.dtype[Any]:
        name = dataset.attrs.get("dtype")
        try:
            dtype = dtype_from_name(name) if isinstance(name, str) else None
        except (AttributeError, TypeError):
            dtype = None
        if dtype is None or dtype.itemsize != stored.itemsize:
            reason = f"its dtype is {shorten(stored.str)}, bytes without a meaning"
            raise refused(self.file.path, reason, key=key)
        return dtype


class _SparseFile(io.RawIOBase):
    """A file in memory that takes no memory where nothing was written."""

    PAGE = 1 << 16

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}
        self.size = self._at = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def readinto(self, out: Any) -> int:
        view = memoryview(out).cast("B")
        count = max(0, min(len(view), self.size - self._at))
        done = 0
        while done < count:
            page, start = divmod(self._at + done, self.PAGE)
            step = min(self.PAGE - start, count - done)
            content = self.pages.get(page)
            view[done : done + step] = bytes(step) if content is None else content[start : start + step]
            done += step
        self._at += count
        return count

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            page, start = divmod(self._at + done, self.PAGE)
            step = min(self.PAGE - start, len(view) - done)
            content = self.pages.setdefault(page, bytearray(self.PAGE))
            content[start : start + step] = view[done : done + step]
            done += step
        self._at += done
        self.size = max(self.size, self._at)
        return done


def write(sink: Sink, arrays: Sequence[ArrayToWrite], metadata: dict[str, str]) -> None:
    """Write arrays as an HDF5 file: a dataset for each, in the groups that its key names."""
    if metadata:
        raise sink.cannot(None, "a .h5 file has no place for metadata")
    h5py = need_h5py(sink.path)
    skeleton = _SparseFile()
    with h5py.File(skeleton, "w") as structure:
        offsets = [_create_dataset(h5py, structure, sink, array, position) for position, array in enumerate(arrays)]
    base = sink.file.tell()
    for page, content in sorted(skeleton.pages.items()):
        sink.file.seek(base + page * skeleton.PAGE)
        sink.write(content[: max(0, skeleton.size - page * skeleton.PAGE)])
    for array, offset in zip(arrays, offsets, strict=True):
        if offset is None:
            continue
        sink.file.seek(base + offset)
        for part in array.iter_checked():
            sink.write(little_endian_bytes(part))
    sink.file.flush()
    sink.file.truncate(base + skeleton.size)
    sink.file.seek(base + skeleton.size)


def _create_dataset(h5py: Any, structure: Any, sink: Sink, array: ArrayToWrite, position: int) -> int | None:
    """Create a dataset and return the offset of its entries in the file."""
    special = is_special(array.dtype)
    stored = np.dtype(f"V{array.dtype.itemsize}") if special else array.dtype.newbyteorder("<")
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    parts = array.key.split("/")
    if not all(parts) or "." in parts or len(parts) > _DEPTH:
        raise sink.cannot(array, "its key is no path of HDF5")
    try:
        group = structure.require_group("/".join(parts[:-1])) if parts[:-1] else structure
        kind = h5py.h5t.py_create(stored, logical=True)
        space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
        identifier = h5py.h5d.create(group.id, parts[-1].encode(), kind, space, dcpl=plan)
    except (ValueError, TypeError, OSError, RuntimeError) as wrong:
        raise sink.cannot(array, f"HDF5 can't hold it: {str(wrong)[:120]}") from None
    dataset = h5py.Dataset(identifier)
    if special:
        dataset.attrs["dtype"] = array.dtype.name
    if array.metadata is not None:
        # HDF5 doesn't keep the order of datasets.
        dataset.attrs[METADATA_KEY] = compact_json({**array.metadata.as_json(array.key, array.dtype), "at": position})
    offset: int | None = identifier.get_offset() if array.nbytes else None
    return offset
