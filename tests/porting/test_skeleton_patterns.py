"""Layers that a model wrote by hand are layers of its skeleton, into which the model is ported."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw
from xweights.porting.skeletons.graph import Graph, Operation
from xweights.porting.skeletons.patterns import find_layers

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
nn = torch.nn


class RootMeanSquare(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Product(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner = RootMeanSquare(6), Product(6, 6)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x):
        return x + self.scale * self.inner(self.norm(x))


@pytest.mark.keras_backend
def test_norms_products_and_scales_by_hand_become_layers_and_are_ported_into():
    torch.manual_seed(0)
    module, x = nn.Sequential(Block(), Block()), np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    code = xw.skeleton(module, "keras", sample=x)
    assert all(layer in code for layer in ("layers.RMSNormalization(epsilon=1e-06)", "layers.Dense(6", "Scale((6,))"))
    assert "rsqrt" not in code
    space = {}
    exec(code, space)
    twin = space["Twin"]()
    twin(x)
    assert xw.port(module, twin, sample=x).ok
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(twin(x)), expected, rtol=1e-4, atol=1e-5)


def parts(eps=1e-6, axes=(1,), shape=(4,), use="normal"):
    """The operations of an RMS norm by hand."""
    return (
        Operation("x", "input", (), {"key": None}, (2, 4)),
        Operation("squares", "unary", ("x",), {"function": "square"}, (2, 4)),
        Operation("mean", "reduce", ("squares",), {"function": "mean", "axes": axes, "keepdims": True}, (2, 1)),
        Operation("added", "binary", ("mean", eps), {"function": "add"}, (2, 1)),
        Operation("root", "unary", ("added",), {"function": "rsqrt"}, (2, 1)),
        Operation("normal", "binary", ("x", "root"), {"function": "multiply"}, (2, 4)),
        Operation("w", "parameter", (), {"name": "norm.weight"}, shape),
        Operation("y", "binary", ("w", use), {"function": "multiply"}, (2, 4)),
        Operation("results", "output", ("y",), {"keys": None}),
    )


def kinds(*operations):
    return [one.kind for one in find_layers(Graph(operations, {"norm.weight": (4,)})).operations]


def test_a_norm_is_found_only_where_its_parts_are_those_of_one():
    assert kinds(*parts()) == ["input", "rms_norm", "output"]
    for other in (parts(axes=(0,)), parts(shape=(1, 4)), parts(use="x"), parts(eps="x")):
        assert "rms_norm" not in kinds(*other)


def test_a_parameter_that_something_else_uses_stays_one():
    *before, results = parts()
    again = Operation("z", "binary", ("w", "y"), {"function": "multiply"}, (2, 4))
    ends = Operation("results", "output", ("z",), {"keys": None})
    assert "rms_norm" not in kinds(*before, again, ends)
    assert results.kind == "output"
