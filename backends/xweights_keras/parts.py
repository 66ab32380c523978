"""Variables that aren't what their layer computes with: bases of LoRA factors, quantised kernels, bookkeeping.

Layers are known by what Keras' own have: ``lora_enabled`` with ``lora_<name>_a`` beside the variable ``<name>``,
``quantization_mode``, and ``overwrite_with_gradient`` on variables. Classes of other packages that follow them count.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# For each variable, by its id: a weak reference to its layer, since parameters don't keep a model alive.
Parts = Mapping[int, Callable[[], Any]]

# The modes that store integers. In "float8" the kernel is a float that each call rounds: it obeys.
_INTEGER_MODES = ("int8", "int4", "gptq", "awq")


def find_parts(weights: Iterable[tuple[Any, Any]]) -> Parts:
    """Return the variables of layers with LoRA factors or integers, given as (layer, variable)."""
    parts: dict[int, Callable[[], Any]] = {}
    references: dict[int, Callable[[], Any]] = {}
    for layer, variable in weights:
        if variable is None or not (getattr(layer, "lora_enabled", False) or _integer_mode(layer)):
            continue
        if id(layer) not in references:
            references[id(layer)] = weakref.ref(layer)
        parts[id(variable)] = references[id(layer)]
    return parts


def is_bookkeeping(variable: Any) -> bool:
    """Return True for scaling factors and histories of float8: Keras passes their next value as a gradient."""
    return bool(getattr(variable, "overwrite_with_gradient", False))


def refuse_part(layer: Any, variable: Any) -> str | None:
    """Return why the layer wouldn't obey an edit of the variable, as of now, or None."""
    name, mode = variable.name, _integer_mode(layer)
    if mode is not None and not str(variable.dtype).startswith(("float", "bfloat")):
        return (
            f"it holds integers of the mode {mode!r}, which make weights only together with their scaling factors\n"
            "Fix: edit the weights before model.quantize(...), or write integers yourself with set_params"
        )
    if getattr(layer, f"is_{mode}_calibrated", False) and name in ("kernel", "embeddings"):
        return (
            f"after calibration in the mode {mode!r} the layer uses 'quantized_{name}'\n"
            "Fix: edit the weights before model.quantize(...)"
        )
    if getattr(layer, "lora_enabled", False) and getattr(layer, f"lora_{name}_a", None) is not None:
        return (
            "LoRA is enabled, and factors add to it\n"
            f"Fix: merged = layer.{name}; layer.lora_enabled = False; layer.{name}.assign(merged)\n"
            "     before the edit, which is xweights.merge_lora(model), and compile the model again after it\n"
            f"     or edit the factors: where='*lora_{name}_*'"
        )
    return None


def is_factor(layer: Any, variable: Any) -> bool:
    """Return whether a variable is a factor of its layer's LoRA."""
    return bool(getattr(layer, "lora_enabled", False)) and variable.name.startswith("lora_")


def effective_value(layer: Any, variable: Any) -> Any | None:
    """Return what the layer computes with in place of a variable under LoRA factors; None for other variables.

    The layer's own property: Keras adds ``alpha / rank * (a @ b)`` and casts to the layer's compute dtype.
    """
    if _integer_mode(layer) is not None or refuse_part(layer, variable) is None:
        return None
    return getattr(layer, variable.name)


def _integer_mode(layer: Any) -> str | None:
    mode = getattr(layer, "quantization_mode", None)
    return mode if mode in _INTEGER_MODES else None
