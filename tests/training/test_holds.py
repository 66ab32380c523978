"""hold: rules are true after every step, however late they are attached, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from learners import KERAS_BACKEND, X, Y, every, learner

import xweights as xw

KINDS = [pytest.param("torch"), pytest.param("keras", marks=pytest.mark.keras_backend)]
HALF = np.arange(20).reshape(4, 5) % 2 == 0

RULES = {
    "clip": (xw.Clip(-0.1, 0.1), 0.0),
    "non-negative": (xw.NonNegative(), 0.0),
    "mask": (xw.Mask(HALF), 0.0),
    "keep entries": (xw.Keep({"out": 2}), 0.0),
    "pattern": (xw.Pattern(1, 2, "in"), 0.0),
    "max norm": (xw.MaxNorm(0.5, "out"), 1e-6),
    "unit norm": (xw.UnitNorm("in"), 1e-6),
    "sum to one": (xw.SumToOne("out"), 1e-5),
    "spectral norm": (xw.SpectralNorm(0.7), 1e-5),
}


def distance_from_true(name: str, w: np.ndarray, first: np.ndarray) -> float:
    """Return how far a rule is from true, computed by hand."""
    if name == "clip":
        return float(np.maximum(np.abs(w) - np.float32(0.1), 0).max())
    if name == "non-negative":
        return float(np.maximum(-w, 0).max())
    if name == "mask":
        return float(np.abs(w[~HALF]).max())
    if name == "keep entries":
        return float(np.abs(w[:, 2] - first[:, 2]).max())
    if name == "pattern":
        return float((w.reshape(2, 2, 5) != 0).sum(1).max() - 1)
    if name == "max norm":
        return float(np.linalg.norm(w.astype(np.float64), axis=0).max() / 0.5 - 1)
    if name == "unit norm":
        return float(np.abs(np.linalg.norm(w.astype(np.float64), axis=1) - 1).max())
    if name == "sum to one":
        return float(np.abs(w.astype(np.float64).sum(0) - 1).max())
    return float(np.linalg.svd(w.astype(np.float64))[1].max() / 0.7 - 1)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_held_rule_is_true_after_every_step(kind: str, name: str) -> None:
    rule, allowed = RULES[name]
    training = learner(kind, "adamw")
    training.steps(2)
    kernel = lambda: xw.get_params(training.target)[training.first]  # noqa: E731 - read often below
    if name == "sum to one":
        training.set_raw(training.first, np.abs(kernel()) + 0.5)
    first = kernel()
    held = xw.hold(training.target, rule, where=training.first)
    assert distance_from_true(name, kernel(), first) <= allowed
    moved = 0
    for _ in range(8):
        before = kernel()
        training.step()
        assert distance_from_true(name, kernel(), first) <= allowed
        moved += int((before != kernel()).any())
    assert moved
    held.check()


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [*every("torch"), *every("keras", slow=("adam", "adamw", "rmsprop", "adagrad", "lion", "loss scaling"))],
)
def test_a_held_mask_is_true_under_every_optimizer_and_can_be_released(kind: str, optimizer: str) -> None:
    training = learner(kind, optimizer)
    training.steps(3)
    with xw.hold(training.target, xw.Mask(HALF), where=training.first) as held:
        for _ in range(6):
            training.step()
            assert not xw.get_params(training.target)[training.first][~HALF].any()
        held.check()
    training.steps(3)
    assert xw.get_params(training.target)[training.first][~HALF].any()


# However late.


@pytest.mark.keras_backend
@pytest.mark.parametrize(
    "moment", ["before compile", "before the first fit", "after a fit", "between two fits of a hold"]
)
def test_in_keras_a_hold_takes_effect_whenever_it_begins(moment: str) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="a"), keras.layers.Dense(3, name="b")])
    hold = lambda: xw.hold(model, xw.Clip(-0.1, 0.1), where="a/kernel")  # noqa: E731
    if moment == "before compile":
        hold()
    model.compile(keras.optimizers.Adam(0.1), "mse")
    if moment == "before the first fit":
        hold()
    if moment in ("after a fit", "between two fits of a hold"):
        model.fit(X, Y, verbose=0)
    if moment == "between two fits of a hold":
        xw.hold(model, xw.NonNegative(), where="b/kernel")
        model.fit(X, Y, verbose=0)
    steps, slots = int(model.optimizer.iterations), None
    if moment == "after a fit":
        slots = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
        hold()
        for before, variable in zip(slots, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(before, keras.ops.convert_to_numpy(variable))
    if moment == "between two fits of a hold":
        hold()
    assert int(model.optimizer.iterations) == steps
    for _ in range(3):
        model.fit(X, Y, verbose=0)
        assert np.abs(xw.get_params(model)["a/kernel"]).max() <= np.float32(0.1)
    assert np.abs(xw.get_params(model)["b/kernel"]).max() > 0.1


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="a tf.function is TensorFlow's")
@pytest.mark.parametrize("jit", [False, True])
def test_a_step_of_the_users_own_that_was_traced_before_the_hold_is_detected(jit: bool) -> None:
    tf, keras = pytest.importorskip("tensorflow"), pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)

    def make_step():
        @tf.function(jit_compile=jit)
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, [v.value for v in weights]), weights)

        return step

    stale = make_step()
    stale(X, Y)
    held = xw.hold(model, xw.Clip(-0.01, 0.01), where="dense/0/kernel", optimizer=optimizer)
    held.check()
    stale(X, Y)
    with pytest.raises(xw.StaleTrainFunctionError, match=r"traced before the hold(.|\n)*Fix: "):
        held.check()
    with pytest.raises(xw.StaleTrainFunctionError):
        xw.scale(model, 0.5, where="dense/0/kernel")
    held.release()
    with xw.hold(model, xw.Clip(-0.01, 0.01), where="dense/0/kernel", optimizer=optimizer) as held:
        fresh = make_step()
        for _ in range(3):
            fresh(X, Y)
            assert np.abs(xw.get_params(model)["dense/0/kernel"]).max() <= np.float32(0.01)
        held.check()


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="a tf.Module is TensorFlow's")
@pytest.mark.parametrize("jit", [False, True])
def test_without_an_optimizer_to_attach_to_apply_is_called_by_hand_in_the_step(jit: bool) -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((4, 3)))
    held = xw.hold(module, xw.Clip(-0.5, 0.5), where="kernel")
    assert held.manual

    @tf.function(jit_compile=jit)
    def step():
        module.kernel.assign_add(tf.ones((4, 3)))
        held.apply()

    step()
    assert (module.kernel.numpy() == 0.5).all()
    module.kernel.assign_add(tf.ones((4, 3)))
    with pytest.raises(xw.HoldError, match="doesn't satisfy"):
        held.check()


def test_in_torch_a_compiled_step_applies_holds_that_begin_before_and_after_it_was_compiled() -> None:
    torch = pytest.importorskip("torch")
    training = learner("torch", "adamw")
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    compiled = torch.compile(lambda: training.optimizer.step(), backend="eager")

    def step() -> None:
        training.optimizer.zero_grad()
        ((training.target(x) - y) ** 2).mean().backward()
        compiled()

    with xw.hold(training.target, xw.Clip(-0.1, 0.1), where=training.first, optimizer=training.optimizer):
        step()
        with xw.hold(training.target, xw.Mask(HALF), where=training.first):
            for _ in range(3):
                step()
                kernel = xw.get_params(training.target)[training.first]
                assert np.abs(kernel).max() <= np.float32(0.1)
                assert not kernel[~HALF].any()


def test_in_torch_a_step_that_is_compiled_whole_applies_a_hold_by_hand() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(4, 3)
    held = xw.hold(layer, xw.Clip(-0.1, 0.1), where="kernel")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step():
        with torch.no_grad():
            layer.weight.add_(1.0)
        held.apply()

    step()
    assert (layer.weight == 0.1).all()


# Several, and what xweights itself writes.


@pytest.mark.parametrize("kind", KINDS)
def test_holds_run_in_order_with_mask_and_keep_last_and_release_takes_off_only_its_own(kind: str) -> None:
    training = learner(kind, "sgd")
    keep = xw.hold(training.target, xw.Mask(HALF), where=training.first)
    norm = xw.hold(training.target, xw.MaxNorm(0.3, "out"), where=training.first)
    training.steps(3)
    kernel = xw.get_params(training.target)[training.first]
    assert not kernel[~HALF].any()
    assert np.linalg.norm(kernel, axis=0).max() <= 0.3 * (1 + 1e-6)
    keep.release()
    keep.release()
    training.steps(3)
    kernel = xw.get_params(training.target)[training.first]
    assert kernel[~HALF].any()
    assert np.linalg.norm(kernel, axis=0).max() <= 0.3 * (1 + 1e-6)
    norm.check()
    norm.release()
    training.steps(20)
    assert np.linalg.norm(xw.get_params(training.target)[training.first], axis=0).max() > 0.3


@pytest.mark.keras_backend
def test_a_constraint_that_was_there_before_goes_on_and_comes_back() -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, kernel_constraint="non_neg")])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    kernel = model.layers[0].kernel
    former = kernel.constraint
    target = np.random.default_rng(0).normal(size=(8, 5))
    with xw.hold(model, xw.Clip(None, 0.2), where="*/kernel"):
        model.fit(X, target, verbose=0)
        value = xw.get_params(model)["dense/0/kernel"]
        assert value.min() >= 0
        assert value.max() <= np.float32(0.2)
    assert kernel.constraint is former


@pytest.mark.parametrize("kind", KINDS)
def test_verbs_set_params_and_undo_reapply_a_hold_before_they_return(kind: str) -> None:
    training = learner(kind, "sgd")
    before = xw.snapshot(training.target)
    xw.hold(training.target, xw.Clip(-0.1, 0.1), where=training.first)
    for write in (
        lambda: xw.fill(training.target, 5.0),
        lambda: xw.set_params(training.target, {training.first: np.ones((4, 5), np.float32)}, strict=False),
        lambda: xw.noise(training.target, 3.0, seed=0),
        lambda: xw.set_entries(training.target, (0, 0), 9.0, where=training.first),
        before.restore,
    ):
        write()
        assert np.abs(xw.get_params(training.target)[training.first]).max() <= np.float32(0.1)
    xw.fill(training.target, 5.0)
    assert (xw.get_params(training.target)[training.second] == 5.0).all()


def test_names_and_state_stay_the_same() -> None:
    training = learner("torch", "adamw")
    keys = list(training.target.state_dict())
    xw.hold(training.target, xw.Mask(HALF), where=training.first)
    training.step()
    assert list(training.target.state_dict()) == keys


# What can't be held.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rule", "error", "text"),
    [
        (xw.Add(0.1), xw.HoldError, "can't stay true together with itself"),
        (xw.Noise(0.1), xw.ArgumentError, "random"),
        (xw.ClipNorm(1.0, "global"), xw.ArgumentError, "several parameters"),
        (xw.Mask(np.ones((2, 2), bool)), xw.ShapeError, "doesn't fit"),
        (xw.Keep((9, 9)), xw.ShapeError, "out of range"),
        (xw.MaxNorm(1.0, "height"), xw.LayoutError, "has no axis"),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_a_rule_that_cannot_be_held_is_refused_and_nothing_is_attached(kind: str, rule, error, text: str) -> None:
    training, twin = learner(kind, "sgd"), learner(kind, "sgd")
    before = training.bits
    with pytest.raises(error, match=text):
        xw.hold(training.target, rule, where=training.first)
    assert training.bits == before
    training.steps(2)
    twin.steps(2)
    assert training.bits == twin.bits


def native_clip(kind: str) -> Any:
    """Return a user's function that takes only the framework's tensors."""
    if kind == "torch":
        torch = pytest.importorskip("torch")
        return lambda w: torch.clamp(w, -0.1, 0.1)
    keras = pytest.importorskip("keras")
    return lambda w: keras.ops.clip(w, -0.1, 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_frameworks_own_tensor_is_held(kind: str) -> None:
    training = learner(kind, "adamw")
    training.steps(2)
    held = xw.hold(training.target, native_clip(kind), where=training.first)
    for _ in range(3):
        training.step()
        assert np.abs(xw.get_params(training.target)[training.first]).max() <= np.float32(0.1)
    held.check()
    training.set_raw(training.first, np.ones((4, 5), np.float32))
    with pytest.raises(xw.HoldError, match="doesn't satisfy"):
        held.check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_that_fails_attaches_nothing_and_leaves_other_holds(kind: str) -> None:
    def fails(w: Any) -> Any:
        raise RuntimeError("the function's own")

    training, twin = learner(kind, "sgd"), learner(kind, "sgd")
    for each in (training, twin):
        xw.hold(each.target, xw.Mask(HALF), where=each.first)
    with pytest.raises(RuntimeError, match="the function's own"):
        xw.hold(training.target, fails, where=training.first)
    training.steps(2)
    twin.steps(2)
    assert training.bits == twin.bits


@pytest.mark.parametrize("kind", KINDS)
def test_rules_that_contradict_each_other_are_refused(kind: str) -> None:
    training = learner(kind, "sgd")
    training.set_raw(training.first, np.full((4, 5), 2.0, np.float32))
    xw.hold(training.target, xw.Keep((0, 0)), where=training.first)
    with pytest.raises(xw.HoldError, match=r"Clip\(low=-1, high=1\) can't stay true together with Keep"):
        xw.hold(training.target, xw.Clip(-1, 1), where=training.first)
    training.step()
    assert xw.get_params(training.target)[training.first][0, 0] == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_that_does_not_train_the_parameter_is_refused(kind: str) -> None:
    training, other = learner(kind, "sgd"), learner(kind, "sgd")
    training.step()
    other.step()
    with pytest.raises(xw.HoldError, match=r"is not among the optimizer's (parameters|variables)(.|\n)*Fix: "):
        xw.hold(training.target, xw.Clip(-1, 1), where="*/kernel", optimizer=other.optimizer)
    with pytest.raises(xw.HoldError, match=r"no (torch|Keras) optimizer"):
        xw.hold(training.target, xw.Clip(-1, 1), where="*/kernel", optimizer=object())
