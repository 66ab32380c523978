"""Rules inside compiled steps of Keras models: StatelessScope, jax.jit, tf.function."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
L = keras.layers

BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="about Keras on JAX")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="about Keras on TensorFlow")


def network():
    model = keras.Sequential([keras.Input((4,)), L.Dense(5, kernel_initializer="ones"), L.Dense(3)])
    xw.scale(model, 4.0, where="dense/0/kernel")
    return model


def kernel(model) -> np.ndarray:
    return xw.get_params(model)["dense/0/kernel"]


def host(value) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


def test_in_a_stateless_scope_a_rule_changes_the_scope_and_not_the_model() -> None:
    model = network()
    bound = xw.bind(model, xw.Clip(-0.5, 0.5), where="dense/0/kernel")
    variable = bound.parameters[0].handle
    with keras.StatelessScope(state_mapping=[(variable, host(variable) * 2)]) as scope:
        bound()
        new = scope.get_current_value(variable)
        assert (kernel(model) == 0.5).all()
    assert (host(new) == 0.5).all()
    assert (kernel(model) == 4.0).all()


def test_in_a_stateless_scope_a_value_of_the_caller_is_not_edited() -> None:
    model = network()
    bound = xw.bind(model, xw.Scale(0.5), where="dense/0/kernel")
    variable = bound.parameters[0].handle
    mine = keras.ops.ones((4, 5))
    with keras.StatelessScope(state_mapping=[(variable, mine)]) as scope:
        bound()
        assert (host(scope.get_current_value(variable)) == 0.5).all()
    assert (host(mine) == 1.0).all()


def test_in_a_stateless_scope_set_params_and_undo_stay_in_the_scope() -> None:
    model = network()
    with keras.StatelessScope():
        kept = xw.snapshot(model)
        xw.set_params(model, {"dense/0/kernel": np.zeros((4, 5), "float32")}, strict=False)
        assert (kernel(model) == 0.0).all()
        kept.restore()
        assert (kernel(model) == 4.0).all()
    assert (kernel(model) == 4.0).all()


@on_jax
def test_a_bound_rule_is_part_of_a_jitted_step_over_a_stateless_scope() -> None:
    import jax

    model = network()
    bound = xw.bind(model, xw.Clip(-0.5, 0.5), where="dense/0/kernel")
    variable = bound.parameters[0].handle

    @jax.jit
    def step(value):
        with keras.StatelessScope(state_mapping=[(variable, value)]) as scope:
            bound()
        return scope.get_current_value(variable)

    new = step(variable.value * 3)
    assert (np.asarray(new) == 0.5).all()
    assert (kernel(model) == 4.0).all()
    variable.assign(new)
    assert (kernel(model) == 0.5).all()


@on_jax
def test_a_verb_is_part_of_a_jitted_step_over_a_stateless_scope() -> None:
    import jax

    model = network()

    @jax.jit
    def step(values):
        with keras.StatelessScope(state_mapping=zip(model.weights, values, strict=True)) as scope:
            xw.scale(model, 0.25, where="dense/0/kernel")
        return [scope.get_current_value(v) for v in model.weights]

    assert (np.asarray(step([v.value for v in model.weights])[0]) == 1.0).all()


@on_jax
def test_a_jitted_step_without_a_scope_is_refused_and_leaves_no_tracer_behind() -> None:
    import jax

    model = network()
    bound = xw.bind(model, xw.Clip(-0.5, 0.5), where="dense/0/kernel")
    with pytest.raises(xw.TraceError, match="StatelessScope"):
        jax.jit(lambda: bound())()
    assert (kernel(model) == 4.0).all()


@on_jax
def test_a_tracer_that_someone_left_in_a_variable_is_named() -> None:
    import jax

    model = network()
    jax.jit(lambda x: model.weights[0].assign(x * 2) is None)(model.weights[0].value)
    with pytest.raises(xw.XweightsError, match="tracer"):
        xw.scale(model, 0.5)


@on_tensorflow
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
def test_a_verb_inside_a_tf_function_edits_the_model(jit: bool) -> None:
    import tensorflow as tf

    model = network()

    @tf.function(jit_compile=jit)
    def step():
        xw.clip(model, -0.5, 0.5, where="dense/0/kernel")

    step()
    assert (kernel(model) == 0.5).all()
    xw.fill(model, 2.0, where="dense/0/kernel")
    step()
    assert (kernel(model) == 0.5).all()


@on_tensorflow
def test_a_normalization_layer_is_not_written_inside_a_tf_function() -> None:
    import tensorflow as tf

    layer = L.Normalization()
    layer.adapt(np.array([[0.0], [2.0]], "float32"))

    @tf.function
    def step():
        xw.scale(layer, 0.0, where="mean")

    with pytest.raises(Exception, match="keeps a copy"):  # autograph may give it another type
        step()
    assert float(host(layer.mean)[0, 0]) == 1.0


class Clipping(keras.callbacks.Callback):
    """A callback that clips after every batch, through the model that Keras hands out."""

    def on_train_batch_end(self, batch, logs=None):
        xw.clip(self.model, -0.01, 0.01)


def test_a_callback_edits_the_model_while_it_is_trained() -> None:
    model = network()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), batch_size=2, verbose=0, callbacks=[Clipping()])
    assert max(float(np.abs(value).max()) for value in xw.get_params(model).values()) <= np.float32(0.01)


@on_jax
def test_a_model_whose_weights_are_in_a_running_step_says_where_they_are() -> None:
    model = network()
    said = []

    class Outside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            with pytest.raises(xw.XweightsError) as raised:
                xw.clip(model, -0.01, 0.01)
            said.append(str(raised.value))

    model.compile("sgd", "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0, callbacks=[Outside()])
    assert "self.model" in said[0]
    xw.clip(model, -0.01, 0.01)


def test_a_step_called_from_plain_code_edits_the_model() -> None:
    model = network()
    bound = xw.bind(model, xw.Clip(-0.5, 0.5), where="dense/0/kernel")
    for _ in range(3):
        xw.fill(model, 2.0, where="dense/0/kernel")
        bound()
        assert (kernel(model) == 0.5).all()
