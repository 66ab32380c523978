"""A Keras optimizer's own update with something around it: variables left out, and steps that count in part.

Keras traces these methods into every train step, on each backend, with gradient accumulation and loss scaling;
constraints, and averages (EMA) of the optimizer's own, come after them, as they should.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras

from xweights.core.dispatch import ops_for
from xweights.core.parameter import Parameter
from xweights.training.learning_rates import blended


class OptimizerPatch:
    """What stands in the place of three methods of an optimizer, for as long as there is need."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.left_out: Counter[int] = Counter()  # by variable, with the number of freezes
        self.factors: dict[int, tuple[Parameter, float]] = {}
        self.traced = 0
        self._saved: dict[int, Any] = {}
        self.former = {name: getattr(optimizer, name) for name in _METHODS}
        for name, method in zip(_METHODS, (self._all, self._first, self._last), strict=True):
            object.__setattr__(optimizer, name, method)

    def drop(self) -> None:
        """Put the optimizer's own methods back if there is nothing left to do."""
        if not +self.left_out and not self.factors:
            for name in _METHODS:
                vars(self.optimizer).pop(name, None)

    def _all(self, grads: Any, variables: Any) -> None:
        """Stand for ``_backend_apply_gradients``: everything between the gradients and the constraints."""
        self.traced += 1
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if not self.left_out[_key(v)]]
        if pairs or not grads:
            self.former["_backend_apply_gradients"]([g for g, _ in pairs], [v for _, v in pairs])

    def _first(self, variables: Any) -> None:
        """Stand for ``_apply_weight_decay``, the first thing of a step that changes a weight."""
        self._saved = {}
        for variable in variables:
            p, factor = self.factors.get(_key(variable), (None, 1.0))
            if p is not None and factor != 1.0:
                with p.storage.guard():
                    self._saved[_key(variable)] = keras.ops.copy(p.native(tensor=True))
        self.former["_apply_weight_decay"](variables)

    def _last(self, grads: Any, variables: Any, learning_rate: Any) -> None:
        """Stand for ``_backend_update_step``, the last."""
        self.former["_backend_update_step"](grads, variables, learning_rate)
        saved, self._saved = self._saved, {}
        for key, old in saved.items():
            p, factor = self.factors[key]
            with p.storage.guard():
                leaf = p.native(tensor=True)
                p.commit(leaf, blended(ops_for(leaf), keras.ops.copy(leaf), old, factor, p.dtype))


_METHODS = ("_backend_apply_gradients", "_apply_weight_decay", "_backend_update_step")


def active_patch(optimizer: Any) -> OptimizerPatch | None:
    """Return what stands on an (innermost) optimizer already."""
    method: Callable[..., Any] | None = vars(optimizer).get(_METHODS[0])
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, OptimizerPatch) else None


def update_of(optimizer: Any) -> OptimizerPatch:
    """Return what stands on an (innermost) optimizer, now at the latest."""
    return active_patch(optimizer) or OptimizerPatch(optimizer)


def keys_of(parameters: Sequence[Parameter]) -> list[int]:
    """Return what an update knows the variables of these parameters by."""
    return [_key(p.handle) for p in parameters]


def _key(variable: Any) -> int:
    # A step of the user's own may hand over the native variable.
    native = isinstance(variable, keras.Variable) and keras.backend.backend() != "jax"
    return id(variable._value if native else variable)
