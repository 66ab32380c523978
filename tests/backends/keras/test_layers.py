"""Names, roles and axes of every Keras layer that has weights, from the table."""

from __future__ import annotations

import os

import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
L = keras.layers

LSTM = ("i", "f", "c", "o")
GRU = ("z", "r", "h")

CELL = "kernel: in gate*unit, recurrent_kernel: unit gate*unit, bias: gate*unit"
TWO_BIASES = "kernel: in gate*unit, recurrent_kernel: unit gate*unit, bias: side gate*unit"

# layer, input shapes -> "name: axes" of each weight, in order. A name is a role where it has one part.
ROWS = {
    "Dense": (lambda: L.Dense(3), [(None, 4)], "kernel: in out, bias: out"),
    "Dense with LoRA": (
        lambda: L.Dense(3, lora_rank=2),
        [(None, 4)],
        "kernel: in out, bias: out, lora_kernel_a: in rank, lora_kernel_b: rank out",
    ),
    "EinsumDense": (
        lambda: L.EinsumDense("btd,dhk->bthk", (None, 2, 3), bias_axes="hk"),
        [(None, 5, 4)],
        "kernel: d h k, bias: h k",
    ),
    "EinsumDense with a bias on one axis": (
        lambda: L.EinsumDense("btd,dhk->bthk", (None, 2, 3), bias_axes="h"),
        [(None, 5, 4)],
        "kernel: d h k, bias: h k",
    ),
    "EinsumDense with an ellipsis": (
        lambda: L.EinsumDense("...d,de->...e", (5, 3), bias_axes="e"),
        [(None, 5, 4)],
        "kernel: d e, bias: e",
    ),
    "EinsumDense stored the other way round": (
        lambda: L.EinsumDense("btd,od->bto", (None, 3)),
        [(None, 5, 4)],
        "kernel: o d",
    ),
    "Embedding": (lambda: L.Embedding(7, 3), [(None,)], "embeddings: vocab dim"),
    "Embedding with LoRA": (
        lambda: L.Embedding(7, 3, lora_rank=2),
        [(None,)],
        "embeddings: vocab dim, lora_embeddings_a: vocab rank, lora_embeddings_b: rank dim",
    ),
    "ReversibleEmbedding tied": (lambda: L.ReversibleEmbedding(7, 3), [(None,)], "embeddings: vocab dim"),
    "ReversibleEmbedding untied": (
        lambda: L.ReversibleEmbedding(7, 3, tie_weights=False),
        [(None,)],
        "embeddings: vocab dim, reverse_embeddings: dim vocab",
    ),
    "Conv1D": (lambda: L.Conv1D(3, 2), [(None, 8, 4)], "kernel: t in out, bias: out"),
    "Conv2D": (lambda: L.Conv2D(3, 2), [(None, 8, 8, 4)], "kernel: h w in out, bias: out"),
    "Conv2D in groups": (lambda: L.Conv2D(6, 2, groups=2), [(None, 8, 8, 4)], "kernel: h w in out, bias: out"),
    "Conv2D with one group per channel": (
        lambda: L.Conv2D(8, 2, groups=4),
        [(None, 8, 8, 4)],
        "kernel: h w in mult, bias: out",
    ),
    "Conv3D": (lambda: L.Conv3D(3, 2), [(None, 4, 4, 4, 2)], "kernel: d h w in out, bias: out"),
    "Conv1DTranspose": (lambda: L.Conv1DTranspose(3, 2), [(None, 8, 4)], "kernel: t out in, bias: out"),
    "Conv2DTranspose": (lambda: L.Conv2DTranspose(3, 2), [(None, 8, 8, 4)], "kernel: h w out in, bias: out"),
    "Conv3DTranspose": (lambda: L.Conv3DTranspose(3, 2), [(None, 4, 4, 4, 2)], "kernel: d h w out in, bias: out"),
    "DepthwiseConv1D": (lambda: L.DepthwiseConv1D(2), [(None, 8, 4)], "kernel: t in mult, bias: out"),
    "DepthwiseConv2D": (
        lambda: L.DepthwiseConv2D(2, depth_multiplier=3),
        [(None, 8, 8, 4)],
        "kernel: h w in mult, bias: out",
    ),
    "SeparableConv1D": (
        lambda: L.SeparableConv1D(3, 2),
        [(None, 8, 4)],
        "depthwise_kernel: t in mult, pointwise_kernel: t in out, bias: out",
    ),
    "SeparableConv2D": (
        lambda: L.SeparableConv2D(3, 2),
        [(None, 8, 8, 4)],
        "depthwise_kernel: h w in mult, pointwise_kernel: h w in out, bias: out",
    ),
    "ConvLSTM1D": (
        lambda: L.ConvLSTM1D(3, 2),
        [(None, 5, 8, 4)],
        "kernel: t in gate*unit, recurrent_kernel: t unit gate*unit, bias: gate*unit",
    ),
    "ConvLSTM2D": (
        lambda: L.ConvLSTM2D(3, 2),
        [(None, 5, 8, 8, 4)],
        "kernel: h w in gate*unit, recurrent_kernel: h w unit gate*unit, bias: gate*unit",
    ),
    "ConvLSTM3D": (
        lambda: L.ConvLSTM3D(3, 2),
        [(None, 3, 4, 4, 4, 2)],
        "kernel: d h w in gate*unit, recurrent_kernel: d h w unit gate*unit, bias: gate*unit",
    ),
    "BatchNormalization": (
        lambda: L.BatchNormalization(),
        [(None, 4)],
        "gamma: channel, beta: channel, moving_mean: channel, moving_variance: channel",
    ),
    "BatchNormalization with renorm": (
        lambda: L.BatchNormalization(renorm=True, scale=False, axis=1),
        [(None, 4, 5)],
        (
            "beta: channel, moving_mean: channel, moving_variance: channel, "
            "moving_stddev: channel, renorm_mean: channel, renorm_stddev: channel"
        ),
    ),
    "LayerNormalization": (lambda: L.LayerNormalization(), [(None, 5, 4)], "gamma: channel, beta: channel"),
    "LayerNormalization over two axes": (
        lambda: L.LayerNormalization(axis=[-2, -1]),
        [(None, 5, 4)],
        "gamma: t channel, beta: t channel",
    ),
    "LayerNormalization over an image": (
        lambda: L.LayerNormalization(axis=[1, 2, 3]),
        [(None, 5, 6, 4)],
        "gamma: h w channel, beta: h w channel",
    ),
    "GroupNormalization": (lambda: L.GroupNormalization(2), [(None, 5, 4)], "gamma: channel, beta: channel"),
    "RMSNormalization": (lambda: L.RMSNormalization(), [(None, 5, 4)], "scale: channel"),
    "Normalization": (lambda: L.Normalization(), [(None, 4)], "mean: channel, variance: channel, count:"),
    "Normalization of everything": (lambda: L.Normalization(axis=None), [(None, 4)], "mean:, variance:, count:"),
    "SpectralNormalization": (
        lambda: L.SpectralNormalization(L.Dense(3)),
        [(None, 4)],
        "kernel: in out, bias: out, vector_u: out",
    ),
    "PReLU": (lambda: L.PReLU(), [(None, 5, 6, 4)], "alpha: h w channel"),
    "PReLU with shared axes": (lambda: L.PReLU(shared_axes=[1, 2]), [(None, 5, 6, 4)], "alpha: h w channel"),
    "SimpleRNN": (
        lambda: L.SimpleRNN(3),
        [(None, 5, 4)],
        CELL,
    ),
    "SimpleRNNCell": (
        lambda: L.SimpleRNNCell(3),
        [(None, 4)],
        CELL,
    ),
    "LSTM": (
        lambda: L.LSTM(3),
        [(None, 5, 4)],
        CELL,
    ),
    "LSTMCell": (
        lambda: L.LSTMCell(3),
        [(None, 4)],
        CELL,
    ),
    "GRU": (
        lambda: L.GRU(3),
        [(None, 5, 4)],
        TWO_BIASES,
    ),
    "GRU without reset_after": (
        lambda: L.GRU(3, reset_after=False),
        [(None, 5, 4)],
        CELL,
    ),
    "GRUCell": (
        lambda: L.GRUCell(3),
        [(None, 4)],
        TWO_BIASES,
    ),
    "RNN": (
        lambda: L.RNN([L.LSTMCell(3), L.GRUCell(2, use_bias=False)]),
        [(None, 5, 4)],
        (
            "l0/kernel: in gate*unit, l0/recurrent_kernel: unit gate*unit, l0/bias: gate*unit, "
            "l1/kernel: in gate*unit, l1/recurrent_kernel: unit gate*unit"
        ),
    ),
    "StackedRNNCells": (
        lambda: L.StackedRNNCells([L.SimpleRNNCell(3, use_bias=False), L.SimpleRNNCell(2, use_bias=False)]),
        [(None, 4)],
        (
            "l0/kernel: in gate*unit, l0/recurrent_kernel: unit gate*unit, "
            "l1/kernel: in gate*unit, l1/recurrent_kernel: unit gate*unit"
        ),
    ),
    "Bidirectional": (
        lambda: L.Bidirectional(L.LSTM(3, use_bias=False)),
        [(None, 5, 4)],
        (
            "forward/kernel: in gate*unit, forward/recurrent_kernel: unit gate*unit, "
            "backward/kernel: in gate*unit, backward/recurrent_kernel: unit gate*unit"
        ),
    ),
    "TimeDistributed": (
        lambda: L.TimeDistributed(L.Conv1D(3, 2)),
        [(None, 5, 8, 4)],
        "kernel: t in out, bias: out",
    ),
    "MultiHeadAttention": (
        lambda: L.MultiHeadAttention(2, 3, value_dim=5, use_gate=True),
        [(None, 6, 4), (None, 6, 4)],
        (
            "query/kernel: in head key, query/bias: head key, key/kernel: in head key, key/bias: head key, "
            "value/kernel: in head value, value/bias: head value, gate/kernel: in head value, gate/bias: head value, "
            "attention_output/kernel: head value out, attention_output/bias: out"
        ),
    ),
    "MultiHeadAttention to several axes": (
        lambda: L.MultiHeadAttention(2, 3, output_shape=(5, 7), use_bias=False),
        [(None, 6, 4), (None, 6, 4)],
        (
            "query/kernel: in head key, key/kernel: in head key, value/kernel: in head value, "
            "attention_output/kernel: head value out0 out1"
        ),
    ),
    "GroupQueryAttention": (
        lambda: L.GroupQueryAttention(3, 4, 2),
        [(None, 6, 5), (None, 6, 5)],
        (
            "query/kernel: in head key, query/bias: head key, key/kernel: in head key, key/bias: head key, "
            "value/kernel: in head value, value/bias: head value, "
            "attention_output/kernel: head value out, attention_output/bias: out"
        ),
    ),
    "Attention": (
        lambda: L.Attention(use_scale=True, score_mode="concat"),
        [[(None, 6, 4), (None, 6, 4)]],
        "scale:, concat_score_weight:",
    ),
    "AdditiveAttention": (lambda: L.AdditiveAttention(), [[(None, 6, 4), (None, 6, 4)]], "scale: in"),
}

GATES = dict.fromkeys(["LSTM", "LSTMCell", "ConvLSTM2D", "Bidirectional"], LSTM)
GATES |= {"GRU": GRU, "GRUCell": GRU, "SimpleRNN": None, "Dense": None}

# Sizes that tell axes apart, so that a wrong name shows: the input always ends in 4 or 2, see above.
SIZES = {
    "Dense": {"in": 4, "out": 3},
    "Conv2DTranspose": {"out": 3, "in": 4},
    "DepthwiseConv2D": {"in": 4, "mult": 3},
    "Conv2D with one group per channel": {"in": 4, "mult": 2},
    "MultiHeadAttention": {"in": 4, "head": 2, "key": 3},
    "LSTM": {"in": 4, "gate*unit": 12},
    "ReversibleEmbedding untied": {"vocab": 7, "dim": 3},
}


def build_case(case: str):
    make, shapes, rows = ROWS[case]
    layer = make()
    layer.build(*shapes)
    wanted = [row.partition(":") for row in rows.split(", ")]
    return layer, {name: tuple(axes.split()) for name, _, axes in wanted}


@pytest.mark.parametrize("case", ROWS)
def test_the_names_and_axes_of_a_layer_are_those_of_the_table(case: str) -> None:
    layer, wanted = build_case(case)
    assert {p.name: p.axes for p in xw.parameters(layer)} == wanted
    assert [p.name for p in xw.parameters(layer)] == list(wanted)


@pytest.mark.parametrize("case", ROWS)
def test_the_parameters_of_a_layer_are_all_its_weights_with_their_lengths(case: str) -> None:
    layer, _ = build_case(case)
    found = xw.parameters(layer)
    assert {id(p.handle) for p in found} == {id(v) for v in layer.weights}
    for p in found:
        assert tuple(p.layout.stored) == tuple(p.handle.shape)
        assert p.role == p.name.rpartition("/")[2]
        assert p.native_name == p.handle.path
        assert p.trainable == p.handle.trainable


@pytest.mark.parametrize("case", SIZES)
def test_the_axes_have_the_lengths_that_their_names_promise(case: str) -> None:
    layer, _ = build_case(case)
    first = xw.parameters(layer)[0]
    sizes = dict(zip(first.axes, first.shape, strict=True))
    assert {axis: sizes[axis] for axis in SIZES[case]} == SIZES[case]


@pytest.mark.parametrize("case", GATES)
def test_the_order_of_packed_gates_is_recorded(case: str) -> None:
    layer, _ = build_case(case)
    assert {p.gates for p in xw.parameters(layer)} == {GATES[case]}


@pytest.mark.parametrize("case", ["MultiHeadAttention", "Bidirectional", "RNN", "LSTM", "SpectralNormalization"])
def test_a_composite_layer_counts_as_one(case: str) -> None:
    make, shapes, _ = ROWS[case]
    inputs = [keras.Input(shape[1:]) for shape in shapes]
    model = keras.Model(inputs, make()(*inputs))
    layers = {p.layer for p in xw.parameters(model)}
    assert len(layers) == 1
    assert len(xw.parameters(model, where=xw.layer(0))) == len(xw.parameters(model))


def test_channels_first_changes_no_kernel() -> None:
    layer = L.Conv2D(3, 2, data_format="channels_first")
    layer.build((None, 4, 8, 8))
    kernel = xw.parameters(layer)[0]
    assert (kernel.axes, kernel.shape) == (("h", "w", "in", "out"), (2, 2, 4, 3))


def test_an_array_per_pixel_is_transposed_to_neutral_order_where_images_have_channels_first() -> None:
    keras.config.set_image_data_format("channels_first")
    try:
        layer = L.LayerNormalization(axis=[1, 2, 3])
        layer.build((None, 4, 5, 6))
        gamma = xw.parameters(layer)[0]
    finally:
        keras.config.set_image_data_format("channels_last")
    assert (gamma.axes, gamma.shape, gamma.layout.stored) == (("h", "w", "channel"), (5, 6, 4), (4, 5, 6))


def test_an_int8_kernel_is_read_and_written_as_integers_and_has_its_scale() -> None:
    layer = L.Dense(3)
    layer.build((None, 4))
    layer.quantize("int8")
    found = {p.name: p for p in xw.parameters(layer)}
    assert list(found) == ["kernel", "bias", "kernel_scale"]
    assert (found["kernel"].dtype, found["kernel"].axes, found["kernel"].trainable) == ("int8", ("in", "out"), False)
    assert found["kernel_scale"].axes == ("out",)
    kernel = xw.get_params(layer)["kernel"]
    xw.set_params(layer, {"kernel": kernel[::-1]}, strict=False)
    assert (xw.get_params(layer)["kernel"] == kernel[::-1]).all()


def test_a_kernel_with_several_weights_in_a_byte_has_no_axes() -> None:
    layer = L.Dense(4)
    layer.build((None, 4))
    layer.quantize("int4")
    kernel = xw.parameters(layer, where="kernel")[0]
    assert kernel.axes is None


class Loud(L.Dense):
    """A subclass that adds something of its own."""

    def build(self, shape):
        super().build(shape)
        self.loudness = self.add_weight(shape=(), name="loudness")


class Table(L.Dense):
    """A subclass whose kernel is something else."""

    def build(self, shape):
        self.kernel3 = self.add_weight(shape=(2, 3, 4), name="kernel")
        self.bias = self.add_weight(shape=(3,), name="bias")


def test_a_subclass_is_read_as_the_layer_it_comes_from() -> None:
    layer = Loud(3)
    layer.build((None, 4))
    found = {p.name: p.axes for p in xw.parameters(layer)}
    assert found == {"kernel": ("in", "out"), "bias": ("out",), "loudness": None}


def test_a_subclass_of_other_shapes_has_no_axes_where_they_do_not_fit() -> None:
    layer = Table(3)
    layer.build((None, 4))
    found = {p.name: p.axes for p in xw.parameters(layer)}
    assert found == {"kernel": None, "bias": ("out",)}


def test_a_spectrogram_has_the_kernels_of_a_convolution() -> None:
    pytest.importorskip("scipy", reason="STFTSpectrogram needs scipy")
    layer = L.STFTSpectrogram(frame_length=8, fft_length=8, frame_step=4)
    layer.build((None, 32, 1))
    kernel = ("t", "in", "out")
    assert {p.name: p.axes for p in xw.parameters(layer)} == {"real_kernel": kernel, "imag_kernel": kernel}


@pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "torch", reason="TorchModuleWrapper exists on torch only")
def test_a_wrapped_torch_module_has_the_names_of_the_torch_backend() -> None:
    import torch

    class Mixed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(4)
            self.inside = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))

        def call(self, x):
            return self.inside(self.dense(x))

    model = Mixed()
    model(torch.ones(2, 5))
    found = {p.name: p for p in xw.parameters(model)}
    assert list(found)[2:5] == ["inside/0/kernel", "inside/0/bias", "inside/1/gamma"]
    assert found["inside/0/kernel"].shape == (4, 3)
    assert found["inside/1/moving_mean"].trainable is False
    xw.scale(model, 0.0, where="inside/0/kernel")
    assert not model.inside.module[0].weight.detach().any()
    weight = model.inside.module[0].weight
    found["inside/0/kernel"].storage.set_trainable(found["inside/0/kernel"].handle, False)
    assert not weight.requires_grad
    assert all(v.value is not weight for v in model.trainable_variables)
