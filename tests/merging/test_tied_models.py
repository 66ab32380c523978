"""Language models with a tied and with an untied head are merged in either order, from memory and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

torch = pytest.importorskip("torch", reason="the models are torch modules")

AXES = {"emb/embeddings": ("vocab", "dim"), "lm_head/kernel": ("in", "out")}


class LanguageModel(torch.nn.Module):
    def __init__(self, seed: int, *, tied: bool) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(9, 4)
        self.lm_head = torch.nn.Linear(4, 9, bias=False)
        if tied:
            self.lm_head.weight = self.emb.weight
        xw.init(self, "normal", seed=seed)


TIED, UNTIED = LanguageModel(0, tied=True), LanguageModel(1, tied=False)
EMBEDDINGS = TIED.emb.weight.detach().numpy()
EXPECTED = [(EMBEDDINGS + layer.weight.detach().numpy()) / 2 for layer in (UNTIED.emb, UNTIED.lm_head)]


def put(model: Any, kind: str, folder: Path) -> Any:
    """Return a model as it is, or the path of its file."""
    name = "tied" if model is TIED else "untied"
    if kind == "model":
        return model
    if kind == "params":
        return xw.get_params(model)
    if kind == "state dict":
        return dict(model.state_dict())
    path = folder / f"{name}.{kind.rpartition(' ')[2]}"
    if kind == "torch pt":
        torch.save(model.state_dict(), path)
    elif kind == "own pt":
        torch.save(
            {name: value for name, value in model.state_dict().items() if model is UNTIED or "emb" in name}, path
        )
    else:
        xw.save(model, path)
    return path


def check(merged: Any) -> None:
    (embeddings, head) = xw.get_params(merged, layout="native").values()
    np.testing.assert_allclose(embeddings, EXPECTED[0], rtol=1e-6)
    np.testing.assert_allclose(head if head.shape == (9, 4) else head.T, EXPECTED[1], rtol=1e-6)


@pytest.mark.parametrize("first_is_tied", [True, False])
@pytest.mark.parametrize("untied", ["model", "safetensors", "npz"])
@pytest.mark.parametrize("tied", ["model", "safetensors", "npz"])
def test_those_that_know_their_layers_meet(tied: str, untied: str, first_is_tied: bool, tmp_path: Path) -> None:
    pair = [put(TIED, tied, tmp_path), put(UNTIED, untied, tmp_path)]
    merged = xw.merge(pair if first_is_tied else pair[::-1])
    assert dict(merged.axes) == AXES
    assert merged["lm_head/kernel"].shape == (4, 9)
    assert dict(merged.roles) == {"emb/embeddings": "embeddings", "lm_head/kernel": "kernel"}
    check(merged)
    for ending in ("safetensors", "pt"):
        xw.merge(pair if first_is_tied else pair[::-1], out=tmp_path / f"out.{ending}")
        check(tmp_path / f"out.{ending}")
        assert [p.name for p in xw.parameters(tmp_path / f"out.{ending}")] == [p.name for p in xw.parameters(UNTIED)]


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("first_is_tied", [True, False])
def test_the_merged_file_goes_into_the_untied_model(ending: str, first_is_tied: bool, tmp_path: Path) -> None:
    out, model = tmp_path / f"out.{ending}", LanguageModel(2, tied=False)
    xw.merge([TIED, UNTIED] if first_is_tied else [UNTIED, TIED], out=out)
    xw.set_params(model, out)
    np.testing.assert_allclose(model.lm_head.weight.detach().numpy(), EXPECTED[1], rtol=1e-6)
    xw.merge([TIED, UNTIED], into=model)
    np.testing.assert_allclose(model.lm_head.weight.detach().numpy(), EXPECTED[1], rtol=1e-6)
    with pytest.raises(xw.SelectionError, match="one tied one of into"):
        xw.merge([TIED, UNTIED], into=LanguageModel(2, tied=True))


@pytest.mark.parametrize("first_is_tied", [True, False])
@pytest.mark.parametrize(("tied", "untied"), [("torch pt", "torch pt"), ("torch pt", "model"), ("model", "torch pt")])
def test_files_that_pytorch_wrote_meet_by_its_names(
    tied: str, untied: str, first_is_tied: bool, tmp_path: Path
) -> None:
    pair = [put(TIED, tied, tmp_path), put(UNTIED, untied, tmp_path)]
    layout: Any = "native" if "model" in (tied, untied) else None
    check(xw.merge(pair if first_is_tied else pair[::-1], layout=layout))


def test_a_file_without_the_head_names_the_remedy(tmp_path: Path) -> None:
    alone, whole = put(TIED, "own pt", tmp_path), put(UNTIED, "own pt", tmp_path)
    remedy = {"lm_head.weight": "emb.weight"}
    for pair in ([alone, whole], [whole, alone]):
        with pytest.raises(xw.SelectionError) as found:
            xw.merge(pair)
        assert f"names={remedy} if it is tied to that there" in str(found.value)
    check(xw.merge([whole, alone], names=remedy))
    check(
        xw.merge(
            [UNTIED, alone], names={"lm_head/kernel": "emb.weight", "emb/embeddings": "emb.weight"}, layout="native"
        )
    )


def test_twins_of_other_frameworks_have_their_heads_turned() -> None:
    # Keras' order: a head is (in, out) as it is stored.
    shared = EMBEDDINGS.copy()
    ones = xw.Params(
        {"emb/embeddings": np.ones((9, 4), np.float32), "lm_head/kernel": np.full((4, 9), 3, np.float32)}, axes=AXES
    )
    for pair in ([TIED, ones], [ones, TIED]):
        merged = xw.merge(pair)
        np.testing.assert_allclose(merged["lm_head/kernel"], (shared.T + 3) / 2, rtol=1e-6)
        np.testing.assert_allclose(merged["emb/embeddings"], (shared + 1) / 2, rtol=1e-6)
