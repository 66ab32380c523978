"""export_hf and import_hf around any hub: all or nothing, and nothing but what was named is replaced."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import xweights as xw
from xweights.porting.hub import find, load_folder
from xweights.porting.hub.protocol import Twins

torch = pytest.importorskip("torch", reason="needs torch")
keras = pytest.importorskip("keras", reason="needs keras")


class ToyHub:
    """A hub of Dense layers, whose twins are Linear."""

    name = "toy"
    fault = ""

    def takes(self, model):
        return isinstance(model, keras.Sequential)

    def make_twin(self, model, sample, settings):
        x = np.eye(3, dtype="float32") if sample is None else sample
        return Twins(
            model, torch.nn.Sequential(torch.nn.Linear(3, 2)), x, x, None, json.dumps({"units": 2, **settings})
        )

    def read_twin(self, twins, folder):
        loaded = torch.nn.Sequential(torch.nn.Linear(3, 2))
        xw.set_params(loaded, f"{folder}/model.safetensors")
        if self.fault:
            with torch.no_grad():
                loaded[0].weight += 1
        return loaded

    def open_folder(self, folder, sample, *, ignore):
        backbone = net()
        twins = self.make_twin(backbone, sample, {})
        return replace(twins, twin=self.read_twin(twins, folder), returned=backbone)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    hub = ToyHub()
    monkeypatch.setattr(find, "load_hubs", lambda: (hub,))
    # Imported above: imported from here on, it would keep this hub for all tests after.
    monkeypatch.setattr(load_folder, "load_hubs", lambda: (hub,))
    return hub


def net():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_is_exported_and_imported_with_the_same_bits(tmp_path):
    model, folder = net(), tmp_path / "made" / "here"
    report = xw.export_hf(model, folder, settings={"more": 1})
    assert report.ok
    assert sorted(read(folder)) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == {"units": 2, "more": 1}
    again = xw.import_hf(folder, hub="toy")
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(model.weights, again.weights, strict=True))


def test_files_that_exist_are_only_replaced_when_asked_to_and_others_stay(tmp_path):
    xw.export_hf(net(), tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    before = read(tmp_path / "a")
    with pytest.raises(xw.FileAccessError, match="overwrite=True"):
        xw.export_hf(net(), tmp_path / "a")
    assert read(tmp_path / "a") == before
    xw.export_hf(net(), tmp_path / "a", overwrite=True)
    after = read(tmp_path / "a")
    assert after.keys() == before.keys()
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["tokenizer.json"] == b"{}"


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_computes_something_else_after_loading_leaves_nothing_behind(tmp_path, toy, there):
    if there:
        xw.export_hf(net(), tmp_path / "a")
    before = read(tmp_path / "a") if there else None
    toy.fault = "loads other weights"
    with pytest.raises(xw.PortError, match="differs after loading"):
        xw.export_hf(net(), tmp_path / "a", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == (["a"] if there else [])
    assert before is None or read(tmp_path / "a") == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(xw.FileAccessError, match="is a file"):
        xw.export_hf(net(), tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").read_text() == "a file"


def test_a_model_of_no_hub_and_a_hub_that_isnt_there_are_refused(tmp_path):
    with pytest.raises(xw.TargetError, match="a model of toy"):
        xw.export_hf(torch.nn.Linear(3, 2), tmp_path / "a")
    with pytest.raises(xw.ArgumentError, match="expected: toy"):
        xw.import_hf(tmp_path, hub="keras_hub")
    assert list(tmp_path.iterdir()) == []
