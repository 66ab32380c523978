"""Conversion of learning-rate schedules between Keras and the neutral definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from xweights.errors import HandoffError
from xweights.optimizers.lr_schedule import LRSchedule, evaluate_schedule

_SCHEDULES = keras.optimizers.schedules
# Kinds whose last bit differs between implementations of a power.
_ROUNDED = frozenset({"exponential", "inverse_time", "polynomial"})


def read_schedule(schedule: Any, step: int, *, model: Any = None, wide: bool = False) -> LRSchedule:
    """Return a Keras schedule as a neutral one, which calls Keras for values that only Keras can compute.

    ``model``: learning rates are computed in the way its training step is compiled, since compilers round differently.
    ``wide``: there are float64 weights, for which the last bit of a float32 learning rate matters.
    """
    if isinstance(schedule, NeutralRate):
        return schedule.schedule
    neutral = _read(schedule)
    if neutral is None:
        kind = type(schedule).__name__
        raise HandoffError(
            f"the learning rate {kind} can't be handed over: it has no neutral counterpart\n"
            'Fix: xw.schedule(...) says the same in every framework ("table" takes any values); '
            "xweights_keras.optimizers.schedules.make_schedule(schedule) makes a schedule of Keras of it"
        )
    precision = keras.backend.standardize_dtype(schedule(step).dtype)
    neutral = LRSchedule(neutral.kind, neutral.rate, neutral.options, precision)
    if neutral.kind not in ("cosine", "cosine_restarts") and not (wide and neutral.kind in _ROUNDED):
        return neutral
    compiled = _compile_like(schedule, model)

    def evaluate(at: int) -> float:
        return float(keras.ops.convert_to_numpy(compiled(keras.ops.convert_to_tensor(np.int32(at)))))

    return replace(neutral, live=evaluate)


def _compile_like(schedule: Any, model: Any) -> Any:
    """Return a schedule, compiled in the way of a model's training step."""
    if not getattr(model, "compiled", False) or model.run_eagerly:
        return schedule
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(schedule, jit_compile=bool(model.jit_compile))
    if keras.backend.backend() == "jax" and model.jit_compile:
        import jax

        return jax.jit(schedule)
    return schedule


def _read(s: Any) -> LRSchedule | None:
    kind = type(s).__name__ if type(s).__module__.partition(".")[0] == "keras" else ""
    if kind in ("ExponentialDecay", "InverseTimeDecay"):
        options = {"steps": s.decay_steps, "decay": s.decay_rate, "staircase": s.staircase}
        return LRSchedule(_KINDS[kind], float(s.initial_learning_rate), options)
    if kind == "PiecewiseConstantDecay":
        return LRSchedule("piecewise", float(s.values[0]), {"boundaries": list(s.boundaries), "values": list(s.values)})
    if kind == "PolynomialDecay":
        options = {"steps": s.decay_steps, "end": s.end_learning_rate, "power": s.power, "cycle": s.cycle}
        return LRSchedule("polynomial", float(s.initial_learning_rate), options)
    if kind == "CosineDecay":
        options = {"steps": s.decay_steps, "alpha": s.alpha, "climbs": False,
                   "warmup_target": s.warmup_target, "warmup_steps": s.warmup_steps or 0}  # fmt: skip
        return LRSchedule("cosine", float(s.initial_learning_rate), options)
    if kind == "CosineDecayRestarts":
        options = {"steps": s.first_decay_steps, "t_mul": s._t_mul, "m_mul": s._m_mul, "alpha": s.alpha}
        return LRSchedule("cosine_restarts", float(s.initial_learning_rate), options)
    return None


_KINDS = {"ExponentialDecay": "exponential", "InverseTimeDecay": "inverse_time"}


def make_schedule(schedule: LRSchedule) -> Any:
    """Return a Keras schedule that follows a neutral one: Keras' own class where that computes the same.

    Example:
        >>> import keras, xweights as xw
        >>> from xweights_keras.optimizers.schedules import make_schedule
        >>> float(make_schedule(xw.schedule("polynomial", 0.5, steps=10))(5))
        0.25
    """
    options = schedule.options
    if schedule.precision != "float32":
        return NeutralRate(schedule)
    if schedule.kind == "exponential":
        return _SCHEDULES.ExponentialDecay(schedule.rate, options["steps"], options["decay"], options["staircase"])
    if schedule.kind == "inverse_time":
        return _SCHEDULES.InverseTimeDecay(schedule.rate, options["steps"], options["decay"], options["staircase"])
    if schedule.kind == "piecewise":
        return _SCHEDULES.PiecewiseConstantDecay(list(options["boundaries"]), list(options["values"]))
    if schedule.kind == "polynomial":
        return _SCHEDULES.PolynomialDecay(
            schedule.rate, options["steps"], options["end"], options["power"], options["cycle"]
        )
    if schedule.kind == "cosine" and not options["climbs"]:
        warm = {} if options["warmup_target"] is None else {"warmup_target": options["warmup_target"]}
        return _SCHEDULES.CosineDecay(
            schedule.rate, options["steps"], options["alpha"], warmup_steps=options["warmup_steps"], **warm
        )
    if schedule.kind == "cosine_restarts":
        return _SCHEDULES.CosineDecayRestarts(
            schedule.rate, options["steps"], options["t_mul"], options["m_mul"], options["alpha"]
        )
    return NeutralRate(schedule)


@keras.saving.register_keras_serializable(package="xweights")
class NeutralRate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc] # no types
    """A neutral schedule for Keras optimizers; computed in float64 where Keras' backend has it.

    Example:
        >>> import keras, xweights as xw
        >>> from xweights_keras.optimizers.schedules import NeutralRate
        >>> float(NeutralRate(xw.schedule("piecewise", boundaries=[1], values=[1.0, 0.5]))(2))
        0.5
    """

    def __init__(self, schedule: LRSchedule) -> None:
        super().__init__()
        self.schedule = schedule.tabulated(0)  # traced code can't call Keras

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step."""
        dtype = self.schedule.precision

        def number(value: Any) -> Any:
            return keras.ops.convert_to_tensor(np.asarray(value, dtype))

        computed = evaluate_schedule(keras.ops, self.schedule, keras.ops.cast(step, dtype), number)
        known = self.schedule.known
        if known is None:
            return computed
        position = keras.ops.cast(step, "int32") - self.schedule.first_known
        inside = keras.ops.logical_and(position >= 0, position < len(known))
        value = keras.ops.take(number(known), keras.ops.clip(position, 0, len(known) - 1))
        return keras.ops.where(inside, value, computed)

    def get_config(self) -> dict[str, Any]:
        """Return the config that :meth:`from_config` reads."""
        known = self.schedule.known
        return {"schedule": self.schedule.to_json(), "known": None if known is None else known.tolist()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NeutralRate:
        """Return the saved schedule."""
        known = config["known"]
        schedule = config["schedule"]
        return cls(LRSchedule.from_json(schedule, None if known is None else np.array(known, schedule["precision"])))
