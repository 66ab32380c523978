"""`Pad`, and how entries that no value has are initialized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from xweights.core.casting import cast_exactly, round_to
from xweights.core.dtypes import Array
from xweights.core.layout import Shape, plain_layout
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter
from xweights.edit.adapt.along_axis import sum_in_order
from xweights.edit.adapt.base import (
    Adapter,
    Axis,
    Wanted,
    check_axis,
    check_count,
    find_axis,
    need_floating_value,
    need_length,
    show_axis,
    with_length,
)
from xweights.errors import ArgumentError, ShapeError, WriteError, near
from xweights.rules.base import Initializer
from xweights.rules.initializers import OPTIONS, Init, initial_weights
from xweights.rules.noise import generator

_STORAGE = NumpyStorage()


@dataclass(frozen=True)
class NewEntries:
    """How entries that the value doesn't have are initialized: the options that `Pad` and `Rows` share.

    ``init``: "mean" (of the value's entries along the axis), "keep" (what the target has there), or an initializer of
    :func:`xweights.init`, which draws what it would draw for the whole parameter.
    """

    init: Initializer
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.init in ("mean", "keep"):
            if self.options:
                raise ArgumentError(f"init={self.init!r} has no options\ngot: {', '.join(self.options)}")
            Init("zeros", self.seed)
        elif not callable(self.init) and self.init not in OPTIONS:
            known = ["mean", "keep", *OPTIONS]
            raise ArgumentError(f"no initializer is named {self.init!r}\n{near(str(self.init), known)}")
        else:
            Init(self.init, self.seed, self.options)

    def __repr__(self) -> str:
        name = repr(self.init) if isinstance(self.init, str) else getattr(self.init, "__name__", repr(self.init))
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"init={name}{f', seed={self.seed}' if self.seed else ''}{options}"

    def check(self, shape: Shape, wanted: Wanted, what: object) -> None:
        """Raise if new entries can't be made for a parameter of this shape."""
        if self.init == "mean":
            need_floating_value(wanted, what)
        elif self.init == "keep":
            if wanted.current is None:
                raise WriteError(
                    f"{what} keeps what the target has, and a new file has no {wanted.name!r}\n"
                    "Fix: another init=, or set_params on a target"
                )
            if wanted.shape != shape:
                raise ShapeError(f"{what} can't keep entries of {wanted.name!r} {wanted.shape}: it makes {shape}")

    def make(self, shape: Shape, array: Array, axis: int, wanted: Wanted) -> Array:
        """Return an array of ``shape``, or one that broadcasts to it, that new entries are taken from."""
        if self.init == "mean":
            mean = sum_in_order(array, axis) / array.shape[axis]
            return np.broadcast_to(np.expand_dims(round_to(mean, array.dtype), axis), shape)
        if self.init == "keep":
            assert wanted.current is not None
            return cast_exactly(wanted.current(), array.dtype, what=f"what the target has in {wanted.name!r}")
        if self.init in ("zeros", "ones"):
            return np.broadcast_to(np.asarray(self.init == "ones").astype(array.dtype), shape)
        axes = wanted.axes if wanted.axes is not None and len(wanted.axes) == len(shape) else None
        p = Parameter(
            name=wanted.name,
            native_name=wanted.name,
            role=wanted.role,
            layout=plain_layout(shape, axes),
            dtype=array.dtype,
            storage=_STORAGE,
            handle=None,
        )
        return initial_weights(self.init, p, generator(self.seed, wanted.name), self.options)


@dataclass(frozen=True, init=False)
class Pad(Adapter):
    """Add entries along an axis: classes, channels, positions that the value doesn't have.

    Args:
        axis: The axis, by name or by number in neutral order.
        length: The length afterwards. Default: the target's.
        init: The new entries: "zeros", "mean" (of the others along the axis), "keep" (what the target has there), or
            any initializer of :func:`xweights.init`, which draws what it would draw there.
        seed: Of random initializers: the same seed gives the same entries everywhere.
        at: Where the new entries are: "end" or "start".
        **options: Those of the initializer, as ``std=0.02``.

    Exact: the others are copied, new entries are drawn on the host.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"bias": np.zeros(3)}; pad = xw.adapt.Pad(0, init="mean")
        >>> report = xw.set_params(w, {"bias": [1.0, 2.0]}, adapt={"bias": pad}); w["bias"]
        array([1. , 2. , 1.5])
    """

    axis: Axis
    length: int | None
    new: NewEntries
    at: Literal["end", "start"]

    def __init__(
        self,
        axis: Axis,
        length: int | None = None,
        *,
        init: Initializer = "zeros",
        seed: int = 0,
        at: Literal["end", "start"] = "end",
        **options: Any,
    ) -> None:
        check_axis(axis)
        if length is not None:
            check_count(length, "length=", least=1)
        if at not in ("end", "start"):
            raise ArgumentError(f'at= is "end" or "start"\ngot: {at!r}')
        for name, value in (("axis", axis), ("length", length), ("new", NewEntries(init, seed, options)), ("at", at)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        length = "" if self.length is None else f", {self.length}"
        at = "" if self.at == "end" else f", at={self.at!r}"
        return f"Pad({show_axis(self.axis)}{length}, {self.new!r}{at})"

    def check(self, shape: Shape, wanted: Wanted) -> Shape:
        axis = find_axis(self.axis, shape, wanted, self)
        length = self.length or need_length(wanted, axis, len(shape), self, "Pad(axis, length)")
        if length < shape[axis] or (self.new.init == "mean" and not shape[axis]):
            raise ShapeError(
                f"{self} can't make {length} of the {shape[axis]} entries of {wanted.name!r} along its axis\n"
                "Fix: Take(axis, indices) for fewer entries"
            )
        padded = with_length(shape, axis, length)
        self.new.check(padded, wanted, self)
        return padded

    def __call__(self, array: Array, wanted: Wanted) -> Array:
        shape = self.check(array.shape, wanted)
        axis = find_axis(self.axis, array.shape, wanted, self)
        padded: Array = np.array(self.new.make(shape, array, axis, wanted))
        start = 0 if self.at == "end" else shape[axis] - array.shape[axis]
        padded[(slice(None),) * axis + (slice(start, start + array.shape[axis]),)] = array
        return padded
