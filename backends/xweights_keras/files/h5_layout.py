"""The keys under which Keras stores each weight in an HDF5 file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.saving_lib import H5IOStore, _save_state

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter


class _Listing(H5IOStore):  # type: ignore[misc] # Keras has no types
    """A store that lists the keys and values given to it, and writes nothing."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any]] = []
        self._path = ""

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> _Listing:
        self._path = f"{path}/vars/" if path else "vars/"
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self.entries.append((self._path + key, value))


def file_layout(target: Any, parameters: list[Parameter]) -> list[tuple[str, Parameter | Array]]:
    """Return (key, value) for a model or layer: its parameters, and the arrays that Keras expects beside them."""
    if not isinstance(target, KerasSaveable):
        return []  # a lone variable, which Keras saves with its layer
    listing = _Listing()
    with _without_factors(target):
        _save_state(target, weights_store=listing, assets_store=None, inner_path="", visited_saveables=set())
    by_id: Mapping[int, Parameter] = {id(p.handle): p for p in parameters}
    return [(key, by_id[id(value)] if id(value) in by_id else _array(value)) for key, value in listing.entries]


@contextmanager
def _without_factors(target: Any) -> Iterator[None]:
    """Have layers list the variable under their LoRA factors, where they would save the merged value.

    A quantised layer merges and rounds anew, and has no variable with that value.
    """
    layers = target._flatten_layers() if isinstance(target, keras.Layer) else ()
    enabled = [layer for layer in layers if getattr(layer, "lora_enabled", False) and not layer.quantization_mode]
    for layer in enabled:
        layer.lora_enabled = False
    try:
        yield
    finally:
        for layer in enabled:
            layer.lora_enabled = True


def _array(value: Any) -> Array:
    array: Array = np.asarray(keras.ops.convert_to_numpy(value))
    return array
