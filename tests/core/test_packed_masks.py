"""Masks as bits are masks like others, in an eighth of the memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import xweights as xw
from xweights.core.packed_masks import PackedMask

RNG = np.random.default_rng(0)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "a/kernel": rng.standard_normal((30, 17), np.float32),
        "b/kernel": rng.standard_normal((5, 40), np.float32).T,
        "c/kernel": rng.standard_normal((3, 3, 7, 5), np.float32).transpose(3, 2, 0, 1),
    }


def masks_of(target: dict[str, np.ndarray]) -> xw.Params:
    return xw.prune(target, fraction=0.6, scope="global")


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("turned", [False, True])
def test_unpacking_returns_the_array_in_its_memory_order(shape: tuple[int, ...], turned: bool) -> None:
    mask = RNG.random(shape) < 0.5
    mask = np.asarray(mask).T if turned else np.asarray(mask)
    packed = PackedMask(mask)
    assert np.array_equal(packed.unpack(), mask)
    assert packed.unpack().shape == packed.shape == mask.shape
    assert packed.nbytes == -(-mask.size // 8)
    assert packed.unpack().flags.c_contiguous == mask.flags.c_contiguous


def test_a_strided_mask_is_packed_too() -> None:
    mask = (RNG.random((20, 30)) < 0.5)[::2, ::3]
    assert np.array_equal(PackedMask(mask).unpack(), mask)


def test_packed_masks_are_used_as_others_are(tmp_path: Path) -> None:
    first, second = weights(), weights()
    masks = masks_of(first)
    packed = masks.pack_bits()
    xw.mask(second, packed)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert xw.equal(packed, masks)
    assert list(packed) == list(masks)
    assert packed.axes == masks.axes
    assert repr(packed) == repr(masks)
    xw.save(packed, tmp_path / "masks.safetensors")
    assert xw.equal(xw.get_params(xw.load(tmp_path / "masks.safetensors")), masks)
    loaded = xw.get_params(xw.load(tmp_path / "masks.safetensors")).pack_bits()
    assert xw.equal(loaded, packed)
    assert list(packed.select("a/*")) == ["a/kernel"]
    assert xw.equal(pickle.loads(pickle.dumps(packed)), masks)


def test_a_hold_takes_packed_masks() -> None:
    target = weights()
    packed = masks_of(target).pack_bits()
    held = xw.hold(target, xw.Mask(packed), where="*")
    for array in target.values():
        array[...] = 1
    held.apply()
    assert all(np.array_equal(target[name] != 0, packed[name]) for name in target)
    held.release()


def test_they_take_an_eighth_of_the_memory() -> None:
    masks = xw.Params({"a": np.ones((100, 80), np.bool_)})
    assert sum(array.nbytes for array in masks.pack_bits()._arrays.values()) * 8 == masks["a"].nbytes


def test_an_edit_of_an_unpacked_array_would_be_lost_and_is_refused() -> None:
    packed = masks_of(weights()).pack_bits()
    with pytest.raises(ValueError, match="read-only"):
        packed["a/kernel"][0] = True
    with pytest.raises(xw.WriteError, match="read-only"):
        xw.fill(packed, True, where="a/kernel")
    editable = packed.copy()
    editable["a/kernel"][...] = False
    assert not editable["a/kernel"].any()
    assert packed["a/kernel"].any()


def test_packing_twice_is_packing_once_and_only_masks_are_packed() -> None:
    masks = masks_of(weights())
    assert xw.equal(masks.pack_bits().pack_bits(), masks)
    with pytest.raises(xw.DtypeError, match=r"(?s)'w' is float64.*select"):
        xw.Params({"w": np.ones(3), "m": np.ones(3, np.bool_)}).pack_bits()
    with pytest.raises(xw.DtypeError, match="bool"):
        masks.pack_bits() + masks
