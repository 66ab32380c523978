"""Which parameters an object of a framework stands for."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from xweights.core.numpy_backend import NumpyStorage
from xweights.core.registry import backend_for


def keys_of(value: Any) -> frozenset[Hashable] | None:
    """Return the identities of the parameters of a module, layer, variable or array; None for anything else."""
    if isinstance(value, np.ndarray):
        return frozenset({NumpyStorage().identity(value)})
    backend = backend_for(value)
    if backend is None:
        return None
    adapter = backend.adapter(value)
    if adapter is not None:
        return frozenset(p.identity() for p in adapter.parameters(value))
    return frozenset({backend.storage(value).identity(value)}) if backend.is_tensor(value) else None
