"""Write a corpus of malformed, hostile and odd weight files, with the expected result of each in ``manifest.json``.

    python tests/files/corpus.py FOLDER      writes the files, then reads each in its own process: report.json

Every file is read in a fork of a process that has imported everything, under an audit hook that records each file that
is opened or made and each way of running code, with an alarm and a measurement of peak memory.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 16 << 20
DAMAGED, REFUSED, ACCESS = "DamagedFileError", "RefusedFileError", "FileAccessError"
MANIFEST: dict[str, dict[str, Any]] = {}
FOLDER = Path()


def put(name: str, data: bytes, expect: str, key: str | None = None, reason: str = "", **more: Any) -> None:
    """Write a file and note the result expected of it; ``expect`` is an error, or "valid"."""
    (FOLDER / name).write_bytes(data)
    note(name, expect, key, reason, **more)


def note(name: str, expect: str, key: str | None = None, reason: str = "", **more: Any) -> None:
    """Note the result expected of an existing file."""
    MANIFEST[name] = {"expect": expect, "key": key, "reason": reason, **more}


# safetensors


def st(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def with_note(**facts: Any) -> dict[str, Any]:
    return {"__metadata__": {"xweights": json.dumps({"w": facts})}, "w": entry(shape=[1, 2])}


def safetensors() -> None:
    eight = bytes(8)
    bad: dict[str, tuple[bytes, str, str | None, str]] = {
        "empty": (b"", DAMAGED, None, "ends before"),
        "seven-bytes": (b"1234567", DAMAGED, None, "ends before"),
        "header-beyond-end": (st({"w": entry()}, eight, 5000), DAMAGED, None, "ends before"),
        "header-2-63": (st({}, length=1 << 63), DAMAGED, None, "header claims"),
        "header-100-mb": (st({}, length=100_000_001), DAMAGED, None, "header claims"),
        "space-first": (st(b" {}"), DAMAGED, None, "begin with {"),
        "list": (st(b"[1, 2]"), DAMAGED, None, "begin with {"),
        "not-utf8": (st(b'{"\xff": 1}'), DAMAGED, None, "no JSON"),
        "cut-json": (st(b'{"w": {"dtype":'), DAMAGED, None, "no JSON"),
        "twice": (st(b'{"w": {}, "w": {}}'), DAMAGED, "w", "twice"),
        "twice-inside": (st(b'{"w": {"dtype": "F32", "dtype": "F32"}}'), DAMAGED, "dtype", "twice"),
        "nan": (st(b'{"w": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', eight), DAMAGED, None, "NaN"),
        "float-shape": (st({"w": entry(shape=[2.0])}, eight), DAMAGED, "w", "shape"),
        "bool-shape": (st({"w": entry(shape=[True, 2])}, eight), DAMAGED, "w", "shape"),
        "negative-shape": (st({"w": entry(shape=[-2, -1])}, eight), DAMAGED, "w", "shape"),
        "overflowing-shape": (st({"w": entry(shape=[1 << 40, 1 << 40])}, eight), DAMAGED, "w", "bytes don't fit"),
        "shape-is-text": (st({"w": entry(shape="22")}, eight), DAMAGED, "w", "shape"),
        "65-axes": (st({"w": entry(shape=[1] * 65)}, eight), DAMAGED, "w", "shape"),
        "reversed": (st({"w": entry(offsets=[8, 0])}, eight), DAMAGED, "w", "data_offsets"),
        "negative-offset": (st({"w": entry(offsets=[-8, 0])}, eight), DAMAGED, "w", "data_offsets"),
        "three-offsets": (st({"w": entry(offsets=[0, 4, 8])}, eight), DAMAGED, "w", "data_offsets"),
        "beyond-end": (st({"w": entry(offsets=[8, 16])}, eight), DAMAGED, "w", "ends before"),
        "cut-data": (st({"w": entry()}, b"1234"), DAMAGED, "w", "ends before"),
        "overlap": (st({"v": entry(), "w": entry(offsets=[4, 12])}, bytes(12)), DAMAGED, "w", "overlaps"),
        "hole": (st({"v": entry(), "w": entry(offsets=[12, 20])}, bytes(20)), DAMAGED, "w", "hole"),
        "hole-first": (st({"w": entry(offsets=[8, 16])}, bytes(16)), DAMAGED, "w", "hole"),
        "more-data": (st({"w": entry()}, bytes(9)), DAMAGED, None, "belong to none"),
        "polyglot": (st({"w": entry()}, eight + b"PK\x03\x04" + bytes(40)), DAMAGED, None, "belong to none"),
        "wrong-size": (st({"w": entry(shape=[3])}, eight), DAMAGED, "w", "bytes don't fit"),
        "unknown-dtype": (st({"w": entry("F128")}, eight), REFUSED, "w", "dtype 'F128'"),
        "four-bits": (st({"w": entry("F4", [16])}, eight), REFUSED, "w", "dtype 'F4'"),
        "complex": (st({"w": entry("C32", [2])}, eight), REFUSED, "w", "dtype 'C32'"),
        "dtype-number": (st({"w": entry(32)}, eight), REFUSED, "w", "dtype 32"),
        "more-words": (st({"w": entry(code="x")}, eight), DAMAGED, "w", "isn't made of"),
        "less-words": (st({"w": {"dtype": "F32", "shape": [2]}}, eight), DAMAGED, "w", "isn't made of"),
        "entry-list": (st({"w": [1]}, eight), DAMAGED, "w", "isn't made of"),
        "metadata-numbers": (st({"__metadata__": {"a": 1}}), DAMAGED, None, "__metadata__"),
        "metadata-list": (st({"__metadata__": []}), DAMAGED, None, "__metadata__"),
        "deep": (st(b'{"w": ' + b"[" * 200_000), DAMAGED, None, "nested"),
        "giant-number": (st(b'{"w": ' + b"9" * 50_000 + b"}"), DAMAGED, None, "no JSON"),
        "parse-bomb": (st(b'{"w": [' + b"[]," * 5_000_000 + b"[]]}"), REFUSED, None, "more memory"),
        "over-max-bytes": (
            st({"w": entry("U8", [17 << 20], [0, 17 << 20])}, bytes(17 << 20)),
            REFUSED,
            "w",
            "max_bytes",
        ),
        "note-no-json": (st({"__metadata__": {"xweights": "{"}, "w": entry()}, eight), DAMAGED, None, "no JSON"),
        "note-axes": (st(with_note(axes=["in"]), eight), DAMAGED, "w", "axes"),
        "note-twice": (st(with_note(axes=["in", "in"]), eight), DAMAGED, "w", "axes"),
        "note-order": (st(with_note(order=[0, 5]), eight), DAMAGED, "w", "orders"),
        "note-split": (st(with_note(split=[2, 2]), eight), DAMAGED, "w", "splits"),
        "note-word": (st(with_note(code="x"), eight), DAMAGED, "w", "unknown word"),
        "note-type": (st(with_note(trainable="yes"), eight), DAMAGED, "w", "wrong trainable"),
    }
    for name, (data, expect, key, reason) in bad.items():
        put(f"st-{name}.safetensors", data, expect, key, reason)
    two = {"v": entry(), "w": entry(offsets=[8, 16]), "__metadata__": {"xweights": '{"w": {"name": "v"}}'}}
    put("st-one-name.safetensors", st(two, bytes(16)), DAMAGED, "w", "has the name 'v'")
    put("ok-empty.safetensors", st({}), "valid", arrays={})
    put("ok-padded.safetensors", st(b"{}" + b" " * (1 << 20)), "valid", arrays={})
    put("ok-0-d.safetensors", st({"w": entry("F64", [])}, struct.pack("<d", 2.5)), "valid", arrays={"w": 2.5})
    put("ok-no-entries.safetensors", st({"w": entry(shape=[0, 1 << 40], offsets=[0, 0])}), "valid", arrays={"w": []})
    put("ok-names.safetensors", st({"ünï/☃": entry(), "": entry(offsets=[8, 16])}, bytes(16)), "valid",
        arrays={"ünï/☃": [0.0, 0.0], "": [0.0, 0.0]})  # fmt: skip
    many = {f"layer{i}/kernel": entry("U8", [1], [i, i + 1]) for i in range(20_000)}
    put("ok-many.safetensors", st(many, bytes(20_000)), "valid", count=20_000)
    large = FOLDER / "ok-2-31.safetensors"
    with large.open("wb") as file:
        file.write(st({"w": entry("U8", [1 << 31], [0, 1 << 31])}))
        file.truncate(file.tell() + (1 << 31))  # sparse: it takes no disk space
    note(large.name, "valid", count=1, max_bytes=None, whole=False)


# npz


def npy(header: str | None = None, data: bytes = bytes(8), version: int = 1, length: int | None = None) -> bytes:
    text = (header or "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }").encode("latin1") + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<L", size) + text + data


def zipped(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED, **info: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            for key, value in info.items():
                setattr(entry, key, value)
            archive.writestr(entry, data)
    return out.getvalue()


def described(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}")


def npz() -> None:
    import warnings

    warnings.simplefilter("ignore")
    good = zipped({"w.npy": npy()})
    arrays: dict[str, tuple[bytes, str, str]] = {
        "object": (described("'|O'"), REFUSED, "pickled"),
        "structured": (described("[('a', '<f4')]"), REFUSED, "dtype"),
        "text": (described("'<U2'"), REFUSED, "dtype"),
        "date": (described("'<M8[s]'"), REFUSED, "dtype"),
        "void": (described("'|V4'"), REFUSED, "without a meaning"),
        "complex": (described("'<c32'", shape="(1,)"), REFUSED, "numbers of up to 64 bits"),
        "long-double": (described("'<f16'"), REFUSED, "up to 64 bits"),
        "magic": (b"\x93NUMPX" + npy()[6:], DAMAGED, "begin as"),
        "short": (b"\x93NUM", DAMAGED, "begin as"),
        "version": (npy(version=9), DAMAGED, "begin as"),
        "header-long": (npy(length=60_000), DAMAGED, "header claims"),
        "header-huge": (npy(version=2, length=1 << 31), DAMAGED, "header claims"),
        "code": (npy("__import__('os').system('touch PWNED')"), DAMAGED, "isn't made of"),
        "code-inside": (npy("{'descr': __import__('os').system('touch PWNED'), 'shape': (2,)}"), DAMAGED, "made of"),
        "less-words": (npy("{'descr': '<f4', 'shape': (2,), }"), DAMAGED, "isn't made of"),
        "more-words": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': True, }"), DAMAGED, "made of"),
        "negative": (described(shape="(-2,)"), DAMAGED, "shape"),
        "float": (described(shape="(2.0,)"), DAMAGED, "shape"),
        "order": (described(order="'yes'"), DAMAGED, "order"),
        "65-axes": (described(shape=f"({'1,' * 64}2)"), DAMAGED, "shape"),
        "shape-bomb": (described(shape="(1000000000000,)"), DAMAGED, "size doesn't fit"),
        "shape-overflow": (described(shape=f"({'1000000000000, ' * 6})"), DAMAGED, "size doesn't fit"),
        "more-data": (npy(data=bytes(9)), DAMAGED, "size doesn't fit"),
        "less-data": (npy(data=bytes(7)), DAMAGED, "size doesn't fit"),
    }
    for name, (data, expect, reason) in arrays.items():
        put(f"npz-{name}.npz", zipped({"w.npy": data}), expect, "w", reason)
        if name in ("object", "shape-bomb", "code"):
            put(f"npz-{name}-packed.npz", zipped({"w.npy": data}, zipfile.ZIP_DEFLATED), expect, "w", reason)
    put("npz-empty.npz", b"", DAMAGED, None, "no sound zip")
    put("npz-no-zip.npz", b"PK" + bytes(100), DAMAGED, None, "no sound zip")
    put("npz-cut.npz", good[:-30], DAMAGED, None, "no sound zip")
    put("npz-member.npz", zipped({"w.npy": npy(), "readme.txt": b"hello"}), REFUSED, "readme.txt", "no .npy")
    put("npz-twice.npz", zipped([("w.npy", npy()), ("w.npy", npy())]), DAMAGED, "w.npy", "one name")
    put("npz-before.npz", b"#!/bin/sh\n" + good, DAMAGED, "w.npy", "before its first")
    put("npz-method.npz", zipped({"w.npy": npy()}, zipfile.ZIP_BZIP2), REFUSED, "w.npy", "method 12")
    put("npz-lzma.npz", zipped({"w.npy": npy()}, zipfile.ZIP_LZMA), REFUSED, "w.npy", "method 14")
    put("npz-note.npz", zipped({"w.npy": npy()}, extra=struct.pack("<HH", 0x5877, 1) + b"{"), DAMAGED, "w", "note")
    position = good.index(b"PK\x01\x02")
    flags = bytearray(good)
    flags[position + 8] |= 1
    put("npz-encrypted.npz", bytes(flags), REFUSED, "w.npy", "encrypted")
    other = bytearray(good)
    other[30] = ord("v")
    put("npz-two-names.npz", bytes(other), DAMAGED, "w.npy", "contradict")
    crc = bytearray(good)
    crc[14] ^= 1
    put("npz-two-sums.npz", bytes(crc), DAMAGED, "w.npy", "contradict")
    beyond = bytearray(good)
    struct.pack_into("<LL", beyond, position + 20, 1 << 30, 1 << 30)
    struct.pack_into("<LL", beyond, 18, 1 << 30, 1 << 30)
    put("npz-beyond.npz", bytes(beyond), DAMAGED, "w.npy", "ends before")
    rotten = bytearray(good)
    rotten[good.index(b"PK\x01\x02") - 1] ^= 1
    put("npz-plain-sum.npz", bytes(rotten), DAMAGED, "w.npy", "CRC-32")
    packed = zipped({"w.npy": npy(data=os.urandom(8))}, zipfile.ZIP_DEFLATED)
    position = packed.index(b"PK\x01\x02")
    broken = bytearray(packed)
    broken[35:45] = b"\xff" * 10
    put("npz-broken.npz", bytes(broken), DAMAGED, "w.npy", "unpacked")
    changed = bytearray(packed)
    struct.pack_into("<L", changed, position + 16, 12345)
    struct.pack_into("<L", changed, 14, 12345)
    put("npz-sum.npz", bytes(changed), DAMAGED, "w.npy", "CRC-32")
    bomb = "{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824,), }"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("w.npy", "w") as to:
        to.write(npy(bomb, b""))
        for _ in range(64):
            to.write(bytes(16 << 20))
    put("npz-bomb.npz", out.getvalue(), REFUSED, "w.npy", "compressed bytes would become")
    understated = bytearray(out.getvalue())
    position = understated.index(b"PK\x01\x02")
    struct.pack_into("<L", understated, position + 24, len(npy(bomb, b"")) + 100)
    struct.pack_into("<L", understated, 22, len(npy(bomb, b"")) + 100)
    put("npz-lying-bomb.npz", bytes(understated), DAMAGED, None, "")
    # Two entries in the directory for one member.
    entry = good[good.index(b"PK\x01\x02") : good.index(b"PK\x05\x06")]
    second = entry.replace(b"w.npy", b"v.npy")
    end = bytearray(good[good.index(b"PK\x05\x06") :])
    struct.pack_into("<HHL", end, 8, 2, 2, 2 * len(entry))
    shared = good[: good.index(b"PK\x01\x02")] + entry + second + bytes(end)
    put("npz-shared.npz", shared, DAMAGED, "v.npy", "contradict")

    save = {"big": np.arange(3, dtype=">f4"), "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "s": np.array(2.5)}
    save |= {"e": np.zeros((0, 3)), "ünï/☃": np.array([True, False]), "i": np.arange(3, dtype=">i8")}
    for name, write in (("ok-odd.npz", np.savez), ("ok-odd-packed.npz", np.savez_compressed)):
        out = io.BytesIO()
        write(out, **save)
        put(name, out.getvalue(), "valid", arrays={key: array.tolist() for key, array in save.items()})
    put("ok-version-2.npz", zipped({"w.npy": npy(version=2)}), "valid", arrays={"w": [0.0, 0.0]})
    put("ok-no-members.npz", zipped({}), "valid", arrays={})


# pt


def pt(program: bytes, storages: dict[str, bytes] | None = None, method: int = 0, **members: bytes) -> bytes:
    contents = {"a/data.pkl": program, "a/version": b"3\n"}
    contents |= {f"a/data/{key}": data for key, data in (storages or {"0": bytes(8)}).items()}
    return zipped(contents | {f"a/{name}": data for name, data in members.items()}, method)


def text(string: str) -> bytes:
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def number_or_bytes(value: Any) -> bytes:
    return number(value) if isinstance(value, int) else value


def storage(kind: str = "torch\nFloatStorage", key: str = "0", count: int = 2) -> bytes:
    return b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(of: bytes | None = None, offset: int = 0, shape: Any = (2,), strides: Any = (1,), call: str = "") -> bytes:
    parts = [b"c" + (call or "torch._utils\n_rebuild_tensor_v2").encode() + b"\n(", of or storage(), number(offset)]
    parts += [b"(" + b"".join(map(number_or_bytes, numbers)) + b"t" for numbers in (shape, strides)]
    return b"".join(parts) + b"\x89ccollections\nOrderedDict\n)RtR"


def state(value: bytes, key: bytes | None = None) -> bytes:
    return b"\x80\x02}(" + (text("w") if key is None else key) + value + b"u."


def programs() -> None:
    good = state(tensor())
    command = b"(" + text("touch PWNED") + b"tR"
    bad: dict[str, tuple[bytes, str, str | None, str]] = {
        "system": (state(b"cos\nsystem\n" + command), REFUSED, None, "'os.system'"),
        "posix": (state(b"cposix\nsystem\n" + command), REFUSED, None, "'posix.system'"),
        "eval": (state(b"cbuiltins\neval\n" + command), REFUSED, None, "'builtins.eval'"),
        "getattr": (state(b"cbuiltins\ngetattr\n" + command), REFUSED, None, "'builtins.getattr'"),
        "stack-global": (state(text("os") + text("system") + b"\x93" + command), REFUSED, None, "'os.system'"),
        "dotted": (state(text("torch") + text("hub.load") + b"\x93" + command), REFUSED, None, "torch.hub.load"),
        "inst": (b"\x80\x02(" + text("touch PWNED") + b"ios\nsystem\n.", DAMAGED, None, "instruction 0x69"),
        "obj": (b"\x80\x02(cos\nsystem\n" + text("x") + b"o.", REFUSED, None, "'os.system'"),
        "newobj": (state(b"ccollections\nOrderedDict\n)\x81"), DAMAGED, None, "as a class"),
        "extension": (b"\x80\x02\x82\x01.", DAMAGED, None, "instruction 0x82"),
        "python-persid": (b"\x80\x02P0\n.", DAMAGED, None, "instruction 0x50"),
        "module": (state(b"ctorch.nn.modules.linear\nLinear\n)\x81"), REFUSED, None, "torch.nn.modules.linear.Linear"),
        "numpy": (state(b"cnumpy.core.multiarray\n_reconstruct\n)R"), REFUSED, None, "_reconstruct"),
        "load-from-bytes": (state(b"ctorch.storage\n_load_from_bytes\n)R"), REFUSED, None, "_load_from_bytes"),
        "quantized": (state(b"ctorch._utils\n_rebuild_qtensor\n)R"), REFUSED, None, "quantized"),
        "sparse": (state(b"ctorch._utils\n_rebuild_sparse_tensor\n)R"), REFUSED, None, "sparse"),
        "subclass": (state(b"ctorch._utils\n_rebuild_wrapper_subclass\n)R"), REFUSED, None, "subclass"),
        "complex": (state(tensor(storage("torch\nComplexHalfStorage"))), REFUSED, None, "ComplexHalfStorage"),
        "empty": (b"", DAMAGED, None, "ends too early"),
        "cut": (good[:40], DAMAGED, None, "ends too early"),
        "long-name": (b"\x80\x02c" + b"a" * 2000 + b".", DAMAGED, None, "without an end"),
        "no-stop": (good[:-1], DAMAGED, None, "ends too early"),
        "empty-stack": (b"\x80\x020.", DAMAGED, None, "stack is empty"),
        "no-mark": (b"\x80\x02}u.", DAMAGED, None, "no mark"),
        "no-memo": (b"\x80\x02h\x07.", DAMAGED, None, "never kept"),
        "two-left": (b"\x80\x02}}.", DAMAGED, None, "more or less than one"),
        "call-type": (state(b"ctorch\nFloatStorage\n)R"), DAMAGED, None, "it calls"),
        "no-arguments": (state(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), DAMAGED, None, "wrong arguments"),
        "items-of-none": (b"\x80\x02N(" + text("w") + b"Nu.", DAMAGED, None, "no dict"),
        "odd-items": (b"\x80\x02}(" + text("w") + b"u.", DAMAGED, None, "without a value"),
        "list-key": (state(tensor(), b"]"), DAMAGED, None, "has the key"),
        "twice": (b"\x80\x02}(" + 2 * (text("w") + tensor()) + b"u.", DAMAGED, None, "twice"),
        "long-text": (b"\x80\x02X\xff\xff\xff\x7fabc.", DAMAGED, None, "ends too early"),
        "long-number": (b"\x80\x02\x8a\xff" + bytes(255) + b".", DAMAGED, None, "whole number"),
        "persid-text": (b"\x80\x02" + text("0") + b"Q.", DAMAGED, None, "something else than a storage"),
        "persid-numbers": (b"\x80\x02(KKKKKtQ.", DAMAGED, None, "something else"),
        "size-float": (state(tensor(shape=[b"G" + bytes(8)])), DAMAGED, None, "described by"),
        "shape-and-strides": (state(tensor(strides=(1, 1))), DAMAGED, None, "strides"),
        "negative-stride": (state(tensor(strides=(-1,))), DAMAGED, None, "described by"),
        "negative-offset": (state(tensor(offset=-1)), DAMAGED, None, "described by"),
        "beyond": (state(tensor(offset=1)), DAMAGED, "w", "beyond its storage"),
        "stride-beyond": (state(tensor(strides=(1 << 40,))), DAMAGED, "w", "beyond its storage"),
        "shape-beyond": (state(tensor(shape=(1 << 40,))), DAMAGED, "w", "beyond its storage"),
        "expanded": (state(tensor(shape=(1 << 20, 1 << 20), strides=(0, 0))), REFUSED, "w", "expanded"),
        "storage-longer": (state(tensor(storage(count=3))), DAMAGED, "w", "another size"),
        "storage-type": (state(tensor(storage("torch\nDoubleStorage"))), DAMAGED, "w", "another size"),
        "storage-missing": (state(tensor(storage(key="7"))), DAMAGED, "w", "isn't in the archive"),
        "storage-path": (state(tensor(storage(key="../version", count=0))), DAMAGED, "w", "isn't in the archive"),
        "itself": (b"\x80\x02}q\x00(" + text("w") + b"h\x00u.", DAMAGED, "w", "contain themselves"),
        "no-tensor": (state(b"K\x01"), REFUSED, None, "no tensor"),
        "a-number": (b"\x80\x02K\x01.", REFUSED, None, "no dict of tensors"),
        "deep": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", DAMAGED, None, ""),
        "one-name": (b"\x80\x02}(" + text("a/b") + tensor() + text("a") + b"}" + text("b") + tensor() + b"su.",
                     DAMAGED, "a/b", "one name"),
        "objects-bomb": (b"\x80\x02(" + b"}" * 4_000_000 + b"l.", REFUSED, None, ""),
    }  # fmt: skip
    for name, (program, expect, key, reason) in bad.items():
        put(f"pt-{name}.pt", pt(program), expect, key, reason)
    names = b"\x80\x02}q\x00(" + text("w") + tensor() + b"u"
    for level in range(40):
        names += b"0}q" + bytes([level + 1]) + b"(" + text("a") + b"h" + bytes([level]) + text("b") + b"h"
        names += bytes([level]) + b"u"
    put("pt-names-bomb.pt", pt(names + b"."), REFUSED, None, "over and over")
    put("pt-a-pickle.pt", pickle.dumps({"w": 1}, 2), REFUSED, None, "none that PyTorch has written")
    put("pt-no-zip.pt", b"weights", DAMAGED, None, "neither as a zip file does nor as a pickle")
    put("pt-no-program.pt", zipped({"a/version": b"3\n"}), DAMAGED, None, "data.pkl")
    put("pt-two-programs.pt", zipped({"a/data.pkl": good, "b/data.pkl": good}), DAMAGED, None, "data.pkl")
    put("pt-script.pt", pt(good, **{"code/x.py": b"", "constants.pkl": b"\x80\x02)."}), REFUSED, None, "TorchScript")
    put("pt-packed.pt", pt(good, method=zipfile.ZIP_DEFLATED), REFUSED, "w", "compressed")
    put("pt-byteorder.pt", pt(good, byteorder=b"middle"), DAMAGED, "a/byteorder", "byte order")
    put("pt-note.pt", pt(good, **{"xweights.json": b"["}), DAMAGED, None, "no JSON")
    put("ok-plain.pt", pt(good, {"0": struct.pack("<2f", 1, 2)}), "valid", arrays={"w": [1.0, 2.0]})
    big = pt(good, {"0": struct.pack(">2f", 1, 2)}, byteorder=b"big")
    put("ok-big-endian.pt", big, "valid", arrays={"w": [1.0, 2.0]})
    turned = state(tensor(storage(count=6), 0, (3, 2), (1, 3)))
    put("ok-turned.pt", pt(turned, {"0": struct.pack("<6f", *range(6))}), "valid",
        arrays={"w": [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]})  # fmt: skip
    scalar = state(tensor(storage(count=1), 0, (), ()))
    put("ok-0-d.pt", pt(scalar, {"0": struct.pack("<f", 2.5)}), "valid", arrays={"w": 2.5})


def legacy(
    program: bytes, *, version: int = 1001, machine: Any = None, order: Any = ("0",), tail: bytes = b""
) -> bytes:
    """Build a file as PyTorch wrote it before 1.6: four pickles around the program, then the storages."""
    facts = {"protocol_version": version, "little_endian": True, "type_sizes": {}} if machine is None else machine
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, version, facts)]
    return b"".join([*head, program, pickle.dumps(list(order), 2), tail])


def legacies() -> None:
    old = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(2) + b"NtQ"
    part = old.replace(b"NtQ", b"(" + text("v") + number(0) + number(1) + b"ttQ")
    good, data = state(tensor(old)), struct.pack("<q2f", 2, 1, 2)
    command = b"(" + text("touch PWNED") + b"tR"
    last = legacy(good, tail=data).replace(b"X\x01\x00\x00\x000q\x01a.", b"cos\nsystem\n.")
    bad: dict[str, tuple[bytes, str, str | None, str]] = {
        "system": (legacy(state(b"cos\nsystem\n" + command)), REFUSED, None, "'os.system'"),
        "system-first": (b"\x80\x02cos\nsystem\n" + command + b".", REFUSED, None, "'os.system'"),
        "system-last": (last, REFUSED, None, "'os.system'"),
        "version": (legacy(good, version=7, tail=data), DAMAGED, None, "version is 7"),
        "machine": (legacy(good, machine=[], tail=data), DAMAGED, None, "on what machine"),
        "cut-program": (legacy(good)[:120], DAMAGED, None, "before its description"),
        "cut-data": (legacy(good, tail=data[:-3]), DAMAGED, None, "ends before its data"),
        "no-data": (legacy(good), DAMAGED, None, "ends before its data"),
        "count": (legacy(good, tail=struct.pack("<q2f", 3, 1, 2)), DAMAGED, None, "another size"),
        "count-negative": (legacy(good, tail=struct.pack("<q2f", -1, 1, 2)), DAMAGED, None, "another size"),
        "unknown-storage": (legacy(good, order=("0", "1"), tail=data), DAMAGED, None, "names some"),
        "storage-twice": (legacy(good, order=("0", "0"), tail=data * 2), DAMAGED, None, "one twice"),
        "storage-unlisted": (legacy(good, order=()), DAMAGED, "w", "isn't in the list"),
        "more": (legacy(good, tail=data + b"more"), DAMAGED, None, "belong to none"),
        "part": (legacy(state(tensor(part)), tail=data), DAMAGED, None, "part of a storage"),
        "beyond": (legacy(state(tensor(old, offset=1)), tail=data), DAMAGED, "w", "beyond its storage"),
    }
    for name, (content, expect, key, reason) in bad.items():
        put(f"legacy-{name}.pt", content, expect, key, reason)
    put("ok-legacy.pt", legacy(good, tail=data), "valid", arrays={"w": [1.0, 2.0]})
    big = {"protocol_version": 1001, "little_endian": False, "type_sizes": {}}
    swapped = legacy(good, machine=big, tail=struct.pack(">q2f", 2, 1, 2))
    put("ok-legacy-big-endian.pt", swapped, "valid", arrays={"w": [1.0, 2.0]})


# HDF5, .keras


def h5(make: Callable[[Any], None], **options: Any) -> bytes:
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w", **options) as file:
        make(file)
    return out.getvalue()


def hdf5() -> None:
    import h5py

    secret = str(FOLDER / "secret" / "canary.h5")
    with h5py.File(secret, "w") as file:
        file["w"] = np.arange(4.0)
    raw = str(FOLDER / "secret" / "canary.bin")
    Path(raw).write_bytes(bytes(64))
    (FOLDER / "h5-canary").write_bytes(b"")

    def linked(link: Any) -> Callable[[Any], None]:
        return lambda file: file.__setitem__("w", link)

    def outside(file: Any) -> None:
        file.create_dataset("w", (4,), "f8", external=[(raw, 0, 32)])

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
        layout[:] = h5py.VirtualSource(secret, "w", shape=(4,))
        file.create_virtual_dataset("w", layout)

    def low(file: Any, change: Callable[[Any], None], shape: tuple[int, ...] = (4,)) -> None:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        change(plan)
        h5py.h5d.create(file.id, b"w", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple(shape), dcpl=plan)

    def filtered(plan: Any) -> None:
        plan.set_chunk((4,))
        plan.set_filter(305, h5py.h5z.FLAG_OPTIONAL, ())

    def deep(file: Any) -> None:
        for _ in range(200):
            file = file.create_group("g")
        file["w"] = np.ones(2)

    def cycle(file: Any) -> None:
        group = file.create_group("g")
        group["back"] = group

    def twice(file: Any) -> None:
        file["a"] = np.ones(2)
        file["b"] = file["a"]

    def note_of(file: Any) -> None:
        file["w"] = np.ones(2)
        file["w"].attrs["xweights"] = "{"

    chunked = {"chunks": (1 << 16,), "compression": "gzip"}
    makers: dict[str, tuple[Callable[[Any], Any], str, str]] = {
        "external-link": (linked(h5py.ExternalLink(secret, "/w")), REFUSED, "link into another file"),
        "soft-link": (linked(h5py.SoftLink("/v")), REFUSED, "soft link"),
        "external-storage": (
            lambda f: f.create_dataset("w", (4,), "f8", external=[(raw, 0, 32)]),
            REFUSED,
            "other files",
        ),
        "virtual": (virtual, REFUSED, "other files"),
        "compound": (lambda f: f.create_dataset("w", (4,), "f4,i4"), REFUSED, "dtype"),
        "text": (lambda f: f.create_dataset("w", data="hello"), REFUSED, "dtype"),
        "bytes": (lambda f: f.create_dataset("w", data=np.array([b"abc"])), REFUSED, "dtype"),
        "ragged": (lambda f: f.create_dataset("w", (4,), h5py.vlen_dtype(np.float32)), REFUSED, "dtype"),
        "reference": (lambda f: f.create_dataset("w", (4,), h5py.ref_dtype), REFUSED, "dtype"),
        "complex": (lambda f: f.create_dataset("w", (4,), "c32"), REFUSED, "dtype"),
        "void": (lambda f: f.create_dataset("w", data=np.zeros(4, "V2")), REFUSED, "without a meaning"),
        "named-dtype": (lambda f: f.__setitem__("w", np.dtype("f4")), REFUSED, "neither a group nor an array"),
        "no-shape": (lambda f: f.create_dataset("w", data=h5py.Empty("f4")), REFUSED, "no shape"),
        "unwritten": (lambda f: f.create_dataset("w", (4,), "f4"), DAMAGED, "isn't all there"),
        "shape-bomb": (lambda f: f.create_dataset("w", (1 << 40,), "u1", chunks=(1 << 16,)), REFUSED, "max_bytes"),
        "gzip-bomb": (lambda f: f.create_dataset("w", data=np.zeros(1 << 26, "u1"), **chunked), REFUSED, "max_bytes"),
        "filter": (lambda f: low(f, filtered), REFUSED, "filter 305"),
        "note": (note_of, DAMAGED, "note"),
    }
    for name, (make, expect, reason) in makers.items():
        put(f"h5-{name}.h5", h5(make), expect, "w", reason)
    put("h5-deep.h5", h5(deep), REFUSED, None, "deeper")
    put("h5-cycle.h5", h5(cycle), REFUSED, "g/back", "second name")
    put("h5-twice.h5", h5(twice), REFUSED, "b", "second name")
    put("h5-garbage.h5", os.urandom(4096), DAMAGED, None, "no sound HDF5")
    put("h5-empty.weights.h5", b"", DAMAGED, None, "no sound HDF5")
    good = h5(lambda f: f.__setitem__("w", np.arange(4000.0)))
    put("h5-cut.h5", good[: len(good) // 2], DAMAGED, None, "")
    noise = h5(
        lambda f: f.create_dataset("w", data=np.random.default_rng(0).random(4000), chunks=(4000,), compression=1)
    )
    position = len(noise) - 20_000
    put("h5-chunk.h5", noise[:position] + bytes(200) + noise[position + 200 :], DAMAGED, "w", "unpacked")
    (FOLDER / "h5-canary").unlink()

    odd = {
        "big": np.arange(3, dtype=">f4"),
        "e": np.zeros((0, 3), "f4"),
        "g/☃": np.array([True, False]),
        "s": np.array(2.5),
    }

    def all_odd(file: Any) -> None:
        for key, array in odd.items():
            file[key] = array
        file.create_dataset("gzip", data=np.arange(9.0), chunks=(4,), compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("lzf", data=np.arange(9.0), chunks=(4,), compression="lzf")

    expected = {key: array.tolist() for key, array in odd.items()}
    expected |= {"gzip": list(range(9)), "lzf": list(range(9))}
    put("ok-odd.h5", h5(all_odd), "valid", arrays=expected)
    put("ok-latest.h5", h5(all_odd, libver="latest"), "valid", arrays=expected)

    weights = h5(lambda f: f.__setitem__("layers/dense/vars/0", np.ones((2, 3), "f4")))
    dense = {"class_name": "Dense", "config": {"name": "dense", "use_bias": False}}
    trap = {
        "class_name": "Lambda",
        "config": {"name": "f", "function": {"class_name": "__lambda__", "config": {"code": "4w=="}}},
    }
    trap["module"] = "os"
    config = json.dumps({"class_name": "Sequential", "config": {"layers": [trap, dense]}}).encode()
    whole = {"metadata.json": b"{}", "config.json": config, "model.weights.h5": weights}
    put("ok-lambda.keras", zipped(whole), "valid", arrays={"dense/0/kernel": [[1.0] * 3] * 2})
    put("ok-packed.keras", zipped(whole, zipfile.ZIP_DEFLATED), "valid", arrays={"dense/0/kernel": [[1.0] * 3] * 2})
    for name in ("config.json", "model.weights.h5"):
        put(
            f"keras-no-{name[:5]}.keras",
            zipped({k: v for k, v in whole.items() if k != name}),
            DAMAGED,
            name,
            "no such",
        )
    put("keras-config.keras", zipped(whole | {"config.json": b"{"}), DAMAGED, None, "no JSON")
    put("keras-config-deep.keras", zipped(whole | {"config.json": b'{"a":' * 100_000}), DAMAGED, None, "nested")
    put(
        "keras-twice.keras",
        zipped([*whole.items(), ("model.weights.h5", weights)]),
        DAMAGED,
        "model.weights.h5",
        "one name",
    )
    link = h5(linked(h5py.ExternalLink(secret, "/w")))
    put("keras-link.keras", zipped(whole | {"model.weights.h5": link}), REFUSED, "w", "link into another file")
    put("keras-weights.keras", zipped(whole | {"model.weights.h5": b"no"}), DAMAGED, None, "no sound HDF5")
    bomb = zipped(whole | {"model.weights.h5": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    put("keras-bomb.keras", bomb, REFUSED, "model.weights.h5", "would become")
    wrong = json.dumps({"config": {"layers": [{"class_name": "Conv2D", "config": {"use_bias": 3, "groups": "x"}}, 7]}})
    put("ok-strange-config.keras", zipped(whole | {"config.json": wrong.encode()}), "valid",
        arrays={"layers/dense/vars/0": [[1.0] * 3] * 2})  # fmt: skip


def keras2() -> None:
    import h5py

    texts = h5py.string_dtype()

    def listed(layers: Any = (b"a",), weights: Any = (b"a/w:0",), **attributes: Any) -> Callable[[Any], None]:
        def make(file: Any) -> None:
            home = file.create_group("model_weights") if "model_config" in attributes else file
            home.attrs["layer_names"] = layers
            home.create_group("a").create_dataset("a/w:0", data=np.ones((2, 3), "f4"))
            home["a"].attrs["weight_names"] = weights
            file.attrs.update(attributes)

        return make

    def in_a_circle(file: Any) -> None:
        listed([b"a", b"a/back"])(file)
        file["a/back"] = file["a"]

    def to_itself(file: Any) -> None:
        listed()(file)
        file.attrs.create("layer_names", np.array([file.ref], object), dtype=h5py.ref_dtype)

    def split_with_a_gap(file: Any) -> None:
        listed()(file)
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"a"], [b"b"]

    def cudnn(kernel: Any, recurrent: Any) -> Callable[[Any], None]:
        def make(file: Any) -> None:
            shapes = {"kernel:0": kernel, "recurrent_kernel:0": recurrent, "bias:0": (2 * recurrent[1],)}
            file.attrs["layer_names"] = [b"a"]
            file.create_group("a").attrs["weight_names"] = [name.encode() for name in shapes]
            for name, shape in shapes.items():
                file["a"].create_dataset(name, data=np.ones(shape, "f4"))

        return make

    wrong: dict[str, tuple[Callable[[Any], None], str, str | None, str]] = {
        "no-group": (listed([b"b"]), DAMAGED, "b", "no such group"),
        "no-array": (listed(weights=[b"a/v:0"]), DAMAGED, "a/a/v:0", "no such array"),
        "outside": (listed(weights=[b"../../etc/passwd"]), DAMAGED, "a/../../etc/passwd", "no such array"),
        "twice": (listed([b"a", b"a"]), DAMAGED, "/", "twice"),
        "circle": (in_a_circle, REFUSED, None, "second name"),
        "gap": (split_with_a_gap, DAMAGED, "b", "no such group"),
        "numbers": (listed(np.arange(9)), DAMAGED, "/", "no text"),
        "reference": (to_itself, DAMAGED, "/", "no text"),
        "empty": (listed(h5py.Empty("S3")), DAMAGED, "/", "no text"),
        "long": (listed([b"a" * 20_000]), DAMAGED, "/", "no name"),
        "config": (listed(model_config="{"), DAMAGED, None, "no JSON"),
        "deep-config": (listed(model_config='{"a":' * 100_000), DAMAGED, None, "nested"),
        "keras1": (listed(keras_version="1.2.2"), REFUSED, None, "other orders"),
        "cudnn-gates": (cudnn((2, 15), (3, 15)), DAMAGED, "a/bias:0", "CuDNN"),
        "cudnn-kernel": (cudnn((12,), (3, 12)), DAMAGED, "a/bias:0", "CuDNN"),
    }
    for name, (make, expect, key, reason) in wrong.items():
        put(f"keras2-{name}.h5", h5(make), expect, key, reason)
    put("ok-keras2.h5", h5(listed()), "valid", arrays={"a/w": [[1.0] * 3] * 2})
    # A list of 4,000 texts, each of them the same megabyte.
    many = np.array(["x" * (1 << 20)] + ["y"] * 3999, object)
    data = h5(lambda f: (listed()(f), f["a"].attrs.create("weight_names", many, dtype=texts)))
    length, first = (1 << 20).to_bytes(4, "little"), (1).to_bytes(4, "little")
    at = next(at for at in range(len(data)) if data.startswith(length, at) and data[at + 12 : at + 16] == first)
    put("keras2-heap.h5", data[:at] + data[at : at + 16] * 4000 + data[at + 64_000 :], REFUSED, None, "max_bytes")


# Several files


def sharded() -> None:
    good = st({"w": entry()}, bytes(8))
    (FOLDER / "secret" / "canary.safetensors").write_bytes(good)
    (FOLDER / "shard-w.safetensors").write_bytes(good)
    (FOLDER / "shard-v.safetensors").write_bytes(st({"v": entry()}, bytes(8)))
    (FOLDER / "shard-bad.safetensors").write_bytes(st({"w": entry()}, bytes(4)))
    (FOLDER / "shard-link.safetensors").symlink_to(FOLDER / "secret" / "canary.safetensors")
    (FOLDER / "shard-inside.safetensors").symlink_to(FOLDER / "shard-w.safetensors")
    absolute = str(FOLDER / "secret" / "canary.safetensors")
    maps: dict[str, tuple[Any, str, str | None, str]] = {
        "up": ({"w": "../canary.safetensors"}, REFUSED, None, "no plain name"),
        "down": ({"w": "secret/canary.safetensors"}, REFUSED, None, "no plain name"),
        "absolute": ({"w": absolute}, REFUSED, None, "no plain name"),
        "dots": ({"w": ".."}, REFUSED, None, "no plain name"),
        "backslash": ({"w": "secret\\canary.safetensors"}, REFUSED, None, "no plain name"),
        "null": ({"w": "a\0b"}, REFUSED, None, "no plain name"),
        "number": ({"w": 7}, REFUSED, None, "no plain name"),
        "no-name": ({"w": ""}, REFUSED, None, "no plain name"),
        "url": ({"w": "http://example.org/w.safetensors"}, REFUSED, None, "no plain name"),
        "link": ({"w": "shard-link.safetensors"}, REFUSED, None, "link out of its folder"),
        "missing": ({"w": "shard-none.safetensors"}, DAMAGED, "shard-none.safetensors", "can't be opened"),
        "itself": ({"w": "sharded-itself.safetensors.index.json"}, DAMAGED, None, ""),
        "bad-shard": ({"w": "shard-bad.safetensors"}, DAMAGED, "w", "ends before"),
        "wrong-shard": (
            {"w": "shard-v.safetensors", "v": "shard-w.safetensors"},
            DAMAGED,
            None,
            "not there by the index",
        ),
        "nowhere": ({"w": "shard-w.safetensors", "x": "shard-w.safetensors"}, DAMAGED, "x", "none of the shards"),
        "not-listed": ({"x": "shard-w.safetensors"}, DAMAGED, "w", "not there by the index"),
        "list": (["shard-w.safetensors"], DAMAGED, None, "no weight_map"),
        "nothing": ({}, DAMAGED, None, "lists nothing"),
    }
    for name, (weight_map, expect, key, reason) in maps.items():
        index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        put(f"sharded-{name}.safetensors.index.json", index, expect, key, reason)
    put("sharded-empty.safetensors.index.json", b"", DAMAGED, None, "no JSON")
    twice = b'{"weight_map": {"w": "shard-w.safetensors", "w": "shard-link.safetensors"}}'
    put("sharded-twice.safetensors.index.json", twice, DAMAGED, "w", "twice")
    put("sharded-up.weights.json", b'{"weight_map": {"/w": ["../canary.h5"]}}', REFUSED, None, "no plain name")
    put("sharded-missing.weights.json", b'{"weight_map": {"/w": ["none.h5"]}}', DAMAGED, "none.h5", "can't be opened")
    for name, shard in (("ok-sharded", "shard-w"), ("ok-linked-shard", "shard-inside")):
        index = json.dumps({"weight_map": {"w": f"{shard}.safetensors", "v": "shard-v.safetensors"}}).encode()
        shards = [f"{shard}.safetensors", "shard-w.safetensors", "shard-v.safetensors"]
        put(f"{name}.safetensors.index.json", index, "valid", arrays={"w": [0.0, 0.0], "v": [0.0, 0.0]}, shards=shards)


def others() -> None:
    (FOLDER / "folder.npz").mkdir()
    note("folder.npz", REFUSED, None, "no regular file")
    os.mkfifo(FOLDER / "pipe.safetensors")
    note("pipe.safetensors", REFUSED, None, "no regular file")
    note("none.pt", ACCESS, None, "No such file")
    put("weights.txt", b"1 2 3", REFUSED, None, "ending")
    (FOLDER / "loop.npz").symlink_to("loop.npz")
    note("loop.npz", ACCESS, None, "symbolic links")


def containers() -> None:
    sys.path.insert(0, str(Path(__file__).parent))  # it runs as a program that keeps its folder out of the path
    from corpus_containers import write_containers

    good = pt(state(tensor()), {"0": struct.pack("<2f", 1, 2)})
    write_containers(FOLDER, put, note, good, st({"w": entry()}, bytes(8)))


def write_corpus(folder: Path) -> None:
    """Write all files, and manifest.json."""
    global FOLDER
    FOLDER = folder
    (folder / "secret").mkdir()
    for make in (safetensors, npz, programs, legacies, hdf5, keras2, sharded, others, containers):
        make()
    (folder / "manifest.json").write_text(json.dumps(MANIFEST, indent=1, ensure_ascii=True))


# Reading it.

_CODE = ("exec", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
_CODE += ("marshal.loads", "ctypes.dlopen", "socket.connect", "compile", "code.__new__", "import")
_MAKING = ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.copyfile")


def read_one(folder: Path, name: str, expected: dict[str, Any]) -> dict[str, Any]:
    """Load a file with all of its arrays, and return what happened."""
    import signal
    import time

    import xweights as xw

    result: dict[str, Any] = {"opened": [], "events": []}
    watching = [True]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching[0] and event == "open":
            result["opened"].append([str(args[0]), str(args[1]), args[2]])
        elif watching[0] and event in (*_CODE, *_MAKING):
            result["events"].append(f"{event} {str(args)[:100]}")

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    signal.alarm(60)
    sys.addaudithook(hook)
    start = time.process_time()  # of this process: the machine may be busy with others
    try:
        with xw.load(str(folder / name), max_bytes=expected.get("max_bytes", MAX_BYTES)) as checkpoint:
            parameters = xw.parameters(checkpoint)
            result["count"] = len(parameters)
            values = {}
            for p in parameters:
                if expected.get("whole", True):
                    array = p.handle.read()
                    if "arrays" in expected:
                        values[p.name] = array.tolist()
                else:
                    last = np.empty(5, p.dtype)
                    p.handle.read_into(last, p.size - 5)
        result["arrays"] = values
    except xw.CheckpointError as error:
        result |= {"error": type(error).__name__, "key": error.key, "reason": error.reason, "text": str(error)}
    except BaseException as error:  # noqa: BLE001 - what no reader may raise
        result |= {"error": f"bare {type(error).__name__}", "text": str(error)[:300]}
    watching[0] = False
    result["seconds"] = time.process_time() - start
    result["peak"] = memory("VmHWM") - before
    return result


def memory(field: str) -> int:
    """Return a figure of this process's memory from the system, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def read_corpus(folder: Path) -> None:
    """Read each file in a fork, and write report.json."""
    import codecs
    import difflib  # noqa: F401

    import h5py  # noqa: F401
    import ml_dtypes  # noqa: F401

    import xweights as xw

    codecs.lookup("ascii")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("ok-odd.npz", "ok-odd.h5", "ok-lambda.keras", "ok-plain.pt", "ok-sharded.safetensors.index.json"):
        xw.get_params(str(folder / name))  # imports whatever reading imports
    report = {}
    os.chdir(folder)
    for name, expected in manifest.items():
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            try:
                with os.fdopen(writer, "w") as to:
                    json.dump(read_one(folder, name, expected), to)
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            text = answer.read()
        _, status = os.waitpid(child, 0)
        report[name] = json.loads(text) if text else {"error": f"died with status {status}"}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    before = set(where.iterdir())
    write_corpus(where)
    written = {str(path) for path in where.rglob("*")}
    read_corpus(where)
    late = {str(path) for path in where.rglob("*")} - written - {str(where / "report.json")}
    (where / "made.json").write_text(json.dumps(sorted(late)))
