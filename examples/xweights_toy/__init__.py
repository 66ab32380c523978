"""A complete backend for a framework that is unknown to the core.

- ``framework``: the framework itself, independent of xweights
- ``layers``: the layer table: kind of layer -> array -> name and axes
- ``storage``: the only code that reads and writes an array
- ``adapter``: lists the parameters of a network

The array math is NumPy's, which is part of the core; a framework with its own arrays also needs an ``ops``
(:class:`xweights.backend.Ops`). A distribution registers its backend as an entry point, under the root package of
its types:

    [project.entry-points."xweights.backends"]
    xweights_toy = "xweights_toy:backend"

and a script or a test calls ``xweights.backend.register("xweights_toy", backend)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xweights.backend import NUMPY_OPS, Ops, Tracing
from xweights_toy.adapter import STORAGE, ToyAdapter
from xweights_toy.framework import Network
from xweights_toy.storage import SlotStorage


class ToyBackend:
    """The object that the entry point loads."""

    name = "toy"

    def __init__(self) -> None:
        self._adapter = ToyAdapter()

    def adapter(self, target: Any) -> ToyAdapter | None:
        return self._adapter if isinstance(target, Network) else None

    def is_tensor(self, value: Any) -> bool:
        return False

    def storage(self, variable: Any) -> SlotStorage:
        return STORAGE

    def to_host(self, value: Any) -> np.ndarray[Any, Any]:
        return np.asarray(value.array)

    def ops(self, array: Any) -> Ops:
        return NUMPY_OPS

    def tracing(self) -> Tracing:
        return "no"

    def attach(self, chains: Any, *, target: Any, optimizer: Any, after_step: Any = None) -> None:
        """Return None: the framework has no training, so a hold is applied by hand."""

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        return function


backend = ToyBackend()
