"""Choose the storage that reads and writes ``keras.Variable`` objects on the current Keras backend.

A handle is the ``keras.Variable`` itself.

Inside a ``keras.StatelessScope`` a variable has the scope's value, and only ``assign`` may change it: this is how a
bound rule becomes part of a ``jax.jit`` step. Storages use the raw value: ``variable.value`` may be autocast.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import keras

from xweights.core.protocols import Storage
from xweights.core.registry import backend_for
from xweights.errors import TargetError
from xweights_keras.parts import Parts
from xweights_keras.storage.delegating import DelegatingStorage


def storage_for(
    variable: Any, root: Any = None, statistics: frozenset[int] = frozenset(), parts: Parts | None = None
) -> Storage:
    """Return a storage for variables like this one. ``root`` is the model whose ``trainable`` counts."""
    if keras.backend.backend() == "jax":
        if _is_of_processes(variable):
            from xweights_keras.storage.jax_processes import ProcessStorage

            return ProcessStorage(root, statistics, parts)
        from xweights_keras.storage.jax import JaxStorage

        return JaxStorage(root, statistics, parts)
    backend = backend_for(variable._value)
    if backend is None:
        raise TargetError(
            f"no backend is installed for Keras on {keras.backend.backend()!r}\n"
            "expected: tensorflow, jax or torch (KERAS_BACKEND, or ~/.keras/keras.json)"
        )
    return DelegatingStorage(backend.storage(variable._value), root, statistics, parts)


def kind_of(variable: Any) -> Hashable:
    """Return what variables have in common that one storage reads and writes."""
    return type(variable._value), keras.backend.backend() == "jax" and _is_of_processes(variable)


def _is_of_processes(variable: Any) -> bool:
    """Return whether other processes of ``jax.distributed`` have devices of a variable's array, too."""
    import jax

    # A tracer that was left in a variable raises when it is asked for devices (JAX 0.6 and 0.7).
    value = variable._value
    return not isinstance(value, jax.core.Tracer) and not getattr(value, "is_fully_addressable", True)
