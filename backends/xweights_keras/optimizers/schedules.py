"""Learning-rate schedules of Keras, read into the neutral definition and made from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from xweights.errors import HandoffError
from xweights.optimizers.lr_schedule import LRSchedule, rate_of

_SCHEDULES = keras.optimizers.schedules
# Kinds whose last bit differs between implementations of a power.
_ROUNDED = frozenset({"exponential", "inverse_time", "polynomial"})


def read_schedule(given: Any, step: int, *, model: Any = None, wide: bool = False) -> LRSchedule:
    """Return a schedule of Keras in neutral words, which asks Keras for what only Keras can know.

    ``model``: the rates are computed as its training step is compiled, since compilers round otherwise. ``wide``: there
    are float64 weights, for which a last bit of a float32 rate counts.
    """
    if isinstance(given, NeutralRate):
        return given.schedule
    made = _read(given)
    if made is None:
        kind = type(given).__name__
        raise HandoffError(
            f"the learning rate {kind} can't be handed over: it has no neutral counterpart\n"
            'Fix: xw.schedule(...) says the same in every framework ("table" takes any values); '
            "xweights_keras.optimizers.schedules.make_schedule(schedule) makes a schedule of Keras of it"
        )
    precision = keras.backend.standardize_dtype(given(step).dtype)
    made = LRSchedule(made.kind, made.rate, made.options, precision)
    if made.kind not in ("cosine", "cosine_restarts") and not (wide and made.kind in _ROUNDED):
        return made
    rate = _compiled_as(given, model)

    def asked(at: int) -> float:
        return float(keras.ops.convert_to_numpy(rate(keras.ops.convert_to_tensor(np.int32(at)))))

    return replace(made, live=asked)


def _compiled_as(given: Any, model: Any) -> Any:
    """Return a schedule, compiled as the training step of a model is."""
    if not getattr(model, "compiled", False) or model.run_eagerly:
        return given
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(given, jit_compile=bool(model.jit_compile))
    if keras.backend.backend() == "jax" and model.jit_compile:
        import jax

        return jax.jit(given)
    return given


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


def make_schedule(given: LRSchedule) -> Any:
    """Return a schedule of Keras that follows a neutral one: Keras' own class where that computes the same.

    Example:
        >>> import keras, xweights as xw
        >>> from xweights_keras.optimizers.schedules import make_schedule
        >>> float(make_schedule(xw.schedule("polynomial", 0.5, steps=10))(5))
        0.25
    """
    o = given.options
    if given.precision != "float32":
        return NeutralRate(given)
    if given.kind == "exponential":
        return _SCHEDULES.ExponentialDecay(given.rate, o["steps"], o["decay"], o["staircase"])
    if given.kind == "inverse_time":
        return _SCHEDULES.InverseTimeDecay(given.rate, o["steps"], o["decay"], o["staircase"])
    if given.kind == "piecewise":
        return _SCHEDULES.PiecewiseConstantDecay(list(o["boundaries"]), list(o["values"]))
    if given.kind == "polynomial":
        return _SCHEDULES.PolynomialDecay(given.rate, o["steps"], o["end"], o["power"], o["cycle"])
    if given.kind == "cosine" and not o["climbs"]:
        warm = {} if o["warmup_target"] is None else {"warmup_target": o["warmup_target"]}
        return _SCHEDULES.CosineDecay(given.rate, o["steps"], o["alpha"], warmup_steps=o["warmup_steps"], **warm)
    if given.kind == "cosine_restarts":
        return _SCHEDULES.CosineDecayRestarts(given.rate, o["steps"], o["t_mul"], o["m_mul"], o["alpha"])
    return NeutralRate(given)


@keras.saving.register_keras_serializable(package="xweights")
class NeutralRate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A neutral schedule, for the optimizers of Keras; computed in float64 where Keras' backend has it.

    Example:
        >>> import keras, xweights as xw
        >>> from xweights_keras.optimizers.schedules import NeutralRate
        >>> float(NeutralRate(xw.schedule("piecewise", boundaries=[1], values=[1.0, 0.5]))(2))
        0.5
    """

    def __init__(self, schedule: LRSchedule) -> None:
        super().__init__()
        self.schedule = schedule.tabulated(0)  # what is traced can't ask

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        dtype = self.schedule.precision

        def number(value: Any) -> Any:
            return keras.ops.convert_to_tensor(np.asarray(value, dtype))

        made = rate_of(keras.ops, self.schedule, keras.ops.cast(step, dtype), number)
        known = self.schedule.known
        if known is None:
            return made
        place = keras.ops.cast(step, "int32") - self.schedule.first_known
        inside = keras.ops.logical_and(place >= 0, place < len(known))
        value = keras.ops.take(number(known), keras.ops.clip(place, 0, len(known) - 1))
        return keras.ops.where(inside, value, made)

    def get_config(self) -> dict[str, Any]:
        """What :meth:`from_config` reads."""
        known = self.schedule.known
        return {"schedule": self.schedule.to_json(), "known": None if known is None else known.tolist()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NeutralRate:
        """The schedule that was saved."""
        known = config["known"]
        given = config["schedule"]
        return cls(LRSchedule.from_json(given, None if known is None else np.array(known, given["precision"])))
