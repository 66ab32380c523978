"""``tf.Module`` as a target: names by attribute path, whatever container holds the variables."""

import collections
import types

import numpy as np
import pytest

import xweights.backend
from xweights.errors import TargetError

tf = pytest.importorskip("tensorflow")
from xweights_tensorflow import backend  # noqa: E402


class Layer(tf.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.kernel = tf.Variable(np.zeros((n_in, n_out), np.float32))
        self.bias = tf.Variable(np.zeros(n_out, np.float32))


class Net(tf.Module):
    def __init__(self):
        super().__init__(name="whatever")
        self.stem = Layer(3, 4)
        self.blocks = [Layer(4, 4), Layer(4, 4)]
        self.heads = {"a": Layer(4, 1), "b": Layer(4, 2)}
        self.steps = tf.Variable(0, trainable=False)
        self.scale = tf.Variable(1.0, dtype=tf.float64)
        self.other = "no weight"


def parameters(target):
    return backend.adapter(target).parameters(target)


def names(target):
    return [p.name for p in parameters(target)]


def test_names_are_attribute_paths_in_definition_order():
    assert names(Net()) == [
        "stem/kernel", "stem/bias", "blocks/0/kernel", "blocks/0/bias", "blocks/1/kernel", "blocks/1/bias",
        "heads/a/kernel", "heads/a/bias", "heads/b/kernel", "heads/b/bias", "steps", "scale",
    ]  # fmt: skip


def test_two_instances_have_the_same_names():
    assert names(Net()) == names(Net())


def test_a_parameter_has_role_axes_and_layer():
    net = Net()
    by_name = {p.name: p for p in parameters(net)}
    one = by_name["blocks/1/kernel"]
    assert (one.role, one.layer, one.native_name) == ("kernel", "blocks/1", "blocks[1].kernel")
    assert (one.shape, one.axes, one.dtype, one.trainable, one.aliases) == ((4, 4), None, np.float32, True, ())
    assert one.handle is net.blocks[1].kernel
    assert by_name["heads/a/bias"].native_name == "heads['a'].bias"
    assert not by_name["steps"].floating
    assert not by_name["steps"].trainable
    assert by_name["scale"].dtype == np.float64


def test_a_lone_variable_is_called_parameter():
    p = parameters(tf.Variable(np.zeros((2, 3)), name="w"))[0]
    assert (p.name, p.native_name, p.layer, p.shape) == ("parameter", "w", "", (2, 3))


def test_tied_variables_and_shared_modules_appear_once_with_aliases():
    net = tf.Module()
    net.embed = Layer(5, 2)
    net.again = net.embed
    net.tied = net.embed.kernel
    first, second = parameters(net)
    assert (first.name, first.aliases) == ("embed/kernel", ("again/kernel", "tied"))
    assert (second.name, second.aliases) == ("embed/bias", ("again/bias",))


def test_a_module_that_knows_its_parent_is_walked_once():
    net = Net()
    net.stem.parent = net
    net.blocks[0].siblings = net.blocks
    found = {p.name: p.aliases for p in parameters(net)}
    assert "stem/kernel" in found
    assert len(found) == 12


def test_containers_of_every_kind_are_walked():
    pair = collections.namedtuple("pair", ["left", "right"])  # noqa: PYI024
    net = tf.Module()
    net.pair = pair(tf.Variable(1.0), [tf.Variable(2.0)])
    net.nested = (({"x": tf.Variable(3.0)},),)
    assert names(net) == ["pair/left", "pair/right/0", "nested/0/0/x"]


def test_handles_are_kept_until_the_structure_changes():
    net = Net()
    before = parameters(net)
    assert all(a is b for a, b in zip(before, parameters(net), strict=True))
    net.stem.kernel = tf.Variable(np.zeros((9, 9)))
    net.extra = tf.Variable(1.0)
    del net.scale
    after = {p.name: p for p in parameters(net)}
    assert after["stem/kernel"].shape == (9, 9)
    assert "extra" in after
    assert "scale" not in after
    net.alias = net.steps
    assert {p.name: p for p in parameters(net)}["steps"].aliases == ("alias",)


def test_a_variable_without_a_static_shape_has_the_shape_it_holds_now():
    net = tf.Module()
    net.w = tf.Variable(np.zeros((2, 3)), shape=tf.TensorShape(None))
    assert parameters(net)[0].shape == (2, 3)
    net.w.assign(np.zeros((4, 3)))
    assert parameters(net)[0].shape == (4, 3)


def test_a_module_without_variables_has_no_parameters():
    assert names(tf.Module()) == []


def test_tensors_are_distinguished_from_targets():
    assert backend.is_tensor(tf.constant(1.0))
    assert not backend.is_tensor(tf.Variable(1.0))
    assert backend.adapter(tf.constant(1.0)) is None
    assert backend.adapter(tf.train.Checkpoint()) is None
    with pytest.raises(TargetError, match=r"tf\.Variable"):
        backend.storage(tf.constant(1.0))


def keras_2_module():
    return type("Sequential", (tf.Module,), {"__module__": "tf_keras.src.engine.sequential"})()


def test_keras_2_objects_are_refused_by_name():
    with pytest.raises(TargetError, match="Keras 2"):
        backend.adapter(keras_2_module())
    net = tf.Module()
    net.old = keras_2_module()
    with pytest.raises(TargetError, match="Keras 2"):
        names(net)


def test_keras_objects_inside_a_module_are_named_by_their_own_backend(monkeypatch):
    fake = type("Dense", (), {"__module__": "keras.layers"})
    inner = Net().stem
    adapter = types.SimpleNamespace(parameters=lambda _: parameters(inner))
    stand_in = types.SimpleNamespace(adapter=lambda value: adapter if value.holds else None)
    monkeypatch.setattr("xweights_tensorflow.adapter.backend_for", lambda _: stand_in)
    net = tf.Module()
    net.dense, net.optimizer = fake(), fake()
    net.dense.holds, net.optimizer.holds = True, False
    net.own = tf.Variable(1.0)
    assert names(net) == ["dense/kernel", "dense/bias", "own"]
    assert [p.layer for p in parameters(net)] == ["dense", "dense", ""]
    net.tied = inner.kernel
    assert parameters(net)[0].aliases == ("tied",)


def test_the_backend_keeps_the_protocol():
    assert isinstance(backend, xweights.backend.Backend)
    assert np.array_equal(backend.to_host(tf.constant([1.0])), [1.0])
    assert np.array_equal(backend.to_host(tf.Variable([1.0])), [1.0])
    assert backend.ops(tf.constant(1.0)).name == "tensorflow"


def test_a_variable_in_parts_on_parameter_servers_is_refused_by_name():
    from tensorflow.python.distribute.sharded_variable import ShardedVariable

    class Model(tf.Module):
        def __init__(self):
            self.bias = tf.Variable([1.0])
            self.table = ShardedVariable([tf.Variable([[1.0]]), tf.Variable([[2.0]])])

    with pytest.raises(TargetError, match="'table' is a ShardedVariable"):
        backend.adapter(Model()).parameters(Model())
