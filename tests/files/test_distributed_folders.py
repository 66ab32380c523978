"""Folders of torch.distributed.checkpoint are written from any target, and edited like other files."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="its own reader is the referee")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch import nn  # noqa: E402

import xweights as xw  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Tied(nn.Module):
    """An embedding, and a head that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.emb.weight


def read_back(path, state):
    """Return what PyTorch reads of a folder for a state dict."""
    found = {key: torch.zeros_like(value) for key, value in state.items()}
    dcp.load(found, checkpoint_id=path, no_dist=True)
    return found


def test_pytorch_reads_what_save_writes_of_any_model(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Linear(5, 2).to(torch.bfloat16), Tied())
    xw.save(model, f"{tmp_path}/model/")
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in read_back(tmp_path / "model", state).items())
    assert xw.equal(tmp_path / "model", model)
    assert [p.axes for p in xw.parameters(tmp_path / "model")] == [p.axes for p in xw.parameters(model)]


def test_a_file_is_converted_to_a_folder_and_back(tmp_path):
    values = {"dense/kernel": np.ones((3, 2)), "count": np.array(7), "none": np.zeros((0, 4), np.float32)}
    xw.save(values, tmp_path / "a.npz")
    xw.convert(tmp_path / "a.npz", f"{tmp_path}/folder/")
    xw.convert(tmp_path / "folder", tmp_path / "b.safetensors")
    assert xw.equal(tmp_path / "folder", values)
    assert xw.equal(tmp_path / "b.safetensors", values)


def test_an_edit_leaves_everything_else_in_the_folder(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    run = {"model": model.state_dict(), "epoch": 7, "opt": {"lr": 0.1, "steps": [torch.tensor(3), "x"]}}
    dcp.save(run, checkpoint_id=tmp_path, no_dist=True)
    report = xw.edit_file(tmp_path, xw.Scale(2.0), where="*0.weight", part="model")
    assert report.changed == {"0.weight": 12}
    xw.set_params(tmp_path, {"1.bias": np.array([3.0, 4.0], np.float32)}, strict=False)
    state = {"model": {}, "epoch": 0, "opt": {"lr": 0.0, "steps": [torch.tensor(0), ""]}}
    state["model"] = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    assert (state["epoch"], state["opt"]) == (7, run["opt"])
    assert torch.equal(state["model"]["0.weight"], model[0].weight * 2)
    assert torch.equal(state["model"]["1.weight"], model[1].weight)
    assert state["model"]["1.bias"].tolist() == [3.0, 4.0]
    # The first data file is still needed, and one for each edit.
    assert len(list(tmp_path.glob("*.distcp"))) == 3


def test_tied_weights_stay_tied_in_an_edited_folder(tmp_path):
    model = Tied()
    xw.save(model, f"{tmp_path}/")
    xw.edit_file(tmp_path, xw.Scale(2.0), where=...)
    found = read_back(tmp_path, model.state_dict())
    assert all(torch.equal(value, model.emb.weight * 2) for value in found.values())
    assert len(list(tmp_path.glob("*.distcp"))) == 1


def test_a_folder_that_cannot_be_written_is_as_it_was(tmp_path, monkeypatch):
    model = nn.Linear(3, 2)
    xw.save(model, f"{tmp_path}/")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(xw.RefusedFileError, match="no place for metadata"):
        xw.save(model, f"{tmp_path}/", metadata={"a": "b"})

    def fail(*_):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr("os." + call, fail)
            with pytest.raises(xw.FileAccessError):
                xw.save(nn.Linear(3, 2), f"{tmp_path}/")
            with pytest.raises(xw.FileAccessError):
                xw.edit_file(tmp_path, xw.Scale(2.0), where=...)
        assert xw.equal(tmp_path, model)
    xw.save(model, f"{tmp_path}/")
    assert len(list(tmp_path.iterdir())) == len(before)
