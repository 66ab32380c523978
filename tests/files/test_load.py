"""A Checkpoint is lazy, bounded, and a target like any other; several shards form one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import xweights as xw
from xweights.files.io.open_file import OpenFile

ARRAYS = {f"l{i}/kernel": np.full((100, 100), i, np.float32) for i in range(5)}


@pytest.fixture
def read_bytes(monkeypatch) -> list[int]:
    """Record the number of bytes of each read of a file."""
    counts: list[int] = []
    fill = OpenFile._fill

    def counted(self, offset, out, key) -> None:
        counts.append(len(out))
        fill(self, offset, out, key)

    monkeypatch.setattr(OpenFile, "_fill", counted)
    return counts


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pt"])
def test_nothing_is_read_until_asked_for_and_one_array_costs_one_array(ending: str, tmp_path, read_bytes) -> None:
    xw.save(ARRAYS, tmp_path / f"w.{ending}")
    opened = xw.load(tmp_path / f"w.{ending}")
    xw.summary(opened)
    assert sum(read_bytes) < 10_000
    read_bytes.clear()
    xw.get_params(opened, where="l3/kernel")
    beside = {"npz": 136, "pt": 8}.get(ending, 0)  # a header, and the two places of a sum
    assert sum(read_bytes) == 40_000 + beside


def test_a_part_of_an_array_costs_that_part(tmp_path, read_bytes) -> None:
    xw.save(ARRAYS, tmp_path / "w.safetensors")
    (p,) = xw.parameters(tmp_path / "w.safetensors", where="l3/kernel")
    read_bytes.clear()
    out = np.empty(7, np.float32)
    p.handle.read_into(out, 9_993)
    assert out.tolist() == [3.0] * 7
    assert sum(read_bytes) == 28


def test_a_checkpoint_says_what_it_is_and_finds_arrays_by_any_of_their_names(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    xw.save(torch.nn.Sequential(torch.nn.Linear(3, 2)), tmp_path / "w.pt")
    with xw.load(tmp_path / "w.pt") as opened:
        assert repr(opened) == "<Checkpoint 'w.pt' (pt): 2 arrays, 32 bytes>"
        assert list(opened) == ["0/kernel", "0/bias"]
        np.testing.assert_array_equal(opened["0/kernel"], opened["0.weight"])
        assert opened["0/kernel"].shape == (3, 2)
        with pytest.raises(xw.SelectionError, match=r"no array '0/kernle'\nNear names: '0/kernel'"):
            opened["0/kernle"]
    with pytest.raises(xw.RefusedFileError, match="closed"):
        opened["0/kernel"]


def test_checkpoints_can_be_neither_edited_nor_undone(tmp_path) -> None:
    xw.save(ARRAYS, tmp_path / "w.npz")
    opened = xw.load(tmp_path / "w.npz")
    for call in (lambda: xw.clip(opened, -1, 1), lambda: xw.snapshot(opened), lambda: xw.set_params(opened, ARRAYS)):
        with pytest.raises(xw.WriteError):
            call()
    assert xw.equal(opened, ARRAYS)


def test_max_bytes_refuses_one_array_that_is_larger_by_name(tmp_path) -> None:
    xw.save(ARRAYS | {"large": np.zeros(20_000)}, tmp_path / "w.npz")
    with pytest.raises(xw.RefusedFileError, match="'large': it is larger than max_bytes") as caught:
        xw.load(tmp_path / "w.npz", max_bytes=50_000)
    assert (caught.value.key, caught.value.path) == ("large", str(tmp_path / "w.npz"))
    with pytest.raises(xw.ArgumentError):
        xw.load(tmp_path / "w.npz", max_bytes=-1)


def test_shards_are_as_large_as_asked_and_the_old_ones_go_after_the_index(tmp_path) -> None:
    path = tmp_path / "m.safetensors.index.json"
    xw.save(ARRAYS, path, shard_bytes=90_000, metadata={"made by": "us"})
    index = json.loads(path.read_text())
    assert sorted(set(index["weight_map"].values())) == [f"m-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert len(set(index["weight_map"].values())) == 3
    assert index["metadata"] == {"made by": "us", "total_size": 200_000}
    opened = xw.load(path)
    assert opened.metadata == {"made by": "us"}
    xw.save({"other": np.ones(3)}, path)
    assert len(list(tmp_path.iterdir())) == 2
    assert xw.equal(opened, ARRAYS)
    assert xw.equal(path, {"other": np.ones(3)})


def test_shards_that_are_not_in_the_index_are_left_alone(tmp_path) -> None:
    for name in ("a", "b"):
        xw.save({name: np.ones(3)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    xw.save({"v": np.ones(3)}, tmp_path / "model.safetensors.index.json")
    assert xw.equal(tmp_path / "model.safetensors.index.json", {"v": np.ones(3)})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["b.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]


def test_a_folder_of_links_as_caches_make_them_is_read(tmp_path) -> None:
    blobs, shown = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    shown.mkdir()
    xw.save({"w": np.ones(3)}, blobs / "1.safetensors")
    (blobs / "2").write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))
    (shown / "model.safetensors").symlink_to("../blobs/1.safetensors")
    (shown / "model.safetensors.index.json").symlink_to("../blobs/2")
    assert xw.equal(shown / "model.safetensors.index.json", {"w": np.ones(3)})


@pytest.mark.parametrize("name", ["w.txt", "w", "w.safetensor"])
def test_an_ending_that_names_no_format_is_refused_with_those_that_do(name: str, tmp_path) -> None:
    for call in (lambda: xw.save(ARRAYS, tmp_path / name), lambda: xw.load(tmp_path / name)):
        with pytest.raises(xw.RefusedFileError, match=r"(?s)ending names no format.*Fix: use one of .*\.safetensors"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "key"), [("w.pt", None), ("w.npz", None), ("w.weights.h5", None)])
def test_metadata_is_refused_where_there_is_no_place_for_it(name: str, key: str | None, tmp_path) -> None:
    with pytest.raises(xw.RefusedFileError, match="no place for metadata"):
        xw.save(ARRAYS, tmp_path / name, metadata={"a": "b"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["w.safetensors", "w.npz", "w.pt"])
@pytest.mark.parametrize("destination", ["v.safetensors", "v.npz", "v.pt", "v.safetensors.index.json"])
def test_convert_keeps_every_bit_name_and_axis(source: str, destination: str, tmp_path) -> None:
    values = xw.Params({"d/w": np.arange(6.0).reshape(3, 2), "b": np.ones(2)}, axes={"d/w": ("in", "out")})
    xw.save(values, tmp_path / source)
    xw.convert(tmp_path / source, tmp_path / destination)
    back = xw.get_params(tmp_path / destination)
    assert xw.equal(values, back)
    assert back.axes == values.axes


def test_a_converted_state_dict_keeps_its_keys(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    xw.save(model, tmp_path / "w.pt")
    xw.convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    import safetensors.torch

    model.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"))
    assert xw.equal(model, tmp_path / "w.safetensors")


def test_a_file_is_not_opened_for_writing_by_whoever_reads_it(tmp_path) -> None:
    path = Path(tmp_path / "w.npz")
    xw.save(ARRAYS, path)
    path.chmod(0o444)
    assert xw.equal(path, ARRAYS)
