"""Merge the LoRA factors of Keras layers into the variables that they add to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from xweights.core.parameter import Parameter
from xweights_keras.training.trainers import owning_models


def merge_factors(parameters: Sequence[Parameter], target: Any) -> None:
    """Assign to each variable what its layer computes with, and make the layer one without LoRA.

    A function that was compiled before goes on using the factors: they become zero, so that it computes the same.
    """
    variables = [p.handle for p in parameters]
    trainers = owning_models(target, variables)
    for p, variable in zip(parameters, variables, strict=True):
        storage: Any = p.storage
        _merge(storage.parts[id(variable)](), variable)
    for model in trainers.models:
        model.test_function = model.predict_function = None
    trainers.retrace()


def _merge(layer: Any, variable: Any) -> None:
    name = variable.name
    factors = [getattr(layer, f"lora_{name}_{end}") for end in "ab"]
    variable.assign(getattr(layer, name))
    layer.lora_enabled, layer.lora_rank = False, None
    for end, factor in zip("ab", factors, strict=True):
        factor.assign(keras.ops.zeros(factor.shape, factor.dtype))
        layer._untrack_variable(factor)
        setattr(layer, f"lora_{name}_{end}", None)
    variable.trainable = layer.trainable  # enable_lora() had switched it off
