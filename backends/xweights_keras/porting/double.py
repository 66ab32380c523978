"""Copy Keras models, in float64 too, which tells rounding from error.

A copy is made from the model's own configuration with every dtype policy replaced, or by calling its class if that
takes no arguments.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras

from xweights.errors import PortError
from xweights_keras.precision import compute_dtype

_FLOATS = ("float16", "bfloat16", "float32", "mixed_float16", "mixed_bfloat16")


def copy_in_float64(model: Any) -> Any:
    """Return a copy that computes in float64; raise PortError if none can be made."""
    return copy_model(model, "float64")


def copy_model(model: Any, dtype: str | None) -> Any:
    """Return a copy, in another dtype if one is given; raise PortError if none can be made."""
    if dtype is not None and compute_dtype(dtype) != dtype:
        raise PortError(f"Keras computes {dtype} in {compute_dtype(dtype)} on {keras.backend.backend()}")
    try:
        copy = _call_class(model, dtype) if _takes_no_arguments(type(model)) else _deserialize(model, dtype)
        if not copy.built and model.built:
            copy.build_from_config(model.get_build_config())
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise PortError(
            f"this model can't be made again{_in(dtype)}: {type(error).__name__}: {why}\n"
            "Fix: give its class what Keras saves models by: an __init__ that takes **options, and get_config()"
        ) from error
    originals, copies = list(model.weights), list(copy.weights)
    if [tuple(v.shape) for v in originals] != [tuple(v.shape) for v in copies]:
        raise PortError(f"this model can't be made again{_in(dtype)}: its copy has other weights")
    for original, copied in zip(originals, copies, strict=True):
        value = keras.ops.convert_to_numpy(original)
        copied.assign(value.astype(dtype) if dtype is not None and "float" in str(copied.dtype) else value)
        copied.trainable = original.trainable
    return copy


def _takes_no_arguments(kind: type[Any]) -> bool:
    """Return True for a custom class that takes no arguments, so that Keras can't make it from a config."""
    if kind.__module__.partition(".")[0] == "keras":
        return False
    return len(inspect.signature(kind.__init__).parameters) == 1


def _call_class(model: Any, dtype: str | None) -> Any:
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype or model.dtype_policy)
    try:
        return type(model)()
    finally:
        keras.config.set_dtype_policy(former)


def _deserialize(model: Any, dtype: str | None) -> Any:
    layers = model._flatten_layers(include_self=True, recursive=True)
    custom = {name: type(layer) for layer in layers for name in _names(type(layer))}
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    config = config if dtype is None else _replace_dtypes(config, dtype)
    return keras.saving.deserialize_keras_object(config, custom_objects=custom)


def _in(dtype: str | None) -> str:
    return "" if dtype is None else f" in {dtype}"


def _names(kind: type[Any]) -> list[str]:
    return [kind.__name__, keras.saving.get_registered_name(kind)]


def _replace_dtypes(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        return {key: _replace_dtypes(item, dtype) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replace_dtypes(item, dtype) for item in value)
    return dtype if isinstance(value, str) and value in _FLOATS else value
