"""The layer table is complete, its names are stable, and lazy layers are refused until they are built."""

from __future__ import annotations

import ast
import functools
import inspect
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from xweights_torch import backend  # noqa: E402
from xweights_torch.layers import LAYERS  # noqa: E402


def parameters(module):
    return {p.name: p for p in backend.adapter(module).parameters(module)}


def axes(module):
    return {name: p.axes for name, p in parameters(module).items()}


MADE = [
    nn.Linear(2, 3), nn.Bilinear(2, 3, 4), nn.Conv1d(2, 3, 2), nn.Conv2d(2, 3, 2), nn.Conv3d(2, 3, 2),
    nn.ConvTranspose1d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2), nn.ConvTranspose3d(2, 3, 2), nn.Embedding(3, 2),
    nn.EmbeddingBag(3, 2), nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2),
    nn.InstanceNorm1d(2, affine=True, track_running_stats=True), nn.InstanceNorm2d(2, affine=True), nn.LayerNorm(2),
    nn.InstanceNorm3d(2, affine=True), nn.GroupNorm(1, 2), nn.RMSNorm(2), nn.PReLU(), nn.RNN(2, 3), nn.LSTM(2, 3),
    nn.GRU(2, 3), nn.RNNCell(2, 3), nn.LSTMCell(2, 3), nn.GRUCell(2, 3), nn.MultiheadAttention(4, 2),
    nn.Transformer(4, 2, 1, 1, 4), nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3]), nn.NLLLoss(torch.ones(2)),
    nn.CrossEntropyLoss(torch.ones(2)), nn.MultiMarginLoss(weight=torch.ones(2)),
    nn.MultiLabelSoftMarginLoss(torch.ones(2)), nn.BCELoss(torch.ones(2)), nn.BCEWithLogitsLoss(torch.ones(2)),
]  # fmt: skip


# Bases of other layers, containers, and pooling layers that can be given their random numbers as a buffer.
WITHOUT_ROWS = {
    "Container", "Module", "ParameterDict", "ParameterList", "RNNBase", "RNNCellBase",
    "FractionalMaxPool2d", "FractionalMaxPool3d",
}  # fmt: skip


def test_every_layer_of_torch_that_has_weights_is_in_the_table_or_made_of_layers_that_are():
    here = {name: kind for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    weighty = {name for name, kind in here.items() if _registers_arrays(kind)}
    made = {type(layer).__name__ for layer in [*MADE, *LAZY]}
    assert weighty - made - WITHOUT_ROWS == set()
    for one in MADE:
        if any(isinstance(one, kind) for kind in LAYERS):
            assert all(p.axes is not None for p in backend.adapter(one).parameters(one)), type(one)


def _registers_arrays(kind):
    marks = ("Parameter(", "register_buffer(", "register_parameter(")
    return any(mark in _sources(kind.__module__)[kind.__name__] for mark in marks)


@functools.cache
def _sources(module):
    """Return the source of each class; inspect.getsource(class) would parse the whole module for each of them."""
    text = inspect.getsource(sys.modules[module])
    lines = text.splitlines(keepends=True)
    kinds = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return {node.name: "".join(lines[node.lineno - 1 : node.end_lineno]) for node in kinds}


@pytest.mark.parametrize("layer", MADE, ids=lambda layer: type(layer).__name__)
def test_names_and_roles_are_the_same_for_two_instances(layer):
    import copy

    one, two = parameters(layer), parameters(copy.deepcopy(layer))
    assert list(one) == list(two)
    assert [p.role for p in one.values()] == [name.rpartition("/")[2] for name in one]


LAZY = [
    nn.LazyLinear(3), nn.LazyConv1d(3, 2), nn.LazyConv2d(3, 2), nn.LazyConv3d(3, 2), nn.LazyConvTranspose1d(3, 2),
    nn.LazyConvTranspose2d(3, 2), nn.LazyConvTranspose3d(3, 2), nn.LazyBatchNorm1d(), nn.LazyBatchNorm2d(),
    nn.LazyBatchNorm3d(), nn.LazyInstanceNorm1d(affine=True), nn.LazyInstanceNorm2d(affine=True),
    nn.LazyInstanceNorm3d(affine=True),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAZY, ids=lambda layer: type(layer).__name__)
def test_a_lazy_layer_says_how_to_build_it(layer):
    from xweights.errors import NotBuiltError

    with pytest.raises(NotBuiltError, match=r"lazy_0/.*\n.*call the model once on a sample batch"):
        parameters(nn.ModuleDict({"lazy_0": layer, "built": nn.Linear(2, 2)}))


def test_a_lazy_layer_that_was_built_is_the_plain_layer():
    layer = nn.LazyConv2d(6, 2, groups=3)
    layer(torch.zeros(1, 3, 4, 4))
    assert axes(layer)["kernel"] == ("h", "w", "in", "mult")
