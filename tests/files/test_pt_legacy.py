"""Files in PyTorch's format from before 1.6: written by PyTorch itself, and one of a published network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import xweights as xw

torch = pytest.importorskip("torch", reason="it writes the files")


def test_a_file_written_by_pytorch_is_read_bit_for_bit(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).t()
    state = {
        "a": {"kernel": turned, "view": turned[1:], "tied": turned},
        "half": torch.ones(2, dtype=torch.bfloat16),
        "step": torch.tensor(3),
        "none": torch.zeros(0, 3),
        "epoch": 7,
    }
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    got = xw.get_params(tmp_path / "w.pt")
    assert list(got) == ["a/kernel", "a/view", "half", "step", "none"]
    assert np.array_equal(got["a/kernel"], turned.numpy())
    assert np.array_equal(got["a/view"], turned[1:].numpy())
    assert got["half"].dtype.name == "bfloat16"
    assert got["step"] == 3


def test_an_edit_writes_the_current_format(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    xw.edit_file(tmp_path / "w.pt", xw.Scale(2.0), where="w", out=tmp_path / "new.pt")
    assert torch.equal(torch.load(tmp_path / "new.pt", weights_only=True)["w"], torch.full((4,), 2.0))


def test_a_description_longer_than_the_first_look_is_read(tmp_path: Path) -> None:
    many = {f"layer{place}.{'x' * 200}": torch.full((1,), float(place)) for place in range(5000)}
    torch.save(many, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    got = xw.get_params(tmp_path / "w.pt")
    assert [float(array[0]) for array in got.values()] == [float(place) for place in range(5000)]


def test_a_published_network_of_that_format_is_read() -> None:
    found = importlib.util.find_spec("resemblyzer")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("its weights come in a package of their own: pip install --no-deps resemblyzer")
    path = Path(found.submodule_search_locations[0]) / "pretrained.pt"
    got = xw.get_params(path)
    expected = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    assert {name: value.tobytes() for name, value in got.items()} == {
        name: value.numpy().tobytes() for name, value in expected.items()
    }
