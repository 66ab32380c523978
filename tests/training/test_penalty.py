"""penalty: the same value and gradient on every backend, and in the loss of an already fitted model.

Close: rtol 1e-6 against a referee in float64; gradients of torch, TensorFlow and JAX differ by one rounding at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
L = keras.layers
BACKEND = keras.backend.backend()

TERMS: dict[str, dict[str, Any]] = {
    "l1": {"l1": 0.1},
    "l2": {"l2": 0.2},
    "group": {"group": 0.3, "per": "out"},
    "group of two axes": {"group": 0.3, "per": ("in", "out")},
    "orthogonal": {"orthogonal": 0.4},
    "all": {"l1": 0.1, "l2": 0.2, "group": 0.3, "per": "in", "orthogonal": 0.4},
}


def keras_twin() -> Any:
    model = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(5, 3), L.Flatten(), L.Dense(3)])
    xw.init(model, "normal", seed=0, std=0.5, where=...)
    # A unit of zeros and a single zero: where norms and absolute values have no derivative.
    xw.set_entries(model, (..., 1), 0.0, where="*/kernel")
    return model


def torch_twin() -> Any:
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(2, 5, 3), torch.nn.Flatten(), torch.nn.Linear(80, 3))
    xw.set_params(model, xw.get_params(keras_twin()), names={"0/*": "conv2d/0/*", "2/*": "dense/0/*"})
    return model


def kernels(model: Any) -> list[np.ndarray]:
    return list(xw.get_params(model, where=xw.role("kernel")).values())


def referee(w: np.ndarray, axes: tuple[str, ...], *, l1=0.0, l2=0.0, group=0.0, per="out", orthogonal=0.0) -> float:
    w = w.astype(np.float64)
    others = tuple(i for i, axis in enumerate(axes) if axis not in per)
    entries = np.prod([w.shape[i] for i in others])
    matrix = w.reshape(-1, w.shape[-1])
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    excess = matrix.T @ matrix - np.eye(matrix.shape[1])
    norms = np.sqrt(np.sum(w**2, axis=others))
    return (
        l1 * np.abs(w).sum()
        + l2 * (w**2).sum()
        + group * np.sqrt(entries) * norms.sum()
        + orthogonal * (excess**2).sum()
    )


def slope(w: np.ndarray, axes: tuple[str, ...], terms: dict[str, Any], at: tuple[int, ...]) -> float:
    step = np.zeros(w.shape)
    step[at] = 1e-6
    return (referee(w + step, axes, **terms) - referee(w - step, axes, **terms)) / 2e-6


def host(x: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(x))


def keras_gradients(model: Any, **terms: Any) -> tuple[float, list[np.ndarray]]:
    """Compute the penalty and its gradients with the framework below Keras."""
    variables = model.trainable_variables
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = xw.penalty(model, **terms)
        found = tape.gradient(value, variables)
    elif BACKEND == "jax":
        import jax

        def loss(values: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return xw.penalty(model, **terms)

        value, found = jax.value_and_grad(loss)([v.value for v in variables])
    else:
        model.zero_grad()
        value = xw.penalty(model, **terms)
        value.backward()
        found = [v.value.grad for v in variables]
    return float(host(value)), [host(g) for v, g in zip(variables, found, strict=True) if v.name == "kernel"]


def torch_gradients(model: Any, **terms: Any) -> tuple[float, list[np.ndarray]]:
    value = xw.penalty(model, **terms)
    value.backward()
    return value.item(), [model[0].weight.grad.numpy().transpose(2, 3, 1, 0), model[2].weight.grad.numpy().T]


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_the_number_is_that_of_its_formula(terms: dict[str, Any]) -> None:
    model = keras_twin()
    wanted = sum(referee(p.numpy(), p.axes, **terms) for p in xw.parameters(model, where=xw.role("kernel")))
    np.testing.assert_allclose(keras_gradients(model, **terms)[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(float(xw.penalty(xw.get_params(model), **terms)), wanted, rtol=1e-6)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_the_gradient_is_the_slope_of_the_formula(terms: dict[str, Any]) -> None:
    model = keras_twin()
    _, gradients = keras_gradients(model, **terms)
    for p, gradient in zip(xw.parameters(model, where=xw.role("kernel")), gradients, strict=True):
        # Where the formula has a kink (unit 1 is zero) a central difference gives the subgradient 0, as it should.
        for at in [(0,) * len(p.shape), tuple(n - 1 for n in p.shape), (*(0 for _ in p.shape[1:]), 1)]:
            np.testing.assert_allclose(gradient[at], slope(p.numpy(), p.axes, terms, at), rtol=1e-4, atol=1e-7)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_keras_and_torch_have_the_same_value_and_gradients(terms: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    value, gradients = keras_gradients(keras_twin(), **terms)
    other, others = torch_gradients(torch_twin(), **terms)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    for gradient, two in zip(gradients, others, strict=True):
        np.testing.assert_allclose(gradient, two, rtol=1e-6, atol=1e-9)


def test_kernels_are_penalised_and_biases_are_not() -> None:
    model = keras_twin()
    before = keras_gradients(model, l1=1.0)[0]
    xw.fill(model, 100.0, where="*/bias")
    assert keras_gradients(model, l1=1.0)[0] == before
    assert keras_gradients(model, l1=1.0, where=...)[0] > before + 100


def test_weights_are_left_as_they_are() -> None:
    model = keras_twin()
    before = xw.get_params(model)
    keras_gradients(model, **TERMS["all"])
    assert xw.equal(model, before)
    arrays = {"d/kernel": np.array([[3.0, -4.0], [1.0, 2.0]])}  # float64, which no cast copies
    xw.penalty(arrays, l1=0.1, l2=0.2, orthogonal=0.4)
    np.testing.assert_array_equal(arrays["d/kernel"], [[3.0, -4.0], [1.0, 2.0]])


def fitted_model() -> tuple[Any, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(16, 6, 6, 2)).astype(np.float32)
    y = generator.normal(size=(16, 3)).astype(np.float32)
    model = keras_twin()
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, shuffle=False)
    return model, x, y


def test_a_penalty_added_to_a_fitted_model_is_in_its_loss_and_the_optimizer_keeps_its_state() -> None:
    model, x, y = fitted_model()
    plain = model.evaluate(x, y, verbose=0)
    slots = [host(v) for v in model.optimizer.variables]
    added = xw.add_penalty(model, l2=0.1)
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), plain + keras_gradients(model, l2=0.1)[0], rtol=1e-5)
    for before, after in zip(slots, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(before, host(after))
    added.release()
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), plain, rtol=1e-6)


def test_training_with_an_added_penalty_is_training_with_a_regularizer_from_the_start() -> None:
    model, x, y = fitted_model()
    twin = keras_twin()
    for layer in (twin.layers[0], twin.layers[2]):
        layer.kernel.regularizer = keras.regularizers.L2(0.1)
    twin.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
    twin.optimizer.build(twin.trainable_variables)
    twin.set_weights(model.get_weights())
    for variable, other in zip(twin.optimizer.variables, model.optimizer.variables, strict=True):
        variable.assign(host(other).copy())
    xw.add_penalty(model, l2=0.1)
    for _ in range(3):
        model.train_on_batch(x, y)
        twin.train_on_batch(x, y)
    for got, expected in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_penalties_add_to_a_regularizer_and_are_released_in_any_order() -> None:
    model = keras_twin()
    former = model.layers[0].kernel.regularizer = keras.regularizers.L1(1.0)
    size = float(np.abs(kernels(model)[0].astype(np.float64)).sum())
    first = xw.add_penalty(model, l1=2.0, where="conv2d/0/kernel")
    second = xw.add_penalty(model, l1=4.0, where="conv2d/0/kernel")
    for handle, factor in [(None, 7.0), (first, 5.0), (second, 1.0)]:
        if handle is not None:
            handle.release()
        np.testing.assert_allclose(float(host(sum(model.losses))), factor * size, rtol=1e-6)
    assert model.layers[0].kernel.regularizer is former
    first.release()


def test_a_penalty_counts_before_the_first_fit_and_as_a_context() -> None:
    model = keras_twin()
    model.compile(optimizer="sgd", loss="mse")
    x, y = np.zeros((4, 6, 6, 2), np.float32), np.zeros((4, 3), np.float32)
    xw.fill(model, 0.0, where="*/bias")
    with xw.add_penalty(model, l2=1.0) as added:
        before = keras_gradients(model, l2=1.0)[0]
        np.testing.assert_allclose(model.train_on_batch(x, y), before, rtol=1e-5)
        added.check()
    model.reset_metrics()  # Keras 3.9 returns the mean of all steps since then
    assert model.train_on_batch(x, y) == 0.0
    assert not model.losses


def test_a_penalty_replaced_by_other_code_is_noticed() -> None:
    model, x, y = fitted_model()
    added = xw.add_penalty(model, l2=1.0)
    model.train_on_batch(x, y)
    added.check()
    model.layers[0].kernel.regularizer = None
    with pytest.raises(xw.HoldError, match="conv2d/0/kernel"):
        added.check()
    added.release()
    assert model.layers[0].kernel.regularizer is None


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
def test_a_step_that_was_traced_before_is_noticed() -> None:
    import tensorflow as tf

    model, x, y = fitted_model()

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2) + sum(model.losses)
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    step()
    added = xw.add_penalty(model, l2=1.0)
    step()
    with pytest.raises(xw.HoldError, match="traced before"):
        added.check()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
def test_a_penalty_is_part_of_a_tf_function(jit: bool) -> None:
    import tensorflow as tf

    model = keras_twin()
    variables = model.trainable_variables

    @tf.function(jit_compile=jit)
    def step() -> Any:
        with tf.GradientTape() as tape:
            value = xw.penalty(model, **TERMS["all"])
        return value, tape.gradient(value, variables)

    value, found = step()
    eager, gradients = keras_gradients(model, **TERMS["all"])
    np.testing.assert_allclose(host(value), eager, rtol=1e-6)
    mine = [host(g) for v, g in zip(variables, found, strict=True) if v.name == "kernel"]
    for gradient, two in zip(mine, gradients, strict=True):
        np.testing.assert_allclose(gradient, two, rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.GradientTape")
def test_a_second_derivative_is_refused_by_tensorflow() -> None:
    import tensorflow as tf

    model = keras_twin()
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            value = xw.penalty(model, l2=1.0, where="dense/0/kernel")
        first = inner.gradient(value, model.layers[-1].kernel)
    with pytest.raises(xw.TraceError, match="first derivatives"):
        outer.gradient(first, model.layers[-1].kernel)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.grad")
def test_a_gradient_that_would_silently_be_zero_is_refused() -> None:
    import jax

    model = keras_twin()
    with pytest.raises(xw.TraceError, match="StatelessScope"):
        jax.grad(lambda values: xw.penalty(model, l2=1.0))([v.value for v in model.trainable_variables])


@pytest.mark.skipif(BACKEND != "jax", reason="jax.jit")
def test_a_penalty_is_part_of_a_jitted_step() -> None:
    import jax

    model = keras_twin()
    variables = model.trainable_variables

    def loss(values: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return xw.penalty(model, **TERMS["all"])

    value, found = jax.jit(jax.value_and_grad(loss))([v.value for v in variables])
    eager, gradients = keras_gradients(model, **TERMS["all"])
    np.testing.assert_allclose(host(value), eager, rtol=1e-6)
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(host(found[0]), gradients[0], rtol=1e-6, atol=1e-9)


def test_bad_arguments_are_refused() -> None:
    model = keras_twin()
    for wrong in ({}, {"l2": -1.0}, {"l2": float("nan")}, {"group": 0.1}, {"l1": 1.0, "per": "out"}, {"l2": "0.1"}):
        with pytest.raises(xw.ArgumentError):
            xw.penalty(model, **wrong)
    with pytest.raises(xw.LayoutError, match="no axis"):
        xw.penalty(model, group=0.1, per="head")
    with pytest.raises(xw.ShapeError, match="matrix"):
        xw.penalty(model, orthogonal=0.1, where="*/bias")
    with pytest.raises(xw.SelectionError):
        xw.penalty(model, l2=0.1, where="nothing")
    with pytest.raises(xw.TargetError, match="the model that is fitted"):
        xw.add_penalty(model.layers[0], l2=0.1)
    with pytest.raises(xw.DtypeError):
        xw.penalty({"a/kernel": np.ones(2, np.int32)}, l2=0.1, where=...)


# On torch modules, which need no Keras.


def test_torch_compile_takes_a_bound_penalty_in_one_graph() -> None:
    torch = pytest.importorskip("torch")
    model = torch_twin()
    bound = xw.bind_penalty(model, **TERMS["all"])
    torch.compile(lambda: bound() * 2.0, backend="aot_eager", fullgraph=True)().backward()
    compiled = model[0].weight.grad.clone()
    model.zero_grad()
    (bound() * 2.0).backward()
    torch.testing.assert_close(compiled, model[0].weight.grad, rtol=1e-6, atol=1e-9)
    with pytest.raises(xw.UseBindError, match="bind_penalty"):
        torch.compile(lambda: xw.penalty(model, l2=1.0), backend="eager")()


def test_a_parametrized_weight_of_torch_is_penalised_by_its_effective_value() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3))
    value = xw.penalty(layer, l2=1.0)
    value.backward()
    magnitude = layer.parametrizations.weight.original0
    np.testing.assert_allclose(value.item(), (layer.weight**2).sum().item(), rtol=1e-6)
    # The value is the sum of the squared magnitudes, whatever the directions are.
    np.testing.assert_allclose(magnitude.grad.numpy(), 2 * magnitude.detach().numpy(), rtol=1e-5)


def test_a_weight_of_half_precision_has_a_gradient_of_its_own_dtype() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(4, 3).to(torch.bfloat16)
    value = xw.penalty(layer, l2=0.5)
    value.backward()
    assert value.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(layer.weight.grad, layer.weight.detach(), rtol=0, atol=0)


def test_torch_refuses_a_second_derivative_and_an_edit_before_the_backward_pass() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(4, 3)
    (first,) = torch.autograd.grad(xw.penalty(layer, l2=1.0), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()
    value = xw.penalty(layer, l2=1.0)
    xw.scale(layer, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    with pytest.raises(xw.HoldError, match="loss = loss"):
        xw.add_penalty(layer, l2=0.1)
