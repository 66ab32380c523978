"""``set_params(path, values)`` replaces arrays in a file: all of them or none, and nothing else in it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

ENDINGS = [".safetensors", ".npz", ".weights.h5", ".safetensors.index.json"]
AXES = {"stem/kernel": ("h", "w", "in", "out"), "embed/embeddings": ("vocab", "dim")}


def weights(channels: int = 1, tokens: int = 4, seed: int = 0) -> xw.Params:
    rng = np.random.default_rng(seed)
    shapes = {"stem/kernel": (2, 2, channels, 3), "stem/bias": (3,), "embed/embeddings": (tokens, 2)}
    return xw.Params({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, axes=AXES)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_values_are_in_the_file_as_in_a_live_target(ending: str, tmp_path: Path) -> None:
    path, live, new = tmp_path / f"w{ending}", weights(), weights(seed=1)
    xw.save(live, path)
    report = xw.set_params(path, new)
    assert xw.equal(path, new)
    assert list(report.taken) == list(new)


@pytest.mark.parametrize("ending", ENDINGS)
def test_values_of_another_shape_are_adapted_into_a_file(ending: str, tmp_path: Path) -> None:
    path, live = tmp_path / f"w{ending}", weights()
    xw.save(live, path)
    adapt = {
        "stem/kernel": xw.adapt.Sum("in"),
        "embed/*": xw.adapt.Rows(old=["a", "b"], new=["b", "x", "a", "y"], init="keep"),
        "stem/bias": xw.adapt.Leave(),
    }
    old = weights(channels=3, tokens=2, seed=1)
    expected = xw.set_params(live, old, adapt=adapt)
    report = xw.set_params(path, old, adapt=adapt)
    assert xw.equal(path, live)
    assert report.adapted == expected.adapted
    assert np.array_equal(live["embed/embeddings"][1], weights()["embed/embeddings"][1])


def test_a_subset_is_written_and_the_rest_keeps_every_byte(tmp_path: Path) -> None:
    xw.save(weights(), tmp_path / "w.safetensors", metadata={"note": "mine"})
    before = (tmp_path / "w.safetensors").read_bytes()
    xw.set_params(tmp_path / "w.safetensors", {"stem/bias": np.zeros(3, np.float32)}, strict=False)
    after = (tmp_path / "w.safetensors").read_bytes()
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
    assert 0 < changed.max() - changed.min() < 12
    assert xw.load(tmp_path / "w.safetensors").metadata["note"] == "mine"


def test_the_weights_of_a_training_run_are_written_and_its_optimizer_stays(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    run = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(run, tmp_path / "run.pt")
    new = {"weight": np.ones((3, 2), np.float32), "bias": np.ones(3, np.float32)}
    xw.set_params(tmp_path / "run.pt", new, layout="native")
    found = torch.load(tmp_path / "run.pt", weights_only=True)
    assert found["epoch"] == 3
    assert found["model"]["weight"].eq(1).all()
    assert found["model"]["bias"].eq(1).all()
    for number, slots in optimizer.state_dict()["state"].items():
        assert all(torch.equal(found["optimizer"]["state"][number][name], value) for name, value in slots.items())


def test_a_file_takes_the_values_of_another_file_and_of_a_live_model(tmp_path: Path) -> None:
    xw.save(weights(), tmp_path / "a.safetensors")
    xw.save(weights(seed=1), tmp_path / "b.npz")
    xw.set_params(tmp_path / "a.safetensors", tmp_path / "b.npz")
    assert xw.equal(tmp_path / "a.safetensors", weights(seed=1))
    torch = pytest.importorskip("torch")
    module = torch.nn.Conv2d(2, 3, 2)
    xw.save(torch.nn.Conv2d(2, 3, 2), tmp_path / "conv.safetensors")
    xw.set_params(tmp_path / "conv.safetensors", xw.get_params(module))
    assert xw.equal(tmp_path / "conv.safetensors", module)


@pytest.mark.parametrize(
    ("values", "options", "kind"),
    [
        ({"stem/bias": np.zeros(3)}, {}, xw.SelectionError),
        ({"other": np.zeros(3)}, {"strict": False}, xw.SelectionError),
        ({"stem/bias": np.zeros(4)}, {"strict": False}, xw.ShapeError),
        ({"stem/bias": np.array([1, 2, np.nan])}, {"strict": False}, xw.NonfiniteError),
        ({"stem/bias": np.full(3, 0.1)}, {"strict": False}, xw.DtypeError),
        ({"stem/bias": np.zeros(4)}, {"strict": False, "adapt": {"stem/bias": xw.adapt.Sum(0)}}, xw.ShapeError),
        ({"stem/bias": np.zeros(3)}, {"strict": False, "where": "nothing"}, xw.SelectionError),
    ],
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_does_not_fit_is_refused_and_no_byte_changes(
    ending: str, values: Any, options: Any, kind: Any, tmp_path: Path
) -> None:
    path = tmp_path / f"w{ending}"
    xw.save(weights(), path)
    before = files_of(tmp_path)
    with pytest.raises(kind):
        xw.set_params(path, values, **options)
    assert files_of(tmp_path) == before


def test_a_file_that_can_not_be_rewritten_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", b=np.zeros(3))
    before = files_of(tmp_path)
    with pytest.raises(xw.RefusedFileError, match=r"Fix: xweights.convert"):
        xw.set_params(tmp_path / "w.npz", {"b": np.ones(3)})
    assert files_of(tmp_path) == before
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(xw.DamagedFileError):
        xw.set_params(tmp_path / "no.safetensors", {"b": np.ones(3)})
    with pytest.raises(xw.FileAccessError):
        xw.set_params(tmp_path / "absent.safetensors", {"b": np.ones(3)})


def test_a_run_with_two_parts_of_weights_is_refused_and_the_fix_works(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "run.pt"
    torch.save({part: {name: torch.zeros(3) for name in ("w", "b")} for part in ("model", "ema")}, path)
    before = files_of(tmp_path)
    with pytest.raises(xw.RefusedFileError, match=r"Fix: xweights.convert\(path, a new file, part='model'\)"):
        xw.set_params(path, {"w": np.ones(3), "b": np.ones(3)})
    assert files_of(tmp_path) == before
    xw.convert(path, tmp_path / "model.npz", part="model")
    xw.set_params(tmp_path / "model.npz", {"w": np.ones(3), "b": np.ones(3)})
    assert xw.get_params(tmp_path / "model.npz")["w"].all()


def test_an_opened_file_is_only_read(tmp_path: Path) -> None:
    xw.save(weights(), tmp_path / "w.safetensors")
    with pytest.raises(xw.WriteError, match="it is in a file"):
        xw.set_params(xw.load(tmp_path / "w.safetensors"), weights(seed=1))
