"""The .pt format of PyTorch since 1.6: a zip file of storages, and a pickle that describes the tensors in them.

The pickle is described, never run (see ``pt_pickle``). Files of the older format are read by ``pt_legacy``.
"""

from __future__ import annotations

import functools
import math
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xweights.core.parameter import Parameter
from xweights.files.formats import pt_legacy
from xweights.files.formats.pt_names import STORAGES, PickledStorage
from xweights.files.formats.pt_pickle import describe
from xweights.files.formats.pt_tensors import StorageLocation, build_index, c_strides
from xweights.files.formats.safetensors import json_object
from xweights.files.formats.zip_archive import Archive
from xweights.files.io.arrays_to_write import ArrayToWrite, Sink, StateValues, array_to_write
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import compact_json
from xweights.files.io.open_file import OpenFile, damaged, refused, shorten
from xweights.files.io.records import Index, little_endian_bytes

ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_METADATA_MEMBER = "xweights.json"
# Entries begin at multiples of this in a file, for other readers that map it into memory.
_ALIGNED = 64
_PAD = struct.Struct("<HH")
_PAD_KIND = 0x4246  # "FB", as PyTorch itself pads


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a .pt file, of this format or the older one."""
    if file.read(0, min(file.size, 2)) != b"PK":
        return pt_legacy.read(file, limits)
    archive = Archive(file, limits, may_lack_sums=True)
    root = _find_root(archive)
    members = archive.members
    if f"{root}constants.pkl" in members or any(name.startswith(f"{root}code/") for name in members):
        raise refused(file.path, "it is a TorchScript program", fix="save its state_dict()")
    tree = describe(archive.read(members[f"{root}data.pkl"]), file.path, limits)
    swapped = _read_byte_order(archive, root) != ("little" if np.little_endian else "big")

    @functools.cache  # tensors that share a storage share its check, which is made once
    def make_check(name: str) -> Callable[[int, memoryview | None], bool] | None:
        member = members[name]
        return archive.make_crc_check(member) if member.checks else None

    def locate(storage: PickledStorage, key: str) -> StorageLocation:
        member = members.get(f"{root}data/{storage.key}")
        if member is None:
            raise damaged(file.path, f"its storage {shorten(storage.key)} isn't in the archive", key=key)
        if member.deflated:
            raise refused(file.path, "its storage is compressed, as PyTorch never does", key=key)
        return StorageLocation(member.offset, member.size, member.checks, make_check(member.name))

    return build_index(
        file, tree, locate, swapped=swapped, metadata_by_key=_read_metadata(archive, root), limits=limits
    )


def _find_root(archive: Archive) -> str:
    roots = [name for name in archive.members if name.count("/") <= 1 and name.endswith("data.pkl")]
    if len(roots) != 1:
        raise damaged(archive.file.path, f"it has {len(roots)} members named data.pkl, and one is wanted")
    return roots[0].removesuffix("data.pkl")


def _read_metadata(archive: Archive, root: str) -> dict[str, Any]:
    member = archive.members.get(root + _METADATA_MEMBER)
    return (
        {}
        if member is None
        else json_object(archive.file.path, archive.read(member), f"its member {_METADATA_MEMBER!r}")
    )


def _read_byte_order(archive: Archive, root: str) -> str:
    member = archive.members.get(f"{root}byteorder")
    if member is None:
        return "little"
    order = archive.read(member, 16).decode("latin1")
    if order not in ("little", "big"):
        raise damaged(archive.file.path, f"its byte order is {shorten(order)}", key=member.name)
    return order


def write(sink: Sink, arrays: Sequence[ArrayToWrite], metadata: dict[str, str]) -> None:
    """Write arrays as a state dict that ``torch.load(path, weights_only=True)`` reads."""
    if metadata:
        raise sink.cannot(None, "a .pt has no place for metadata")
    write_state(sink, arrays, StateValues())


def write_state(sink: Sink, arrays: Sequence[ArrayToWrite], state: StateValues) -> None:
    """Write arrays and other values as a state dict that ``torch.load(path, weights_only=True)`` reads."""
    metadata_by_key = {
        array.key: array.metadata.as_json(array.key, array.dtype) for array in arrays if array.metadata is not None
    }
    pickler = _StatePickler(sink)
    pickled = pickler.pickle(arrays, state)
    metadata_by_key = {key: fields for key, fields in metadata_by_key.items() if fields}
    texts = compact_json(metadata_by_key).encode() if metadata_by_key else None
    _write_archive(sink, pickled, pickler.arrays, texts)


def write_tensor(sink: Sink, array: ArrayToWrite) -> None:
    """Write an array as ``torch.save`` writes a tensor that isn't in a dict."""
    pickler = _StatePickler(sink)
    _write_archive(sink, b"\x80\x02" + pickler.tensor(array) + b".", pickler.arrays, None)


def _write_archive(sink: Sink, pickled: bytes, arrays: Sequence[ArrayToWrite], texts: bytes | None) -> None:
    with zipfile.ZipFile(sink.file, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, "data.pkl", pickled)
        _write_member(archive, "byteorder", b"little")
        _write_member(archive, "version", b"3\n")
        if texts is not None:
            _write_member(archive, _METADATA_MEMBER, texts)
        for position, array in enumerate(arrays):
            info = zipfile.ZipInfo(f"archive/data/{position}")
            wide = array.nbytes >= 1 << 31
            begin = sink.file.tell() + 30 + len(info.filename) + _PAD.size + 20 * wide
            pad = -begin % _ALIGNED
            info.extra = _PAD.pack(_PAD_KIND, pad) + b"Z" * pad
            with archive.open(info, "w", force_zip64=wide) as member:
                for part in array.iter_checked():
                    member.write(little_endian_bytes(part))


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


_TYPED = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}


class _StatePickler:
    """Writes the pickle of a state dict; ``arrays`` are its storages, by number."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.arrays: list[ArrayToWrite] = []

    def pickle(self, arrays: Sequence[ArrayToWrite], state: StateValues) -> bytes:
        """Return the pickle. Keys of one array share its storage, as those of tied tensors do."""
        tensors: dict[str, bytes] = {}
        for array in arrays:
            tensors.update(dict.fromkeys((array.key, *array.aliases), self.tensor(array)))
        pickled = tensors | {key: self.value(value, key, 0) for key, value in state.values.items()}
        order = [key for key in state.order if key in pickled]
        out = [b"\x80\x02ccollections\nOrderedDict\n)R("]
        for key in dict.fromkeys((*order, *pickled)):
            out += [pickle_text(key), pickled[key]]
        out.append(b"u")
        if state.attributes:
            out += [self.value(dict(state.attributes), "its attributes", 0), b"b"]
        return b"".join([*out, b"."])

    def tensor(self, array: ArrayToWrite) -> bytes:
        """Return the pickle of a tensor, and take its array among the storages."""
        shape, dtype = tuple(array.shape), array.dtype.name
        typed = dtype in _TYPED
        if not typed and f"{dtype}" not in _UNTYPED:
            raise self.sink.cannot(array, f"PyTorch has no dtype {dtype}")
        out = [b"ctorch._utils\n_rebuild_tensor_v2\n(" if typed else b"ctorch._utils\n_rebuild_tensor_v3\n("]
        kind = f"ctorch\n{_TYPED[dtype]}\n" if typed else "ctorch.storage\nUntypedStorage\n"
        count = math.prod(shape) if typed else array.nbytes
        out += [
            b"(",
            pickle_text("storage"),
            kind.encode(),
            pickle_text(str(len(self.arrays))),
            pickle_text("cpu"),
            pickle_integer(count),
            b"tQ",
        ]
        out += [
            pickle_integer(0),
            _pickle_integers(shape),
            _pickle_integers(c_strides(shape)),
            b"\x89ccollections\nOrderedDict\n)R",
        ]
        out.append(b"tR" if typed else f"ctorch\n{dtype}\ntR".encode())
        self.arrays.append(array)
        return b"".join(out)

    def value(self, value: Any, key: str, depth: int) -> bytes:
        """Return the pickle of a value of the types that ``weights_only=True`` reads; refuse any other."""
        if isinstance(value, Parameter):
            why = value.refusal(writing=False)
            if why is not None:
                raise refused(self.sink.path, f"a tensor of it can't be read: {why}", key=key)
            return self.tensor(array_to_write(value, key=key))
        kind = type(value)
        if kind in _CONTAINERS and depth < _DEPTH:
            if kind in (list, tuple):
                items = b"".join(self.value(item, key, depth + 1) for item in value)
                return b"](" + items + b"e" if kind is list else b"(" + items + b"t"
            items = b"".join(self.value(part, key, depth + 1) for pair in value.items() for part in pair)
            return (b"}(" if kind is dict else b"ccollections\nOrderedDict\n)R(") + items + b"u"
        if value is None or kind is bool:
            return b"N" if value is None else b"\x88" if value else b"\x89"
        if kind is int and value.bit_length() < 2000:  # the longest integer of protocol 2 that torch reads
            return pickle_integer(value)
        if kind is float:
            return b"G" + struct.pack(">d", value)
        if kind is str:
            return pickle_text(value)
        if kind in (bytes, bytearray):
            # Protocol 2 has no bytes.
            code = b"c_codecs\nencode\n(" + pickle_text(value.decode("latin1")) + pickle_text("latin1") + b"tR"
            return code if kind is bytes else b"cbuiltins\nbytearray\n(" + code + b"tR"
        if kind in _CONTAINERS:
            what = "values that contain themselves, or are nested too deeply"
        else:
            what = "a number of too many digits" if kind is int else f"a {kind.__name__}"
        raise refused(
            self.sink.path,
            f"it holds {what}, and a .pt that is read without running code holds plain values and arrays",
            key=key,
            fix='names="neutral" writes the parameters alone',
        )


_CONTAINERS = (dict, OrderedDict, list, tuple)
_DEPTH = 100


_UNTYPED = frozenset(
    {"uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
    | {"float8_e8m0fnu"}
)


def pickle_text(text: str) -> bytes:
    """Return a text in protocol 2."""
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def pickle_integer(number: int) -> bytes:
    """Return a whole number in protocol 2."""
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(max(number.bit_length() // 8 + 1, 9), "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _pickle_integers(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(pickle_integer, numbers)) + b"t"
