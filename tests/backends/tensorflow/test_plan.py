"""Plans of modules: nothing that is kept is stale, and many variables are edited in one graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow isn't installed")

import keras  # noqa: E402

import xweights as xw  # noqa: E402
from xweights_tensorflow import backend, grouped  # noqa: E402


class Net(tf.Module):
    """A module with variables of its own, in a list, in another module, and under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.arange(6, dtype=np.float32).reshape(2, 3))
        self.layers = [tf.Variable([1.0, -2.0]), tf.Variable([3.0, 4.0], trainable=False)]
        self.inner = tf.Module()
        self.inner.bias = tf.Variable([0.5])
        self.again = self.inner.bias


CHANGES: dict[str, Callable[[Net], object]] = {
    "nothing": lambda net: None,
    "a variable is replaced": lambda net: setattr(net, "kernel", tf.Variable([[7.0, 8.0]])),
    "a variable is added": lambda net: setattr(net, "extra", tf.Variable([9.0])),
    "a variable is deleted": lambda net: delattr(net, "kernel"),
    "a variable of another dtype": lambda net: setattr(net, "kernel", tf.Variable([[7.0, 8.0]], dtype=tf.float16)),
    "one without a fixed shape": lambda net: setattr(net, "kernel", tf.Variable([[7.0]], shape=tf.TensorShape(None))),
    "variables change places": lambda net: net.layers.reverse(),
    "tied": lambda net: setattr(net.inner, "bias", net.layers[0]),
    "untied": lambda net: setattr(net, "again", tf.Variable([0.25])),
    "a module is replaced": lambda net: setattr(net, "inner", Net()),
    "a Keras layer is added": lambda net: setattr(
        net, "dense", keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    ),
    "frozen by another variable": lambda net: setattr(net, "kernel", tf.Variable([[7.0, 8.0]], trainable=False)),
}


def state(net: Net) -> list[object]:
    return [(repr(p), p.aliases, p.trainable, p.numpy().tolist()) for p in xw.parameters(net)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_module_between_two_calls_is_never_missed(change: str) -> None:
    net, fresh = Net(), Net()
    for _ in range(2):
        xw.clip(net, -1, 100)
    xw.clip(fresh, -1, 100)
    adapter = backend.adapter(net)
    assert adapter.plan(net).outline is adapter.plan(net).outline is not None
    for module in (net, fresh):
        keras.utils.set_random_seed(0)
        CHANGES[change](module)
    for _ in range(2):
        for module in (net, fresh):
            xw.scale(module, 0.5)
            xw.set_params(module, {name: array + 1 for name, array in xw.get_params(module).items()})
        assert state(net) == state(fresh)


def test_an_edit_in_one_graph_is_outside_of_gradient_tapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "ENOUGH", 0)
    net = Net()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(net.kernel**2)
        xw.scale(net, 2.0, where=...)
    assert np.array_equal(tape.gradient(loss, net.kernel), 2 * np.arange(6, dtype=np.float32).reshape(2, 3))
    assert np.array_equal(net.kernel.numpy(), 2 * np.arange(6, dtype=np.float32).reshape(2, 3))


def test_an_edit_in_one_graph_shares_no_memory_between_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "ENOUGH", 0)
    net = Net()
    values = {p.name: np.ones(p.shape, np.float32) for p in xw.parameters(net)}
    xw.apply(net, xw.Fill(values), where=...)
    views = list(xw.get_params(net, copy=False).values())
    assert not any(np.shares_memory(a, b) for a in views for b in [*views, *values.values()] if a is not b)


def test_functions_that_run_eagerly_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "ENOUGH", 0)
    net = Net()
    tf.config.run_functions_eagerly(True)
    try:
        xw.scale(net, 2.0, where=...)
    finally:
        tf.config.run_functions_eagerly(False)
    assert net.layers[0].numpy().tolist() == [2.0, -4.0]


REPLACED: dict[str, tuple[Callable[[Net], object], str]] = {
    "a variable": (lambda net: setattr(net, "kernel", tf.Variable([[7.0, 8.0]])), "kernel"),
    "a variable in a list": (lambda net: net.layers.__setitem__(1, tf.Variable([7.0])), "layers/1"),
    "a list": (lambda net: setattr(net, "layers", list(net.layers[:1])), "layers/1"),
    "a module": (lambda net: setattr(net, "inner", Net()), "inner/bias"),
    "a deleted variable": (lambda net: delattr(net, "kernel"), "kernel"),
}


@pytest.mark.parametrize("replaced", REPLACED)
def test_a_bound_step_never_writes_to_what_the_module_has_no_more(replaced: str) -> None:
    net = Net()
    step = xw.bind(net, xw.Fill(2.0), where=...)
    former = {p.name: p.handle for p in xw.parameters(net)}
    before = {name: variable.numpy() for name, variable in former.items()}
    change, name = REPLACED[replaced]
    change(net)
    with pytest.raises(xw.WriteError, match=f"'{name}' was replaced since it was bound"):
        step()
    assert all(np.array_equal(former[name].numpy(), array) for name, array in before.items())


def test_a_bound_step_minds_no_other_variables() -> None:
    net = Net()
    step = xw.bind(net, xw.Fill(2.0), where="kernel")
    net.inner, net.layers = Net(), []
    step()
    assert (net.kernel.numpy() == 2).all()
