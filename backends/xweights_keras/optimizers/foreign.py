"""Keras math for optimizer update formulas, and an optimizer that runs any of them on every Keras backend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from xweights.optimizers.rules.array_math import Composed
from xweights.optimizers.rules.updates import apply_update
from xweights_keras.optimizers.embedding_gradients import densify


class KerasMath(Composed):
    """The functions used by update formulas."""

    sqrt = staticmethod(ops.sqrt)
    square = staticmethod(ops.square)
    abs = staticmethod(ops.abs)
    sign = staticmethod(ops.sign)
    power = staticmethod(ops.power)
    clip = staticmethod(ops.clip)
    maximum = staticmethod(ops.maximum)
    where = staticmethod(ops.where)
    sum = staticmethod(ops.sum)
    swap = staticmethod(ops.transpose)
    cast = staticmethod(ops.cast)

    def mean(self, x: Any, axis: int | None = None) -> Any:
        """Return the mean over one axis, which is kept, or over all."""
        return ops.mean(x) if axis is None else ops.mean(x, axis=axis, keepdims=True)

    def round_to_bfloat16(self, x: Any) -> Any:
        """Return a float32 tensor rounded to bfloat16."""
        return ops.cast(ops.cast(x, "bfloat16"), "float32")

    def like(self, x: Any, other: Any) -> Any:
        """Return a tensor in the dtype of another."""
        return ops.cast(x, other.dtype)


_MATH = KerasMath()


class TracedNumbers:
    """The numbers of one step, in a graph: ``iterations`` and ``lr`` are tensors.

    1 - beta ** t is computed as -expm1(t * log(beta)): a power would be computed from a rounded beta.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        iterations: Any,
        lr: Any,
        dtype: str,
        factored: tuple[int, int] | None,
    ) -> None:
        self._options, self._dtype, self.factored = options, dtype, factored
        self.t = ops.cast(iterations + 1, dtype)
        self.lr = ops.cast(lr, dtype) * options.get("factor", 1.0)
        self._single = options.get("cast") == "float32"
        self._narrow = options.get("powers") == "dtype"

    def __getitem__(self, name: str) -> Any:
        return self._options.get(name)

    def cast(self, name: str) -> float:
        """Return a hyperparameter as the source framework casts it."""
        return self._cast(self._options[name])

    def _cast(self, value: float) -> float:
        return float(np.float32(value)) if self._single else float(value)

    def _number(self, value: float) -> Any:
        return ops.convert_to_tensor(np.asarray(value, self._dtype))

    def complement(self, name: str) -> Any:
        """Return 1 - beta ** t."""
        if self._narrow:
            return 1.0 - ops.power(self._number(self.cast(name)), self.t)
        beta = self._options[name]
        return self._number(1.0) if beta == 0 else -ops.expm1(self.t * math.log(beta))

    def _decay_power(self, base: float, ahead: int) -> Any:
        exponent = (self.t + ahead) * self._options["momentum_decay"]
        if self._narrow:
            return ops.power(self._number(base), exponent)
        return ops.exp(exponent * math.log(base))

    def after_first(self, value: float, first: float) -> Any:
        """Return ``first`` in the first update, ``value`` in all others."""
        return value + (first - value) * ops.cast(ops.equal(self.t, 1), self._dtype)

    def nadam_momentum(self, ahead: int) -> Any:
        """Return the momentum of nadam at t + ahead."""
        base = self._cast(0.96) if self._narrow else 0.96
        return self.cast("beta_1") * (1.0 - 0.5 * self._decay_power(base, ahead))

    def product_factor(self) -> Any:
        """Return the momentum of nadam at t, from numbers that weren't cast."""
        momentum = self._options["beta_1"] * (1.0 - 0.5 * self._decay_power(0.96, 0))
        narrow = self._options.get("product") == "float32"
        return ops.cast(ops.cast(momentum, "float32"), self._dtype) if narrow else momentum

    def step_power(self, exponent: float) -> Any:
        """Return t ** exponent."""
        return ops.power(self.t, self._number(exponent))

    def sqrt(self, x: Any) -> Any:
        """Return the square root of a number."""
        return ops.sqrt(x)

    def minimum(self, x: Any, y: Any) -> Any:
        """Return the smaller of two numbers."""
        return ops.minimum(x, y)

    def clock(self) -> Any:
        """Return t - 1."""
        return self.t - 1


@keras.saving.register_keras_serializable(package="xweights")
class ForeignOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc] # Keras has no types
    """An optimizer with another framework's update rule, which Keras lacks; it can be compiled and saved.

    ``groups``: for each group a dict of ``rule``, ``hyper``, ``variant``, ``factor`` and ``slots`` (names and initial
    values). ``members``: the group of each variable, in the order of ``build``. ``factored``: for each variable the
    axes of which adafactor keeps rows and columns. ``clip``: (kind, limit, eps).

    Example:
        >>> import keras
        >>> from xweights_keras.optimizers.foreign import ForeignOptimizer
        >>> w = keras.Variable([1.0])
        >>> sgd = {"rule": "sgd", "hyper": {"momentum": 0.0}, "variant": {}, "factor": 1.0, "slots": {}}
        >>> optimizer = ForeignOptimizer(0.5, [sgd], [0], [None])
        >>> optimizer.apply([keras.ops.ones(1)], [w]); float(w[0])
        0.5
    """

    spec: dict[str, Any]
    _options: list[dict[str, Any]]
    _slots: list[dict[str, Any]]
    _times: list[int]

    def __init__(
        self,
        learning_rate: Any,
        groups: Sequence[Mapping[str, Any]],
        members: Sequence[int],
        factored: Sequence[Sequence[int] | None],
        clip: Sequence[Any] | None = None,
        name: str = "foreign_optimizer",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        spec: dict[str, Any] = {
            "groups": [dict(group) for group in groups],
            "members": list(members),
            "factored": [None if axes is None else tuple(axes) for axes in factored],
            "clip": None if clip is None else tuple(clip),
        }
        # Without the tracking of attributes, which would wrap every dict and list.
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "_options", [
            {**group["hyper"], **group["variant"], "factor": group.get("factor", 1.0)} for group in groups
        ])  # fmt: skip

    def build(self, variables: Sequence[Any]) -> None:
        """Make the slots."""
        if self.built:
            return
        super().build(variables)
        slots: list[dict[str, Any]] = []
        for position, variable in enumerate(variables):
            group = self.spec["groups"][self.spec["members"][position]]
            own_slots = {}
            for slot, value in group["slots"].items():
                shape = self._shape(tuple(variable.shape), slot, position, group["variant"].get("eps") == "floor")
                if shape is None:
                    continue
                start = keras.initializers.Constant(value)
                own_slots[slot] = self.add_variable(shape, start, dtype=variable.dtype, name=f"{slot}_{position}")
            slots.append(own_slots)
        object.__setattr__(self, "_slots", slots)

    def _shape(self, shape: tuple[int, ...], slot: str, position: int, floor: bool) -> tuple[int, ...] | None:
        axes = self.spec["factored"][position]
        if slot == "product":
            return ()
        if slot not in ("row", "column"):
            # With eps as a floor, the estimate of a matrix isn't kept.
            return None if slot == "velocity" and floor and axes is not None else shape
        if axes is None:
            return None
        dropped = axes[1] if slot == "row" else axes[0]
        return tuple(1 if axis == dropped % len(shape) else length for axis, length in enumerate(shape))

    def slots_of(self, position: int) -> dict[str, Any]:
        """Return the slots of the n-th variable."""
        return self._slots[position]

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> Any:
        """Make one update of all variables."""
        return super().apply(densify(grads), trainable_variables)

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        """Remember the variables of the gradients for clipping: some count twice in the global norm."""
        members = (self.spec["members"][self._get_variable_index(v)] for v in trainable_variables)
        times = [self.spec["groups"][group]["variant"].get("counts", 1) for group in members]
        object.__setattr__(self, "_times", times)
        super()._backend_apply_gradients(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Make one update of one variable."""
        position = self._get_variable_index(variable)
        group = self.spec["members"][position]
        dtype = keras.backend.standardize_dtype(variable.dtype)
        numbers = TracedNumbers(
            self._options[group], self.iterations, learning_rate, dtype, self.spec["factored"][position]
        )
        slots = {name: ops.convert_to_tensor(slot) for name, slot in self._slots[position].items()}
        rule = self.spec["groups"][group]["rule"]
        new, new_slots = apply_update(
            rule, _MATH, numbers, ops.convert_to_tensor(variable), ops.cast(gradient, dtype), slots
        )
        self.assign(variable, new)
        for name, value in new_slots.items():
            self.assign(self._slots[position][name], value)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Do nothing: decay is part of the formulas."""

    def _clip_gradients(self, grads: Sequence[Any]) -> Sequence[Any]:
        clip = self.spec["clip"]
        if clip is None:
            return grads
        kind, limit, eps = clip
        if kind == "value":
            return [ops.clip(g, -limit, limit) for g in grads]
        squares = [ops.sum(ops.square(g)) for g in grads]
        if kind == "global_norm":
            counted = [square * times for square, times in zip(squares, self._times, strict=True)]
            squares = [sum(counted[1:], counted[0])] * len(grads)
        norms = [ops.sqrt(square) for square in squares]
        if eps:
            return [g * ops.minimum(limit / (norm + eps), 1.0) for g, norm in zip(grads, norms, strict=True)]
        return [g * (limit / ops.maximum(norm, limit)) for g, norm in zip(grads, norms, strict=True)]

    def get_config(self) -> dict[str, Any]:
        """Return the config from which the optimizer is made."""
        config = super().get_config()
        unused = ("weight_decay", "clipnorm", "global_clipnorm", "clipvalue")
        return {**{key: value for key, value in config.items() if key not in unused}, **self.spec}
