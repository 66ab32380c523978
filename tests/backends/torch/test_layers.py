"""Every row of the layer table, by numbers: a layer's output must follow from its neutral arrays alone."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from xweights_torch import backend  # noqa: E402


def parameters(module):
    return {p.name: p for p in backend.adapter(module).parameters(module)}


def neutral(module):
    return {name: p.layout.to_neutral(p.read()) for name, p in parameters(module).items()}


def axes(module):
    return {name: p.axes for name, p in parameters(module).items()}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(7)


def run(module, *inputs, **options):
    with torch.no_grad():
        out = module(*[torch.as_tensor(value) for value in inputs], **options)
    return np.asarray(out[0] if isinstance(out, tuple) else out)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def rng():
    return np.random.default_rng(3)


def normal(*shape):
    return rng().standard_normal(shape).astype(np.float32)


def test_linear_is_x_times_kernel_plus_bias():
    layer = nn.Linear(3, 5)
    w, x = neutral(layer), normal(2, 3)
    assert axes(layer) == {"kernel": ("in", "out"), "bias": ("out",)}
    close(run(layer, x), x @ w["kernel"] + w["bias"])
    assert np.array_equal(w["kernel"], layer.weight.detach().numpy().T)


def test_bilinear_contracts_in1_and_in2():
    layer = nn.Bilinear(3, 4, 5)
    w, one, two = neutral(layer), normal(2, 3), normal(2, 4)
    assert axes(layer)["kernel"] == ("in1", "in2", "out")
    close(run(layer, one, two), np.einsum("bi,bj,ijo->bo", one, two, w["kernel"]) + w["bias"])


def convolve(x, kernel):
    """Convolve (channels, *space) with (*space, in, out) -> (out, *space), by the definition."""
    size = kernel.shape[:-2]
    space = [n - k + 1 for n, k in zip(x.shape[1:], size, strict=True)]
    out = np.zeros((kernel.shape[-1], *space), np.float32)
    for offset in np.ndindex(*size):
        window = x[(slice(None), *(slice(o, o + n) for o, n in zip(offset, space, strict=True)))]
        out += np.tensordot(kernel[offset], window, axes=(0, 0))
    return out


def convolve_back(x, kernel):
    """Convolve (in, *space) with (*space, out, in) -> (out, *space), transposed, stride 1, by the definition."""
    size = kernel.shape[:-2]
    out = np.zeros((kernel.shape[-2], *(n + k - 1 for n, k in zip(x.shape[1:], size, strict=True))), np.float32)
    for offset in np.ndindex(*size):
        there = (slice(None), *(slice(o, o + n) for o, n in zip(offset, x.shape[1:], strict=True)))
        out[there] += np.tensordot(kernel[offset], x, axes=(1, 0))
    return out


SPACE = {1: ("t",), 2: ("h", "w"), 3: ("d", "h", "w")}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_slide_a_kernel_with_space_first_then_in_and_out(rank):
    layer = getattr(nn, f"Conv{rank}d")(2, 3, (2, 3, 2)[:rank])
    w, x = neutral(layer), normal(2, *(5, 4, 6)[:rank])
    assert axes(layer) == {"kernel": (*SPACE[rank], "in", "out"), "bias": ("out",)}
    close(run(layer, x[None])[0], convolve(x, w["kernel"]) + w["bias"].reshape(-1, *[1] * rank))


def test_a_grouped_convolution_counts_in_within_a_group_and_out_over_all():
    layer = nn.Conv2d(4, 6, 2, groups=2)
    w, x = neutral(layer), normal(4, 5, 5)
    assert w["kernel"].shape == (2, 2, 2, 6)
    halves = [convolve(x[2 * g : 2 * g + 2], w["kernel"][..., 3 * g : 3 * g + 3]) for g in range(2)]
    close(run(layer, x[None])[0], np.concatenate(halves) + w["bias"][:, None, None])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_depthwise_kernel_is_filter_by_input_channel_and_multiplier(rank):
    layer = getattr(nn, f"Conv{rank}d")(3, 6, 2, groups=3)
    w, x = neutral(layer), normal(3, *[4] * rank)
    assert axes(layer) == {"kernel": (*SPACE[rank], "in", "mult"), "bias": ("out",)}
    kernel = w["kernel"]
    planes = [convolve(x[i : i + 1], kernel[..., i : i + 1, m : m + 1]) for i in range(3) for m in range(2)]
    close(run(layer, x[None])[0], np.concatenate(planes) + w["bias"].reshape(-1, *[1] * rank))


def test_a_convolution_of_one_channel_in_one_group_is_no_depthwise_one():
    assert "kernel" in parameters(nn.Conv2d(1, 6, 2, groups=1))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions_have_out_before_in(rank):
    layer = getattr(nn, f"ConvTranspose{rank}d")(2, 3, (2, 3, 2)[:rank])
    w, x = neutral(layer), normal(2, *(3, 4, 2)[:rank])
    assert axes(layer) == {"kernel": (*SPACE[rank], "out", "in"), "bias": ("out",)}
    close(run(layer, x[None])[0], convolve_back(x, w["kernel"]) + w["bias"].reshape(-1, *[1] * rank))


def test_a_grouped_transposed_convolution_has_an_axis_for_the_group():
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2)
    w, x = neutral(layer), normal(4, 3, 3)
    assert axes(layer)["kernel"] == ("h", "w", "group", "out", "in")
    halves = [convolve_back(x[2 * g : 2 * g + 2], w["kernel"][:, :, g]) for g in range(2)]
    close(run(layer, x[None])[0], np.concatenate(halves) + w["bias"][:, None, None])


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_are_rows_of_the_vocabulary(kind):
    layer = kind(7, 3)
    assert axes(layer) == {"embeddings": ("vocab", "dim")}
    close(run(layer, np.array([[4]])).reshape(3), neutral(layer)["embeddings"][4])


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm, nn.InstanceNorm1d])
def test_batch_and_instance_norms_scale_and_shift_by_channel_with_moving_statistics(kind):
    options = {"affine": True, "track_running_stats": True} if kind is nn.InstanceNorm1d else {}
    layer = kind(3, **options).eval()
    for position, tensor in enumerate(layer.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(torch.as_tensor(np.abs(normal(3)) + position))
    w, x = neutral(layer), normal(2, 3, 4)
    assert axes(layer) == {
        "gamma": ("channel",), "beta": ("channel",), "moving_mean": ("channel",), "moving_variance": ("channel",),
        "num_batches_tracked": (),
    }  # fmt: skip
    assert [p.trainable for p in parameters(layer).values()] == [True, True, False, False, False]
    if kind is not nn.SyncBatchNorm:  # which doesn't run on a CPU
        column = {name: value[:, None] for name, value in w.items() if value.shape}
        scaled = (x - column["moving_mean"]) / np.sqrt(column["moving_variance"] + layer.eps)
        close(run(layer, x), scaled * column["gamma"] + column["beta"])


def test_group_norm_has_gamma_and_beta():
    assert axes(nn.GroupNorm(2, 4)) == {"gamma": ("channel",), "beta": ("channel",)}


def test_layer_norm_over_the_last_axis_has_gamma_and_beta():
    layer = nn.LayerNorm(4)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(normal(4)))
    w, x = neutral(layer), normal(2, 4)
    assert axes(layer) == {"gamma": ("channel",), "beta": ("channel",)}
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    close(run(layer, x), scaled * w["gamma"] + w["beta"])


def test_layer_norm_over_an_image_puts_the_channel_last_and_over_two_axes_has_unknown_axes():
    image = parameters(nn.LayerNorm((3, 4, 5)))["gamma"]
    assert (image.axes, image.shape) == (("h", "w", "channel"), (4, 5, 3))
    volume = parameters(nn.LayerNorm((3, 2, 4, 5)))["gamma"]
    assert (volume.axes, volume.shape) == (("d", "h", "w", "channel"), (2, 4, 5, 3))
    two = parameters(nn.LayerNorm((3, 4)))["gamma"]
    assert (two.role, two.axes, two.shape) == ("gamma", None, (3, 4))


def test_rms_norm_has_a_scale():
    layer = nn.RMSNorm(4, eps=1e-3)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(normal(4)))
    x = normal(2, 4)
    assert axes(layer) == {"scale": ("channel",)}
    close(run(layer, x), x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * neutral(layer)["scale"])


def test_prelu_has_alpha_by_channel():
    assert axes(nn.PReLU(3)) == {"alpha": ("channel",)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(x, h, c, w, recurrent, bias):
    i, f, g, o = np.split(x @ w + h @ recurrent + bias, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(x, h, w, recurrent, bias, recurrent_bias):
    (xr, xz, xh), (hr, hz, hh) = (
        np.split(x @ w + bias, 3, axis=-1),
        np.split(h @ recurrent + recurrent_bias, 3, axis=-1),
    )
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    return (1 - z) * np.tanh(xh + r * hh) + z * h


GATED = ("in", "gate*unit"), ("unit", "gate*unit"), ("gate*unit",), ("gate*unit",)
LAYER_NAMES = ["kernel", "recurrent_kernel", "bias", "recurrent_bias"]


def test_an_lstm_runs_on_its_neutral_arrays_in_both_directions_and_over_layers():
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    w, x = neutral(layer), normal(5, 3)
    paths = ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert list(w) == [f"{path}/{name}" for path in paths for name in LAYER_NAMES]
    assert axes(layer) == dict(zip(w, GATED * 4, strict=True))
    assert {p.gates for p in parameters(layer).values()} == {("i", "f", "c", "o")}
    sequence = x
    for level in ("l0", "l1"):
        sides = []
        for path, order in ((level, slice(None)), (f"{level}_reverse", slice(None, None, -1))):
            kernel, recurrent, bias, more = (w[f"{path}/{name}"] for name in LAYER_NAMES)
            h = c = np.zeros(4, np.float32)
            steps = []
            for one in sequence[order]:
                h, c = lstm_step(one, h, c, kernel, recurrent, bias + more)
                steps.append(h)
            sides.append(np.array(steps)[order])
        sequence = np.concatenate(sides, axis=-1)
    close(run(layer, x), sequence)


def test_an_lstm_with_a_projection_feeds_back_the_projection():
    layer = nn.LSTM(3, 4, proj_size=2)
    w, x = neutral(layer), normal(5, 3)
    named = axes(layer)
    assert named["l0/recurrent_kernel"] == ("proj", "gate*unit")
    assert named["l0/projection_kernel"] == ("unit", "proj")
    h, c, steps = np.zeros(2, np.float32), np.zeros(4, np.float32), []
    for one in x:
        bias = w["l0/bias"] + w["l0/recurrent_bias"]
        full, c = lstm_step(one, h, c, w["l0/kernel"], w["l0/recurrent_kernel"], bias)
        h = full @ w["l0/projection_kernel"]
        steps.append(h)
    close(run(layer, x), np.array(steps))


def test_a_gru_runs_on_its_neutral_arrays_with_gates_r_z_h():
    layer = nn.GRU(3, 4)
    w, x = neutral(layer), normal(5, 3)
    assert {p.gates for p in parameters(layer).values()} == {("r", "z", "h")}
    h, steps = np.zeros(4, np.float32), []
    for one in x:
        h = gru_step(one, h, *(w[f"l0/{name}"] for name in LAYER_NAMES))
        steps.append(h)
    close(run(layer, x), np.array(steps))


def test_a_simple_rnn_has_no_gates():
    layer = nn.RNN(3, 4)
    w, x = neutral(layer), normal(5, 3)
    assert {p.gates for p in parameters(layer).values()} == {None}
    h, steps = np.zeros(4, np.float32), []
    for one in x:
        h = np.tanh(one @ w["l0/kernel"] + w["l0/bias"] + h @ w["l0/recurrent_kernel"] + w["l0/recurrent_bias"])
        steps.append(h)
    close(run(layer, x), np.array(steps))


def test_cells_have_the_names_of_a_layer_without_its_number():
    x, h = normal(2, 3), normal(2, 4)
    for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
        assert list(parameters(kind(3, 4))) == LAYER_NAMES
    cell = nn.GRUCell(3, 4)
    w = neutral(cell)
    close(run(cell, x, h), gru_step(x, h, *(w[name] for name in LAYER_NAMES)))


def attend(q, k, v, w, heads, packed):
    def kernel(position, name):
        return w["qkv/kernel"][:, position] if packed else w[f"{name}/kernel"]

    query = np.einsum("td,dhk->thk", q, kernel(0, "query")) + w["qkv/bias"][0]
    key = np.einsum("td,dhk->thk", k, kernel(1, "key")) + w["qkv/bias"][1]
    value = np.einsum("td,dhk->thk", v, kernel(2, "value")) + w["qkv/bias"][2]
    if "bias_k" in w:
        key = np.concatenate([key, w["bias_k"][None]])
        value = np.concatenate([value, w["bias_v"][None]])
    score = np.einsum("thk,shk->hts", query, key) / np.sqrt(query.shape[-1])
    score = np.exp(score - score.max(-1, keepdims=True))
    mixed = np.einsum("hts,shv->thv", score / score.sum(-1, keepdims=True), value)
    return np.einsum("thv,hvo->to", mixed, w["attention_output/kernel"]) + w["attention_output/bias"]


def randomise(layer):
    with torch.no_grad():
        for position, one in enumerate(layer.parameters()):
            one.copy_(torch.as_tensor(np.random.default_rng(position).standard_normal(one.shape).astype(np.float32)))
    return layer


def test_packed_attention_is_one_layer_and_runs_on_its_neutral_arrays():
    layer = randomise(nn.MultiheadAttention(6, 2, add_bias_kv=True))
    named = axes(layer)
    assert named == {
        "qkv/kernel": ("in", "qkv", "head", "key"), "qkv/bias": ("qkv", "head", "key"),
        "bias_k": ("head", "key"), "bias_v": ("head", "value"),
        "attention_output/kernel": ("head", "value", "out"), "attention_output/bias": ("out",),
    }  # fmt: skip
    assert parameters(layer)["qkv/kernel"].gates == ("query", "key", "value")
    q, k = normal(5, 6), normal(4, 6)
    close(run(layer, q, k, k + 1), attend(q, k, k + 1, neutral(layer), 2, packed=True))


def test_attention_with_other_widths_keeps_its_kernels_apart_and_its_bias_packed():
    layer = randomise(nn.MultiheadAttention(6, 2, kdim=3, vdim=5))
    assert list(parameters(layer)) == [
        "query/kernel", "key/kernel", "value/kernel", "qkv/bias", "attention_output/kernel", "attention_output/bias",
    ]  # fmt: skip
    q, k, v = normal(5, 6), normal(4, 3), normal(4, 5)
    close(run(layer, q, k, v), attend(q, k, v, neutral(layer), 2, packed=False))


def test_containers_are_named_by_their_parts():
    names = list(parameters(nn.TransformerEncoderLayer(4, 2, 8)))
    assert names[:2] == ["self_attn/qkv/kernel", "self_attn/qkv/bias"]
    assert "linear1/kernel" in names
    assert "norm2/beta" in names
    found = parameters(nn.TransformerEncoderLayer(4, 2, 8))
    assert found["self_attn/attention_output/kernel"].layer == "self_attn"
    assert list(parameters(nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3])))[:1] == ["head/kernel"]


def test_an_unknown_module_keeps_its_names_and_its_order():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 3))
            self.bias = nn.Parameter(torch.zeros(2))
            self.anything = nn.Parameter(torch.zeros(2, 3, 4))

    found = parameters(Strange())
    assert {name: (p.role, p.axes, p.shape) for name, p in found.items()} == {
        "weight": ("weight", None, (2, 3)), "bias": ("bias", None, (2,)), "anything": ("anything", None, (2, 3, 4)),
    }  # fmt: skip


def test_a_subclass_has_its_bases_rows_where_the_shapes_fit():
    class Mine(nn.Linear):
        def __init__(self):
            super().__init__(3, 5)
            self.weight = nn.Parameter(torch.zeros(15))
            self.extra = nn.Parameter(torch.zeros(2, 2))

    found = parameters(Mine())
    assert (found["kernel"].axes, found["bias"].axes, found["extra"].axes) == (None, ("out",), None)


def test_a_subclass_that_has_a_kernel_of_its_own_keeps_the_name_for_it():
    class Mine(nn.Linear):
        def __init__(self):
            super().__init__(3, 5)
            self.kernel = nn.Parameter(torch.zeros(7))

    assert {name: p.shape for name, p in parameters(Mine()).items()} == {
        "weight": (5, 3),
        "bias": (5,),
        "kernel": (7,),
    }


def test_a_subclass_without_the_settings_of_its_base_is_an_unknown_module():
    class Mine(nn.LSTM):
        def __init__(self):
            nn.Module.__init__(self)
            self.weight = nn.Parameter(torch.zeros(2))

        def __setattr__(self, name, value):
            nn.Module.__setattr__(self, name, value)

    assert list(parameters(Mine())) == ["weight"]
