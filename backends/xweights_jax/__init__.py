"""JAX backend of xweights: array ops for models whose weights are JAX arrays, such as Keras on JAX.

A JAX array can't be edited in place, so neither an array nor a tree of arrays is a target. A model that owns such
arrays (a Keras model) is one, through its own backend.
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
    """Backend of JAX; see :class:`xweights.backend.Backend`."""

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
            "expected: the owner of the array (a Keras model, layer or variable), or a mapping of NumPy arrays\n"
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
        return None  # JAX has no training loop: the user's own step calls held.apply()

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        # A step has no inputs or outputs, and the objects it changes aren't arrays, so jax.jit has nothing to compile.
        return function


backend = JaxBackend()
