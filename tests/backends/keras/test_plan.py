"""Plans of Keras models: what is kept from call to call is never stale, and keeps nothing alive."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable

import keras
import numpy as np
import pytest

import xweights as xw
from xweights.errors import XweightsError
from xweights_keras import backend

L = keras.layers
BACKEND = keras.backend.backend()


def built(layer: keras.Layer, width: int = 6) -> keras.Layer:
    layer.build((None, width))
    return layer


def dense(**options: object) -> keras.Layer:
    return built(L.Dense(6, **options))


class Net(keras.Model):
    """A model with what a plan has to look at: attributes, lists, graphs, statistics, a tie, a layer without a bias."""

    def __init__(self) -> None:
        super().__init__(name="net")
        keras.utils.set_random_seed(0)
        self.conv = L.Conv2D(4, 3)
        self.conv.build((None, 8, 8, 2))
        self.norm = built(L.BatchNormalization(), 4)
        self.blocks = [dense(), dense(use_bias=False)]
        self.graph = keras.Sequential([keras.Input((6,)), L.Dense(6), L.Dense(6, name="named")])
        self.attention = L.MultiHeadAttention(2, 3)
        self.attention.build((None, 5, 6), (None, 5, 6))
        self.head = dense()
        self.tied = dense()
        self.note = self.graph.note = len
        replace_variable(self.tied, "_kernel", self.head.kernel)
        self.built = True

    def call(self, x: object) -> object:
        return x


class Renamed(L.Dense):
    """A layer of the same shape and of another class."""


def replace_variable(layer: keras.Layer, attribute: str, variable: object) -> None:
    layer._tracker.unlock()
    layer._untrack_variable(getattr(layer, attribute))
    setattr(layer, attribute, variable)
    layer._tracker.lock()


def new_variable(shape: tuple[int, ...] = (6, 6), dtype: str = "float32", **options: object) -> keras.Variable:
    return keras.Variable(np.full(shape, 0.7), dtype=dtype, **options)


def add_weight(net: Net) -> None:
    net.head._tracker.unlock()
    net.head.add_weight(name="extra", shape=(2,), initializer="ones")


def swap_layers(net: Net) -> None:
    net.head, net.tied = net.tied, net.head


def swap_in_list(net: Net) -> None:
    net.blocks[0], net.blocks[1] = net.blocks[1], net.blocks[0]


def swap_inside(net: Net) -> None:
    inner = net.attention
    inner._query_dense, inner._key_dense = inner._key_dense, inner._query_dense


def move(net: Net) -> None:
    net.tail = net.norm
    del net.norm


def alias(net: Net) -> None:
    net.other = net.head


def alias_in_a_list(net: Net) -> None:
    net.note = [net.head]


def alias_of_a_layer_elsewhere(net: Net) -> None:
    net.graph.note = net.graph.layers[0]


def swap_names(net: Net) -> None:
    """Let the second name of a layer be the first."""
    layer = net.norm
    net.second = layer
    xw.get_params(net)
    del net.norm
    net.norm = layer


def nest(net: Net) -> None:
    net.nested = {"a": [net.blocks], "b": {"c": net.head}}
    xw.get_params(net)
    net.nested["b"]["c"] = net.tied


def lora(net: Net) -> None:
    net.head.enable_lora(2)


def lora_by_hand(net: Net) -> None:
    net.head.enable_lora(2)
    xw.get_params(net)
    net.head.lora_enabled = False


def lora_again(net: Net) -> None:
    net.head.enable_lora(2)
    net.head.lora_enabled = False
    for _ in range(2):
        xw.clip(net, -9, 9)
    net.head.lora_enabled = True


def merge(net: Net) -> None:
    net.head.enable_lora(2)
    xw.merge_lora(net)


def replace_value(net: Net) -> None:
    """Give a variable another native array, as a framework's own code may."""
    variable = net.head.bias
    if BACKEND == "tensorflow":
        import tensorflow as tf

        variable._value = tf.Variable(np.full(6, 0.7, np.float32))
    elif BACKEND == "jax":
        import jax

        variable._value = jax.numpy.full(6, 0.7, np.float16)
    else:
        variable._value.data = variable._value.data.double()


def delete_value(net: Net) -> None:
    if BACKEND == "jax":
        net.head.bias._value.delete()


CHANGES: dict[str, Callable[[Net], object]] = {
    "nothing": lambda net: None,
    "a layer is added": lambda net: setattr(net, "extra", dense()),
    "a layer is added to a list": lambda net: net.blocks.append(dense()),
    "a layer is added to a graph": lambda net: net.graph.add(L.Dense(3)),
    "a layer is taken from a graph": lambda net: net.graph.pop(),
    "a layer is taken from a list": lambda net: net.blocks.pop(),
    "a layer is deleted": lambda net: delattr(net, "conv"),
    "a layer is replaced": lambda net: setattr(net, "head", dense()),
    "a layer is replaced in a list": lambda net: net.blocks.__setitem__(0, dense()),
    "a layer is replaced by None": lambda net: setattr(net, "norm", None),
    "a layer of another class": lambda net: setattr(net, "norm", built(L.LayerNormalization(), 4)),
    "a layer's class is swapped": lambda net: setattr(net.head, "__class__", Renamed),
    "a layer has a second name": alias,
    "a layer has a second name in a list": alias_in_a_list,
    "a layer in a graph has a second name": alias_of_a_layer_elsewhere,
    "a layer has its names in another order": swap_names,
    "a layer in a mapping in a list": nest,
    "a layer moves": move,
    "layers change places": swap_layers,
    "layers change places in a list": swap_in_list,
    "layers change places inside of a layer": swap_inside,
    "a layer in a graph is named": lambda net: setattr(net.graph.layers[0], "name", "renamed"),
    "a variable is added": add_weight,
    "a variable is replaced": lambda net: replace_variable(net.head, "bias", new_variable((6,), name="bias")),
    "a variable of another shape": lambda net: replace_variable(net.head, "bias", new_variable((3,), name="bias")),
    "a variable of another dtype": lambda net: replace_variable(
        net.head, "bias", new_variable((6,), "float16", name="bias")
    ),
    "a variable is deleted": lambda net: replace_variable(net.head, "bias", None),
    "a variable's value is replaced": replace_value,
    "a variable's value is deleted": delete_value,
    "tied": lambda net: replace_variable(net.blocks[1], "_kernel", net.blocks[0].kernel),
    "untied": lambda net: replace_variable(net.tied, "_kernel", new_variable(name="kernel")),
    "a variable is frozen": lambda net: setattr(net.head.bias, "trainable", False),
    "a layer is frozen": lambda net: setattr(net.head, "trainable", False),
    "the model is frozen": lambda net: setattr(net, "trainable", False),
    "frozen": lambda net: xw.freeze(net, where="blocks/*"),
    "another policy": lambda net: setattr(net.head, "dtype_policy", "mixed_bfloat16"),
    "a setting changes": lambda net: setattr(net.conv, "groups", 2),
    "LoRA": lora,
    "LoRA, and off by hand": lora_by_hand,
    "LoRA, off and on by hand": lora_again,
    "LoRA, merged": merge,
    "quantized": lambda net: net.blocks[0].quantize("int8"),
    "quantized to four bits": lambda net: net.blocks[0].quantize("int4"),
    "quantized to float8": lambda net: net.blocks[0].quantize("float8"),
    "held": lambda net: xw.hold(net, xw.Clip(-0.1, 0.1), where="blocks/*"),
}


def describe(net: Net) -> list[object]:
    everything = xw.parameters(net)
    refusals = [(p.edit_refusal(), p.refusal(writing=True)) for p in everything]
    return refusals + [(repr(p), unnumbered(p.native_name), p.aliases, p.hidden, p.trainable) for p in everything]


def unnumbered(text: str) -> str:
    """Return a text without the numbers that Keras gives to the layers of a second model."""
    return re.sub(r"_\d+", "", text)


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except (XweightsError, RuntimeError) as refused:
        return type(refused).__name__, unnumbered(str(refused))


def values(net: Net) -> list[object]:
    arrays = []
    for variable in net.weights:
        value = variable._value
        gone = BACKEND == "jax" and value.is_deleted()
        arrays.append(None if gone else (str(value.dtype), np.asarray(keras.ops.convert_to_numpy(value)).tolist()))
    return arrays


def keep_every_second(net: Net) -> None:
    kernels = xw.parameters(net, where=xw.role("kernel"))
    xw.mask(net, {p.name: np.arange(p.size).reshape(p.shape) % 2 == 0 for p in kernels})


def read(net: Net) -> object:
    return {name: (array.dtype, array.tolist()) for name, array in xw.get_params(net).items()}


CALLS: dict[str, Callable[[Net], object]] = {
    "clip": lambda net: xw.clip(net, -0.2, 0.2),
    "mask": keep_every_second,
    "read": read,
}


# What users do; the others wait for the night.
COMMON = (
    "a layer is added to a list", "a layer is replaced", "a layer is replaced in a list", "a layer is deleted",
    "layers change places in a list", "a variable of another dtype", "a variable's value is replaced", "tied",
    "the model is frozen", "a variable is frozen", "LoRA", "LoRA, merged", "quantized",
    "a layer has a second name in a list", "a layer has its names in another order",
)  # fmt: skip


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=[] if name in COMMON else pytest.mark.thorough) for name in CHANGES]
)
def test_a_change_of_the_model_between_two_calls_is_never_missed(change: str) -> None:
    net, fresh = Net(), Net()
    before = [np.linspace(-1, 1, w.size, dtype=w.dtype).reshape(w.shape) for w in net.get_weights()]
    for call in CALLS.values():
        call(net)
        call(net)
    assert plan_of(net).outline is plan_of(net).outline is not None
    for model in (net, fresh):  # nothing is kept of the second
        model.set_weights(before)
        keras.utils.set_random_seed(0)
        CHANGES[change](model)
    assert describe(net) == describe(fresh)
    for _ in range(2):
        for call in CALLS.values():
            assert outcome(lambda call=call: call(net)) == outcome(lambda call=call: call(fresh))
        assert values(net) == values(fresh)
    assert describe(net) == describe(fresh)


def plan_of(net: keras.Layer):
    adapter = backend.adapter(net)
    assert adapter is not None
    return adapter.plan(net)


def test_a_plan_is_kept_from_call_to_call_and_its_selections_with_it() -> None:
    net = Net()
    first = plan_of(net)
    first.select("blocks/*")
    second = plan_of(net)
    assert second.outline is first.outline is not None
    assert second.select("blocks/*").choice is first.select("blocks/*").choice
    assert [p.name for p in second.select(["head/kernel", "head/bias"]).parameters] == ["head/kernel", "head/bias"]


def test_training_and_assigning_leave_the_plan_as_it_is() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), L.BatchNormalization(), L.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((4, 4), np.float32)
    model.fit(x, x[:, :1], verbose=0)
    outline = plan_of(model).outline
    model.fit(x, x[:, :1], verbose=0)
    model.set_weights([np.ones_like(w) for w in model.get_weights()])
    model(x)
    assert plan_of(model).outline is outline is not None
    xw.scale(model, 2.0)
    assert float(keras.ops.max(model.layers[0].kernel)) == 2.0


def test_a_plan_keeps_neither_the_model_nor_a_layer_that_was_removed() -> None:
    net = Net()
    xw.scale(net, 1.0)
    layer, variable = weakref.ref(net.blocks[1]), weakref.ref(net.blocks[1].kernel)
    net.blocks.pop()  # TensorFlow itself keeps a layer that was an attribute
    gc.collect()
    assert layer() is None
    assert variable() is None
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_parameter_outlives_its_model() -> None:
    net = Net()
    xw.scale(net, 1.0)
    kernel = xw.parameters(net, where="blocks/0/kernel")[0]
    expected = keras.ops.convert_to_numpy(net.blocks[0].kernel).copy()
    del net
    gc.collect()
    assert np.array_equal(kernel.numpy(), expected)


def test_in_a_stateless_scope_the_scope_has_the_values_and_not_the_kept_plan() -> None:
    layer = dense()
    before = keras.ops.convert_to_numpy(layer.kernel).copy()
    bound = xw.bind(layer, xw.Scale(2.0), where="kernel")
    for _ in range(2):
        xw.scale(layer, 1.0)
    with keras.StatelessScope(state_mapping=[(layer.kernel, keras.ops.ones((6, 6)))]) as scope:
        xw.scale(layer, 3.0, where="kernel")
        bound()
        assert np.unique(xw.get_params(layer)["kernel"]).tolist() == [6.0]
        xw.set_params(layer, {"kernel": np.full((6, 6), 7, np.float32)}, where="kernel")
    assert np.unique(keras.ops.convert_to_numpy(scope.get_current_value(layer.kernel))).tolist() == [7.0]
    assert np.array_equal(keras.ops.convert_to_numpy(layer.kernel), before)
    bound()
    assert np.array_equal(keras.ops.convert_to_numpy(layer.kernel), before * 2)


class Own(L.Layer):
    """A layer that no table knows."""

    def build(self, shape: object) -> None:
        self.table = self.add_weight(name="table", shape=(2, 3))


def test_declared_rows_are_seen_at_once() -> None:
    layer = built(Own())
    assert xw.parameters(layer)[0].axes is None
    xw.scale(layer, 2.0, where=...)
    xw.register_layer(f"{Own.__module__}.{Own.__qualname__}", table=("kernel", "in out"))
    assert xw.parameters(layer)[0].axes == ("in", "out")
