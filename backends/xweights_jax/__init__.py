"""JAX for xweights: the array ops for models whose weights are JAX arrays, such as Keras on JAX.

A JAX array can't be edited in place, so neither one nor a tree of them is a target; what owns such arrays (a Keras
model) is, through its own backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from xweights.core.backend import Adapter, HeldChain, HoldAttachment, Tracing
from xweights.core.dtypes import Array
from xweights.core.protocols import Ops, Storage
from xweights.errors import TargetError, TraceError
from xweights_jax.ops import JaxOps, tracing

__all__ = ["backend"]


class JaxBackend:
    """What xweights asks of JAX; see :class:`xweights.backend.Backend`."""

    name = "jax"

    def __init__(self) -> None:
        self._ops = JaxOps()

    def adapter(self, target: Any) -> Adapter | None:
        return None

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, (jax.Array, jax.core.Tracer))

    def storage(self, variable: Any) -> Storage:
        raise TargetError(
            "a JAX array can't be edited in place\n"
            f"got:      {type(variable).__module__}.{type(variable).__qualname__}\n"
            "expected: what owns the array (a Keras model, layer or variable), or a mapping of NumPy arrays\n"
            "Fix: w = jax.tree.map(np.array, params), edit w, then jax.tree.map(jnp.asarray, w)"
        )

    def to_host(self, value: Any) -> Array:
        if isinstance(value, jax.core.Tracer):
            raise TraceError(
                "the values of a JAX array aren't known while it is traced\n"
                "Fix: pass host arrays, or call this in plain Python, outside of the compiled step"
            )
        return np.asarray(value)

    def ops(self, array: Any) -> Ops:
        return self._ops

    def tracing(self) -> Tracing:
        return "inline" if tracing() else "no"

    def attach(
        self,
        chains: Sequence[HeldChain],
        *,
        target: Any,
        optimizer: Any,
        after_step: Callable[[Any], None] | None = None,
    ) -> HoldAttachment | None:
        return None  # nothing here updates by itself: the step is the user's, and calls held.apply()

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        # A step has no inputs and no outputs, and what it changes are not arrays: there is nothing jax.jit could take.
        return function


backend = JaxBackend()
