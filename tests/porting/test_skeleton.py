"""skeleton writes a twin's source code: it runs, and the model is ported into it."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

zoo = pytest.importorskip("zoo.all", reason="the twins are of Keras and of torch")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
L, nn = keras.layers, torch.nn


def twin_of(model, framework):
    space = {}
    exec(xw.skeleton(model, framework), space)
    return space["Twin"]()


def network():
    x = keras.Input((9, 9, 3))
    y = L.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(x)
    y = L.ReLU(max_value=6.0)(L.BatchNormalization(epsilon=1e-3)(y))
    z = L.DepthwiseConv2D(3, padding="same", activation="silu")(y)
    y = L.Add()([y, L.Conv2D(6, 1, groups=2)(z)])
    y = L.MaxPooling2D(2, padding="same", name="pool")(y)
    y = L.Conv2DTranspose(4, 2, strides=2)(y)
    y = L.Concatenate()([L.Flatten()(y), L.GlobalAveragePooling2D()(y)])
    return keras.Model(x, L.Dense(5, name="head")(L.LayerNormalization()(L.Dense(8, activation="gelu")(y))))


def words():
    x = keras.Input((6,), dtype="int32")
    y = L.GRU(6, return_sequences=True)(L.Embedding(11, 8)(x))
    return keras.Model(x, L.Dense(3)(L.LSTM(4)(L.SimpleRNN(5, return_sequences=True)(y))))


@pytest.mark.keras_backend
@pytest.mark.parametrize("make", [network, words])
def test_a_keras_model_is_written_in_torch_and_ported_into_its_twin(make):
    k = make()
    zoo.fill(k, 0)
    t = twin_of(k, "torch")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 11, (2, 6)) if make is words else rng.normal(size=(2, 9, 9, 3)).astype("float32")
    report = xw.port(k, t, sample=x)
    assert report.ok
    assert report.differences == ()
    moved = x if make is words else np.moveaxis(x, -1, 1)
    assert zoo.distance(zoo.outputs(t, moved), zoo.outputs(k, x)) <= 1e-5


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(2, 4)
        self.act = nn.LeakyReLU(0.2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        y = self.stem(x)
        y = torch.relu(y + self.act(self.norm(self.deep(y))))
        return self.head(y.mean((2, 3)))


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 6), nn.GELU(), nn.Linear(6, 2)
    )


@pytest.mark.keras_backend
@pytest.mark.parametrize("make", [Block, chain])
def test_a_torch_module_is_written_in_keras_and_ported_into_its_twin(make):
    t = make()
    zoo.fill(t, 0)
    k = twin_of(t, "keras")
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("float32")
    k(np.moveaxis(x, 1, -1))
    report = xw.port(t, k, sample=x)
    assert report.ok
    assert report.differences == ()
    assert zoo.distance(zoo.outputs(k, np.moveaxis(x, 1, -1)), zoo.outputs(t, x)) <= 1e-5


@pytest.mark.keras_backend
def test_a_twin_in_keras_is_saved_and_loaded_by_keras(tmp_path):
    k = twin_of(chain(), "keras")
    k(np.zeros((2, 8, 8, 3), "float32"))
    k.save(tmp_path / "twin.keras")
    again = keras.saving.load_model(tmp_path / "twin.keras", custom_objects={"Twin": type(k)})
    assert xw.equal(k, again)


# Which models of the zoo have no skeleton, and why.
UNKNOWN_ORDER = "a subclassed model of Keras: the order of its calls isn't known without a run"
BY_HAND = "layers written out in calls of functions, or weights of the model's own"
REFUSED = {
    ("a_language_model_with_a_tied_head", "to_torch"): UNKNOWN_ORDER,
    ("embedding_tied", "to_torch"): UNKNOWN_ORDER,
    ("embedding_read_backwards", "to_torch"): UNKNOWN_ORDER,
    ("a_layer_called_twice", "to_torch"): UNKNOWN_ORDER,
    ("weights_of_the_models_own", "to_torch"): UNKNOWN_ORDER,
    ("conv_transpose_in_groups_is_branches", "to_torch"): "channels are cut apart",
    ("conv_transpose_in_groups_is_branches", "to_keras"): "Keras has no groups there",
    ("a_language_model_with_a_tied_head", "to_keras"): "tied weights",
    ("embedding_tied", "to_keras"): "tied weights",
    ("lstm_that_goes_backwards", "to_keras"): "a flip",
    **dict.fromkeys(
        (
            (name, "to_keras")
            for name in (
                "convolution_for_each_frame", "conv_lstm_is_two_convolutions", "attention_with_another_value_size",
                "attention_by_dense_layers_with_names_that_lie", "attention_with_grouped_queries",
                "attention_additive", "attention_with_a_scale", "weights_of_the_models_own",
                "a_weight_used_without_its_layer", "prelu_for_each_element", "lstm_cell_in_a_loop",
                "normalization_with_a_module_of_ones_own", "gru_cells_stacked",
            )
        ),
        BY_HAND,
    ),
}  # fmt: skip
CASES = [(name, way) for name, pair in zoo.PAIRS.items() for way in pair.directions]
QUICK = CASES[::7]


@pytest.mark.parametrize(
    ("name", "way"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_a_model_of_the_zoo_is_written_and_ported_into_its_twin_or_refused(name, way):
    source, _, one, other, options = zoo.sides(zoo.PAIRS[name], way)
    framework = "torch" if way == "to_torch" else "keras"
    sample = None if way == "to_torch" else one
    if (name, way) in REFUSED:
        with pytest.raises(xw.PortError):
            xw.skeleton(source, framework)  # with a sample it is recorded
        return
    space = {}
    exec(xw.skeleton(source, framework, sample=sample), space)
    twin = space["Twin"]()
    if way == "to_keras":
        twin(other)  # it is built by its first call
        chosen = options
    else:
        zoo.fill(twin, 5)
        chosen = {}  # written for Keras' own sample
    report = xw.port(source, twin, sample=one, **chosen)
    assert report.ok
    assert report.differences == ()


def test_layers_keep_their_names():
    k = network()
    names = {p.name for p in xw.parameters(twin_of(k, "torch"))}
    assert {"head/kernel", "head/bias", "conv2d_0/kernel"} <= names


def test_a_model_that_cannot_be_written_is_refused_with_every_layer_listed():
    x = keras.Input((4, 6))
    y = L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode="sum")(x)
    k = keras.Model(x, L.UnitNormalization()(L.GRU(3, reset_after=False)(y)))
    with pytest.raises(xw.PortError, match=r"(?s)Bidirectional.*GRU.*UnitNormalization"):
        xw.skeleton(k, "torch")


def test_a_rank_that_is_not_known_is_asked_for():
    class Two(nn.Module):
        def forward(self, x, y):
            return torch.cat([x, y], 1)

    with pytest.raises(xw.PortError, match="pass sample="):
        xw.skeleton(Two(), "keras")
    x = np.zeros((2, 3), "float32")
    assert "Concatenate(axis=1)" in xw.skeleton(Two(), "keras", sample=(x, x))


def test_sequences_are_concatenated_along_time_and_images_along_channels():
    x = keras.Input((5, 4))
    images = keras.Input((5, 5, 4))
    both = L.Concatenate()([L.Conv2D(2, 1)(images), L.Conv2D(3, 1)(images)])
    assert "torch.cat([conv2d_0, conv2d_1], 1)" in xw.skeleton(keras.Model(images, both), "torch")
    both = L.Concatenate(axis=1)([L.LSTM(3, return_sequences=True)(x), L.Dense(3)(x)])
    assert "torch.cat([lstm_0, dense_0], 1)" in xw.skeleton(keras.Model(x, both), "torch")


def test_layers_that_would_be_kept_under_one_name_are_refused():
    x = keras.Input((3,))
    k = keras.Model(x, L.Dense(3, name="a-b")(L.Dense(3, name="a_b")(x)))
    with pytest.raises(xw.PortError, match=r"'a_b' and 'a-b' would both be kept.*\n.*rename"):
        xw.skeleton(k, "torch")
    t = nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3))
    t.add_module("0_0", nn.Linear(3, 3))
    with pytest.raises(xw.PortError, match=r"'0.0' and '0_0' would both be kept"):
        xw.skeleton(t, "keras")


def test_a_model_of_the_same_framework_is_refused():
    with pytest.raises(xw.ArgumentError, match="already"):
        xw.skeleton(nn.Linear(2, 3), "torch")


def test_a_framework_without_a_backend_is_refused():
    with pytest.raises(xw.ArgumentError, match="no backend is called 'caffe'"):
        xw.skeleton(nn.Linear(2, 3), "caffe")
