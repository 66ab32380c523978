"""The part of the corpus that is about containers: folders, TensorFlow, ONNX, GGUF, MessagePack, wrong endings.

All files are made by hand, without the packages that write such files.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

DAMAGED, REFUSED, ACCESS = "DamagedFileError", "RefusedFileError", "FileAccessError"
Put = Callable[..., None]


def write_containers(folder: Path, put: Put, note: Callable[..., None], good_pt: bytes, good_st: bytes) -> None:
    """Write all files; ``put`` and ``note`` are those of corpus.py, ``good_*`` sound files with an array ``w``."""
    ggufs(put)
    onnxes(folder, put)
    messages(put)
    endings(put, good_pt, good_st)
    distributed(folder, note, good_pt)
    tensorflows(folder, put, note)
    folders(folder, note, good_st)


# GGUF.


def gg_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gg_tensor(name: bytes = b"w", shape: Any = (2,), kind: int = 0, offset: int = 0) -> bytes:
    return gg_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gg(tensors: list[bytes], settings: list[bytes] = (), data: bytes = bytes(32), **counts: int) -> bytes:
    version, tensor_count = counts.get("version", 3), counts.get("of_tensors", len(tensors))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, counts.get("of_settings", len(settings)))
    head += b"".join([*settings, *tensors])
    return head + bytes(-len(head) % counts.get("alignment", 32)) + data


def gg_setting(name: bytes, kind: int, value: bytes) -> bytes:
    return gg_text(name) + struct.pack("<I", kind) + value


def ggufs(put: Put) -> None:
    nested = struct.pack("<IQ", 9, 1) * 40
    bad: dict[str, tuple[bytes, str, str | None, str]] = {
        "empty": (b"", DAMAGED, None, "empty"),
        "magic": (b"GGUX" + bytes(60), DAMAGED, None, "begin with GGUF"),
        "cut": (gg([gg_tensor()])[:40], DAMAGED, None, "ends before"),
        "version-1": (gg([], version=1), REFUSED, None, "version is 1"),
        "version-9": (gg([], version=9), REFUSED, None, "version is 9"),
        "tensors-2-60": (gg([], of_tensors=1 << 60), DAMAGED, None, "ends before"),
        "settings-2-60": (gg([], of_settings=1 << 60), DAMAGED, None, "ends before"),
        "long-name": (gg([struct.pack("<Q", 1 << 40) + bytes(40)]), DAMAGED, None, "text of"),
        "array-2-62": (gg([], [gg_setting(b"a", 9, struct.pack("<IQ", 8, 1 << 62))]), DAMAGED, None, "ends before"),
        "numbers-2-62": (gg([], [gg_setting(b"a", 9, struct.pack("<IQ", 10, 1 << 61))]), DAMAGED, None, "ends before"),
        "deep-array": (gg([], [gg_setting(b"a", 9, nested + bytes(8))]), DAMAGED, None, "nested"),
        "setting-type": (gg([], [gg_setting(b"a", 77, bytes(8))]), DAMAGED, None, "type 77"),
        "alignment-0": (gg([], [gg_setting(b"general.alignment", 4, bytes(4))]), DAMAGED, None, "alignment"),
        "alignment-3": (gg([], [gg_setting(b"general.alignment", 4, b"\3\0\0\0")]), DAMAGED, None, "alignment"),
        "axes": (gg([gg_text(b"w") + struct.pack("<I", 1 << 31)]), DAMAGED, None, "axes"),
        "shape-2-63": (gg([gg_tensor(shape=(1 << 63,))]), DAMAGED, "w", "shape"),
        "shape-overflow": (gg([gg_tensor(shape=(1 << 40, 1 << 40))]), DAMAGED, "w", "ends before"),
        "beyond": (gg([gg_tensor(shape=(100,))]), DAMAGED, "w", "ends before"),
        "offset": (gg([gg_tensor(offset=1 << 60)]), DAMAGED, "w", "ends before"),
        "unaligned": (gg([gg_tensor(offset=4)]), DAMAGED, "w", "multiple"),
        "type": (gg([gg_tensor(kind=250)]), REFUSED, "w", "type has the number 250"),
        "twice": (gg([gg_tensor(), gg_tensor()]), DAMAGED, "w", "this name"),
    }
    for name, (data, expect, key, reason) in bad.items():
        put(f"gguf-{name}.gguf", data, expect, key, reason)
    values = struct.pack("<2f", 1, 2) + bytes(24)
    put("ok-plain.gguf", gg([gg_tensor(), gg_tensor(b"q", (32,), 2, 32)], data=values + bytes(18)), "valid",
        arrays={"w": [1.0, 2.0]})  # fmt: skip
    put("ok-turned.gguf", gg([gg_tensor(shape=(2, 1))], data=values), "valid", arrays={"w": [[1.0, 2.0]]})


# ONNX: messages of protocol buffers.


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def message(*fields: tuple[int, Any]) -> bytes:
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def onnx(*initializers: bytes) -> bytes:
    graph = message((2, b"g"), *((5, tensor) for tensor in initializers))
    return message((1, 8), (2, b"us"), (7, graph))


def on_tensor(*more: tuple[int, Any], name: bytes = b"w", shape: Any = (2,), kind: int = 1) -> bytes:
    return message(*((1, length) for length in shape), (2, kind), (8, name), *more)


def outside(location: bytes, **words: bytes) -> list[tuple[int, Any]]:
    entries = {"location": location, **words}
    return [(14, 1), *((13, message((1, word.encode()), (2, value))) for word, value in entries.items())]


def onnxes(folder: Path, put: Put) -> None:
    eight = (9, struct.pack("<2f", 1, 2))
    (folder / "secret" / "canary.data").write_bytes(bytes(64))
    (folder / "onnx-link.data").symlink_to(folder / "secret" / "canary.data")
    (folder / "ok-onnx.data").write_bytes(struct.pack("<4f", 0, 0, 1, 2))
    absolute = str(folder / "secret" / "canary.data").encode()
    bad: dict[str, tuple[bytes, str, str | None, str]] = {
        "empty": (b"", DAMAGED, None, "empty"),
        "text": (b"weights are elsewhere", DAMAGED, None, "a text"),
        "cut": (onnx(on_tensor(eight))[:-5], DAMAGED, None, "no sound ONNX"),
        "group": (b"\x08\x08\x13", DAMAGED, None, "kind 3"),
        "endless-number": (b"\x08" + b"\xff" * 20, DAMAGED, None, "no end"),
        "length-2-60": (message((1, 8)) + b"\x3a" + varint(1 << 60), DAMAGED, None, "cut short"),
        "no-graph": (message((1, 8)), DAMAGED, None, "0 graphs"),
        "two-graphs": (message((1, 8), (7, b""), (7, b"")), DAMAGED, None, "2 graphs"),
        "unknown-field": (message((1, 8), (1000, 1)), DAMAGED, None, "field 1000"),
        "no-name": (onnx(on_tensor(eight, name=b"")), DAMAGED, None, "one has none"),
        "twice": (onnx(on_tensor(eight), on_tensor(eight)), DAMAGED, "w", "one name"),
        "size": (onnx(on_tensor(eight, shape=(3,))), DAMAGED, "w", "don't fit its shape"),
        "shape-2-62": (onnx(on_tensor(eight, shape=(1 << 62,))), DAMAGED, "w", "shape"),
        "shape-negative": (onnx(on_tensor(eight, shape=((1 << 64) - 1,))), DAMAGED, "w", "shape"),
        "shape-overflow": (onnx(on_tensor(eight, shape=(1 << 40, 1 << 40))), DAMAGED, "w", "don't fit"),
        "65-axes": (onnx(on_tensor(eight, shape=[1] * 65)), DAMAGED, None, "64 axes"),
        "two-data": (onnx(on_tensor(eight, eight)), DAMAGED, None, "several pieces"),
        "wrong-field": (onnx(on_tensor((10, bytes(16)))), DAMAGED, "w", "field 10"),
        "numbers": (onnx(on_tensor((7, b"\x01" * 30), kind=7)), DAMAGED, "w", "don't fit"),
        "numbers-endless": (onnx(on_tensor((7, b"\x80" * 8), kind=7)), DAMAGED, "w", "as many numbers"),
        "no-data": (onnx(on_tensor()), DAMAGED, "w", "don't fit"),
        "dtype": (onnx(on_tensor(eight, kind=99)), REFUSED, "w", "number 99"),
        "four-bits": (onnx(on_tensor(eight, kind=22)), REFUSED, "w", "int4"),
        "long-name": (onnx(on_tensor(eight, name=b"w" * (1 << 17))), DAMAGED, None, "65,536 are allowed"),
        "up": (onnx(on_tensor(*outside(b"../canary.data"))), REFUSED, None, "no plain name"),
        "down": (onnx(on_tensor(*outside(b"secret/canary.data"))), REFUSED, None, "no plain name"),
        "absolute": (onnx(on_tensor(*outside(absolute))), REFUSED, None, "no plain name"),
        "nowhere": (onnx(on_tensor((14, 1))), REFUSED, None, "no plain name"),
        "link": (onnx(on_tensor(*outside(b"onnx-link.data"))), REFUSED, None, "link out of its folder"),
        "missing": (onnx(on_tensor(*outside(b"none.data"))), ACCESS, None, "No such file"),
    }
    for name, (data, expect, key, reason) in bad.items():
        put(f"onnx-{name}.onnx", data, expect, key, reason, shards=["none.data"])
    for name, words in (("beyond", {"offset": b"99999"}), ("negative", {"offset": b"-8"}), ("words", {"offset": b"x"})):
        put(f"onnx-{name}.onnx", onnx(on_tensor(*outside(b"ok-onnx.data", **words))), DAMAGED, "w", "",
            shards=["ok-onnx.data"])  # fmt: skip
    put("ok-plain.onnx", onnx(on_tensor(eight)), "valid", arrays={"w": [1.0, 2.0]})
    beside = outside(b"ok-onnx.data", offset=b"8", length=b"8")
    put("ok-beside.onnx", onnx(on_tensor(*beside)), "valid", arrays={"w": [1.0, 2.0]}, shards=["ok-onnx.data"])


# MessagePack.


def packed(shape: bytes = b"\x91\x02", dtype: bytes = b"\xa7float32", data: bytes = bytes(8)) -> bytes:
    inner = b"\x93" + shape + dtype + b"\xc4" + bytes([len(data)]) + data
    return b"\xc7" + bytes([len(inner)]) + b"\x01" + inner


def messages(put: Put) -> None:
    good = b"\x81\xa1w" + packed(data=struct.pack("<2f", 1, 2))
    huge = b"\x91\xcf" + struct.pack(">Q", 1 << 40)
    bad: dict[str, tuple[bytes, str, str | None, str]] = {
        "cut": (good[:-3], DAMAGED, None, "ends before"),
        "more": (good + b"more", DAMAGED, None, "belong to nothing"),
        "list": (b"\x91" + packed(), REFUSED, None, "no dict"),
        "no-array": (b"\x81\xa1w\x05", REFUSED, None, "no array"),
        "map-2-32": (b"\xdf\xff\xff\xff\xff", DAMAGED, None, "ends before"),
        "array-2-32": (b"\x81\xa1w\xdd\xff\xff\xff\xff", DAMAGED, None, "ends before"),
        "bytes-2-32": (b"\x81\xa1w\xc6\xff\xff\xff\xff", DAMAGED, None, "ends before"),
        "deep": (b"\x81\xa1w" + b"\x91" * 5000 + b"\x01", REFUSED, None, "deeper"),
        "code": (b"\x81\xa1w\xc1", DAMAGED, None, "0xc1"),
        "twice": (b"\x82" + 2 * good[1:], DAMAGED, None, "twice"),
        "not-utf8": (b"\x81\xa1\xff\x01", DAMAGED, None, "no UTF-8"),
        "shape": (b"\x81\xa1w" + packed(huge), DAMAGED, "w", "don't fit its shape"),
        "shape-text": (b"\x81\xa1w" + packed(b"\xa2no"), DAMAGED, "w", "described by"),
        "dtype": (b"\x81\xa1w" + packed(dtype=b"\xa6object"), REFUSED, "w", "dtype is 'object'"),
        "pieces": (b"\x81\xa1w\x81\xb9__msgpack_chunked_array__\xc3", DAMAGED, "w", "shape and chunks"),
        "objects-bomb": (b"\x81\xa1w\xdd" + struct.pack(">I", 5_000_000) + b"\xc0" * 5_000_000, REFUSED, None, "more"),
    }
    for name, (data, expect, key, reason) in bad.items():
        put(f"msgpack-{name}.msgpack", data, expect, key, reason)
    put("ok-plain.msgpack", good, "valid", arrays={"w": [1.0, 2.0]})


# Endings that say something else than the file holds.


def endings(put: Put, good_pt: bytes, good_st: bytes) -> None:
    tar = b"data.pkl".ljust(257, b"\0") + b"ustar\x0000" + bytes(248)
    sizes = tar[:124] + b"77777777777\0" + tar[136:]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99999999999\n"
    command = b"\x80\x02cos\nsystem\n(X\x0b\x00\x00\x00touch PWNEDtR."
    put("ok-torch.safetensors", good_pt, "valid", arrays={"w": [1.0, 2.0]})
    put("ok-torch.pth.tar", good_pt, "valid", arrays={"w": [1.0, 2.0]})
    put("ok-hub.pt", good_st, "valid", arrays={"w": [0.0, 0.0]})
    put("ok-no-ending", good_st, "valid", arrays={"w": [0.0, 0.0]})
    put("ending-tar.pt", tar, DAMAGED, None, "tar archive")
    put("ending-tar-bomb.safetensors", sizes + bytes(4096), DAMAGED, None, "tar archive")
    put("ending-tar.unknown", tar, REFUSED, None, "tar archive")
    put("ending-pointer.safetensors", pointer, DAMAGED, None, "git-lfs")
    put("ending-page.ckpt", b"<!doctype html><title>404</title>", DAMAGED, None, "HTML page")
    put("ending-gzip.onnx", b"\x1f\x8b" + bytes(40), DAMAGED, None, "gzip")
    put("ending-command.npz", command, REFUSED, None, "'os.system'")
    put("ending-command", command, REFUSED, None, "'os.system'")
    index = {"weight_map": {"w": "../canary.safetensors"}}
    put("ending-index.txt", json.dumps(index).encode(), REFUSED, None, "no plain name")
    put("ending-deep.txt", b'{"a":' * 100_000, REFUSED, None, "text in JSON")


# Folders of torch.distributed.checkpoint.


def dcp_metadata(size: Any = (2,), chunks: Any = (((0,), (2,)),), places: Any = None, extra: bytes = b"") -> bytes:
    """Return the pickle of the metadata of one tensor, written by hand: no class of torch is needed for it."""

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    def value(of: Any) -> bytes:
        if isinstance(of, bytes):
            return of
        if isinstance(of, str):
            return text(of)
        if isinstance(of, int):
            return b"\x8a\x09" + of.to_bytes(9, "little", signed=True)
        if isinstance(of, tuple):
            return b"(" + b"".join(map(value, of)) + b"t"
        if isinstance(of, list):
            return b"](" + b"".join(map(value, of)) + b"e"
        return b"}(" + b"".join(value(key) + value(item) for key, item in of.items()) + b"u"

    def made(name: str, state: Any) -> bytes:
        module, _, kind = f"torch.distributed.checkpoint.{name}".rpartition(".")
        return f"c{module}\n{kind}\n)".encode() + b"\x81" + value(state) + b"b"

    properties = made("metadata.TensorProperties", (b"ctorch\nfloat32\n", "strided"))
    blocks = [made("metadata.ChunkStorageMetadata", {"offsets": at, "sizes": sizes}) for at, sizes in chunks]
    tensor = made("metadata.TensorStorageMetadata", {"properties": properties, "size": size, "chunks": blocks})
    stored = b"}(" + b"".join(
        made("metadata.MetadataIndex", {"fqn": "w", "offset": at})
        + made("filesystem._StorageInfo", {"relative_path": name, "offset": offset, "length": length})
        for at, (name, offset, length) in (places or {}).items()
    ) + b"u"  # fmt: skip
    fields = {"state_dict_metadata": {"w": tensor}, "planner_data": b"N", "storage_data": stored}
    return b"\x80\x02" + extra + made("metadata.Metadata", fields) + b"."


def distributed(folder: Path, note: Callable[..., None], good_pt: bytes) -> None:
    whole, data = len(good_pt), "__0_0.distcp"
    at = {(0,): (data, 0, whole)}
    command = b"cos\nsystem\n(X\x0b\x00\x00\x00touch PWNEDtR0"
    secret = str(folder / "secret" / "canary.data")
    bad: dict[str, tuple[bytes, str, str | None, str]] = {
        "command": (dcp_metadata(places=at, extra=command), REFUSED, None, "'os.system'"),
        "empty": (b"", DAMAGED, None, ""),
        "pickle": (pickle.dumps({"a": 1}, 2), DAMAGED, None, "made as it should be"),
        "itself": (b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00u.", DAMAGED, None, "made as it should be"),
        "up": (dcp_metadata(places={(0,): ("../secret/canary.data", 0, 8)}), REFUSED, None, "no plain name"),
        "absolute": (dcp_metadata(places={(0,): (secret, 0, 8)}), REFUSED, None, "no plain name"),
        "no-place": (dcp_metadata(), DAMAGED, "w", "in no file"),
        "beyond": (dcp_metadata(places={(0,): (data, 0, 1 << 60)}), DAMAGED, "w", "ends before"),
        "negative": (dcp_metadata(places={(0,): (data, -8, 8)}), DAMAGED, "w", "ends before"),
        "size": (dcp_metadata((1 << 60,), (((0,), (1 << 60,)),), at), REFUSED, "w", "max_bytes"),
        "chunks": (dcp_metadata((1 << 20,), (((0,), (2,)),), at), DAMAGED, "w", "don't make it up"),
        "overlap": (dcp_metadata((2,), (((0,), (1,)), ((0,), (1,))), at), DAMAGED, "w", "overlap"),
        "outside": (dcp_metadata((2,), (((1,), (2,)),), at), DAMAGED, "w", "isn't inside"),
        "shape": (dcp_metadata((3,), (((0,), (3,)),), at), DAMAGED, "w", "isn't what its metadata says"),
        "shape-text": (dcp_metadata("no", (((0,), (2,)),), at), DAMAGED, None, "made as it should be"),
    }
    for name, (metadata, expect, key, reason) in bad.items():
        write_folder(folder / f"dcp-{name}", {".metadata": metadata, data: good_pt})
        note(f"dcp-{name}", expect, key, reason, shards=[f"dcp-{name}/.metadata", f"dcp-{name}/{data}"])
    hostile = good_pt.replace(b"torch._utils", b"torch._evils")
    for name, content in (("evil-chunk", hostile), ("cut-chunk", good_pt[:-40] + bytes(40))):
        write_folder(folder / f"dcp-{name}", {".metadata": dcp_metadata(places=at), data: content})
        shards = [f"dcp-{name}/.metadata", f"dcp-{name}/{data}"]
        note(f"dcp-{name}", DAMAGED, None, "CRC-32" if name == "evil-chunk" else "", shards=shards)
    write_folder(folder / "ok-dcp", {".metadata": dcp_metadata(places=at), data: good_pt})
    note("ok-dcp", "valid", arrays={"w": [1.0, 2.0]}, shards=["ok-dcp/.metadata", f"ok-dcp/{data}"])


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


# TensorFlow: a table of one block.


def tf_index(entries: dict[bytes, bytes]) -> bytes:
    from xweights.files.formats.tf_checkpoint import _mask, crc32c

    def block(items: dict[bytes, bytes]) -> bytes:
        content = b"".join(
            b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in sorted(items.items())
        )
        content += struct.pack("<2I", 0, 1) + b"\0"
        return content + struct.pack("<I", _mask(crc32c(content)))

    def handle(at: int, of: bytes) -> bytes:
        return varint(at) + varint(len(of) - 5)

    data = block({b"": message((1, 1)), **entries})
    empty = block({})
    index = block({max(entries): handle(0, data)})
    footer = handle(len(data), empty) + handle(len(data) + len(empty), index)
    return data + empty + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def tf_entry(size: int = 8, shape: Any = (2,), kind: int = 1, offset: int = 0, *more: tuple[int, Any]) -> bytes:
    axes = message(*((2, message((1, length))) for length in shape))
    return message((1, kind), (2, axes), (4, offset), (5, size), *more)


def tensorflows(folder: Path, put: Put, note: Callable[..., None]) -> None:
    graph = b"_CHECKPOINTABLE_OBJECT_GRAPH"
    text = tf_entry(40, (), 7)
    part = (7, message((1, message((1, 0), (2, 1)))))
    bad: dict[str, tuple[dict[bytes, bytes], str, str | None, str]] = {
        "size": ({b"w": tf_entry(12)}, DAMAGED, "w", "don't fit its shape"),
        "shape-2-62": ({b"w": tf_entry(8, (1 << 62,))}, DAMAGED, None, "axis has the length"),
        "shape-overflow": ({b"w": tf_entry(8, (1 << 40, 1 << 40))}, DAMAGED, "w", "don't fit"),
        "beyond": ({b"w": tf_entry(offset=1 << 40)}, DAMAGED, "w", "ends before"),
        "dtype": ({b"w": tf_entry(kind=99)}, REFUSED, "w", "number 99"),
        "graph-length": ({graph: text, b"w": tf_entry()}, DAMAGED, None, "length"),
        "graph-huge": ({graph: tf_entry(1 << 40, (), 7), b"w": tf_entry()}, REFUSED, None, "more memory"),
        "slice-missing": ({b"w": tf_entry(8, (1,), 1, 0, part)}, DAMAGED, "w", "isn't there"),
        "slice-short": ({b"w": tf_entry(8, (2,), 1, 0, part)}, DAMAGED, "w", "don't make it up"),
    }
    for name, (entries, expect, key, reason) in bad.items():
        data = f"tf-{name}.data-00000-of-00001"
        (folder / data).write_bytes(struct.pack("<2f", 1, 2) + bytes(32))
        put(f"tf-{name}.index", tf_index(entries), expect, key, reason, shards=[data])
    (folder / "ok-tf.ckpt.data-00000-of-00001").write_bytes(struct.pack("<2f", 1, 2))
    (folder / "ok-tf.ckpt.index").write_bytes(
        tf_index({b"w": tf_entry(), b"w/Adam": tf_entry(), b"global_step": tf_entry(4, (1,))})
    )
    note("ok-tf.ckpt", "valid", arrays={"w": [1.0, 2.0]}, shards=["ok-tf.ckpt.index", "ok-tf.ckpt.data-00000-of-00001"])
    put("tf-no-data.index", tf_index({b"w": tf_entry()}), ACCESS, None, "No such file",
        shards=["tf-no-data.data-00000-of-00001"])  # fmt: skip
    (folder / "tf-link.data-00000-of-00001").symlink_to(folder / "secret" / "canary.data")
    put("tf-link.index", tf_index({b"w": tf_entry()}), REFUSED, None, "link out of its folder")


# Other folders.


def folders(folder: Path, note: Callable[..., None], good_st: bytes) -> None:
    bad: dict[str, tuple[dict[str, bytes], str, str]] = {
        "two": ({"model.safetensors": good_st, "other.safetensors": good_st}, REFUSED, "2 sets"),
        "none": ({"config.json": b"{}"}, REFUSED, "holds no weights"),
        "program": ({"saved_model.pb": b"\x08\x01"}, REFUSED, "constants of its program"),
        "orbax": ({"_METADATA": b"{}"}, REFUSED, "Orbax"),
        "zero": ({"zero_pp_rank_0_mp_rank_00_model_states.pt": b""}, REFUSED, "stage 3"),
        "shards": ({"model-00001-of-00099.safetensors": good_st}, REFUSED, "1 of 00099"),
    }
    for name, (files, expect, reason) in bad.items():
        write_folder(folder / f"folder-{name}", files)
        note(f"folder-{name}", expect, None, reason, shards=[f"folder-{name}/saved_model.pb"])
    (folder / "folder-link").mkdir()
    (folder / "folder-link" / "model.safetensors").symlink_to(folder / "secret" / "canary.safetensors")
    note("folder-link", REFUSED, None, "holds no weights")
    (folder / "folder-up").mkdir()
    (folder / "folder-up" / "up").symlink_to("..")
    note("folder-up", REFUSED, None, "holds no weights")
    deep = folder / "folder-deep"
    for _ in range(60):
        deep = deep / "d"
    write_folder(deep, {"model.safetensors": good_st})
    note("folder-deep", REFUSED, None, "holds no weights")
    (folder / "folder-pipe").mkdir()
    os.mkfifo(folder / "folder-pipe" / "model.safetensors")
    note("folder-pipe", REFUSED, None, "holds no weights")
    write_folder(folder / "ok-folder", {"model.safetensors": good_st, "config.json": b"{}", "optimizer.pt": b"x"})
    note("ok-folder", "valid", arrays={"w": [0.0, 0.0]}, shards=["ok-folder/model.safetensors"])
