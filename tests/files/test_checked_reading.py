"""Values of a file are checked before the first byte is overwritten, or undone: on any number of threads."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import xweights as xw
from xweights.files.formats.npz import CompressedEntries
from xweights.files.formats.zip_archive import Archive
from xweights.files.io.open_file import PIECE
from xweights.files.io.storage import FILE

SHAPE = (300, 1000)  # two pieces


def arrays(seed: int, count: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{i}/kernel": rng.integers(-9, 9, SHAPE).astype(np.float32) for i in range(count)}


def write(path: Path, values: dict[str, np.ndarray]) -> str:
    if path.name.startswith("packed"):
        np.savez_compressed(path, **values)
    else:
        xw.save(values, path, durable=False)
    return str(path)


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("xweights.edit.stream.count_threads", lambda: request.param)
    return int(request.param)


@pytest.mark.parametrize("name", ["w.safetensors", "packed.npz"])
def test_all_threads_together_write_every_array(name: str, threads: int, tmp_path: Path) -> None:
    new, target = arrays(1), arrays(0)
    xw.set_params(target, write(tmp_path / name, new))
    assert all(np.array_equal(target[key], new[key]) for key in new)


@pytest.mark.parametrize("name", ["w.safetensors", "packed.npz"])
def test_nan_in_the_last_entry_of_the_last_array_changes_nothing(name: str, threads: int, tmp_path: Path) -> None:
    new, target = arrays(1), arrays(0)
    new["3/kernel"][-1, -1] = np.nan
    path = write(tmp_path / name, new)
    with pytest.raises(xw.NonfiniteError, match="'3/kernel' has 1 non-finite"):
        xw.set_params(target, path)
    assert all(np.array_equal(target[key], array) for key, array in arrays(0).items())
    xw.set_params(target, path, allow_nonfinite=True)
    assert np.array_equal(target["3/kernel"], new["3/kernel"], equal_nan=True)


@pytest.mark.parametrize("name", ["w.safetensors", "packed.npz"])
def test_everything_that_is_wrong_is_said_at_once(name: str, threads: int, tmp_path: Path) -> None:
    new, target = arrays(1), arrays(0)
    new["0/kernel"][0, 0] = np.nan
    new["1/kernel"] = new["1/kernel"][:-1]
    new["2/kernel"][5, 5] = np.inf
    path = write(tmp_path / name, new)
    with pytest.raises(xw.NonfiniteError) as caught:
        xw.set_params(target, path)
    assert isinstance(caught.value, xw.ShapeError)
    assert all(f"{i}/kernel" in str(caught.value) for i in range(3))
    assert all(np.array_equal(target[key], array) for key, array in arrays(0).items())


def test_two_packed_arrays_with_nan_are_both_named(tmp_path: Path) -> None:
    new, target = arrays(1), arrays(0)
    new["0/kernel"][0, 0] = new["2/kernel"][0, 0] = np.nan
    with pytest.raises(xw.NonfiniteError, match=r"(?s)0/kernel.*2/kernel"):
        xw.set_params(target, write(tmp_path / "packed.npz", new))
    assert all(np.array_equal(target[key], array) for key, array in arrays(0).items())


def test_a_packed_array_that_loses_bits_is_refused_and_undone(threads: int, tmp_path: Path) -> None:
    new = {key: array.astype(np.float64) for key, array in arrays(1).items()}
    new["3/kernel"][0, 0] = 1 / 3
    target, path = arrays(0), write(tmp_path / "packed.npz", new)
    with pytest.raises(xw.DtypeError, match="3/kernel"):
        xw.set_params(target, path)
    assert all(np.array_equal(target[key], array) for key, array in arrays(0).items())
    xw.set_params(target, path, cast=True)
    assert target["3/kernel"][0, 0] == np.float32(1 / 3)


def test_arrays_of_the_target_that_overlap_are_written_in_order(threads: int, tmp_path: Path) -> None:
    new = arrays(1, 2)
    whole = np.zeros((2 * SHAPE[0] - 100, SHAPE[1]), np.float32)
    target = {"0/kernel": whole[: SHAPE[0]], "1/kernel": whole[SHAPE[0] - 100 :]}
    xw.set_params(target, write(tmp_path / "w.safetensors", new))
    assert np.array_equal(target["1/kernel"], new["1/kernel"])


def test_a_packed_array_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "packed.npz", arrays(1))
    unpacked = []
    stream = Archive.stream

    def watched(self, member, most=None):
        if most is None:
            unpacked.append(member)
        return stream(self, member, most)

    monkeypatch.setattr(Archive, "stream", watched)
    target = arrays(0)
    xw.set_params(target, path)
    assert len(unpacked) == 4
    unpacked.clear()
    record = xw.load(path).records[0]
    assert isinstance(record.location, CompressedEntries)
    assert np.array_equal(np.concatenate(list(record.pieces())), record.read().reshape(-1))
    assert len(unpacked) == 2


@pytest.mark.parametrize("before", [0, 1, 7, 63, 64, 4090])
def test_pieces_are_the_entries_wherever_they_lie_in_the_file(before: int, tmp_path: Path) -> None:
    values = {"a": np.arange(before, dtype=np.uint8), "b": arrays(2)["0/kernel"]}
    path = tmp_path / "w.safetensors"
    xw.save(values, path, durable=False)
    (record,) = [record for record in xw.load(path).records if record.key == "b"]
    pieces = [piece.copy() for piece in record.pieces()]
    assert [piece.nbytes for piece in pieces[:-1]] == [PIECE] * (len(pieces) - 1)
    assert np.array_equal(np.concatenate(pieces), values["b"].reshape(-1))


def test_reading_into_a_model_takes_a_piece_for_each_thread(tmp_path: Path, threads: int) -> None:
    path, target = write(tmp_path / "w.safetensors", arrays(1)), arrays(0)
    tracemalloc.start()
    try:
        xw.set_params(target, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (1 + min(threads, 4)) * PIECE + (1 << 19)


def test_where_the_system_reads_into_one_place_at_a_time_all_is_read(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, target = arrays(1), arrays(0)
    path = write(tmp_path / "w.safetensors", new)
    monkeypatch.delattr(os, "preadv")
    xw.set_params(target, path)
    assert all(np.array_equal(target[key], new[key]) for key in new)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", ">i4"])
def test_bytes_in_the_other_order_are_turned_for_the_check_and_for_the_write(
    dtype: str, tmp_path: Path, threads: int
) -> None:
    h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py")
    new = {key: array.astype(dtype) for key, array in arrays(1).items()}
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        for key, array in new.items():
            file[key] = array
    native = np.dtype(dtype).newbyteorder("=")
    target = {key: array.astype(native) for key, array in arrays(0).items()}
    xw.set_params(target, path)
    assert all(np.array_equal(target[key], new[key]) for key in new)
    if native.kind == "f":
        with h5py.File(path, "r+") as file:
            file["3/kernel"][-1, -1] = -np.inf
        with pytest.raises(xw.NonfiniteError, match="'3/kernel' has 1 non-finite"):
            xw.set_params(target, path)
        assert all(np.array_equal(target[key], new[key]) for key in new)


def test_arrays_of_many_sizes_and_none_are_divided_among_threads(tmp_path: Path, threads: int) -> None:
    rng = np.random.default_rng(0)
    sizes = [0, 1, 3_000_000, 0, 7, 200_000, 1_000_000, 0]
    new = {f"{i}/bias": rng.standard_normal(size).astype(np.float32) for i, size in enumerate(sizes)}
    target = {key: np.zeros_like(array) for key, array in new.items()}
    xw.set_params(target, write(tmp_path / "w.safetensors", new))
    assert all(np.array_equal(target[key], new[key]) for key in new)
    parts = FILE.split(xw.load(tmp_path / "w.safetensors").records, 4)
    assert sorted(position for part in parts for position in part) == list(range(len(sizes)))
    assert 2 <= len(parts) <= 4
