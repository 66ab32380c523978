"""Keras archives are written, rewritten and held against their checksums, and so are the members of a ``.pt``."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py: python -m pip install 'xweights-nn[files]'")
KERNEL, BIAS = np.arange(6, dtype="f4").reshape(2, 3), np.ones(3, "f4")
CONFIG = {
    "class_name": "Sequential",
    "config": {"layers": [{"class_name": "Dense", "config": {"name": "dense", "use_bias": True}}]},
}


def write(path: Path, *, deflated: bool = False, chunked: bool = False, optimizer: bool = False) -> str:
    """Write an archive as Keras does, with an asset."""
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        options = {"chunks": True, "compression": "gzip"} if chunked else {}
        for number, array in enumerate((KERNEL, BIAS)):
            file.create_dataset(f"layers/dense/vars/{number}", data=array, **options)
        if optimizer:
            file.create_dataset("optimizer/vars/0", data=np.int64(7))
            file.create_dataset("optimizer/vars/1", data=KERNEL, **options)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.json", b'{"keras_version": "3.0.0"}')
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.h5", weights.getvalue())
        archive.writestr("assets/vocabulary.txt", b"a\nb\n" * 100)
    return str(path)


def members_of(path: str) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {
            info.filename: (info.compress_type, archive.read(info))
            for info in archive.infolist()
            if info.filename != "model.weights.h5"
        }


def flip(path: str, member: str, place: bytes) -> None:
    """Flip a bit in a stored member where these bytes are."""
    data = bytearray(Path(path).read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(member).header_offset
    data[data.index(place, start)] ^= 1
    Path(path).write_bytes(data)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Edits.


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("rule", [xw.Scale(0.5), xw.SetEntries(0, 0.5)], ids=["scale", "entries"])
def test_an_archive_is_edited_however_its_weights_are_packed(
    tmp_path: Path, deflated: bool, chunked: bool, rule: xw.Rule
) -> None:
    path = write(tmp_path / "m.keras", deflated=deflated, chunked=chunked)
    before = members_of(path)
    report = xw.edit_file(path, rule, where="*/bias")
    assert report.changed == {"dense/0/bias": 1 if isinstance(rule, xw.SetEntries) else 3}
    assert report.in_place is (isinstance(rule, xw.SetEntries) and not deflated and not chunked)
    assert members_of(path) == before
    expected = BIAS * 0.5 if isinstance(rule, xw.Scale) else np.array([0.5, 1, 1], "f4")
    opened = xw.load(path)
    np.testing.assert_array_equal(opened["dense/0/bias"], expected)
    np.testing.assert_array_equal(opened["dense/0/kernel"], KERNEL)
    assert names_in(tmp_path) == ["m.keras"]
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        assert archive.getinfo("model.weights.h5").compress_type == (8 if deflated else 0)
        assert (file["layers/dense/vars/0"].compression == "gzip") is chunked


def test_an_archive_that_cannot_be_rewritten_stays_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras", deflated=True)
    before = Path(path).read_bytes()
    with pytest.raises(xw.XweightsError):
        xw.edit_file(path, lambda w: w[:1], where="*/bias")
    assert Path(path).read_bytes() == before
    assert names_in(tmp_path) == ["m.keras"]


def test_an_archive_is_edited_into_another_one_and_into_other_formats(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras", chunked=True)
    for name in ("out.keras", "out.safetensors", "out.h5"):
        out = str(tmp_path / name)
        xw.edit_file(path, xw.Scale(2.0), where="*/kernel", out=out)
        np.testing.assert_array_equal(xw.load(out)["dense/0/kernel"], KERNEL * 2)
    assert members_of(str(tmp_path / "out.keras")) == members_of(path)
    np.testing.assert_array_equal(xw.load(path)["dense/0/kernel"], KERNEL)


def test_the_variables_of_an_optimizer_are_a_part_and_no_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras", optimizer=True, chunked=True)
    assert [p.name for p in xw.parameters(path)] == ["dense/0/kernel", "dense/0/bias"]
    kinds = {part.name: part.kind for part in xw.parts(path)}
    assert kinds == {"model_weights": "weights", "optimizer_weights": "optimizer"}
    optimizer = next(part for part in xw.parts(path) if part.kind == "optimizer")
    np.testing.assert_array_equal(optimizer.arrays["1"].read(), KERNEL)


# Checksums.


@pytest.mark.parametrize("chunked", [False, True])
def test_a_flipped_bit_in_the_weights_is_found_before_any_of_them_is_used(tmp_path: Path, chunked: bool) -> None:
    path = write(tmp_path / "m.keras", chunked=chunked)
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    place = zlib.compress(b"")[:1] if chunked else KERNEL.tobytes()
    if chunked:
        with h5py.File(io.BytesIO(weights)) as file:
            chunk = file["layers/dense/vars/0"].id.get_chunk_info(0)
            place = weights[chunk.byte_offset : chunk.byte_offset + chunk.size]
    flip(path, "model.weights.h5", place)
    for name in ("dense/0/bias", "dense/0/kernel"):
        with pytest.raises(xw.DamagedFileError, match="CRC-32") as caught:
            xw.load(path)[name]
        assert caught.value.key == "model.weights.h5"
    kept = {"dense/0/kernel": KERNEL.copy(), "dense/0/bias": BIAS.copy()}
    with pytest.raises(xw.DamagedFileError):
        xw.set_params(kept, path)
    np.testing.assert_array_equal(kept["dense/0/kernel"], KERNEL)
    before = Path(path).read_bytes()
    with pytest.raises(xw.DamagedFileError):
        xw.edit_file(path, xw.Scale(0.5), where="*/bias")
    assert Path(path).read_bytes() == before


def test_a_flipped_bit_in_the_configuration_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras")
    flip(path, "config.json", b"Sequential")
    with pytest.raises(xw.DamagedFileError, match="CRC-32"):
        xw.load(path)


def test_weights_in_another_form_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.npz", b"PK")
    with pytest.raises(xw.RefusedFileError, match=r"(?s)another form.*Fix: load it with Keras") as caught:
        xw.load(path)
    assert caught.value.key == "model.weights.npz"


@pytest.mark.parametrize("ending", ["safetensors.index.json", "weights.json"])
def test_an_index_of_shards_that_lists_nothing_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m.{ending}"
    path.write_text('{"metadata": {}, "weight_map": {}}')
    with pytest.raises(xw.DamagedFileError, match="lists nothing"):
        xw.load(path)


def test_an_index_of_shards_that_would_list_nothing_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(xw.RefusedFileError, match="nothing to save"):
        xw.save({}, tmp_path / "m.safetensors.index.json")
    assert names_in(tmp_path) == []


# PyTorch's archives.


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def without_sums(torch: Any) -> Any:
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


def test_a_flipped_bit_in_a_storage_is_found_before_it_is_used(torch: Any, tmp_path: Path) -> None:
    path, values = str(tmp_path / "w.pt"), torch.arange(64.0)
    torch.save({"a": values, "part": values[10:20], "b": torch.ones(3)}, path)
    name = next(n for n in zipfile.ZipFile(path).namelist() if n.endswith("data/0"))
    flip(path, name, values.numpy().tobytes())
    opened = xw.load(path)
    for key in ("a", "part"):
        with pytest.raises(xw.DamagedFileError, match="CRC-32") as caught:
            opened[key]
        assert caught.value.key == name
    np.testing.assert_array_equal(opened["b"], np.ones(3))
    kept = {"a": np.zeros(64, "f4"), "part": np.zeros(10, "f4"), "b": np.zeros(3, "f4")}
    with pytest.raises(xw.DamagedFileError):
        xw.set_params(kept, path)
    assert not any(array.any() for array in kept.values())


def test_a_whole_storage_is_read_once_for_its_values_and_its_sum(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "w.pt")
    torch.save({"a": torch.ones(1 << 18)}, path)
    opened = xw.load(path)
    count = 0
    whole = opened.files[0]._fill

    def fill(offset: int, out: memoryview, key: str | None) -> None:
        nonlocal count
        count += len(out)
        whole(offset, out, key)

    monkeypatch.setattr(opened.files[0], "_fill", fill)
    assert opened["a"].sum() == 1 << 18
    assert 1 << 20 <= count < (1 << 20) + 1000


def test_files_that_torch_writes_without_sums_are_read_and_stay_so(
    torch: Any, without_sums: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "w.pt")
    torch.save({"a": torch.ones(4), "b": torch.ones(2, 2)}, path)
    for rule in (xw.Scale(2.0), xw.SetEntries(0, 5.0)):
        xw.edit_file(path, rule, where="a")
        with zipfile.ZipFile(path) as archive:
            assert {info.CRC for info in archive.infolist()} == {0}
        np.testing.assert_array_equal(xw.load(path)["a"], torch.load(path, weights_only=True)["a"].numpy())
    assert xw.load(path)["a"].tolist() == [5, 2, 2, 2]


# With Keras.


def small(keras: Any, seed: int = 0) -> Any:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2, name="mine")])


@pytest.fixture
def keras() -> Any:
    return pytest.importorskip("keras")


@pytest.mark.keras_backend
def test_a_model_is_saved_as_keras_saves_it_and_loaded_by_both(keras: Any, tmp_path: Path) -> None:
    model, other = small(keras), small(keras, 1)
    model.compile("adam", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    path = str(tmp_path / "m.keras")
    Path(path).write_bytes(b"the old one")
    xw.save(model, path)
    assert names_in(tmp_path) == ["m.keras"]
    reloaded = keras.models.load_model(path)
    assert xw.equal(reloaded, model)
    assert int(reloaded.optimizer.iterations) == 1
    xw.set_params(other, path)
    assert xw.equal(other, model)
    xw.edit_file(path, xw.Scale(0.5), where="mine/*")
    assert not xw.equal(keras.models.load_model(path), model)


@pytest.mark.keras_backend
def test_what_keras_cannot_save_is_refused_and_the_old_file_stays(keras: Any, tmp_path: Path) -> None:
    class Unsaved(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, rule: Any) -> None:
            super().__init__()
            self.rule = rule
            self.w = self.add_weight(shape=(2,), name="w")

        def call(self, x: Any) -> Any:
            return x

        def get_config(self) -> Any:
            raise NotImplementedError("no configuration")

    model = keras.Sequential([keras.Input((2,)), Unsaved(lambda x: x)])
    path = tmp_path / "m.keras"
    path.write_bytes(b"the old one")
    with pytest.raises(xw.RefusedFileError, match=r"(?s)can't save.*no configuration.*Fix: "):
        xw.save(model, path)
    whole = small(keras)
    for options in ({"where": "mine/*"}, {"names": "native"}, {"metadata": {"a": "b"}}):
        with pytest.raises(xw.RefusedFileError, match=f"(?s){next(iter(options))}=.*Fix: leave out"):
            xw.save(whole, path, **options)
    with pytest.raises(xw.RefusedFileError, match="'mine' is a Dense"):
        xw.save(whole.layers[1], path)
    assert path.read_bytes() == b"the old one"
    assert names_in(tmp_path) == ["m.keras"]


@pytest.mark.parametrize("kind", ["mapping", "checkpoint", "path", "torch"])
def test_only_a_live_model_becomes_a_keras_file(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / "m.keras")
    target: Any = {"a": np.ones(2)}
    if kind == "checkpoint":
        target = xw.load(source)
    elif kind == "path":
        target = source
    elif kind == "torch":
        target = pytest.importorskip("torch").nn.Linear(2, 2)
    with pytest.raises(xw.RefusedFileError, match=r"(?s)whole model.*Fix: "):
        xw.save(target, tmp_path / "out.keras")
    with pytest.raises(xw.RefusedFileError, match=r"(?s)whole model.*Fix: "):
        xw.convert(source, tmp_path / "out.keras")
    assert names_in(tmp_path) == ["m.keras"]
