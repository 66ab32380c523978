"""Files whose endings say something else than they hold, and formats that are only read: ONNX, GGUF, MessagePack."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.files.formats import table
from xweights.files.formats.onnx_file import _Varints
from xweights.files.io.limits import Limits

ARRAYS = {"fc/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "fc/bias": np.array([1.5, -2.0, 3.0])}


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dequantized(path: str) -> dict[str, np.ndarray]:
    index = table.read(path, Limits(dequantize=True))
    return {record.key: record.read() for record in index.records}


# Endings.


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt", ".h5"])
@pytest.mark.parametrize("name", ["w.bin", "w.ckpt", "w.pth.tar", "w", "w.model", "w.params", "w.keras", "w.onnx"])
def test_the_first_bytes_decide_the_format_and_a_wrong_ending_is_no_error(ending: str, name: str) -> None:
    if ending == ".h5":
        pytest.importorskip("h5py", reason="HDF5 needs h5py")
    xw.save(ARRAYS, f"right{ending}")
    Path(f"right{ending}").rename(name)
    assert xw.load(name).format == ending[1:]
    assert xw.equal(name, ARRAYS)


def test_a_sharded_index_under_any_name_is_told_by_the_shards_that_it_lists() -> None:
    xw.save(ARRAYS, "m.safetensors.index.json", shard_bytes=30)
    Path("m.safetensors.index.json").rename("weights.json.backup")
    assert xw.load("weights.json.backup").format == "sharded safetensors"
    assert xw.equal("weights.json.backup", ARRAYS)


def test_an_older_pickle_of_torch_is_told_under_any_ending() -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.arange(3.0)}, "old.safetensors", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(xw.load("old.safetensors")["w"], [0, 1, 2])


STRANGE = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "git-lfs",
        "git lfs pull",
    ),
    "page": (b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>", "HTML page", "download the file"),
    "nothing": (b"", "empty", "get it again"),
    "zeros": (bytes(4000), "made of zeros", "get it again"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG image", None),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "gzip", "gunzip"),
    "tar": (b"model.bin".ljust(257, b"\0") + b"ustar\x0000" + bytes(800), "tar archive", "unpack it first"),
    "old-torch": (b"sys_info".ljust(257, b"\0") + b"ustar\x0000" + bytes(800), "PyTorch before 0.2", "load it with"),
    "array": (b"\x93NUMPY\x01\x00v\x00{'descr'" + bytes(100), "single array", "numpy.load"),
    "settings": (b'{"hidden_size": 768}', "text in JSON", None),
    "lite": (b"\x1c\x00\x00\x00TFL3" + bytes(100), "TensorFlow Lite", "converted from"),
    "prose": (b"Weights are on the other page.\n", "a text", None),
}


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".npz", ".gguf", ".onnx", ".msgpack", ".unknown", ""])
@pytest.mark.parametrize("name", STRANGE)
def test_a_file_of_no_weights_is_refused_with_what_it_seems_to_be(name: str, ending: str) -> None:
    data, what, fix = STRANGE[name]
    Path(f"w{ending}").write_bytes(data)
    with pytest.raises((xw.DamagedFileError, xw.RefusedFileError)) as caught:
        xw.load(f"w{ending}")
    assert what in str(caught.value)
    assert fix is None or fix in str(caught.value)
    assert len(str(caught.value).splitlines()) < 12


@pytest.mark.parametrize("ending", [".onnx", ".gguf", ".msgpack", ".bin.index.json"])
def test_formats_that_are_only_read_say_so_before_anything_is_written(ending: str) -> None:
    with pytest.raises(xw.RefusedFileError, match="only read"):
        xw.save(ARRAYS, f"w{ending}")
    assert not Path(f"w{ending}").exists()


# Several files.


def test_a_pattern_and_a_list_of_files_are_one_checkpoint() -> None:
    for name, array in ARRAYS.items():
        xw.save({name: array}, f"model-{name[3:]}.safetensors")
    assert xw.equal("model-*.safetensors", ARRAYS)
    opened = xw.load("model-*.safetensors")
    assert opened.format == "several files"
    index = table.read_many(["model-bias.safetensors", "model-kernel.safetensors"], Limits())
    assert {record.key for record in index.records} == set(ARRAYS)
    with pytest.raises(xw.RefusedFileError, match="only read"):
        xw.edit_file("model-*.safetensors", xw.Scale(2.0))
    with pytest.raises(xw.FileAccessError, match="no file matches"):
        xw.load("nothing-*.safetensors")


def test_a_file_whose_name_has_stars_and_brackets_is_that_file() -> None:
    xw.save(ARRAYS, "model[1]*.npz")
    xw.save({"other": np.ones(1)}, "model1x.npz")
    assert xw.equal("model[1]*.npz", ARRAYS)


def test_a_key_in_two_of_several_files_is_refused_with_both_names() -> None:
    xw.save(ARRAYS, "a.safetensors")
    xw.save({"fc/bias": np.ones(3)}, "b.npz")
    with pytest.raises(xw.RefusedFileError, match=r"'a\.safetensors'") as caught:
        table.read_many(["a.safetensors", "b.npz"], Limits())
    assert caught.value.key == "fc/bias"


# ONNX.


def tensors() -> dict[str, np.ndarray]:
    import ml_dtypes

    values = np.linspace(-3, 3, 12).reshape(3, 4)
    dtypes = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    made = {f"layer.{name}": values.astype(name) if name[0] != "u" else abs(values * 3).astype(name) for name in dtypes}
    made |= {
        "flags": values > 0,
        "bf16": values.astype(ml_dtypes.bfloat16),
        "scalar": np.float32(2.5),
        "none": np.ones((0, 3)),
    }
    return made | {"large": np.array([2**63 - 1, -(2**63), -1, 0, 1])}


def onnx_model(arrays: dict[str, np.ndarray], *, raw: bool, others: Any = ()) -> Any:
    onnx = pytest.importorskip("onnx", reason="files of ONNX are made by onnx")
    helper = onnx.helper
    made = []
    for name, array in arrays.items():
        if raw:
            made.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
            made.append(helper.make_tensor(name, kind, np.shape(array), np.asarray(array).reshape(-1)))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [], [*made, *others])
    return helper.make_model(graph)


@pytest.mark.parametrize("raw", [True, False])
def test_initializers_of_onnx_are_read_in_every_form_that_onnx_writes(raw: bool) -> None:
    onnx = pytest.importorskip("onnx", reason="files of ONNX are made by onnx")
    arrays = tensors()
    model = onnx_model(arrays, raw=raw, others=[onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [1], [b"a"])])
    onnx.save(model, "m.onnx")
    opened = xw.load("m.onnx")
    assert opened.format == "onnx"
    assert opened.ignored == ("words",)
    assert set(opened) == set(arrays)
    for p in xw.parameters(opened):
        assert p.dtype == np.asarray(arrays[p.name]).dtype
        np.testing.assert_array_equal(p.handle.read(), arrays[p.name])
        if p.size > 5:
            part = np.empty(4, p.dtype)
            p.handle.read_into(part, 2)
            np.testing.assert_array_equal(part, np.asarray(arrays[p.name]).reshape(-1)[2:6])
    Path("m.onnx").rename("m.pb")
    assert xw.load("m.pb").format == "onnx"
    xw.convert("m.pb", "m.safetensors", where="layer.*")
    with pytest.raises(xw.RefusedFileError, match="only read"):
        xw.edit_file("m.pb", xw.Scale(2.0), where="layer.float32")


def test_arrays_outside_of_an_onnx_file_are_read_from_a_plain_file_beside_it_only(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="files of ONNX are made by onnx")
    big = {"w": np.arange(600, dtype=np.float32), "v": np.arange(700, dtype=np.int16)}
    model = onnx_model(big, raw=True)
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert xw.equal("m.onnx", big)

    def place(**words: str) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = words.get(entry.key, entry.value)
        Path("m.onnx").write_bytes(model.SerializeToString())

    model = onnx.load("m.onnx", load_external_data=False)
    Path("../m.data").write_bytes(Path("m.data").read_bytes())
    Path("link").symlink_to("../m.data")
    for location in ("../m.data", str(tmp_path / "m.data"), "link", "", "sub/m.data"):
        place(location=location)
        with pytest.raises(xw.RefusedFileError, match=r"plain name|link out"):
            xw.load("m.onnx")
    for words in ({"offset": "99999999"}, {"length": "5"}, {"offset": "-4"}, {"offset": "x"}):
        place(location="m.data", **words)
        with pytest.raises(xw.DamagedFileError):
            xw.load("m.onnx")


def test_sparse_and_four_bit_initializers_are_refused_by_name() -> None:
    onnx = pytest.importorskip("onnx", reason="files of ONNX are made by onnx")
    packed = onnx.helper.make_tensor("four", onnx.TensorProto.INT4, [4], [1, 2, 3, 4])
    onnx.save(onnx_model({}, raw=True, others=[packed]), "four.onnx")
    with pytest.raises(xw.RefusedFileError, match="int4") as caught:
        xw.load("four.onnx")
    assert caught.value.key == "four"
    model = onnx_model({}, raw=True)
    values = onnx.numpy_helper.from_array(np.ones(2, np.float32), "thin")
    places = onnx.numpy_helper.from_array(np.arange(2), "places")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [9]))
    onnx.save(model, "thin.onnx")
    with pytest.raises(xw.RefusedFileError, match="sparse") as caught:
        xw.load("thin.onnx")
    assert caught.value.key == "thin"


def test_numbers_of_varying_length_that_dont_fit_are_damage() -> None:
    from xweights.files.io.metadata import ArrayMetadata
    from xweights.files.io.open_file import OpenFile
    from xweights.files.io.records import Record

    dtype = np.dtype(np.int64)
    for data in (b"\x80" * 11 + b"\x01" * 2, b"\x01\x02", b"\x01\x02\x80", b"\x01" * 4):
        Path("numbers").write_bytes(data)
        record = Record(
            "w", dtype, (3,), ArrayMetadata.plain("w", (3,), dtype), _Varints(OpenFile("numbers"), 0, len(data))
        )
        with pytest.raises(xw.DamagedFileError, match="as many numbers"):
            record.read()


# GGUF.


def write_gguf(
    path: str, arrays: dict[str, np.ndarray], quantized: dict[str, tuple[np.ndarray, str]], **more: Any
) -> Any:
    gguf = pytest.importorskip("gguf", reason="files of GGUF are made by gguf")
    writer = gguf.GGUFWriter(path, "llama", **more)
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    for name, array in arrays.items():
        kind = gguf.GGMLQuantizationType.BF16 if array.dtype.name == "bfloat16" else None
        writer.add_tensor(name, array.view(np.uint16) if kind else array, raw_dtype=kind)
    for name, (array, word) in quantized.items():
        kind = gguf.GGMLQuantizationType[word]
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf


def gguf_arrays() -> dict[str, np.ndarray]:
    import ml_dtypes

    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = {
        f"blk.0.{name}": values.astype(name) for name in ("float32", "float16", "float64", "int8", "int32", "int64")
    }
    return made | {"half": np.ones((2, 4), ml_dtypes.bfloat16)}


def test_plain_tensors_of_gguf_are_read_in_numpys_order_of_axes() -> None:
    arrays = gguf_arrays()
    write_gguf("m.gguf", arrays, {})
    opened = xw.load("m.gguf")
    assert opened.format == "gguf"
    assert opened.metadata["general.architecture"] == "llama"
    assert opened.metadata["llama.block_count"] == "2"
    for p in xw.parameters(opened):
        assert p.shape == arrays[p.name].shape
        assert p.dtype == arrays[p.name].dtype
        np.testing.assert_array_equal(p.handle.read(), arrays[p.name])
    assert len(opened) == len(arrays)


def test_quantized_tensors_of_gguf_are_listed_or_dequantized_on_request() -> None:
    values = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float32)
    kinds = ("Q8_0", "Q4_0", "Q5_1", "TQ1_0")
    gguf = write_gguf("m.gguf", {"norm": values[0]}, {kind: (values, kind) for kind in kinds})
    opened = xw.load("m.gguf")
    assert list(opened) == ["norm"]
    assert [text.split()[0] for text in opened.ignored] == list(kinds)
    assert all("dequantize=True" in text and text.split()[0] in text.split("(")[1] for text in opened.ignored)
    read = dequantized("m.gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader("m.gguf").tensors}
    for kind in kinds:
        expected = gguf.dequantize(theirs[kind].data, theirs[kind].tensor_type)
        np.testing.assert_array_equal(read[kind], expected)
        assert read[kind].shape == values.shape
    record = next(one for one in table.read("m.gguf", Limits(dequantize=True)).records if one.key == "Q8_0")
    for start, count in ((0, 5), (31, 40), (2000, 48)):
        part = np.empty(count, np.float32)
        record.read_into(part, start)
        np.testing.assert_array_equal(part, read["Q8_0"].reshape(-1)[start : start + count])


def test_gguf_of_the_other_byte_order_is_read() -> None:
    gguf = pytest.importorskip("gguf", reason="files of GGUF are made by gguf")
    arrays = {"w": np.arange(4, dtype=np.float32), "i": np.arange(3, dtype=np.int16)}
    copies = {name: array.copy() for name, array in arrays.items()}  # older writers turn the bytes in place
    write_gguf("m.gguf", copies, {}, endianess=gguf.GGUFEndian.BIG)
    assert xw.equal("m.gguf", arrays)


def test_dequantizing_without_the_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf("m.gguf", {"norm": np.ones(32, np.float32)}, {"w": (np.ones((2, 32), np.float32), "Q8_0")})
    monkeypatch.setitem(importlib.import_module("sys").modules, "gguf", None)
    assert list(xw.load("m.gguf")) == ["norm"]
    with pytest.raises(xw.BackendMissingError, match=r"xweights-nn\[gguf\]"):
        table.read("m.gguf", Limits(dequantize=True))


# MessagePack, by Flax.


def packed_array(msgpack: Any, array: np.ndarray, dtype: str | None = None) -> Any:
    content = (array.shape, dtype or array.dtype.name, array.tobytes("C"))
    return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))


def test_files_of_flax_are_read_with_their_optimizer_as_a_part_of_its_own() -> None:
    msgpack = pytest.importorskip("msgpack", reason="files of Flax are made by msgpack")
    import ml_dtypes

    kernel, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, ml_dtypes.bfloat16)
    params = {"dense": {"kernel": packed_array(msgpack, kernel), "bias": packed_array(msgpack, bias)}}
    Path("flax_model.msgpack").write_bytes(msgpack.packb(params))
    assert xw.equal("flax_model.msgpack", {"dense/kernel": kernel, "dense/bias": bias})
    state = {"step": 3, "params": params, "opt_state": {"0": {"mu": params, "nu": params, "count": 3}, "1": {}}}
    Path("state").write_bytes(msgpack.packb(state))
    opened = xw.load("state")
    assert opened.format == "msgpack"
    assert {part.name: part.kind for part in opened.parts} == {"params": "weights", "opt_state": "optimizer"}
    assert xw.equal(opened, {"dense/kernel": kernel, "dense/bias": bias})
    assert "step" in opened.ignored


def test_an_array_that_flax_has_cut_into_pieces_is_joined() -> None:
    msgpack = pytest.importorskip("msgpack", reason="files of Flax are made by msgpack")
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    pieces = {str(n): packed_array(msgpack, array.reshape(-1)[9 * n : 9 * n + 9]) for n in range(3)}
    cut = {"__msgpack_chunked_array__": True, "shape": {"0": 4, "1": 6}, "chunks": pieces}
    Path("m.msgpack").write_bytes(msgpack.packb({"w": cut}))
    assert xw.equal("m.msgpack", {"w": array})
    record = table.read("m.msgpack", Limits()).records[0]
    part = np.empty(11, np.float32)
    record.read_into(part, 7)
    np.testing.assert_array_equal(part, array.reshape(-1)[7:18])
    Path("m.msgpack").write_bytes(msgpack.packb({"w": {**cut, "chunks": {"0": pieces["0"]}}}))
    with pytest.raises(xw.DamagedFileError, match="don't make it up"):
        xw.load("m.msgpack")


@pytest.mark.parametrize("module", ["flax.serialization"])
def test_flax_itself_writes_what_is_read(module: str) -> None:
    serialization = pytest.importorskip(module, reason="Flax isn't installed")
    Path("w.msgpack").write_bytes(serialization.to_bytes({"d": {"kernel": np.ones((2, 3), np.float32)}}))
    assert xw.equal("w.msgpack", {"d/kernel": np.ones((2, 3), np.float32)})


def test_shards_of_torchs_own_files_are_read_by_their_index() -> None:
    torch = pytest.importorskip("torch")
    first = {"a.weight": torch.arange(4.0), "tied.weight": torch.ones(2)}
    first["head.weight"] = first["tied.weight"]
    second = {"b.weight": torch.zeros(3, dtype=torch.bfloat16)}
    torch.save(first, "pytorch_model-00001-of-00002.bin")
    torch.save(second, "pytorch_model-00002-of-00002.bin")
    shards = dict.fromkeys(first, "pytorch_model-00001-of-00002.bin")
    shards |= dict.fromkeys(second, "pytorch_model-00002-of-00002.bin")
    path = Path("pytorch_model.bin.index.json")
    path.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    opened = xw.load(path)
    assert opened.format == "sharded pt"
    np.testing.assert_array_equal(opened["a.weight"], [0, 1, 2, 3])
    np.testing.assert_array_equal(opened["head.weight"], [1, 1])
    assert opened["b.weight"].dtype.name == "bfloat16"
    wrong = [({**shards, "x": "pytorch_model-00001-of-00002.bin"}, "none of the shards")]
    wrong += [({**shards, "a.weight": "pytorch_model-00002-of-00002.bin"}, "not there by the index")]
    wrong += [({**shards, "a.weight": "../pytorch_model-00001-of-00002.bin"}, "plain name")]
    for weight_map, reason in wrong:
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises((xw.DamagedFileError, xw.RefusedFileError), match=reason):
            xw.load(path)


@pytest.mark.parametrize("kind", ["onnx", "gguf", "msgpack"])
def test_no_cut_or_changed_byte_of_a_container_raises_anything_but_a_typed_error(kind: str) -> None:
    if kind == "onnx":
        onnx = pytest.importorskip("onnx", reason="files of ONNX are made by onnx")
        onnx.save(onnx_model({"w": np.arange(6, dtype=np.float32), "i": np.arange(3)}, raw=False), "m.onnx")
    elif kind == "gguf":
        write_gguf("m.gguf", {"w": np.ones(4, np.float32)}, {"q": (np.ones((2, 32), np.float32), "Q4_0")})
    else:
        msgpack = pytest.importorskip("msgpack", reason="files of Flax are made by msgpack")
        content = {"d": {"w": packed_array(msgpack, np.ones((2, 3), np.float32))}, "n": [1, 2.5, None, "x", b"y"]}
        Path("m.msgpack").write_bytes(msgpack.packb(content))
    whole = Path(f"m.{kind}").read_bytes()
    random = np.random.default_rng(0)
    for trial in range(400):
        data = bytearray(whole)
        if trial % 4 == 0:
            del data[int(random.integers(len(data))) :]
        for _ in range(int(random.integers(1, 4)) if data else 0):
            data[int(random.integers(len(data)))] = int(random.choice([0, 1, 127, 128, 255, random.integers(256)]))
        Path(f"c.{kind}").write_bytes(data)
        try:
            index = table.read(f"c.{kind}", Limits(1 << 20, dequantize=kind == "gguf"))
            for record in index.records:
                record.read()
            index.close()
        except xw.CheckpointError as error:
            assert f"c.{kind}" in str(error)  # noqa: PT017 - any of these errors, or none


def test_lying_sizes_of_gguf_cost_no_memory() -> None:
    header = b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0)
    Path("m.gguf").write_bytes(header)
    with pytest.raises(xw.DamagedFileError, match="ends before"):
        xw.load("m.gguf")
