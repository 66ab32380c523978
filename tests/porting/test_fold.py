"""Folding: a norm into the layer beside it, both ways, and a bias into the norm behind it; proved or refused."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw
from xweights.porting.matching import scaling

torch = pytest.importorskip("torch", reason="needs torch")
keras = pytest.importorskip("keras", reason="needs keras")
nn, L = torch.nn, keras.layers


def images(n=2, size=8, channels=3):
    return np.random.default_rng(5).normal(size=(n, size, size, channels)).astype("float32")


def fill_torch(module, seed=0):
    """Draw all weights and statistics anew."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
            if p.is_floating_point():
                p.copy_(
                    torch.rand(p.shape, generator=draw) + 0.5
                    if name.endswith("var")
                    else 0.3 * torch.randn(p.shape, generator=draw) + 0.1
                )
    return module.eval()


def fill_keras(model, seed=0):
    draw = np.random.default_rng(seed)
    for v in model.weights:
        positive = v.path.endswith("variance")
        values = draw.uniform(0.5, 1.5, v.shape) if positive else 0.3 * draw.normal(size=v.shape) + 0.1
        if "float" in v.dtype:
            v.assign(values.astype("float32"))
    return model


def run_keras(model, x):
    return np.asarray(keras.ops.convert_to_numpy(model(x, training=False)))


def run_torch(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x)).numpy()


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def keras_net(*, norms, bias=True, eps=1e-3):
    """A convolution, a depthwise one, a transposed one and a dense layer, with norms or without."""
    norm = (lambda: L.BatchNormalization(epsilon=eps)) if norms else (lambda: L.Activation("linear"))
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)), L.Conv2D(4, 3, use_bias=bias), norm(), L.ReLU(),
            L.DepthwiseConv2D(3, use_bias=bias), norm(), L.ReLU(),
            L.Conv2DTranspose(5, 3, use_bias=bias), norm(), L.ReLU(),
            L.GlobalAveragePooling2D(), L.Dense(6, use_bias=bias), norm(), L.ReLU(), L.Dense(2),
        ]
    )  # fmt: skip


def torch_net(*, norms, bias=True, eps=1e-5):
    flat, image = (nn.BatchNorm1d, nn.BatchNorm2d) if norms else (lambda *_, **__: nn.Identity(),) * 2
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=bias), image(4, eps=eps), nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4, bias=bias), image(4, eps=eps), nn.ReLU(),
        nn.ConvTranspose2d(4, 5, 3, bias=bias), image(5, eps=eps), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6, bias=bias), flat(6, eps=eps), nn.ReLU(),
        nn.Linear(6, 2),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_norms_of_keras_are_folded_into_the_layers_of_torch(bias):
    k, t = fill_keras(keras_net(norms=True, bias=bias)), torch_net(norms=False)
    report = xw.port(k, t, sample=images(), fold=True)
    assert report.ok
    assert len(report.folded) == 4
    assert np.allclose(run_torch(t.eval(), images()), run_keras(k, images()), atol=1e-5)
    assert "Folded (close, not exact)" in str(report)


@pytest.mark.parametrize("bias", [True, False])
def test_norms_of_torch_are_folded_into_the_layers_of_keras(bias):
    t, k = fill_torch(torch_net(norms=True, bias=bias)), keras_net(norms=False)
    x = np.moveaxis(images(), -1, 1).copy()
    assert len(xw.port(t, k, sample=x, fold=True).folded) == 4
    assert np.allclose(run_torch(t, images()), run_keras(k, images()), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_that_only_the_target_has_changes_nothing_or_adds_the_bias(bias):
    k, t = fill_keras(keras_net(norms=False)), torch_net(norms=True, bias=bias)
    fill_torch(t, 3)
    assert xw.port(k, t, sample=images(), fold=True).ok
    norm = t[1]
    assert np.array_equal(norm.weight.detach().numpy(), np.ones(4, "float32"))
    assert np.array_equal(norm.running_var.numpy(), np.full(4, 1 - 1e-5, "float32"))
    assert np.array_equal(norm.running_mean.numpy(), np.zeros(4, "float32"))
    kept = np.zeros(4, "float32") if bias else k.layers[0].bias.numpy()
    assert np.array_equal(norm.bias.detach().numpy(), kept)
    assert np.allclose(run_torch(t.eval(), images()), run_keras(k, images()), atol=1e-5)


def test_a_bias_without_a_place_moves_into_the_mean_of_the_norm_behind_it():
    k, t = fill_keras(keras_net(norms=True, eps=1e-5)), torch_net(norms=True, bias=False)
    report = xw.port(k, t, sample=images(), fold=True)
    assert "bias of" in report.folded[0]
    mean, bias = k.layers[1].moving_mean.numpy(), k.layers[0].bias.numpy()
    assert np.allclose(t[1].running_mean.numpy(), mean - bias, atol=1e-6)
    assert np.array_equal(t[1].weight.detach().numpy(), k.layers[1].gamma.numpy())
    assert np.allclose(run_torch(t.eval(), images()), run_keras(k, images()), atol=1e-5)


def test_a_bias_that_norms_alone_can_hold_moves_there_without_a_beta():
    k = fill_keras(keras.Sequential([keras.Input((3,)), L.Dense(4), L.Dense(2)]))
    t = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    x = images()[0, 0]
    assert xw.port(k, t, sample=x, fold=True).ok
    assert np.array_equal(t[1].running_mean.numpy(), -k.layers[0].bias.numpy())
    assert np.allclose(run_torch(t.eval(), x), run_keras(k, x), atol=1e-5)


def test_a_norm_before_a_layer_is_folded_into_it_where_it_doesnt_pad():
    x = images()
    k = keras.Sequential(
        [keras.Input((8, 8, 3)), L.BatchNormalization(), L.Conv2D(4, 3, use_bias=False), L.ReLU(), L.Conv2D(2, 1)]
    )
    fill_keras(k)
    for pad, right in ((0, True), (1, False)):
        k.layers[1].padding = "same" if pad else "valid"
        t = nn.Sequential(nn.Conv2d(3, 4, 3, padding=pad), nn.ReLU(), nn.Conv2d(4, 2, 1))
        before = state(t)
        if right:
            assert xw.port(k, t, sample=x, fold=True).ok
            assert np.allclose(np.moveaxis(run_torch(t, x), 1, -1), run_keras(k, x), atol=1e-5)
        else:
            with pytest.raises(xw.PortError, match="can't be folded into a layer that pads"):
                xw.port(k, t, sample=x, fold=True)
            assert all(torch.equal(before[name], value) for name, value in state(t).items())


@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_a_normalization_is_absorbed_and_one_that_only_the_target_has_changes_nothing(layer):
    x = images() if layer == "conv" else images()[0, 0]

    def net():
        norm = L.Normalization()
        norm.adapt(3 * images().reshape(-1, 3) + 1)
        return keras.Sequential([keras.Input(x.shape[1:]), norm, L.Conv2D(4, 3) if layer == "conv" else L.Dense(4)])

    k, t = net(), nn.Sequential(nn.Conv2d(3, 4, 3) if layer == "conv" else nn.Linear(3, 4))
    report = xw.port(k, t, sample=x, fold=True)
    assert "folded into" in report.folded[0]
    assert np.allclose(
        np.moveaxis(run_torch(t, x), 1, -1) if layer == "conv" else run_torch(t, x), run_keras(k, x), atol=1e-5
    )
    other = net()
    back = xw.port(t, other, sample=np.moveaxis(x, -1, 1).copy() if layer == "conv" else x, fold=True)
    assert "changes nothing" in back.folded[0]
    assert np.array_equal(other.layers[0].mean.numpy().ravel(), np.zeros(3, "float32"))


def test_both_sides_with_norms_are_ported_to_the_bit_with_fold_too():
    k, t = fill_keras(keras_net(norms=True, eps=1e-5, bias=False)), torch_net(norms=True, bias=False)
    report = xw.port(k, t, sample=images(), fold=True)
    assert report.folded == ()
    assert np.array_equal(t[1].running_var.numpy(), k.layers[1].moving_variance.numpy())


def test_a_refusal_that_folding_would_turn_into_success_says_so_and_changes_nothing():
    k, t = fill_keras(keras_net(norms=True)), torch_net(norms=False)
    before = state(t)
    with pytest.raises(xw.PortError, match=r"(?s)norms or biases folded.*\nFix: fold=True \(") as refusal:
        xw.port(k, t, sample=images())
    assert str(refusal.value).splitlines()[1].startswith("  - one model has norms")
    assert all(torch.equal(before[name], value) for name, value in state(t).items())


def test_a_refusal_names_both_arguments_where_both_are_needed():
    k, t = fill_keras(keras_net(norms=True)), torch_net(norms=True, bias=False)
    with pytest.raises(xw.PortError, match=r'Fix: fold=True, attributes="fix"'):
        xw.port(k, t, sample=images())
    assert t[1].eps == 1e-5
    assert xw.port(k, t, sample=images(), fold=True, attributes="fix").ok
    assert t[1].eps == 1e-3


def test_a_refusal_that_folding_doesnt_mend_doesnt_suggest_it():
    k = fill_keras(
        keras.Sequential([keras.Input((3,)), L.Dense(4), L.BatchNormalization(), L.Dense(2, activation="tanh")])
    )
    t = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(xw.PortError) as refusal:
        xw.port(k, t, sample=images()[0, 0])
    assert "fold" not in str(refusal.value)


def test_nothing_is_folded_where_another_layer_uses_what_the_norm_is_given():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.first(x)
            return self.last(torch.relu(self.norm(y)) + y)

    t = fill_torch(Both())
    inputs = keras.Input((3,))
    y = L.Dense(4)(inputs)
    k = keras.Model(inputs, L.Dense(2)(L.ReLU()(y) + y))
    with pytest.raises(xw.PortError):
        xw.port(t, k, sample=images()[0, 0], fold=True)


def test_no_norm_is_folded_through_a_rectifier_that_the_sample_doesnt_show():
    s = fill_torch(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)))
    t = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():  # everything is positive on both sides of the rectifier
        s[0].weight.abs_()
        s[0].bias.fill_(3.0)
        s[2].weight.fill_(0.1)
        s[2].bias.fill_(0.5)
    before = state(t)
    with pytest.raises(xw.PortError):
        xw.port(s, t, sample=np.abs(images()[0, 0]), fold=True)
    assert all(torch.equal(before[name], value) for name, value in state(t).items())


def test_folding_needs_a_sample():
    with pytest.raises(xw.ArgumentError, match="fold=True needs sample="):
        xw.port(keras_net(norms=True), torch_net(norms=False), fold=True)


def test_a_handoff_through_a_folded_port_is_refused_by_name():
    t, k = fill_torch(torch_net(norms=True)), keras_net(norms=False)
    optimizer = torch.optim.SGD(t.parameters(), 0.1, momentum=0.9)
    before = [v.numpy().copy() for v in k.weights]
    x = np.moveaxis(images(), -1, 1).copy()
    with pytest.raises(xw.HandoffError, match="moments don't fold"):
        xw.handoff((t, optimizer), (k, None), sample=x, step=0)
    assert all(np.array_equal(kept, v.numpy()) for kept, v in zip(before, k.weights, strict=True))


def scaled_keras(*first, padding="valid", bias=True):
    return keras.Sequential(
        [keras.Input((8, 8, 3)), *first, L.Conv2D(4, 3, padding=padding, use_bias=bias), L.ReLU(), L.Conv2D(2, 1)]
    )


def unscaled_torch(padding=0, *, bias=True):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding, bias=bias), nn.ReLU(), nn.Conv2d(4, 2, 1))


def port_scaled(k, t, x, *, to_torch):
    """Fill both, port with folding, and return the report after the outputs were compared."""
    fill_keras(k), fill_torch(t)
    moved = np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 4 else x
    report = xw.port(k, t, sample=x, fold=True) if to_torch else xw.port(t, k, sample=moved, fold=True)
    got, expected = run_torch(t, x), run_keras(k, x)
    np.testing.assert_allclose(np.moveaxis(got, 1, -1) if x.ndim == 4 else got, expected, rtol=1e-4, atol=1e-4)
    return report


SCALINGS = [
    lambda: L.Rescaling(1 / 255),
    lambda: L.Rescaling(1 / 127.5, -1.0),
    lambda: L.Rescaling([0.01, 0.02, 0.03], [1.0, 2.0, 3.0]),
    lambda: L.Normalization(mean=[100.0, 110.0, 120.0], variance=[50.0, 60.0, 70.0]),
]


@pytest.mark.parametrize("to_torch", [True, False])
@pytest.mark.parametrize("make", SCALINGS)
def test_a_scaling_of_the_input_that_only_one_model_has_is_folded(make, to_torch):
    report = port_scaled(scaled_keras(make()), unscaled_torch(), images() * 50 + 128, to_torch=to_torch)
    assert len(report.folded) == 1
    assert "scaled" in report.folded[0]


@pytest.mark.parametrize("to_torch", [True, False])
def test_zeros_around_an_image_are_no_obstacle_to_a_scaling_without_an_offset(to_torch):
    k = scaled_keras(L.Rescaling(1 / 255), padding="same", bias=False)
    assert port_scaled(k, unscaled_torch(1, bias=False), images() * 50, to_torch=to_torch).folded


def test_a_scaling_before_a_dense_layer_is_folded():
    k = keras.Sequential([keras.Input((3,)), L.Rescaling(0.5, 1.0), L.Dense(4, activation="tanh"), L.Dense(2)])
    t = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert port_scaled(k, t, images()[0, 0], to_torch=True).folded


def test_without_folding_a_scaling_of_the_input_is_named_and_the_way_out_said():
    k, t = fill_keras(scaled_keras(L.Rescaling(1 / 255))), fill_torch(unscaled_torch())
    before = state(t)
    with pytest.raises(xw.PortError, match=r"(?s)scales its input.*scaled otherwise: 255 times.*\nFix: fold=True \("):
        xw.port(k, t, sample=images() * 50)
    assert all(torch.equal(before[name], value) for name, value in t.state_dict().items())


@pytest.mark.parametrize("to_torch", [True, False])
def test_an_offset_that_zeros_around_the_image_do_not_have_is_refused(to_torch):
    k, t = fill_keras(scaled_keras(L.Rescaling(0.1, -1.0), padding="same")), fill_torch(unscaled_torch(1))
    source, target, x = (k, t, images()) if to_torch else (t, k, np.ascontiguousarray(np.moveaxis(images(), -1, 1)))
    with pytest.raises(xw.PortError, match="not right"):
        xw.port(source, target, sample=x, fold=True)


def test_an_offset_without_a_place_for_it_is_refused():
    k, t = fill_keras(scaled_keras(L.Rescaling(0.1, -1.0))), fill_torch(unscaled_torch(bias=False))
    with pytest.raises(xw.PortError, match="bias"):
        xw.port(k, t, sample=images(), fold=True)


def test_an_activation_that_is_a_factor_and_an_offset_on_this_sample_is_not_folded():
    k = keras.Sequential([keras.Input((3,)), L.Dense(4, activation="hard_sigmoid"), L.Dense(2)])
    t = fill_torch(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    kernel, bias, *_ = fill_keras(k).get_weights()
    with torch.no_grad():  # as after an earlier port
        t[0].weight.copy_(torch.from_numpy(kernel.T.copy()))
        t[0].bias.copy_(torch.from_numpy(bias))
    with pytest.raises(xw.PortError, match="not right"):
        xw.port(k, t, sample=0.1 * images()[0, 0], fold=True)


def test_rows_too_few_to_prove_a_factor_of_each_channel_prove_none():
    """Two rows are those of any other by some factor and offset of each of their columns."""
    given, wanted = (np.random.default_rng(seed).normal(size=(2, 5)).astype("float32") for seed in (0, 1))
    assert scaling.find_scaling(given, wanted) is None
    assert scaling.find_scaling(given, given) is None
    found = scaling.find_scaling(given, 3 * given + 1)
    np.testing.assert_allclose(found.factor, 3, rtol=1e-6)
    np.testing.assert_allclose(found.offset, 1, rtol=1e-6)
