"""`extract_lora`: a difference as factors of a given rank."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lora_adapters import make_base

import xweights as xw


def trained(rank: int, base=None) -> dict:
    """Return a base plus a difference of that rank in each matrix, and a changed bias."""
    rng = np.random.default_rng(7)
    after = {}
    for name, value in (make_base() if base is None else base).items():
        matrix = value.reshape(len(value), -1)
        change = rng.normal(size=(len(matrix), rank)) @ rng.normal(size=(rank, matrix.shape[1]))
        after[name] = (value + 0.01 * change.reshape(value.shape)).astype(value.dtype)
    return after


def test_a_difference_of_the_rank_is_found_but_for_rounding():
    lora = xw.extract_lora(trained(4), make_base(), rank=4)
    assert set(lora.errors) == {"emb.weight", "fc.weight", "conv.weight"}
    assert max(lora.errors.values()) < 1e-5
    merged = make_base()
    xw.merge_lora(merged, lora)
    for name in lora.errors:
        np.testing.assert_allclose(merged[name], trained(4)[name], rtol=0, atol=1e-6)


def test_errors_are_those_of_the_truncated_decomposition_and_fall_with_the_rank():
    after, before = trained(9), make_base()
    singular = np.linalg.svd((after["fc.weight"].astype(float) - before["fc.weight"]), compute_uv=False)
    last = 2.0
    for rank in (1, 4, 8):
        error = xw.extract_lora(after, before, rank=rank, where="fc.weight").errors["fc.weight"]
        assert error == pytest.approx(np.linalg.norm(singular[rank:]) / np.linalg.norm(singular), rel=1e-6)
        assert error < last
        last = error


def test_what_is_no_matrix_is_listed_and_what_is_equal_left_alone():
    after = trained(2) | {"emb.weight": make_base()["emb.weight"]}
    lora = xw.extract_lora(after, make_base(), rank=2)
    assert set(lora.errors) == {"fc.weight", "conv.weight"}
    assert lora.left_out == {"fc.bias": "it has less than two axes"}
    assert "not in the adapter, though it differs:\n  fc.bias" in str(lora)
    assert lora.as_dict()["rank"] == 2


def test_integers_that_differ_are_listed_and_counters_are_not():
    before = make_base() | {"ids": np.arange(4), "bn.num_batches_tracked": np.array(1)}
    after = trained(2) | {"ids": np.arange(4) + 1, "bn.num_batches_tracked": np.array(9)}
    lora = xw.extract_lora(after, before, rank=2)
    assert lora.left_out["ids"] == f"it holds {before['ids'].dtype.name}, and factors are for floats"
    assert set(lora.left_out) == {"fc.bias", "ids"}
    same = xw.extract_lora(trained(2), make_base(), rank=2)
    assert set(same.left_out) == {"fc.bias"}


def test_a_folder_of_peft_merges_to_the_same_and_states_smaller_ranks(tmp_path):
    base = make_base() | {"small.weight": np.zeros((3, 16), np.float32)}
    lora = xw.extract_lora(trained(4, base), base, rank=6)
    lora.save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6
    assert config["rank_pattern"] == config["alpha_pattern"] == {"^small": 3}
    one, two = ({name: value.copy() for name, value in base.items()} for _ in range(2))
    xw.merge_lora(one, lora)
    xw.merge_lora(two, tmp_path / "adapter")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=1e-7)


def test_factors_by_keras_names_are_saved_and_merged(tmp_path):
    before = {"conv/kernel": np.zeros((3, 3, 8, 12), np.float32), "dense/kernel": np.zeros((8, 5), np.float32)}
    axes = {"conv/kernel": ("h", "w", "in", "out"), "dense/kernel": ("in", "out")}
    rng = np.random.default_rng(0)
    after = {name: (rng.normal(size=(*v.shape[:-1], 2)) @ rng.normal(size=(2, v.shape[-1]))).astype(np.float32)
             for name, v in before.items()}  # fmt: skip
    before, after = xw.Params(before, axes=axes), xw.Params(after, axes=axes)
    lora = xw.extract_lora(after, before, rank=2)
    assert lora.params["conv/lora_kernel_a"].shape == (3, 3, 8, 2)
    assert lora.params.axes["dense/lora_kernel_b"] == ("rank", "out")
    lora.save(tmp_path / "lora.npz", format="keras")
    xw.merge_lora(before, tmp_path / "lora.npz")
    for name in after:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda a, b: xw.extract_lora(a, b, rank=0), xw.ArgumentError, "rank= is a whole number"),
        (lambda a, b: xw.extract_lora(b, b, rank=2), xw.SelectionError, "there is nothing to extract"),
        (lambda a, b: xw.extract_lora({"x": a["fc.bias"]}, b, rank=2), xw.SelectionError, "after has no"),
        (
            lambda a, b: xw.extract_lora(a | {"fc.weight": a["fc.weight"][:5]}, b, rank=2),
            xw.ShapeError,
            "fc.weight",
        ),
        (
            lambda a, b: xw.extract_lora(a | {"fc.weight": a["fc.weight"] * np.nan}, b, rank=2),
            xw.NonfiniteError,
            "384 entries of the difference aren't finite",
        ),
    ],
)
def test_bad_input_is_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call(trained(2), make_base())


def test_a_weight_that_peft_has_no_factors_for_is_named_and_nothing_is_written(tmp_path):
    before = xw.Params({"q/kernel": np.zeros((4, 2, 3))}, axes={"q/kernel": ("in", "head", "key")})
    after = xw.Params({"q/kernel": np.ones((4, 2, 3))}, axes={"q/kernel": ("in", "head", "key")})
    lora = xw.extract_lora(after, before, rank=1)
    with pytest.raises(xw.LayoutError, match="'q/kernel' isn't the 'weight' of a module"):
        lora.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(xw.ArgumentError, match="format="):
        lora.save(tmp_path / "adapter", format="other")
