"""Saving keeps every bit, name, role and axis, and other readers and writers agree."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import xweights as xw
from xweights.testing import tricky

WRITABLE = ("safetensors", "safetensors.index.json", "npz", "pt", "weights.h5")
DTYPES = [
    *(
        "bool",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
        "float16",
        "float32",
        "float64",
    ),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]


@pytest.mark.parametrize("ending", WRITABLE)
@pytest.mark.parametrize("dtype", [np.dtype(dtype) for dtype in DTYPES], ids=str)
def test_saved_arrays_come_back_bit_for_bit(ending: str, dtype: np.dtype, tmp_path) -> None:
    arrays = {"a/kernel": tricky((3, 5), dtype), "a/bias": tricky((), dtype, 1), "empty": np.zeros((0, 4), dtype)}
    xw.save(arrays, tmp_path / f"w.{ending}")
    assert xw.equal(arrays, tmp_path / f"w.{ending}")


@pytest.mark.parametrize("ending", WRITABLE)
def test_axes_roles_and_gates_come_back(ending: str, tmp_path) -> None:
    values = xw.Params(
        {"rnn/w": np.ones((2, 8), np.float32), "b": np.ones(3)},
        axes={"rnn/w": ("in", "gate*unit")},
        roles={"rnn/w": "kernel"},
        gates={"rnn/w": ("i", "f", "c", "o")},
    )
    xw.save(values, tmp_path / f"w.{ending}")
    back = xw.get_params(tmp_path / f"w.{ending}")
    assert (dict(back.axes), dict(back.roles), dict(back.gates)) == (values.axes, values.roles, values.gates)


@pytest.mark.parametrize("ending", WRITABLE)
def test_the_order_of_the_arrays_comes_back(ending: str, tmp_path) -> None:
    arrays = {"z/b": np.ones(2, np.float16), "a": np.ones(2), "z/a": np.ones(2, np.int8), "m": np.ones(2, np.float32)}
    xw.save(arrays, tmp_path / f"w.{ending}")
    assert [p.name for p in xw.parameters(tmp_path / f"w.{ending}")] == list(arrays)


def test_a_path_is_refused_where_something_would_be_written(tmp_path) -> None:
    xw.save({"b": np.ones(2)}, tmp_path / "w.npz")
    with pytest.raises(xw.WriteError, match=r"Fix: xweights\.edit_file"):
        xw.scale(tmp_path / "w.npz", 2.0)


def test_reading_verbs_take_paths(tmp_path) -> None:
    arrays = {"d/kernel": np.arange(6.0).reshape(3, 2)}
    path = str(tmp_path / "w.safetensors")
    xw.save(arrays, path)
    assert xw.parameters(path)[0].shape == (3, 2)
    assert xw.stats(path)["d/kernel"].max == 5.0
    assert xw.checksum(path) == xw.checksum(arrays)
    assert "d/kernel" in xw.summary(path)
    assert not xw.diff(path, arrays)
    assert xw.get_params([path, path])["1/d/kernel"].sum() == 15.0
