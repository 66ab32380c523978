"""Ways to attach a hold late in Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from late import APPLIED, DETECTED, FREE, FREEZE, HOLD, RAISES, RATE, SCHEDULE, Array, Scene, Thing, Way
from learners import KERAS_BACKEND, X, Y

KERNEL = "first/kernel"
ALL_APPLIED = {HOLD: APPLIED, SCHEDULE: APPLIED, FREEZE: APPLIED, RATE: APPLIED}


def new_model(*, built: bool = True) -> Any:
    import keras

    start = [keras.Input((4,))] if built else []
    layers = [keras.layers.Dense(5, name="first", activation="tanh"), keras.layers.Dense(3, name="second")]
    return keras.Sequential([*start, *layers])


def compile_model(model: Any, **settings: Any) -> Any:
    """Compile the model: by XLA on JAX, and not elsewhere. Settings are the optimizer's."""
    import keras

    model.compile(keras.optimizers.Adam(0.05, **settings), "mse", jit_compile=KERAS_BACKEND == "jax")
    return model


def read(model: Any) -> Array:
    import keras

    return np.array(keras.ops.convert_to_numpy(model.get_layer("first").kernel))


def fit(model: Any, **how: Any) -> None:
    model.fit(X, Y, **{"batch_size": 4, "verbose": 0, **how})


def fitted_scene(thing: Thing, model: Any, **more: Any) -> Scene:
    return Scene(thing, lambda: read(model), lambda: fit(model), **more)


def at(moment: str) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        model = new_model(built=moment != "before the model is built")
        scene = fitted_scene(thing, model)
        if moment == "before the model is built":
            scene.begin(model, KERNEL)
        if moment == "before compile":
            scene.begin(model, KERNEL)
        compile_model(model)
        if moment == "after compile":
            scene.begin(model, KERNEL)
        if moment in ("after a fit", "between fits, beside another hold"):
            fit(model)
        if moment == "between fits, beside another hold":
            import xweights as xw

            xw.hold(model, xw.NonNegative(), where="second/kernel")
            fit(model)
        if moment == "after train_on_batch":
            scene.train = lambda: model.train_on_batch(X, Y)
            scene.train()
        if scene.handle is None:
            scene.begin(model, KERNEL)
        return scene

    return make


def after_averaging(thing: Thing) -> Scene:
    # On JAX, Keras itself can't fit a second time after averaging: there the fit comes after single batches.
    model = compile_model(new_model(), use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
    scene = fitted_scene(thing, model, times=1)
    if KERAS_BACKEND == "jax":
        model.train_on_batch(X, Y)
    else:
        fit(model)
    scene.begin(model, KERNEL)
    return scene


def in_a_callback(event: str) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        import keras

        model = compile_model(new_model())
        scene = fitted_scene(thing, model)

        class Begin(keras.callbacks.Callback):
            before: Array

            def record(self, kind: str) -> None:
                if scene.handle is not None and kind == "on_train_batch_end":
                    scene.seen.append((self.before, read(self.model)))
                if scene.handle is None and kind == event:
                    scene.begin(self.model, KERNEL)
                self.before = read(self.model)

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                self.record("on_train_batch_end")

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                self.record("on_epoch_end")

        fit(model, epochs=3, callbacks=[Begin()])
        assert len(scene.seen) >= 2
        return scene

    return make


def on_a_part(part: str) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        model = compile_model(new_model())
        scene = fitted_scene(thing, model)
        fit(model)
        layer = model.get_layer("first")
        scene.begin(*((layer, "kernel") if part == "layer" else (layer.kernel, ...)))
        return scene

    return make


def then(change: str) -> Callable[[Thing], Scene]:
    """Attach the thing after a fit; then change the model."""

    def make(thing: Thing) -> Scene:
        model = compile_model(new_model())
        scene = fitted_scene(thing, model)
        fit(model)
        others = model.get_weights()
        scene.begin(model, KERNEL)
        if change == "compile":
            compile_model(model)
        if change == "fit, compile":
            fit(model)
            compile_model(model)
        if change == "weights":
            model.set_weights([2 * value + 1 for value in others])
        if change == "steps_per_execution":
            model.compile(model.optimizer, "mse", steps_per_execution=2, jit_compile=KERAS_BACKEND == "jax")
        if change == "constraint":
            import keras

            model.get_layer("first").kernel.constraint = keras.constraints.Constraint()
        return scene

    return make


def loaded(thing: Thing) -> Scene:
    import tempfile
    from pathlib import Path

    model = compile_model(new_model())
    scene = fitted_scene(thing, model)
    fit(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(path)
        fit(model)
        scene.begin(model, KERNEL)
        model.load_weights(path)
    return scene


def copied(how: str) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        import tempfile
        from pathlib import Path

        import keras

        model = compile_model(new_model())
        fit(model)
        scene = fitted_scene(thing, model)
        scene.begin(model, KERNEL)
        if how == "clone_model":
            copy = compile_model(keras.models.clone_model(model))
            copy.set_weights(model.get_weights())
        else:
            with tempfile.TemporaryDirectory() as folder:
                model.save(Path(folder) / "model.keras")
                copy = keras.models.load_model(Path(folder) / "model.keras")

        def train() -> None:
            fit(model)
            fit(copy)

        scene.train, scene.copied = train, lambda: read(copy)
        return scene

    return make


def own_step(model: Any, optimizer: Any) -> Callable[[], None]:
    """Return a step of the user's own, compiled where that is usual."""
    return {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}[KERAS_BACKEND](model, optimizer)


def _by_tensorflow(model: Any, optimizer: Any) -> Callable[[], None]:
    import tensorflow as tf

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X) - Y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    return step


def _by_jax(model: Any, optimizer: Any) -> Callable[[], None]:
    import jax
    import keras

    trained = list(model.trainable_variables)

    def loss(values: Any) -> Any:
        out, _ = model.stateless_call(values, [v.value for v in model.non_trainable_variables], X)
        return keras.ops.mean((out - Y) ** 2)

    @jax.jit
    def update(values: Any, slots: Any) -> Any:
        return optimizer.stateless_apply(slots, jax.grad(loss)(values), values)

    def step() -> None:
        values, slots = update([v.value for v in trained], [v.value for v in optimizer.variables])
        for variable, value in zip([*trained, *optimizer.variables], [*values, *slots], strict=True):
            variable.assign(value)

    return step


def _by_torch(model: Any, optimizer: Any) -> Callable[[], None]:
    import torch

    def step() -> None:
        model.zero_grad()
        ((model(X) - torch.from_numpy(Y)) ** 2).mean().backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in model.trainable_variables], model.trainable_variables)

    return step


def in_an_own_step(traced: str) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        import keras

        model, optimizer = new_model(), keras.optimizers.Adam(0.05)
        optimizer.build(model.trainable_variables)
        scene = fitted_scene(thing, model)
        if traced == "before":
            scene.train = own_step(model, optimizer)
            scene.train()
        scene.begin(model, KERNEL, optimizer)
        if traced == "after":
            scene.train = own_step(model, optimizer)
        return scene

    return make


def amid_accumulation(thing: Thing) -> Scene:
    model = compile_model(new_model(), gradient_accumulation_steps=3)
    scene = Scene(thing, lambda: read(model), lambda: model.train_on_batch(X, Y), times=8)
    for _ in range(4):
        scene.train()
    scene.begin(model, KERNEL)
    return scene


def _lr_outcome(outcome: str) -> dict[str, str]:
    return {**ALL_APPLIED, RATE: outcome}


TRACED = dict.fromkeys((HOLD, FREEZE, RATE), DETECTED if KERAS_BACKEND != "torch" else APPLIED)
WAYS = [
    Way(
        *("Keras", "before the model is built", at("before the model is built")),
        {HOLD: RAISES, SCHEDULE: RAISES, FREEZE: RAISES, RATE: RAISES},
        "there are no weights yet",
    ),
    Way(
        *("Keras", "before `compile`", at("before compile"), _lr_outcome(RAISES)),
        "`multiply_lr` needs an optimizer: compile first",
    ),
    Way("Keras", "after `compile`", at("after compile"), ALL_APPLIED),
    Way("Keras", "after a `fit`", at("after a fit"), ALL_APPLIED),
    Way("Keras", "between two fits, beside another hold", at("between fits, beside another hold"), ALL_APPLIED),
    Way("Keras", "after `train_on_batch` only", at("after train_on_batch"), ALL_APPLIED),
    Way(
        *(
            "Keras",
            "after training with averages (`use_ema`)",
            after_averaging,
            {HOLD: APPLIED, SCHEDULE: APPLIED, FREEZE: APPLIED},
        ),
        "what averaging writes is not scaled: a learning rate isn't tested here",
    ),
    Way("Keras", "in a callback, when a batch ends", in_a_callback("on_train_batch_end"), ALL_APPLIED),
    Way("Keras", "in a callback, when an epoch ends", in_a_callback("on_epoch_end"), ALL_APPLIED),
    Way("Keras", "after a `fit`, on a layer of the model", on_a_part("layer"), ALL_APPLIED),
    Way("Keras", "after a `fit`, on a bare variable", on_a_part("variable"), ALL_APPLIED),
    Way("Keras", "then `compile` again, with a new optimizer", then("compile"), _lr_outcome(DETECTED)),
    Way("Keras", "then a `fit`, and `compile` again", then("fit, compile"), _lr_outcome(DETECTED)),
    Way(
        *("Keras", "then `compile` again, with `steps_per_execution=2`", then("steps_per_execution")),
        {**ALL_APPLIED, SCHEDULE: RAISES},
        "a schedule has to see every step",
        skipped="Keras on torch runs one step at a time" if KERAS_BACKEND == "torch" else "",
    ),
    Way(
        *("Keras", "then `load_weights`", loaded, ALL_APPLIED),
        "what was loaded is there until the next step; then a hold is true, and a freeze has its old values back",
    ),
    Way("Keras", "then `set_weights`", then("weights"), ALL_APPLIED, "as above"),
    Way(
        *("Keras", "then a constraint of your own is put in its place", then("constraint")),
        {HOLD: DETECTED, SCHEDULE: DETECTED, FREEZE: DETECTED, RATE: APPLIED},
    ),
    Way("Keras", "then `clone_model`", copied("clone_model"), {HOLD: FREE, SCHEDULE: FREE, FREEZE: FREE, RATE: FREE}),
    Way(
        "Keras", "then `save`, and `load_model`", copied("save"), {HOLD: FREE, SCHEDULE: FREE, FREEZE: FREE, RATE: FREE}
    ),
    Way(
        *("Keras", "after a `tf.function` or `jax.jit` step of your own was traced", in_an_own_step("before"), TRACED),
        "build the step again; on torch the step isn't traced, and the hold is applied",
    ),
    Way(
        *("Keras", "before a step of your own is traced", in_an_own_step("after")),
        {**ALL_APPLIED, SCHEDULE: DETECTED},
        "a schedule counts the steps of `fit`; in your own loop call `held.advance()` after each step",
    ),
    Way("Keras", "between gradients that are accumulated", amid_accumulation, ALL_APPLIED),
]
