"""Keras training steps and model copies for proofs of a hand-off, and unbiased batch statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from xweights.core.parameter import Parameter
from xweights.errors import HandoffError
from xweights.optimizers.protocol import Route, Step, Training, WrittenState
from xweights.optimizers.state import OptimizerState
from xweights_keras.optimizers.read import read_state
from xweights_keras.optimizers.saved import groups_of, read_saved, trained_order
from xweights_keras.optimizers.write import backup, plan_route, use_floatx, write_state
from xweights_keras.porting.double import copy_model
from xweights_keras.precision import compute_dtype
from xweights_keras.training.hooks import own_call, set_own_call

LOSSES: dict[str, Callable[[str], Any]] = {
    "crossentropy": lambda dtype: keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype),
    "mse": lambda dtype: keras.losses.MeanSquaredError(dtype=dtype),
}
# Attributes of layers with the fraction that they drop, or the size of the noise that they add.
_RATES = ("rate", "dropout", "_dropout", "recurrent_dropout", "stddev")


class KerasOptimizing:
    """The Keras side of a hand-off (see ``xweights.optimizers.protocol.Optimizing``)."""

    name = "keras"
    read = staticmethod(read_state)
    read_saved = staticmethod(read_saved)
    trained_order = staticmethod(trained_order)
    groups_of = staticmethod(groups_of)
    plan = staticmethod(plan_route)
    backup = staticmethod(backup)

    def write(
        self, side: Training, state: OptimizerState, parameters: Sequence[Parameter], route: Route, grade: str
    ) -> WrittenState:
        return write_state(side, state, parameters, route)

    def collects_unbiased(self, layers: Sequence[Any]) -> bool:
        return bool(layers) and all(hasattr(own_call(layer), _MARK) for layer in layers)

    def set_statistics(self, model: Any, layers: Sequence[Any], *, unbiased: bool) -> Callable[[], None]:
        changing = [layer for layer in layers if hasattr(own_call(layer), _MARK) != unbiased]

        def switch(on: bool) -> None:
            for layer in changing:
                call = own_call(layer)
                set_own_call(layer, _unbiased(layer, call) if on else getattr(call, _MARK))
            if changing and hasattr(model, "train_function"):
                model.train_function = None  # a compiled step would ignore the switch

        switch(unbiased)
        return lambda: switch(not unbiased)

    def drops(self, layer: Any) -> bool:
        if type(layer).__module__.startswith("keras.") and type(layer).__name__.startswith("Random"):
            return True
        fractions = (getattr(layer, name, 0.0) for name in _RATES)
        return any(isinstance(fraction, (int, float)) and fraction > 0 for fraction in fractions)

    def copy(self, model: Any, dtype: np.dtype[Any] | None) -> Any:
        return copy_model(model, None if dtype is None else dtype.name)

    def compute_dtype(self, dtype: str) -> str:
        return compute_dtype(dtype)

    def make_trainer(self, side: Training, loss: Any, *, compiled: bool) -> Step:
        model = side.model
        dtype = next(keras.backend.standardize_dtype(v.dtype) for v in model.trainable_variables)
        if isinstance(loss, str):
            if loss not in LOSSES:
                raise HandoffError(f"there is no such loss\ngot: {loss!r}\nexpected: {', '.join(LOSSES)} or a function")
            loss = LOSSES[loss](dtype)
        # Metrics, the shown loss among them, have the dtype of Keras' floatx.
        with use_floatx(dtype):
            jit = compiled and keras.backend.backend() != "torch"
            model.compile(optimizer=side.optimizer, loss=loss, run_eagerly=not compiled, jit_compile=jit)

        def step(inputs: Any, wanted: Any) -> float:
            with use_floatx(dtype):
                model.reset_metrics()
                return float(np.asarray(model.train_on_batch(_floating(inputs, dtype), wanted)))

        return step


def _floating(array: Any, dtype: str) -> Any:
    array = np.asarray(array)
    return array.astype(dtype) if array.dtype.kind == "f" else array


# Attribute of a patched batch normalization call: the layer's own call.
_MARK = "collects_unbiased_variance_for"


def _unbiased(layer: Any, former: Callable[..., Any]) -> Callable[..., Any]:
    """Return a batch normalization call that collects the unbiased variance, as other frameworks do."""

    @functools.wraps(former)
    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        collecting = bool(training) and bool(layer.trainable)
        # A copy: some backends write into the same memory.
        old: Any = ops.copy(ops.convert_to_tensor(layer.moving_variance)) if collecting else None
        output = former(inputs, training=training, mask=mask)
        if collecting:
            kept = old * layer.momentum
            count = ops.cast(ops.size(inputs), old.dtype) / int(layer.moving_variance.shape[0])
            collected = ops.convert_to_tensor(layer.moving_variance) - kept
            layer.moving_variance.assign(kept + collected * (count / (count - 1.0)))
        return output

    setattr(call, _MARK, former)
    return call
