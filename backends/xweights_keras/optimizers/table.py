"""A table of Keras' optimizer classes: the rule that each follows, and the attributes of its slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import keras
import numpy as np


@dataclass(frozen=True)
class OptimizerRow:
    """A row of the table. ``hyper``: attributes that are hyperparameters; ``slots``: neutral name -> attribute."""

    name: str
    rule: str
    hyper: tuple[str, ...]
    slots: Mapping[str, str]
    variant: Mapping[str, Any] = field(default_factory=dict)
    scaled: tuple[str, ...] = ()  # numbers that are cast to the dtype of the weights

    @property
    def kind(self) -> type[Any]:
        """Return the class."""
        kind: type[Any] = getattr(keras.optimizers, self.name)
        return kind


_MOMENTS = {"momentum": "_momentums", "velocity": "_velocities"}
_BETAS = ("beta_1", "beta_2", "epsilon")
_DECOUPLED = {"decay": "decoupled", "powers": "dtype"}
_ADAM = ({**_MOMENTS, "velocity_hat": "_velocity_hats"}, {**_DECOUPLED, "eps": "raw"}, ("beta_1", "beta_2"))

_ALL = [
    OptimizerRow("SGD", "sgd", ("momentum", "nesterov"), {"momentum": "momentums"},
           {**_DECOUPLED, "rate_inside": True}, ("momentum",)),
    OptimizerRow("AdamW", "adam", (*_BETAS, "amsgrad"), *_ADAM),
    OptimizerRow("Adam", "adam", (*_BETAS, "amsgrad"), *_ADAM),
    OptimizerRow("Adamax", "adamax", _BETAS, {"momentum": "_m", "norm": "_u"},
           {**_DECOUPLED, "eps": "outside"}, ("beta_1",)),
    OptimizerRow("Nadam", "nadam", _BETAS, {**_MOMENTS, "product": "_u_product"}, _DECOUPLED, ("beta_1", "beta_2")),
    OptimizerRow("RMSprop", "rmsprop", ("rho", "momentum", "epsilon", "centered"),
           {"velocity": "_velocities", "momentum": "_momentums", "average_gradient": "_average_gradients"},
           {**_DECOUPLED, "eps": "inside", "rate_inside": True}),
    OptimizerRow("Adagrad", "adagrad", ("initial_accumulator_value", "epsilon"), {"accumulator": "_accumulators"},
           {**_DECOUPLED, "eps": "inside"}),
    OptimizerRow("Adadelta", "adadelta", ("rho", "epsilon"),
           {"accumulated_grad": "_accumulated_grads", "accumulated_delta_var": "_accumulated_delta_vars"}, _DECOUPLED),
    OptimizerRow("Adafactor", "adafactor", ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold",
           "relative_step"),
           {"row": "_r", "column": "_c", "velocity": "_v"},
           {**_DECOUPLED, "eps": "added", "scale": "after"}, ("epsilon_2",)),
    OptimizerRow("Lion", "lion", ("beta_1", "beta_2"), {"momentum": "_momentums"}, _DECOUPLED, ("beta_1", "beta_2")),
    OptimizerRow("Ftrl", "ftrl", ("learning_rate_power", "initial_accumulator_value", "l1_regularization_strength",
                            "l2_regularization_strength", "l2_shrinkage_regularization_strength", "beta"),
           {"accumulator": "_accumulators", "linear": "_linears"}, _DECOUPLED),
    OptimizerRow("Lamb", "lamb", _BETAS, _MOMENTS, _DECOUPLED, ("beta_1", "beta_2")),
    OptimizerRow("Muon", "muon", ("momentum", "nesterov", "ns_steps", "muon_a", "muon_b", "muon_c", "rms_rate",
           "epsilon"),
           {"momentum": "momentums", "velocity": "adam_velocities"},
           {**_DECOUPLED, "accumulate": "sum", "adjust": "rms", "narrow": None}),
]  # fmt: skip


def _is_known(row: OptimizerRow) -> bool:
    # Keras before 3.10 has no Muon, and before 3.13 one of another rule: it scales without rms_rate.
    kind = getattr(keras.optimizers, row.name, None)
    return kind is not None and set(row.hyper) <= set(signature(kind.__init__).parameters)


CLASSES = {row.name: row for row in _ALL if _is_known(row)}


def native_of(optimizer: Any) -> OptimizerRow | None:
    """Return the row of an optimizer; None for an unknown class, custom subclasses included."""
    kind = type(optimizer)
    return CLASSES.get(kind.__name__) if kind.__module__.partition(".")[0] == "keras" else None


def class_for(rule: str, *, decays: bool) -> OptimizerRow | None:
    """Return the row that fits a rule; None if Keras has none."""
    if rule == "adam":
        return CLASSES["AdamW" if decays else "Adam"]
    return next((row for row in CLASSES.values() if row.rule == rule), None)


def cast_precision() -> str:
    """Return the precision of a number that Keras casts to float64: "float32" if it loses digits, else "exact"."""
    value = float(np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(0.9, "float64"))))
    return "exact" if value == 0.9 else "float32"


def variant_of(native: OptimizerRow) -> dict[str, Any]:
    """Return the variant of a rule on this Keras backend."""
    decays = "factor" if keras.backend.backend() == "torch" and native.rule != "muon" else "difference"
    return {**native.variant, "cast": cast_precision(), "decays": decays}
