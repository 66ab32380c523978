"""``convert(adapt=)`` writes arrays of a file in another shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

A = xw.adapt
AXES = {"stem/kernel": ("h", "w", "in", "out"), "embed/embeddings": ("vocab", "dim")}
ADAPT = {"stem/kernel": A.Sum("in"), "embed/*": A.Rows(old=list("abc"), new=list("cxa"))}


def weights() -> xw.Params:
    rng = np.random.default_rng(0)
    shapes = {"stem/kernel": (2, 2, 3, 4), "stem/bias": (4,), "embed/embeddings": (3, 2)}
    return xw.Params({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, axes=AXES)


def adapted() -> dict[str, np.ndarray]:
    old = weights()
    table = old["embed/embeddings"]
    return {
        "stem/kernel": old["stem/kernel"].astype(np.float64).sum(2, keepdims=True).astype(np.float32),
        "stem/bias": old["stem/bias"],
        "embed/embeddings": np.stack([table[2], table.astype(np.float64).mean(0).astype(np.float32), table[0]]),
    }


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt", ".weights.h5", ".safetensors.index.json"])
def test_a_file_is_written_in_another_shape_in_every_format(ending: str, tmp_path: Path) -> None:
    if "h5" in ending:
        pytest.importorskip("h5py")
    xw.save(weights(), tmp_path / "old.safetensors")
    xw.convert(tmp_path / "old.safetensors", tmp_path / f"new{ending}", adapt=ADAPT)
    got = xw.get_params(tmp_path / f"new{ending}")
    assert {name: array.tolist() for name, array in got.items()} == {k: v.tolist() for k, v in adapted().items()}
    assert got.axes["stem/kernel"] == AXES["stem/kernel"]


def test_arrays_keep_the_order_that_their_framework_stores_them_in(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def model(channels: int) -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 2), torch.nn.Conv2d(4, 8, 3, groups=4))

    rgb, gray = model(3), model(1)
    xw.save(rgb, tmp_path / "rgb.safetensors")
    xw.convert(tmp_path / "rgb.safetensors", tmp_path / "gray.safetensors", adapt={"0/kernel": A.Sum("in")})
    from_file = xw.load(tmp_path / "gray.safetensors")
    assert from_file.records[0].shape == (4, 1, 2, 2)
    xw.set_params(gray, from_file)
    expected = rgb[0].weight.double().sum(1, keepdim=True).float()
    assert torch.equal(gray[0].weight, expected)
    assert torch.equal(gray[1].weight, rgb[1].weight)


def test_a_plain_file_takes_axes_by_their_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", kernel=np.ones((3, 2)), pos_embed=np.zeros((1, 5, 2)))
    steps = {"kernel": A.Mean(0), "pos_embed": A.Resample((2, 2), (3, 3), skip=1)}
    xw.convert(tmp_path / "a.npz", tmp_path / "b.npz", adapt=steps)
    with np.load(tmp_path / "b.npz") as found:
        assert found["kernel"].tolist() == [[1, 1]]
        assert found["pos_embed"].shape == (1, 10, 2)


def test_a_length_that_nothing_says_is_given(tmp_path: Path) -> None:
    xw.save({"bias": np.arange(2.0)}, tmp_path / "a.npz")
    xw.convert(tmp_path / "a.npz", tmp_path / "b.npz", adapt={"bias": [A.Pad(0, 3), A.Repeat(0, 4)]})
    assert xw.get_params(tmp_path / "b.npz")["bias"].tolist() == [0, 1, 0, 0]


def test_a_file_may_replace_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    xw.save(weights(), path)
    xw.convert(path, path, adapt=ADAPT)
    assert xw.get_params(path)["stem/kernel"].shape == (2, 2, 1, 4)


@pytest.mark.parametrize(
    ("adapt", "kind", "text"),
    [
        ({"stem/kernel": A.Leave()}, xw.WriteError, "Fix: where= to leave it out"),
        ({"stem/kernel": A.Repeat("in")}, xw.ShapeError, r"Fix: Repeat\(axis, length\)"),
        ({"stem/kernel": A.Pad("in")}, xw.ShapeError, r"Fix: Pad\(axis, length\)"),
        ({"stem/kernel": A.Pad("in", 4, init="keep")}, xw.WriteError, "a new file has no 'stem/kernel'"),
        ({"embed/*": A.Rows()}, xw.ShapeError, "Fix: the tokens of both"),
        ({"embed": A.Rows()}, xw.SelectionError, "'embed' is a layer, and no parameter"),
        ({"stem/kernel": A.Sum("depth")}, xw.LayoutError, "has no axis 'depth'"),
        ({"stem/kernel": "sum"}, xw.ArgumentError, "needs an adapter"),
    ],
)
def test_what_can_not_be_adapted_is_refused_and_the_old_file_stays(
    adapt: Any, kind: Any, text: str, tmp_path: Path
) -> None:
    xw.save(weights(), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"the old one")
    with pytest.raises(kind, match=text):
        xw.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", adapt=adapt)
    assert (tmp_path / "b.safetensors").read_bytes() == b"the old one"


def test_a_sum_that_overflows_is_refused_and_infinities_of_the_file_are_kept(tmp_path: Path) -> None:
    xw.save({"big": np.full((3, 2), 6e4, np.float16), "inf": np.full((3, 2), np.inf)}, tmp_path / "a.npz")
    with pytest.raises(xw.NonfiniteError, match=r"Sum\(0\) of 'big' isn't finite in float16"):
        xw.convert(tmp_path / "a.npz", tmp_path / "b.npz", adapt={"*": A.Sum(0)})
    assert not (tmp_path / "b.npz").exists()
    xw.convert(tmp_path / "a.npz", tmp_path / "b.npz", adapt={"inf": A.Sum(0)})
    assert np.isinf(xw.get_params(tmp_path / "b.npz")["inf"]).all()


def test_a_keras_archive_is_refused(tmp_path: Path) -> None:
    xw.save(weights(), tmp_path / "a.safetensors")
    with pytest.raises(xw.RefusedFileError):
        xw.convert(tmp_path / "a.safetensors", tmp_path / "b.keras", adapt=ADAPT)
