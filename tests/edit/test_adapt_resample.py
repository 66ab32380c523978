"""Tables of positions are resampled as torch and timm resample them, with the same bits on every machine."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import xweights as xw
from xweights.edit.adapt.interpolation import find_taps, interpolate

A = xw.adapt
RNG = np.random.default_rng(0)
GRIDS = [((14, 14), (16, 16)), ((16, 16), (14, 14)), ((7, 5), (20, 3)), ((13, 13), (23, 23)), ((1, 5), (4, 2))]


def adapt(value, shape, adapter, *, axes=None, dtype=np.float32):
    target = xw.Params({"pos_embed": np.zeros(shape, dtype)}, axes={"pos_embed": axes})
    xw.set_params(target, {"pos_embed": np.asarray(value, dtype)}, adapt={"pos_embed": adapter})
    return target["pos_embed"]


def resampled(values, new, **options):
    """Return numbers along a line, resampled to another length."""
    line = np.asarray(values, np.float64)[:, None]
    return adapt(line, (new, 1), A.Resample(len(values), new, **options), dtype=np.float64)[:, 0]


# By hand.


def test_antialiased_bilinear_weights_are_those_of_a_triangle_cut_at_the_border() -> None:
    assert np.array_equal(resampled([1, 3], 1, mode="bilinear"), [2])
    # The first of two is at 1 among four, and its triangle has half-width 2: 0.75, 0.75 and 0.25 of 1.75.
    assert np.allclose(resampled([7, 0, 0, 0], 2, mode="bilinear"), [3, 0], rtol=1e-15)
    assert np.allclose(resampled([0, 0, 7, 0], 2, mode="bilinear"), [1, 3], rtol=1e-15)


def test_bilinear_to_more_positions_keeps_the_border() -> None:
    for antialias in (True, False):
        assert np.array_equal(resampled([0, 1], 4, mode="bilinear", antialias=antialias), [0, 0.25, 0.75, 1])


def test_the_cubic_kernel_has_another_parameter_where_it_antialiases() -> None:
    # With a = -0.5: 0.8671875, 0.2265625 and -0.0703125 at distances of 0.25, 0.75 and 1.25, normalised.
    expected = [-0.0703125 / 0.796875, 0.2265625 / 1.09375, 0.8671875 / 1.09375, 0.8671875 / 0.796875]
    assert np.allclose(resampled([0, 1], 4), expected, rtol=1e-15)
    # With a = -0.75, and positions beyond the border clamped, only the far tap of the first is on the second.
    assert resampled([0, 1], 4, antialias=False)[0] == -0.10546875


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 7), (7, 1), (5, 5), (14, 16), (37, 16), (3, 100)])
def test_weights_sum_to_one_and_an_equal_grid_changes_nothing(old, new, mode, antialias) -> None:
    taps = find_taps(old, new, mode, antialias=antialias)
    assert np.allclose(taps.weights.sum(1), 1, rtol=1e-14)
    assert taps.positions.min() >= 0
    assert taps.positions.max() < old
    assert np.array_equal(resampled(np.arange(old) + 0.1, old, mode=mode, antialias=antialias), np.arange(old) + 0.1)


def test_the_bits_are_the_same_on_every_machine() -> None:
    grid = (np.arange(14 * 14 * 3, dtype=np.float64) * 7919 % 1009).reshape(14, 14, 3) / 1009
    digest = hashlib.sha256()
    for new in ((16, 16), (7, 9)):
        for mode in ("bicubic", "bilinear"):
            for antialias in (True, False):
                digest.update(np.ascontiguousarray(interpolate(grid, (0, 1), new, mode, antialias=antialias)).tobytes())
    assert digest.hexdigest()[:16] == "eac523e44fd49c6b"


# Where the grid is.

TABLE = RNG.normal(size=(3, 3, 4)).astype(np.float32)
BIGGER = interpolate(TABLE, (0, 1), (5, 5), "bicubic", antialias=True).astype(np.float32)
RESAMPLE = A.Resample((3, 3), (5, 5))


def test_a_grid_and_its_flat_forms_are_resampled_alike() -> None:
    flat = BIGGER.reshape(25, 4)
    assert np.array_equal(adapt(TABLE, (5, 5, 4), RESAMPLE), BIGGER)
    assert np.array_equal(adapt(TABLE[None], (1, 5, 5, 4), RESAMPLE), BIGGER[None])
    assert np.array_equal(adapt(TABLE.reshape(9, 4), (25, 4), RESAMPLE), flat)
    assert np.array_equal(adapt(TABLE.reshape(1, 9, 4), (1, 25, 4), RESAMPLE), flat[None])


def test_a_batch_of_one_may_be_there_on_one_side_only() -> None:
    flat = BIGGER.reshape(25, 4)
    assert np.array_equal(adapt(TABLE.reshape(1, 9, 4), (25, 4), RESAMPLE), flat)
    assert np.array_equal(adapt(TABLE.reshape(9, 4), (1, 25, 4), RESAMPLE), flat[None])


def test_axes_tell_where_the_positions_are() -> None:
    flat = BIGGER.reshape(25, 4)
    value = TABLE.reshape(9, 4)
    assert np.array_equal(adapt(value.T, (4, 25), RESAMPLE, axes=("head", "position")), flat.T)
    assert np.array_equal(adapt(value.T, (4, 25), A.Resample((3, 3), (5, 5), axis=1)), flat.T)
    moved = np.moveaxis(TABLE, 2, 0)
    assert np.array_equal(adapt(moved, (4, 5, 5), RESAMPLE, axes=("dim", "h", "w")), np.moveaxis(BIGGER, 2, 0))
    with pytest.raises(xw.ShapeError, match="Fix: axis="):
        adapt(value.T, (4, 25), RESAMPLE)


def test_skipped_entries_stay_as_they_are() -> None:
    value = np.concatenate([np.full((2, 4), 9.0), TABLE.reshape(9, 4), np.full((3, 4), 8.0)])
    got = adapt(value, (30, 4), A.Resample((3, 3), (5, 5), skip=2, skip_last=3))
    assert np.array_equal(got[2:27], BIGGER.reshape(25, 4))
    assert (got[:2] == 9).all()
    assert (got[27:] == 8).all()


def test_half_precision_is_rounded_once() -> None:
    value = TABLE.astype(ml_dtypes.bfloat16)
    got = adapt(value, (5, 5, 4), RESAMPLE, dtype=ml_dtypes.bfloat16)
    exact = interpolate(value, (0, 1), (5, 5), "bicubic", antialias=True)
    assert np.array_equal(got, exact.astype(np.float32).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    ("shape", "target", "adapter"),
    [
        ((10, 4), (25, 4), RESAMPLE),
        ((10, 4), (25, 4), A.Resample((3, 3), (5, 5), skip=1)),
        ((9, 4), (26, 4), RESAMPLE),
        ((9,), (25,), A.Resample((3, 3), (5, 5), skip_last=1)),
        ((4, 4, 4), (5, 5, 4), RESAMPLE),
        ((3, 3, 4), (5, 5, 4), A.Resample((3, 3), (5, 5), skip=1)),
        ((), (25,), RESAMPLE),
    ],
)
def test_a_resample_between_grids_that_are_not_there_is_refused(shape, target, adapter) -> None:
    with pytest.raises(xw.ShapeError, match="pos_embed"):
        adapt(np.zeros(shape), target, adapter)


# As torch and timm do it.


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_the_result_is_that_of_torch(old, new, mode, antialias) -> None:
    torch = pytest.importorskip("torch", reason="the reference is torch's")
    table = RNG.normal(size=(*old, 8))
    got = interpolate(table, (0, 1), new, mode, antialias=antialias)
    channels_first = torch.from_numpy(table).permute(2, 0, 1)[None]
    for dtype, rtol in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        theirs = torch.nn.functional.interpolate(
            channels_first.to(dtype), size=new, mode=mode, antialias=antialias, align_corners=False
        )
        error = np.abs(theirs[0].permute(1, 2, 0).numpy() - got).max()
        assert error <= rtol * np.abs(table).max()


@pytest.fixture
def timm_layers():
    """Yield timm.layers, whose torchvision may have been built for another torch."""
    torch = pytest.importorskip("torch", reason="timm is written in torch")
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm isn't installed")
    place = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    text = (Path(place) / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(set(re.findall(r'register_fake\("torchvision::(\w+)"\)', text))):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm.layers

    return timm.layers


@pytest.mark.parametrize(("old", "new"), [((14, 14), (16, 16)), ((16, 16), (7, 7)), ((14, 14), (24, 10))])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_the_result_is_that_of_timm_for_positions(timm_layers, old, new, skip) -> None:
    import torch

    value = torch.randn(1, skip + old[0] * old[1], 8, generator=torch.Generator().manual_seed(0))
    theirs = timm_layers.resample_abs_pos_embed(value, list(new), list(old), num_prefix_tokens=skip)
    got = adapt(value.numpy(), tuple(theirs.shape), A.Resample(old, new, skip=skip))
    assert np.abs(theirs.numpy() - got).max() <= 1e-5 * float(value.abs().max())
    grid = value[:, skip:].reshape(1, *old, 8)
    theirs = timm_layers.resample_abs_pos_embed_nhwc(grid, list(new))
    got = adapt(grid.numpy(), tuple(theirs.shape), A.Resample(old, new))
    assert np.abs(theirs.numpy() - got).max() <= 1e-5 * float(value.abs().max())


@pytest.mark.parametrize("extra", [0, 3])
def test_the_result_is_that_of_timm_for_relative_positions(timm_layers, extra) -> None:
    import torch
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_levit, resize_rel_pos_bias_table_simple

    value = torch.randn(13 * 13 + extra, 4, generator=torch.Generator().manual_seed(0))
    new = (23 * 23 + extra, 4)
    theirs = resize_rel_pos_bias_table_simple(value, (12, 12), new)
    got = adapt(value.numpy(), new, A.Resample((13, 13), (23, 23), skip_last=extra, antialias=False))
    assert np.abs(theirs.numpy() - got).max() <= 1e-5 * float(value.abs().max())
    if not extra:
        theirs = resize_rel_pos_bias_table_levit(value, new)
        got = adapt(value.numpy(), new, A.Resample((13, 13), (23, 23)))
        assert np.abs(theirs.numpy() - got).max() <= 1e-5 * float(value.abs().max())


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_result_is_that_of_timm_for_input_convolutions(timm_layers, channels) -> None:
    import torch
    from timm.models._manipulate import adapt_input_conv

    value = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    theirs = adapt_input_conv(channels, value.clone())
    module = torch.nn.Conv2d(channels, 8, 5, bias=False)
    steps = A.Sum("in") if channels == 1 else A.Repeat("in", keep_sum=True)
    if channels == 2:
        # timm takes the first channels and scales by 3 / 2, which nothing but a model's owner can say is meant.
        with pytest.raises(xw.ShapeError, match="can't make 2 of the 3"):
            xw.set_params(module, {"weight": value}, layout="native", adapt={"kernel": steps})
        return
    xw.set_params(module, {"weight": value}, layout="native", adapt={"kernel": steps})
    assert np.abs((theirs - module.weight).detach().numpy()).max() <= 1e-6 * float(value.abs().max())
