"""Tensors of dtypes that NumPy doesn't have are listed by name and refused where a value is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import xweights as xw

ODD = [dtype for name in ("complex32", "float4_e2m1fn_x2") if (dtype := getattr(torch, name, None)) is not None]


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_odd_dtypes_are_listed_and_refused_by_name_and_the_others_are_not(dtype: torch.dtype, tmp_path) -> None:
    module = nn.Linear(2, 3)
    module.odd = nn.Parameter(torch.empty(4, dtype=dtype), requires_grad=False)
    assert [p.name for p in xw.parameters(module)] == ["kernel", "bias", "odd"]
    assert "odd" in xw.summary(module)
    for read in (
        xw.get_params,
        xw.stats,
        xw.checksum,
        lambda m: xw.save(m, tmp_path / "w.pt"),
        lambda m: xw.diff(m, m),
    ):
        with pytest.raises(xw.WriteError, match=rf"'odd': it has the dtype {dtype}, which NumPy doesn't have"):
            read(module)
    for write in (
        lambda m: xw.scale(m, 2.0, where="odd"),
        lambda m: xw.set_params(m, {"odd": np.zeros(4)}, strict=False),
    ):
        with pytest.raises(xw.WriteError, match=f"'odd' can't be written: it has the dtype {dtype}"):
            write(module)
    xw.set_params(module, {"bias": np.ones(3, np.float32)}, strict=False)  # what isn't written needn't be readable
    assert module.bias.tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == []
    xw.scale(module, 2.0)
    assert list(xw.get_params(module, where=["kernel", "bias"])) == ["kernel", "bias"]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_bound_edits_of_complex_parameters_are_those_of_eager_code(dtype: torch.dtype) -> None:
    values = torch.tensor([[1 + 2j, -3j], [0.5, complex(-0.0, 4)]], dtype=dtype)
    keep = np.array([[True, False], [True, True]])
    for rule in (
        xw.Scale(2.0),
        xw.Add(1j),
        xw.Fill(3j),
        xw.Mask(keep),
        xw.SetEntries(keep, 7j),
        xw.SetEntries((0,), 1j),
    ):
        eager, bound = nn.ParameterList([values.clone()]), nn.ParameterList([values.clone()])
        xw.apply(eager, rule, where="*")
        step = xw.bind(bound, rule, where="*")
        torch.compile(step, backend="eager")()
        assert torch.equal(eager[0], bound[0]), rule
