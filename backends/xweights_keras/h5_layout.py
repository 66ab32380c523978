"""Where Keras keeps each weight in an HDF5 file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras.src.saving.saving_lib import H5IOStore, _save_state

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter


class _Listing(H5IOStore):  # type: ignore[misc]
    """Notes what is to be stored, and stores nothing."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Any]] = []
        self._path = ""

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> _Listing:
        self._path = f"{path}/vars/" if path else "vars/"
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self.found.append((self._path + key, value))


def file_layout(target: Any, parameters: list[Parameter]) -> list[tuple[str, Parameter | Array]]:
    """Return (key, what is there) for a model or layer: its parameters, and what else Keras wants to find."""
    listing = _Listing()
    _save_state(target, weights_store=listing, assets_store=None, inner_path="", visited_saveables=set())
    known: Mapping[int, Parameter] = {id(p.handle): p for p in parameters}
    return [(key, known[id(value)] if id(value) in known else _array(value)) for key, value in listing.found]


def _array(value: Any) -> Array:
    array: Array = np.asarray(keras.ops.convert_to_numpy(value))
    return array
