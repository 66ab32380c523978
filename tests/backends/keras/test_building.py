"""Keras models without weights, and objects that aren't targets."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
L = keras.layers


class Pair(keras.Model):
    """A model of two parts that are called by themselves, as the halves of a GAN are."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([L.Dense(3), L.Dense(4)])
        self.critic = keras.Sequential([L.Dense(1)])


def test_an_unbuilt_layer_says_how_to_build_it() -> None:
    with pytest.raises(xw.NotBuiltError, match=r"(?s)the Dense .* isn't built and has no weights.*layer\.build"):
        xw.parameters(L.Dense(3))


def test_an_unbuilt_model_names_its_unbuilt_layers() -> None:
    model = keras.Sequential([L.Dense(3), L.Dropout(0.1), L.LSTM(2)])
    with pytest.raises(xw.NotBuiltError) as raised:
        xw.parameters(model)
    text = str(raised.value)
    assert "dense/0 (Dense)" in text
    assert "lstm/0 (LSTM)" in text
    assert "Dropout" not in text
    assert "model(x)" in text
    model.build((None, 5, 4))
    assert len(xw.parameters(model)) == 5


def test_a_model_that_is_never_called_itself_needs_only_its_parts_built() -> None:
    model = Pair()
    model.generator.build((None, 2))
    with pytest.raises(xw.NotBuiltError, match=r"critic/dense/0 \(Dense\)"):
        xw.parameters(model)
    model.critic.build((None, 4))
    assert not model.built
    assert [p.name for p in xw.parameters(model)] == [
        "generator/dense/0/kernel", "generator/dense/0/bias", "generator/dense/1/kernel", "generator/dense/1/bias",
        "critic/dense/0/kernel", "critic/dense/0/bias",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*does not have a .build:UserWarning")  # Keras warns of such a layer itself
def test_a_layer_that_the_call_of_a_built_model_leaves_out_is_left_out() -> None:
    class Spare(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.spare = L.Dense(2), L.Dense(3)

        def call(self, x):
            return self.used(x)

    model = Spare()
    with pytest.raises(xw.NotBuiltError, match="spare"):
        xw.parameters(model)
    model(np.zeros((1, 4), "float32"))
    assert [p.name for p in xw.parameters(model)] == ["used/kernel", "used/bias"]


def test_a_custom_layer_with_a_build_method_is_unbuilt_until_it_ran() -> None:
    class Custom(L.Layer):
        def build(self, shape):
            self.gain = self.add_weight(shape=shape[-1:])

    layer = Custom()
    with pytest.raises(xw.NotBuiltError):
        xw.parameters(layer)
    layer.build((None, 3))
    assert [p.name for p in xw.parameters(layer)] == ["gain"]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.Flatten(),
        lambda: L.Dropout(0.1),
        lambda: L.Normalization(mean=0.0, variance=1.0),
        lambda: L.TimeDistributed(L.Flatten()),
        lambda: L.Attention(),
    ],
    ids=["Flatten", "Dropout", "Normalization", "TimeDistributed", "Attention"],
)
def test_a_layer_that_never_has_weights_is_not_called_unbuilt(layer) -> None:
    assert xw.parameters(layer()) == []


def test_a_symbolic_tensor_is_no_target() -> None:
    with pytest.raises(xw.TargetError, match="bare array or tensor"):
        xw.parameters(keras.Input((3,)))


def test_a_variable_made_in_a_stateless_scope_has_no_value_yet() -> None:
    with keras.StatelessScope(initialize_variables=False):
        layer = L.Dense(2)
        layer.build((None, 3))
    with pytest.raises(xw.NotBuiltError, match="StatelessScope"):
        xw.parameters(layer)


def test_a_wrapper_with_weights_of_its_own_is_unbuilt_until_it_is() -> None:
    class Gain(L.Wrapper):
        def build(self, shape):
            super().build(shape)
            self.gain = self.add_weight(shape=())

    wrapper = Gain(L.Dense(2))
    wrapper.layer.build((None, 3))
    with pytest.raises(xw.NotBuiltError):
        xw.parameters(wrapper)
    wrapper.build((None, 3))
    assert [p.name for p in xw.parameters(wrapper)] == ["kernel", "bias", "gain"]


def test_a_layer_without_a_hash_is_walked_all_the_same() -> None:
    class Equal(L.Dense):
        __hash__ = None

        def __eq__(self, other):
            return isinstance(other, Equal)

    layer = Equal(2)
    layer.build((None, 3))
    assert [p.name for p in xw.parameters(layer)] == ["kernel", "bias"]
