"""TensorFlow backend of xweights: ``tf.Module`` and ``tf.Variable`` as targets, and array ops.

It is loaded once an object of TensorFlow is passed to xweights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from xweights.core.backend import Adapter, HeldChain, HoldAttachment, Tracing
from xweights.core.dtypes import Array
from xweights.core.protocols import Ops, Storage
from xweights.core.registry import roots
from xweights.errors import TargetError, TraceError
from xweights_tensorflow.adapter import ModuleAdapter, keras_2_error
from xweights_tensorflow.graphs import CompiledStep
from xweights_tensorflow.mirrored import storage_for
from xweights_tensorflow.ops import TensorFlowOps
from xweights_tensorflow.storage import VARIABLES, host_view

__all__ = ["backend"]


class TensorFlowBackend:
    """Backend of TensorFlow; see :class:`xweights.backend.Backend`."""

    name = "tensorflow"

    def __init__(self) -> None:
        self._adapter = ModuleAdapter()
        self._ops = TensorFlowOps()

    def adapter(self, target: Any) -> Adapter | None:
        if "tf_keras" in roots(type(target)):
            raise keras_2_error(target)
        return self._adapter if isinstance(target, (tf.Module, tf.Variable)) else None

    def is_tensor(self, value: Any) -> bool:
        return tf.is_tensor(value) and not isinstance(value, tf.Variable)

    def storage(self, variable: Any) -> Storage:
        if isinstance(variable, tf.Variable):
            return storage_for(variable)
        raise TargetError(
            "only a variable of TensorFlow can be edited in place\n"
            f"got:      {type(variable).__module__}.{type(variable).__qualname__}\n"
            "expected: tf.Variable"
        )

    def to_host(self, value: Any) -> Array:
        if isinstance(value, tf.Variable):
            return storage_for(value).read(value)
        if tf.is_symbolic_tensor(value):
            raise TraceError(
                f"the values of {value.name!r} aren't known while a tf.function is traced\n"
                "Fix: pass host arrays, or call this in plain Python, outside of the compiled step"
            )
        return host_view(value)

    def ops(self, array: Any) -> Ops:
        return self._ops

    def tracing(self) -> Tracing:
        return "no" if tf.executing_eagerly() else "inline"

    def attach(
        self,
        chains: Sequence[HeldChain],
        *,
        target: Any,
        optimizer: Any,
        after_step: Callable[[Any], None] | None = None,
    ) -> HoldAttachment | None:
        return None  # TensorFlow has no training loop: the user's own step calls held.apply()

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        return CompiledStep(function, lambda: VARIABLES.edits)


backend = TensorFlowBackend()
