"""Tracing and compiling: values that outlive a graph, a zero that no compiler can fold, and compiled steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Tracing and compiling take some milliseconds per variable (2-7 measured), an eager edit from 0.07 up.
SECONDS_PER_VARIABLE = 0.004

_zeros: dict[Any, Any] = {}
_gpus: bool | None = None


def lift(make: Callable[[], Any]) -> Any:
    """Return ``make()``, run outside of any ``tf.function`` being traced; a graph takes the result as an input."""
    if tf.executing_eagerly():
        return make()
    with tf.init_scope():
        return make()


def has_outside() -> bool:
    """Return False in a plain ``tf.Graph`` of TensorFlow 1, which can't take an eager tensor as an input."""
    return bool(tf.executing_eagerly() or tf.compat.v1.executing_eagerly_outside_functions())


def runtime_zero(dtype: Any) -> Any:
    """Return a 0-d integer zero that reaches a graph only at run time, so that nothing can be folded with it."""
    if not has_outside():
        return tf.compat.v1.placeholder_with_default(tf.zeros((), dtype), ())
    if dtype not in _zeros:
        _zeros[dtype] = lift(lambda: tf.zeros((), dtype))
    return _zeros[dtype]


def mark_settled(result: Any, *operands: Any) -> Any:
    """Return the result of an op that only moves bits, marked as settled if all operands are.

    A settled tensor has no arithmetic of ours that could be fused: a variable's value, an eager tensor, the result of a
    fence or a move.
    """
    if tf.is_symbolic_tensor(result) and all(is_settled(operand) for operand in operands):
        result._xweights_settled = True
    return result


def is_settled(tensor: Any) -> bool:
    """Return True unless a tensor is the result of arithmetic that a compiler could fuse with more."""
    return not tf.is_symbolic_tensor(tensor) or getattr(tensor, "_xweights_settled", False)


def any_gpu() -> bool:
    """Return whether this process could run a kernel on an accelerator, whose bits were not measured."""
    global _gpus
    if _gpus is None:
        _gpus = any(device.device_type != "CPU" for device in tf.config.list_physical_devices())
    return _gpus


class CompiledStep:
    """Bound step that compiles itself once its eager calls have cost as much as compiling would.

    So a step called a few times never pays for tracing, and one called many times costs at most twice the best choice.
    """

    def __init__(self, function: Callable[[], None], edits: Callable[[], int]) -> None:
        self._function = function
        self._edits = edits
        self._spent = 0.0
        self._step: Callable[[], Any] | None = None

    def __call__(self) -> None:
        """Run the edit: traced into a graph, eagerly, or compiled."""
        if not tf.executing_eagerly():
            self._function()
        elif self._step is not None:
            self._step()
        else:
            before, start = self._edits(), time.perf_counter()
            self._function()
            self._spent += time.perf_counter() - start
            if self._spent > SECONDS_PER_VARIABLE * (self._edits() - before):
                self._step = self._compile()

    def _compile(self) -> Callable[[], Any]:
        # XLA updates variables in place: half the time of a plain graph where memory is the limit. It can't compile
        # everything (and nothing across devices), but raises before anything has run; a plain graph is used then.
        jit_step = tf.function(self._function, autograph=False, jit_compile=True)

        def first() -> None:
            try:
                jit_step()
            except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.NotFoundError):
                self._step = tf.function(self._function, autograph=False)
                self._step()
            else:
                self._step = jit_step

        return first
