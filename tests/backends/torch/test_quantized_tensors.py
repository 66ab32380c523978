"""Quantized tensors of other packages: refused by name and with the reason, and nothing of the packages is imported."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import xweights as xw  # noqa: E402

EDITS = (
    lambda m: xw.prune(m, fraction=0.5),
    lambda m: xw.fill(m, 1.0, where="*/kernel"),
    lambda m: xw.scale(m, 2.0, where="*"),
    lambda m: xw.max_norm(m, 1.0, per="out", where="*/kernel"),
)


class _Int8Tensor(torch.Tensor):
    """A stand-in for torchao's: it has a shape and a dtype, and no memory of its own."""

    __module__ = "torchao.quantization.some"

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values):
        self.values = values

    def dequantize(self):
        return self.values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].values)
        raise NotImplementedError(str(function))


class Params4bit(nn.Parameter):
    """A stand-in for bitsandbytes': floats at first, and packed values once it was moved to a device."""

    __module__ = "bitsandbytes.nn.modules"

    def __new__(cls, data, *, state=None):
        tensor = torch.Tensor._make_subclass(cls, data, False)
        tensor.quant_state, tensor.bnb_quantized = state, state is not None
        return tensor


class Linear4bit(nn.Linear):
    """A stand-in for bitsandbytes' layer."""

    __module__ = "bitsandbytes.nn.modules"


def model_with(weight, kind=nn.Linear):
    model = nn.Sequential(kind(4, 6), nn.Linear(6, 2))
    model[0].weight = weight
    return model


def torchao_model():
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 2))
    torchao.quantize_(model[0:1], torchao.Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize(
    "make",
    [lambda: model_with(nn.Parameter(_Int8Tensor(torch.ones(6, 4)), requires_grad=False)), torchao_model],
    ids=["a stand-in", "torchao"],
)
def test_a_quantized_tensor_is_listed_with_role_and_axes_and_refused_with_the_reason(make):
    model = make()
    kernel = xw.parameters(model)[0]
    assert (kernel.name, kernel.role, kernel.axes) == ("0/kernel", "kernel", ("in", "out"))
    before = model[1].weight.detach().clone()
    for edit in EDITS:
        with pytest.raises(
            xw.WriteError, match=r"'0/kernel'.*quantized \(a torchao[\w.]*Int8Tensor\).*scaling factors"
        ):
            edit(model)
    with pytest.raises(xw.WriteError, match=r"Fix: .*dequantize\(\)"):
        xw.get_params(model)
    assert torch.equal(model[1].weight, before)
    # The others can be read and edited.
    xw.clip(model, -0.01, 0.01, where="1/kernel")
    assert abs(xw.get_params(model, where="1/*")["1/kernel"]).max() <= 0.01


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16], ids=str)
def test_packed_values_of_bitsandbytes_are_refused_for_edits_whatever_they_are_stored_in(dtype):
    packed = torch.arange(12).reshape(12, 1).to(dtype)
    model = model_with(Params4bit(packed.clone(), state="state"), Linear4bit)
    kernel = xw.parameters(model)[0]
    assert (kernel.name, kernel.role, kernel.axes, kernel.shape) == ("0/kernel", "kernel", None, (12, 1))
    for edit in EDITS[1:]:
        with pytest.raises(
            xw.WriteError, match=r"(?s)'0/kernel'.*bitsandbytes\.nn\.modules\.Params4bit.*dequantize_4bit"
        ):
            edit(model)
    assert torch.equal(model[0].weight.detach(), packed)
    # As they are stored, they can be read and written back.
    values = xw.get_params(model)
    np.testing.assert_array_equal(np.asarray(values["0/kernel"], np.float32), packed.float().numpy())
    xw.set_params(model, values)


def test_a_parameter_of_bitsandbytes_that_still_holds_floats_is_edited_like_any_other():
    model = model_with(Params4bit(torch.full((6, 4), 3.0)), Linear4bit)
    assert xw.parameters(model)[0].axes == ("in", "out")
    xw.scale(model, 2.0, where="0/kernel")
    assert model[0].weight.unique().tolist() == [6.0]


@pytest.mark.thorough
def test_no_package_is_imported_to_know_its_tensors():
    code = (
        "import sys, torch, xweights as xw; m = torch.nn.Linear(2, 2); xw.scale(m, 2.0); xw.parameters(m);"
        "assert not {'torchao', 'bitsandbytes', 'lightning', 'optimum'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
