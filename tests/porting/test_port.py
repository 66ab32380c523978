"""port, plan_port and verify: results and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xweights as xw

zoo = pytest.importorskip("zoo.all", reason="the twins are of Keras and of torch")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
L, nn = keras.layers, torch.nn


def images(batch=3):
    return np.random.default_rng(0).normal(size=(batch, 8, 8, 3)).astype("float32")


def twins():
    k = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(4, 3, activation="relu"),
            L.BatchNormalization(epsilon=1e-5),
            L.Flatten(),
            L.Dense(10, activation="relu"),
            L.Dense(4),
        ]
    )
    t = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten()),
        *(nn.Linear(144, 10), nn.ReLU(), nn.Linear(10, 4)),
    )
    zoo.fill(k, 0)
    zoo.fill(t, 1)
    return k, t


def unchanged(*models):
    """Return a function that checks that the models are the same as now, to the bit."""
    before = [(zoo.arrays(model), [p.trainable for p in xw.parameters(model)]) for model in models]
    return lambda: [(zoo.arrays(model), [p.trainable for p in xw.parameters(model)]) for model in models] == before


@pytest.mark.keras_backend
def test_port_moves_a_network_to_its_twin_and_proves_it():
    k, t = twins()
    x = images()
    report = xw.port(k, t, sample=x)
    assert report.ok
    assert report.max_error < 1e-5
    assert [(entry.source, entry.target) for entry in report.entries] == [
        ("conv2d/0", "0"),
        ("batch_normalization/0", "2"),
        ("dense/0", "4"),
        ("dense/1", "6"),
    ]
    assert zoo.distance(zoo.outputs(t, np.moveaxis(x, -1, 1)), zoo.outputs(k, x)) < 1e-5
    assert xw.verify(k, t, sample=x).ok


@pytest.mark.keras_backend
def test_back_and_forth_gives_the_same_bits():
    k, t = twins()
    before = zoo.arrays(k)
    xw.port(k, t, sample=images())
    zoo.fill(k, 5)
    xw.port(t, k, sample=np.moveaxis(images(), -1, 1))
    assert zoo.arrays(k) == before


@pytest.mark.keras_backend
def test_recurrent_layers_and_attention_are_ported_on_every_backend():
    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
    inputs = keras.Input((4, 8))
    y = L.Bidirectional(L.GRU(4, return_sequences=True))(inputs)
    k = keras.Model(inputs, L.LSTM(5)(L.MultiHeadAttention(2, 4)(y, y)))

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(8, 4, bidirectional=True, batch_first=True)
            self.look = nn.MultiheadAttention(8, 2, batch_first=True)
            self.lstm = nn.LSTM(8, 5, batch_first=True)

        def forward(self, x):
            y = self.gru(x)[0]
            return self.lstm(self.look(y, y, y)[0])[0][:, -1]

    t = Twin()
    zoo.fill(k, 0)
    report = xw.port(k, t, sample=x)
    assert report.ok
    assert zoo.distance(zoo.outputs(t, x), zoo.outputs(k, x)) < 1e-5


@pytest.mark.keras_backend
@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow has no such convolutions on a CPU")
def test_a_keras_model_with_channels_first_is_ported():
    first = {"data_format": "channels_first"}
    k = keras.Sequential(
        [
            keras.Input((3, 8, 8)),
            L.Conv2D(4, 3, activation="relu", **first),
            L.BatchNormalization(axis=1, epsilon=1e-5),
            L.MaxPooling2D(2, **first),
            L.Flatten(**first),
            L.Dense(4),
        ]
    )
    modules = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4))
    t = nn.Sequential(*modules)
    zoo.fill(k, 0)
    before = zoo.arrays(k)
    x = np.ascontiguousarray(np.moveaxis(images(), -1, 1))
    assert xw.port(k, t, sample=x).ok
    assert zoo.distance(zoo.outputs(t, x), zoo.outputs(k, x)) < 1e-5
    zoo.fill(k, 3)
    assert xw.port(t, k, sample=x, sample_target=x).ok
    assert zoo.arrays(k) == before


def test_a_report_prints_as_a_table_and_converts_to_json_and_markdown():
    k, t = twins()
    plan = xw.plan_port(k, t)
    report = xw.port(k, t, sample=images())
    checked = xw.verify(k, t, sample=images())
    for one in (plan, report, checked):
        assert "conv2d/0" in str(one)
        assert "conv2d/0" in one.to_markdown()
        assert json.loads(one.to_json())["entries"][0]["source"] == "conv2d/0"
    assert json.loads(report.to_json())["ok"] is True
    assert report.ignored == ("2/num_batches_tracked",)


def test_a_plan_touches_nothing_and_lists_what_only_a_sample_can_settle():
    k, t = twins()
    same = unchanged(k, t)
    plan = xw.plan_port(k, t)
    assert same()
    assert not plan.ok
    assert any("flattened" in text for text in plan.ambiguous)


def test_a_port_without_a_sample_is_refused_where_an_image_is_flattened():
    k, t = twins()
    same = unchanged(k, t)
    with pytest.raises(xw.PortError, match=r"(?s)flattened image.*Fix: pass sample="):
        xw.port(k, t)
    assert same()


def test_a_chain_without_images_needs_no_sample():
    k = keras.Sequential([keras.Input((5,)), L.Dense(5, activation="relu"), L.Dense(5)])
    t = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    zoo.fill(k, 0)
    report = xw.port(k, t)
    assert report.max_error is None
    x = np.ones((2, 5), "float32")
    assert zoo.distance(zoo.outputs(t, x), zoo.outputs(k, x)) < 1e-6


def test_padding_that_only_a_sample_can_compare_is_refused_without_one():
    k = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3, strides=2, padding="same"), L.Conv2D(4, 1)])
    t = nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding=1), nn.Conv2d(4, 4, 1))
    assert_refused(k, t, match="padding of '0'")


def test_another_activation_in_a_chain_is_refused_without_a_sample():
    k = keras.Sequential([keras.Input((5,)), L.Dense(5, activation="gelu"), L.Dense(2)])
    assert_refused(
        k, nn.Sequential(nn.Linear(5, 5), nn.GELU("tanh"), nn.Linear(5, 2)), match="after '0' there is gelu_tanh"
    )
    assert xw.plan_port(k, nn.Sequential(nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 2))).ok


# Settings


def with_eps(eps):
    k = keras.Sequential([keras.Input((6,)), L.Dense(6), L.BatchNormalization(epsilon=eps, momentum=0.9)])
    t = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    zoo.fill(k, 0)
    return k, t, np.random.default_rng(0).normal(size=(4, 6)).astype("float32")


def test_another_eps_is_refused_by_default():
    k, t, x = with_eps(1e-3)
    same = unchanged(k, t)
    with pytest.raises(xw.PortError, match=r"eps differs"):
        xw.port(k, t, sample=x)
    assert same()


def test_another_eps_is_set_on_the_target_if_asked_for():
    k, t, x = with_eps(1e-3)
    report = xw.port(k, t, sample=x, attributes="fix")
    assert report.ok
    assert t[1].eps == pytest.approx(1e-3)
    assert [(difference.name, difference.fixed) for difference in report.differences] == [("eps", True)]


def test_another_eps_is_listed_and_left_if_asked_for():
    k, t, x = with_eps(1e-1)
    report = xw.port(k, t, sample=x, attributes="ignore")
    assert t[1].eps == 1e-5
    assert not report.ok
    assert [difference.name for difference in report.differences] == ["eps"]


def test_the_momentum_of_a_norm_is_listed_in_one_convention_and_set_if_asked_for():
    k, t, x = with_eps(1e-5)
    t[1].momentum = 0.5
    (difference,) = xw.port(k, t, sample=x).differences
    assert (difference.name, difference.expected, difference.got) == ("momentum", 0.9, 0.5)
    xw.port(k, t, sample=x, attributes="fix")
    assert t[1].momentum == pytest.approx(0.1)


def test_another_slope_between_layers_is_found_and_set():
    k = keras.Sequential([keras.Input((6,)), L.Dense(6), L.LeakyReLU(), L.Dense(2)])
    t = nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(), nn.Linear(6, 2))
    zoo.fill(k, 0)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    with pytest.raises(xw.PortError, match="slope differs"):
        xw.port(k, t, sample=x)
    assert xw.port(k, t, sample=x, attributes="fix").ok
    assert t[1].negative_slope == pytest.approx(0.3)


# Parts, pins, outputs


def with_heads():
    k = keras.Sequential([keras.Input((6,)), L.Dense(6, activation="relu", name="trunk"), L.Dense(3, name="head")])
    t = nn.Sequential()
    t.add_module("trunk", nn.Linear(6, 6))
    t.add_module("relu", nn.ReLU())
    t.add_module("head", nn.Linear(6, 11))
    zoo.fill(k, 0)
    return k, t, np.random.default_rng(0).normal(size=(4, 6)).astype("float32")


def test_a_backbone_is_ported_without_its_head_which_stays_and_is_listed():
    k, t, x = with_heads()
    head = t.head.weight.detach().clone()
    report = xw.port(k, t, sample=x, where="trunk/*")
    assert report.remains == ("head/kernel", "head/bias")
    assert torch.equal(t.head.weight, head)
    assert np.array_equal(xw.get_params(t)["trunk/kernel"], xw.get_params(k)["trunk/kernel"])


def test_a_head_of_another_width_is_refused_without_where():
    k, t, x = with_heads()
    same = unchanged(k, t)
    with pytest.raises(xw.PortError, match=r"'head'"):
        xw.port(k, t, sample=x)
    assert same()


def test_a_pair_can_be_pinned_and_a_wrong_pin_is_refused():
    k = keras.Sequential([keras.Input((5,)), L.Dense(5, name="a"), L.ReLU(), L.Dense(5, name="b")])
    t = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    zoo.fill(k, 0)
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    assert xw.port(k, t, sample=x, names={"0/*": "a/*"}).ok
    same = unchanged(k, t)
    with pytest.raises(xw.PortError):
        xw.port(k, t, sample=x, names={"0/*": "b/*"})
    with pytest.raises(xw.SelectionError, match="matches"):
        xw.port(k, t, sample=x, names={"7/*": "b/*"})
    with pytest.raises(xw.SelectionError, match="doesn't have"):
        xw.port(k, t, sample=x, names={"0/*": "c/*"})
    assert same()


def test_pins_settle_a_port_without_a_sample():
    x = keras.Input((5,))
    k = keras.Model(x, [L.Dense(5, name="a")(x), L.Dense(5, name="b")(x)])
    t = nn.ModuleDict({"p": nn.Linear(5, 5), "q": nn.Linear(5, 5)})
    zoo.fill(k, 0)
    with pytest.raises(xw.PortError, match="could be any of"):
        xw.port(k, t)
    xw.port(k, t, names={"p/*": "b/*", "q/*": "a/*"})
    assert np.array_equal(xw.get_params(t)["p/kernel"], xw.get_params(k)["b/kernel"])


def test_outputs_in_another_order_are_mapped():
    x = keras.Input((5,))
    k = keras.Model(x, [L.Dense(3)(x), L.Dense(3)(x)])

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.q = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.p(x), self.q(x)

    t = Twin()
    zoo.fill(k, 0)
    sample = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    xw.port(k, t, sample=sample, outputs={0: 1, 1: 0})
    assert zoo.distance(zoo.outputs(t, sample)[::-1], zoo.outputs(k, sample)) < 1e-6


# Refused


def assert_refused(k, t, error=xw.PortError, match="", **options):
    same = unchanged(k, t)
    with pytest.raises(error, match=match):
        xw.port(k, t, **options)
    assert same()


def test_models_that_are_no_twins_are_refused_with_everything_that_is_wrong():
    k = keras.Sequential([keras.Input((5,)), L.Dense(4), L.Dense(3)])
    t = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    assert_refused(k, t, sample=np.ones((2, 5), "float32"))
    assert_refused(k, t, match=r"(?s)no twin.*no twin")


def test_a_sample_that_the_source_does_not_take_is_refused():
    k, t = twins()
    assert_refused(k, t, match=r"(?s)source can't be called.*Fix", sample=np.ones((2, 5, 5), "float32"))


def test_a_sample_that_the_target_does_not_take_is_refused():
    k, t = twins()
    assert_refused(k, t, match="target can't be called", sample=images(), sample_target=np.ones((2, 9), "float32"))


def test_a_sample_that_cannot_tell_is_refused():
    k = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3, use_bias=False), L.Flatten(), L.Dense(4)])
    t = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(144, 4))
    assert_refused(k, t, match=r"(?s)the same flattened.*random numbers", sample=np.zeros_like(images()))


def test_a_sample_on_which_two_layers_do_the_same_is_refused():
    x = keras.Input((5,))
    k = keras.Model(x, L.Dense(5, use_bias=False)(x) * keras.ops.tanh(L.Dense(5, use_bias=False)(x)))

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.q = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)

        def forward(self, x):
            return self.p(x) * torch.tanh(self.q(x))

    zoo.fill(k, 0)
    assert_refused(k, Twin(), match="put out the same", sample=np.zeros((3, 5), "float32"))


def test_nan_in_the_source_is_refused():
    k, t = twins()
    kernel = k.layers[0].kernel
    value = np.array(keras.ops.convert_to_numpy(kernel))
    value[0, 0, 0, 0] = np.nan
    kernel.assign(value)
    assert_refused(k, t, xw.NonfiniteError, "conv2d/0/kernel", sample=images())


def test_another_dtype_is_refused():
    k, t = twins()
    assert_refused(k, t.double(), match="float32", sample=images())


def test_an_unbuilt_model_is_refused():
    with pytest.raises(xw.NotBuiltError):
        xw.port(keras.Sequential([L.Dense(3)]), nn.Linear(2, 3), sample=np.ones((1, 2), "float32"))


def test_an_object_that_is_no_model_is_refused():
    with pytest.raises(xw.TargetError):
        xw.port({"kernel": np.ones((2, 3))}, nn.Linear(2, 3))


def test_a_model_is_not_ported_into_itself():
    t = nn.Linear(2, 3)
    with pytest.raises(xw.PortError, match="same object"):
        xw.port(t, t)


def test_a_hold_that_would_undo_the_port_is_refused():
    k, t = twins()
    hold = xw.hold(t, xw.Clip(-0.01, 0.01), where="0/kernel")
    assert_refused(k, t, match="hold on '0/kernel'", sample=images())
    hold.release()
    assert xw.port(k, t, sample=images()).ok


def test_frozen_weights_are_ported_and_stay_frozen():
    k, t = twins()
    t[0].weight.requires_grad_(False)
    assert xw.port(k, t, sample=images()).ok
    assert not t[0].weight.requires_grad


def test_training_modes_come_back_as_they_were():
    k, t = twins()
    t.train()
    t[2].eval()
    xw.port(k, t, sample=images())
    assert t.training
    assert not t[2].training


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (lambda: nn.Bilinear(2, 3, 4), nn.Linear(2, 4), "bilinear"),
        (lambda: nn.LSTM(4, 6, proj_size=2), nn.Linear(2, 4), "proj_size"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), nn.Linear(2, 4), "add_bias_kv"),
    ],
)
def test_a_layer_without_a_counterpart_is_refused_by_name_with_the_reason(make, layer, reason):
    with pytest.raises(xw.PortError, match=reason):
        xw.port(make(), layer)


def test_a_gru_that_resets_before_the_product_is_no_gru_of_torch():
    k = keras.Sequential([keras.Input((3, 4)), L.GRU(5, reset_after=False)])
    assert_refused(k, nn.GRU(4, 5, batch_first=True), match="gru", sample=np.ones((2, 3, 4), "float32"))


def test_a_scale_that_the_target_has_no_place_for_is_refused():
    k = keras.Sequential([keras.Input((6,)), L.BatchNormalization(epsilon=1e-5, scale=False)])
    t = nn.BatchNorm1d(6)
    zoo.fill(t, 0)
    assert_refused(t, k, match="gamma that", sample=np.random.default_rng(0).normal(size=(4, 6)).astype("float32"))


def test_layers_tied_in_the_target_and_not_in_the_source_are_refused():
    k = keras.Sequential([keras.Input((5,)), L.Dense(5, use_bias=False), L.ReLU(), L.Dense(5, use_bias=False)])
    t = nn.Sequential(nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 5, bias=False))
    t[2].weight = t[0].weight
    zoo.fill(k, 0)
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    assert_refused(k, t, match="shared in the target", sample=x)


@pytest.mark.parametrize("direction", ["to_torch", "to_keras"])
def test_without_a_sample_a_layer_that_may_change_the_order_of_channels_is_a_choice(direction: str) -> None:
    """PixelShuffle and depth_to_space order channels differently: the port was wrong without a word."""

    class DepthToSpace(keras.layers.Layer):
        def call(self, x):
            _, h, w, c = x.shape
            pixels = keras.ops.reshape(x, (-1, h, w, 2, 2, c // 4))
            return keras.ops.reshape(keras.ops.transpose(pixels, (0, 1, 3, 2, 4, 5)), (-1, 2 * h, 2 * w, c // 4))

    in_keras = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(12, 3, padding="same"), DepthToSpace()])
    in_torch = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2))
    models = (in_keras, in_torch) if direction == "to_torch" else (in_torch, in_keras)
    before = xw.checksum(models[1])
    with pytest.raises(xw.PortError, match="may change the order of what it is given: pass sample="):
        xw.port(*models)
    assert xw.checksum(models[1]) == before
