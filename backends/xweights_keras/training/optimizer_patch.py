"""Patch a Keras optimizer's update: leave variables out, and scale the updates of some.

Keras traces the patched methods into every train step, on each backend, with gradient accumulation and loss scaling;
constraints and the optimizer's own averages (EMA) run after them, as they should.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras

from xweights.core.dispatch import ops_for
from xweights.core.parameter import Parameter
from xweights.training.learning_rates import blend_step


class OptimizerPatch:
    """Patch three methods of a Keras optimizer; `drop` restores them."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.left_out: Counter[int] = Counter()  # by variable, with the number of freezes
        self.factors: dict[int, tuple[Parameter, float]] = {}
        self.owners: dict[int, object] = {}  # the handles of the factors, which live as long
        self.traced = 0
        # By thread: each replica of tf.distribute makes its step in one of its own, and they wait for each other in it.
        self._saved: dict[int, dict[int, Any]] = {}
        self.former = {name: getattr(optimizer, name) for name in _METHODS}
        for name, method in zip(_METHODS, (self._all, self._first, self._last), strict=True):
            object.__setattr__(optimizer, name, method)

    def drop(self) -> None:
        """Restore the optimizer's own methods if no freeze and no factor is left."""
        if not +self.left_out and not self.factors:
            for name in _METHODS:
                vars(self.optimizer).pop(name, None)

    def _all(self, grads: Any, variables: Any) -> None:
        """Replace ``_backend_apply_gradients``: everything between the gradients and the constraints."""
        self.traced += 1
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if not self.left_out[_key(v)]]
        if pairs or not grads:
            self.former["_backend_apply_gradients"]([g for g, _ in pairs], [v for _, v in pairs])

    def _first(self, variables: Any) -> None:
        """Replace ``_apply_weight_decay``, the first part of a step that changes a weight."""
        self._saved[threading.get_ident()] = saved = {}
        for variable in variables:
            p, factor = self.factors.get(_key(variable), (None, 1.0))
            if p is not None and factor != 1.0:
                with p.storage.guard():
                    saved[_key(variable)] = keras.ops.copy(p.native(tensor=True))
        self.former["_apply_weight_decay"](variables)

    def _last(self, grads: Any, variables: Any, learning_rate: Any) -> None:
        """Replace ``_backend_update_step``, the last part."""
        self.former["_backend_update_step"](grads, variables, learning_rate)
        for key, old in self._saved.pop(threading.get_ident(), {}).items():
            p, factor = self.factors[key]
            with p.storage.guard():
                native = p.native(tensor=True)
                p.commit(native, blend_step(ops_for(native), keras.ops.copy(native), old, factor, p.dtype))


_METHODS = ("_backend_apply_gradients", "_apply_weight_decay", "_backend_update_step")


def find_patch(optimizer: Any) -> OptimizerPatch | None:
    """Return the patch that an (innermost) optimizer has already, or None."""
    method: Callable[..., Any] | None = vars(optimizer).get(_METHODS[0])
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, OptimizerPatch) else None


def ensure_patch(optimizer: Any) -> OptimizerPatch:
    """Return the patch of an (innermost) optimizer; add one if it has none."""
    return find_patch(optimizer) or OptimizerPatch(optimizer)


def keys_of(parameters: Sequence[Parameter]) -> list[int]:
    """Return the keys by which a patch finds the variables of these parameters."""
    return [_key(p.handle) for p in parameters]


def _key(variable: Any) -> int:
    # A custom train step may pass the native variable.
    native = isinstance(variable, keras.Variable) and keras.backend.backend() != "jax"
    return id(variable._value if native else variable)
