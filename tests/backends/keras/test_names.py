"""Neutral names of Keras models agree between two instances, a clone, a reloaded model and all Keras backends."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
L = keras.layers


def names(target) -> list[str]:
    return [p.name for p in xw.parameters(target)]


def sequential():
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(5), L.BatchNormalization(), L.Dropout(0.5), L.Dense(3, name="logits"), L.Dense(2)]
    )


def branching():
    """Build shared layers, a nested functional model, a nested Sequential, two outputs, layers made out of order."""
    tail = L.Dense(2)
    inner_in = keras.Input((4,))
    inner = keras.Model(inner_in, L.Dense(4, name="hidden")(L.Dense(4)(inner_in)))
    stack = keras.Sequential([L.Dense(4), L.LayerNormalization()])
    shared = L.Dense(4)
    left, right = keras.Input((4,)), keras.Input((4,))
    joined = L.Add()([shared(left), shared(right), L.Dense(4)(inner(left))])
    return keras.Model([left, right], [tail(stack(joined)), L.Dense(1, name="score")(joined)])


@keras.saving.register_keras_serializable("xweights")
class Block(L.Layer):
    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width
        self.attn = L.MultiHeadAttention(2, 3)
        self.norm = L.LayerNormalization()
        self.ff = [L.Dense(2 * width, name="wide"), L.Dense(width)]

    def build(self, shape):
        self.gain = self.add_weight(shape=(self.width,), initializer="ones")
        self.attn.build(shape, shape)
        self.norm.build(shape)
        self.ff[0].build(shape)
        self.ff[1].build((*shape[:-1], 2 * self.width))

    def call(self, x):
        return x + self.gain * self.ff[1](self.ff[0](self.norm(self.attn(x, x))))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("xweights")
class Network(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.stem = L.Dense(4)
        self.blocks = [Block(4), Block(4)]
        self.heads = {"a": L.Dense(2), "b": L.Dense(3)}

    def call(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return [head(x) for head in self.heads.values()]


def network():
    model = Network()
    model(np.zeros((1, 6, 5), "float32"))
    return model


MODELS = {"sequential": sequential, "branching": branching, "subclassed": network}


def test_made_up_layer_names_become_class_and_position_and_given_names_stay() -> None:
    assert names(sequential()) == [
        "dense/0/kernel", "dense/0/bias",
        "batch_normalization/0/gamma", "batch_normalization/0/beta",
        "batch_normalization/0/moving_mean", "batch_normalization/0/moving_variance",
        "logits/kernel", "logits/bias",
        "dense/2/kernel", "dense/2/bias",
    ]  # fmt: skip


def test_layers_of_nested_models_are_counted_within_them() -> None:
    found = set(names(branching()))
    assert {"functional/0/dense/0/kernel", "functional/0/hidden/kernel"} <= found
    assert {"sequential/0/dense/0/kernel", "sequential/0/layer_normalization/0/gamma"} <= found
    assert {"dense/0/kernel", "dense/1/kernel", "dense/2/kernel", "score/kernel"} <= found


def test_a_shared_layer_of_a_functional_model_appears_once() -> None:
    model = branching()
    assert len(xw.parameters(model)) == len(model.weights)
    assert len({p.name for p in xw.parameters(model)}) == len(model.weights)


def test_subclassed_models_are_named_by_attribute_in_the_order_of_definition() -> None:
    found = names(network())
    assert found[:6] == [
        "stem/kernel", "stem/bias", "blocks/0/gain",
        "blocks/0/attn/query/kernel", "blocks/0/attn/query/bias", "blocks/0/attn/key/kernel",
    ]  # fmt: skip
    assert found[-4:] == ["heads/a/kernel", "heads/a/bias", "heads/b/kernel", "heads/b/bias"]
    assert "blocks/1/ff/0/kernel" in found


@pytest.mark.parametrize("make", MODELS)
def test_two_instances_have_equal_names_whatever_was_made_before(make: str) -> None:
    first = names(MODELS[make]())
    for _ in range(3):
        L.Dense(2).build((None, 2))
    assert names(MODELS[make]()) == first


@pytest.mark.parametrize("make", MODELS)
def test_a_reloaded_model_has_the_same_names_and_values(make: str, tmp_path) -> None:
    model = MODELS[make]()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert names(loaded) == names(model)
    for name, value in xw.get_params(model).items():
        np.testing.assert_array_equal(xw.get_params(loaded)[name], value)


@pytest.mark.parametrize("make", ["sequential", "branching"])
def test_a_clone_has_the_same_names(make: str) -> None:
    model = MODELS[make]()
    assert names(keras.models.clone_model(model)) == names(model)


def test_a_lone_layer_has_the_names_of_its_weights_alone() -> None:
    layer = L.Dense(3)
    layer.build((None, 4))
    assert names(layer) == ["kernel", "bias"]
    assert [p.layer for p in xw.parameters(layer)] == ["", ""]


def test_a_lone_variable_has_the_name_that_it_was_given() -> None:
    assert names(keras.Variable(np.zeros(3, "float32"), name="alpha")) == ["alpha"]
    assert names(keras.Variable(np.zeros(3, "float32"))) == ["parameter"]


def test_two_attributes_of_one_layer_are_a_name_and_an_alias() -> None:
    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.layers_in_a_list = [L.Dense(3)]
            self.first = self.layers_in_a_list[0]

        def call(self, x):
            return self.first(x)

    model = Tied()
    model(np.zeros((1, 4), "float32"))
    assert names(model) == ["first/kernel", "first/bias"]
    assert xw.parameters(model)[0].aliases == ("layers_in_a_list/0/kernel",)


def test_a_variable_tied_between_two_layers_appears_once_with_an_alias() -> None:
    class Head(L.Layer):
        def __init__(self, other):
            super().__init__()
            self.kernel = other

        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(self.kernel))

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = L.Embedding(7, 3)
            self.embed.build(None)
            self.head = Head(self.embed.embeddings)

        def call(self, x):
            return self.head(self.embed(x))

    model = Model()
    model(np.zeros((1, 2), "int32"))
    (found,) = xw.parameters(model)
    assert (found.name, found.aliases) == ("embed/embeddings", ("head/embeddings",))


def test_weights_without_a_name_take_their_attribute_and_equal_names_their_place() -> None:
    class Custom(L.Layer):
        def build(self, shape):
            self.gain = self.add_weight(shape=(3,))
            self.parts = [self.add_weight(shape=(), name="part") for _ in range(2)]
            self.offset = self.add_weight(shape=(), name="bias")
            self.scale = keras.Variable(np.ones(2, "float32"))
            self.steps = self.add_weight(shape=(), dtype="int32", trainable=False, name="steps")

    layer = Custom()
    layer.build((None, 3))
    assert sorted(names(layer)) == ["bias", "gain", "parts/0", "parts/1", "scale", "steps"]
    assert {p.axes for p in xw.parameters(layer)} == {None}


def test_seed_states_metrics_and_optimizer_variables_are_no_parameters() -> None:
    model = keras.Sequential([keras.Input((5, 4)), L.Dropout(0.5), L.LSTM(3, dropout=0.5), L.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((2, 5, 4)), np.zeros((2, 2)), verbose=0)
    assert names(model) == [
        "lstm/0/kernel", "lstm/0/recurrent_kernel", "lstm/0/bias", "dense/0/kernel", "dense/0/bias",
    ]  # fmt: skip
    for other in (model.optimizer, keras.losses.MeanSquaredError(), keras.metrics.Mean()):
        with pytest.raises(xw.TargetError):
            xw.parameters(other)


def test_a_layer_that_refers_to_its_parent_is_walked_once() -> None:
    class Child(L.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(2,), name="kernel")

    parent, child = L.Layer(), Child()
    child.build((None, 2))
    parent.child = child
    child._tracker.unlock()
    child.parent = parent
    parent.built = True
    assert names(parent) == ["child/kernel"]


def test_a_replaced_layer_is_counted_as_long_as_keras_counts_it() -> None:
    model = branching()
    for _ in range(2):
        model.extra = L.Dense(2)
        model.extra.build((None, 2))
    found = xw.parameters(model)
    assert len(found) == len(model.weights)
    assert len({p.name for p in found}) == len(found)
    assert xw.parameters(model, where="extra/kernel")[0].handle is model.extra.kernel
    assert {p.role for p in found} == {"kernel", "bias", "gamma", "beta"}


def test_mobilenet_walks_with_all_axes_known() -> None:
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=5)
    found = xw.parameters(model)
    assert len(found) == len(model.weights)
    assert all(p.axes is not None for p in found)
    assert found[0].name == "Conv1/kernel"
    assert names(keras.models.clone_model(model)) == [p.name for p in found]


def test_every_change_of_a_model_is_noticed() -> None:
    model = sequential()
    before = names(model)
    model.add(L.Dense(1))
    assert names(model) == [*before, "dense/3/kernel", "dense/3/bias"]
    model.pop()
    assert names(model) == before
    model.layers[0].enable_lora(2)
    assert names(model)[:4] == ["dense/0/kernel", "dense/0/bias", "dense/0/lora_kernel_a", "dense/0/lora_kernel_b"]


def test_a_list_put_in_another_order_is_noticed() -> None:
    model = network()
    first = xw.parameters(model, where="blocks/0/gain")[0].handle
    model.blocks.reverse()
    assert xw.parameters(model, where="blocks/1/gain")[0].handle is first


def test_an_unchanged_model_gives_the_same_handles_and_is_not_kept_alive() -> None:
    model = L.Dense(3)
    model.build((None, 4))
    assert xw.parameters(model)[0].handle is xw.parameters(model)[0].handle
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
