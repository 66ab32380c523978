"""The part of Keras storage that all Keras backends share."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope

from xweights.core.dtypes import Array, is_floating
from xweights.core.protocols import BaseStorage
from xweights.core.registry import load
from xweights.errors import WriteError
from xweights_keras.parts import Parts, effective_value, is_bookkeeping, is_factor, refuse_part

NO_SCOPE = object()


def raw_value(variable: Any) -> Any:
    """Return the current value, never autocast: the scope's value, or the native variable or array."""
    scope = get_stateless_scope()
    if scope is not None:
        value = scope.get_current_value(variable)
        if value is not None:
            return value
    return variable._value


def dtype_of(variable: Any) -> np.dtype[Any]:
    """Return the stored dtype. JAX without its 64-bit mode stores a narrower one than the variable declares."""
    value = variable._value
    name = str(variable._dtype if keras.backend.backend() != "jax" or value is None else value.dtype)
    if name not in _dtypes:
        import ml_dtypes

        _dtypes[name] = np.dtype(getattr(ml_dtypes, name, name))
    return _dtypes[name]


_dtypes: dict[str, np.dtype[Any]] = {}


class KerasStorage(BaseStorage):
    """Base class of the storages of Keras variables: scopes and trainable flags.

    ``statistics`` are the ids of variables that were made untrainable (moving statistics): they can't be unfrozen.
    ``parts`` are the layers that compute with more than one of their variables, by the ids of these.
    """

    def __init__(self, root: Any, statistics: frozenset[int], parts: Parts | None = None) -> None:
        self._root: Callable[[], Any] = (lambda: None) if root is None else weakref.ref(root)
        self.statistics = statistics
        self.parts: Parts = parts or {}

    def identity(self, handle: Any) -> Hashable:
        return id(handle)

    def edit_refusal(self, handle: Any) -> str | None:
        layer = self.parts[id(handle)]() if id(handle) in self.parts else None
        return None if layer is None else refuse_part(layer, handle)

    def effective(self, handle: Any) -> Array | None:
        layer = self.parts[id(handle)]() if id(handle) in self.parts else None
        value = None if layer is None else effective_value(layer, handle)
        return None if value is None else np.asarray(keras.ops.convert_to_numpy(value))

    def step_refusal(self, handle: Any) -> str | None:
        """Return why a compiled step can't hold a variable to a rule: it has all of it, and this process a part."""
        return None

    def is_part(self, handle: Any) -> bool:
        layer = self.parts[id(handle)]() if id(handle) in self.parts else None
        return layer is not None and is_factor(layer, handle)

    def trainable(self, handle: Any) -> bool:
        root = self._root()
        return bool(handle.trainable) and not is_bookkeeping(handle) and (root is None or bool(root.trainable))

    def set_trainable(self, handle: Any, flag: bool) -> None:
        if not flag:
            handle.trainable = False
            return
        if id(handle) in self.statistics:
            raise WriteError(
                f"{handle.path!r} is kept by its layer and not trained (it was made with trainable=False)\n"
                "Fix: leave it out with where=, or set variable.trainable = True yourself"
            )
        if is_bookkeeping(handle):
            raise WriteError(f"{handle.path!r} is kept by its layer: each step overwrites it, and nothing trains it")
        if not is_floating(dtype_of(handle)):
            raise WriteError(f"{handle.path!r} has the dtype {handle.dtype}, which can't be trained")
        root = self._root()
        if root is not None and not root.trainable:
            # A frozen model trains nothing, whatever the flags of its variables. The setter would unfreeze every layer
            # below as well (and batch norms would update again), so only the model's own flag changes.
            for variable in root.weights:
                if variable.trainable:
                    variable.trainable = False
            root._trainable = True
        handle.trainable = True


def in_compiled_step() -> bool:
    """Return True where writes don't reach the model at once: while a step is traced, and in a StatelessScope."""
    return get_stateless_scope() is not None or load(keras.backend.backend()).tracing() != "no"


def _scoped(variable: Any) -> Any:
    """Return the variable's value in the active StatelessScope as a tensor, or NO_SCOPE."""
    scope = get_stateless_scope()
    if scope is None:
        return NO_SCOPE
    value = scope.get_current_value(variable)
    return keras.ops.convert_to_tensor(variable._value) if value is None else value


def missing(variable: Any) -> str:
    """Return why a variable has no value."""
    if getattr(variable, "_initializer", None) is not None:
        return "it isn't initialised yet; call the model once, outside of the scope it was made in"
    return "its value is inside a running training step; in a callback reach the model as self.model"
