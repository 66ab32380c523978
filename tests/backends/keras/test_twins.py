"""A Keras model and its torch twin with equal attribute names have equal neutral names and axes."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch", reason="the twin is a torch module")
L, nn = keras.layers, torch.nn


class KerasBlock(L.Layer):
    def __init__(self, width):
        super().__init__()
        self.norm = L.LayerNormalization()
        self.ff = [L.Dense(2 * width), L.Dense(width)]

    def build(self, shape):
        self.norm.build(shape)
        self.ff[0].build(shape)
        self.ff[1].build((*shape[:-1], 2 * shape[-1]))

    def call(self, x):
        return x + self.ff[1](self.ff[0](self.norm(x)))


class KerasTwin(keras.Model):
    def __init__(self):
        super().__init__()
        self.embed = L.Embedding(11, 4)
        self.conv = L.Conv1D(4, 3, padding="same")
        self.bn = L.BatchNormalization()
        self.blocks = [KerasBlock(4), KerasBlock(4)]
        self.heads = {"small": L.Dense(2), "large": L.Dense(5, use_bias=False)}

    def call(self, x):
        x = self.bn(self.conv(self.embed(x)))
        for block in self.blocks:
            x = block(x)
        return [head(x) for head in self.heads.values()]


class TorchBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.ff = nn.ModuleList([nn.Linear(width, 2 * width), nn.Linear(2 * width, width)])


class TorchTwin(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.bn = nn.BatchNorm1d(4)
        self.blocks = nn.ModuleList([TorchBlock(4), TorchBlock(4)])
        self.heads = nn.ModuleDict({"small": nn.Linear(4, 2), "large": nn.Linear(4, 5, bias=False)})


def twins():
    model = KerasTwin()
    model(np.zeros((1, 6), "int32"))
    return model, TorchTwin()


def facts(target):
    found = [p for p in xw.parameters(target) if p.role != "num_batches_tracked"]
    return [(p.name, p.role, p.layer, p.axes, p.shape) for p in found]


def test_twins_agree_on_names_roles_layers_axes_and_order() -> None:
    model, module = twins()
    assert facts(model) == facts(module)


def test_the_values_of_a_twin_are_taken_over_by_axis_name_and_back() -> None:
    model, module = twins()
    xw.set_params(model, xw.get_params(module))
    for name, value in xw.get_params(module).items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(xw.get_params(model)[name], value)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.blocks[1].ff[0].kernel), module.blocks[1].ff[0].weight.detach().numpy().T
    )


@pytest.mark.parametrize(
    ("layer", "shape", "module"),
    [
        (lambda: L.Dense(3), (None, 4), lambda: nn.Linear(4, 3)),
        (lambda: L.Conv2D(3, 2), (None, 8, 8, 4), lambda: nn.Conv2d(4, 3, 2)),
        (lambda: L.Conv2DTranspose(3, 2), (None, 8, 8, 4), lambda: nn.ConvTranspose2d(4, 3, 2)),
        (lambda: L.GroupNormalization(2), (None, 8, 4), lambda: nn.GroupNorm(2, 4)),
        (lambda: L.RMSNormalization(), (None, 4), lambda: nn.RMSNorm(4)),
        (lambda: L.Embedding(7, 3), (None,), lambda: nn.Embedding(7, 3)),
    ],
    ids=["Dense", "Conv2D", "Conv2DTranspose", "GroupNormalization", "RMSNormalization", "Embedding"],
)
def test_single_layers_agree(layer, shape, module) -> None:
    one = layer()
    one.build(shape)
    assert facts(one) == facts(module())


def test_lstm_cells_agree_but_for_the_second_bias_of_torch() -> None:
    cell = L.LSTMCell(3)
    cell.build((None, 4))
    theirs = [fact for fact in facts(nn.LSTMCell(4, 3)) if fact[0] != "recurrent_bias"]
    assert facts(cell) == theirs
    assert xw.parameters(cell)[0].gates == xw.parameters(nn.LSTMCell(4, 3))[0].gates
