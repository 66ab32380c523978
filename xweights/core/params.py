"""`Params`: NumPy arrays by name, with axes and roles."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from types import MappingProxyType
from typing import Any

import numpy as np

from xweights.core.blocks import find_spans
from xweights.core.casting import as_number
from xweights.core.dtypes import Array
from xweights.core.layout import Axes, LayoutName
from xweights.core.mappings import flatten_mapping, last_part, mapping_parameters
from xweights.core.packed_masks import PackedMask
from xweights.core.parameter import Parameter
from xweights.core.selection import select
from xweights.core.values import host_array
from xweights.errors import (
    ArgumentError,
    DtypeError,
    LayoutError,
    Problems,
    SelectionError,
    ShapeError,
    got_expected,
    near,
    shown,
)


class Params(Mapping[str, Array]):
    """An ordered mapping of names to NumPy arrays, with each array's axes, role and gate order.

    It is a target like any other: verbs edit its arrays in place. Arithmetic (``a - b``, ``a + 0.5 * d``) needs equal
    names, shapes and axes, and keeps the dtype. Exact.

    Args:
        mapping: Arrays by name; nested string-keyed mappings flatten with ``/``. The arrays are not copied.
        axes: Axis names by array name; absent or None: unknown.
        roles: Roles by array name; by default the last part of the name.
        gates: Order of packed gates by array name.
        layout: "neutral" (Keras' axis order) or "native" (as a framework stored it; ``axes`` are then in that order).

    Raises:
        ArgumentError: a key that is no string, a value that is no array.
        LayoutError: axes that don't fit their array.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.Params({"dense": {"kernel": np.ones((3, 2))}}, axes={"dense/kernel": ("in", "out")})
        Params of 1 array, 6 entries
          dense/kernel  (in, out) = (3, 2)  float64
    """

    def __init__(
        self,
        mapping: Mapping[str, Any],
        *,
        axes: Mapping[str, Axes | None] | None = None,
        roles: Mapping[str, str] | None = None,
        gates: Mapping[str, tuple[str, ...] | None] | None = None,
        layout: LayoutName = "neutral",
    ) -> None:
        self._arrays: dict[str, Any] = {  # arrays, or masks as bits
            name: host_array(value, what=repr(name)) for name, value in flatten_mapping(mapping).items()
        }
        self._axes: dict[str, Axes | None] = dict.fromkeys(self._arrays)
        self._roles = {name: last_part(name) for name in self._arrays}
        self._gates: dict[str, tuple[str, ...] | None] = dict.fromkeys(self._arrays)
        if layout not in ("neutral", "native"):
            raise ArgumentError(f'layout= is "neutral" or "native"\n{got_expected(shown(layout), "one of the two")}')
        self.layout: LayoutName = layout
        problems = Problems("these Params don't fit together")
        kinds: tuple[tuple[Any, dict[str, Any]], ...] = (
            (axes, self._axes),
            (roles, self._roles),
            (gates, self._gates),
        )
        for passed, stored in kinds:
            for name, value in (passed or {}).items():
                if name not in self._arrays:
                    problems.add(SelectionError, f"{name!r} is no array of these Params\n{near(name, self._arrays)}")
                else:
                    stored[name] = tuple(value) if isinstance(value, list) else value
        for name, names in self._axes.items():
            if names is None:
                continue
            if isinstance(names, str):
                problems.add(LayoutError, f"axes are a tuple of names\ngot: {names!r} for {name!r}")
            elif len(names) != self._arrays[name].ndim:
                problems.add(LayoutError, f"{name!r} has the shape {self._arrays[name].shape}, its axes are {names}")
            elif len(set(names)) != len(names):
                problems.add(LayoutError, f"{name!r} has two axes of one name: {names}")
        problems.check()

    @classmethod
    def _made(
        cls,
        arrays: dict[str, Array],
        axes: dict[str, Axes | None],
        roles: dict[str, str],
        gates: dict[str, tuple[str, ...] | None],
        layout: LayoutName,
    ) -> Params:
        """Build from parts that are known to fit, without checks."""
        self = cls.__new__(cls)
        self._arrays, self._axes, self._roles, self._gates, self.layout = arrays, axes, roles, gates, layout
        return self

    @classmethod
    def of(cls, parameters: Sequence[Parameter], arrays: dict[str, Array], *, layout: LayoutName = "neutral") -> Params:
        """Return arrays by name as Params that know the axes, roles and gates of these parameters.

        Example:
            >>> import numpy as np, xweights as xw
            >>> weights = {"d/kernel": np.ones(2)}
            >>> xw.Params.of(xw.parameters(weights), weights).roles["d/kernel"]
            'kernel'
        """
        neutral = layout == "neutral"
        return cls._made(
            arrays,
            {p.name: p.layout.axes if neutral else p.layout.stored_axes for p in parameters},
            {p.name: p.role for p in parameters},
            {p.name: p.gates for p in parameters},
            layout,
        )

    def _with_arrays(self, arrays: dict[str, Array]) -> Params:
        """Return arrays under the same names, which nobody checks, with the axes, roles and gates of these."""
        return Params._made(arrays, dict(self._axes), dict(self._roles), dict(self._gates), self.layout)

    _packed = False  # True where the arrays are masks as bits
    _spans: tuple[Array, Array] | None = None
    # NumPy's own numbers then defer to Params in arithmetic.
    __array_ufunc__ = None

    def __getitem__(self, name: str) -> Array:
        try:
            array = self._arrays[name]
        except KeyError:
            raise SelectionKeyError(f"no array is named {name!r}\n{near(str(name), self._arrays)}") from None
        found: Array = array.unpack() if self._packed else array
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def _find_spans(self) -> tuple[Array, Array] | None:
        """Return where the arrays begin and end in memory, which never changes; None where one isn't contiguous."""
        if self._spans is None and not self._packed and all(array.flags.forc for array in self._arrays.values()):
            self._spans = find_spans(self._arrays.values())
        return self._spans

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the arrays, here or in another process, is elsewhere.
        return {name: value for name, value in vars(self).items() if name != "_spans"}

    # Mapping's own views look each name up again.
    def values(self) -> ValuesView[Array]:
        return ValuesView(self) if self._packed else self._arrays.values()

    def items(self) -> ItemsView[str, Array]:
        return ItemsView(self) if self._packed else self._arrays.items()

    @property
    def axes(self) -> Mapping[str, Axes | None]:
        """Axis names by name, None where the layer is unknown."""
        return MappingProxyType(self._axes)

    @property
    def roles(self) -> Mapping[str, str]:
        """Roles by name."""
        return MappingProxyType(self._roles)

    @property
    def gates(self) -> Mapping[str, tuple[str, ...] | None]:
        """Order of packed gates by name, None where nothing is packed."""
        return MappingProxyType(self._gates)

    def select(self, where: Any) -> Params:
        """Return the Params that ``where`` selects, sharing the arrays.

        Example:
            >>> import numpy as np, xweights as xw
            >>> list(xw.Params({"a/kernel": np.ones(1), "a/bias": np.ones(1)}).select("*/bias"))
            ['a/bias']
        """
        chosen = {name for p in select(mapping_parameters(self), where) for name in (p.name, *p.aliases)}
        return self._subset([name for name in self if name in chosen])

    def copy(self) -> Params:
        """Return Params with arrays of their own.

        Example:
            >>> import numpy as np, xweights as xw
            >>> a = xw.Params({"w": np.ones(1)}); a.copy()["w"] is a["w"]
            False
        """
        return self._map(lambda array: array.copy(order="K"))

    def pack_bits(self) -> Params:
        """Return bool arrays kept as bits, which takes an eighth of the memory: masks that are kept for long.

        They are masks like others, for ``mask``, ``hold``, ``save``, ``equal``: each array is unpacked when it is asked
        for, and read-only. ``copy()`` has bools again, which may be edited.

        Raises DtypeError for an array that isn't bool.

        Example:
            >>> import numpy as np, xweights as xw
            >>> masks = xw.prune({"d/kernel": np.arange(4.0)}, fraction=0.5).pack_bits(); masks["d/kernel"]
            array([False, False,  True,  True])
        """
        problems = Problems("only masks can be kept as bits")
        for name, array in self._arrays.items():
            if array.dtype.kind != "b":
                problems.add(
                    DtypeError, f"{name!r} is {array.dtype.name}", fix="use .select(...) for those that are bool"
                )
        problems.check()
        packed = self._subset(list(self._arrays))
        packed._packed = True
        packed._arrays = {
            name: array if isinstance(array, PackedMask) else PackedMask(array)
            for name, array in packed._arrays.items()
        }
        return packed

    def _subset(self, names: list[str]) -> Params:
        subset = Params._made(
            {name: self._arrays[name] for name in names},
            {name: self._axes[name] for name in names},
            {name: self._roles[name] for name in names},
            {name: self._gates[name] for name in names},
            self.layout,
        )
        subset._packed = self._packed
        return subset

    def _map(self, function: Callable[[Array], Array]) -> Params:
        result = self._subset(list(self._arrays))
        result._arrays = {name: np.asarray(function(array)) for name, array in self._arrays.items()}
        result._packed = False
        return result

    def _check_dtypes(self, function: Any, sign: str) -> None:
        problems = Problems(f"Params {sign} keeps the dtype, and can't here")
        for name, array in self._arrays.items():
            if array.dtype.kind == "b" or (array.dtype.kind in "iu" and function is np.divide):
                problems.add(DtypeError, f"{name!r} is {array.dtype.name}", fix="use .select(...), or cast first")
        problems.check()

    def _combine(self, other: Any, function: Callable[..., Array], sign: str, *, swapped: bool = False) -> Params:
        self._check_dtypes(function, sign)
        if isinstance(other, (int, float, complex, np.number)):
            arrays = {}
            for name, array in self._arrays.items():
                number = as_number(other, array.dtype, what=f"the number beside {name!r}")
                arrays[name] = np.asarray(function(number, array) if swapped else function(array, number))
        elif isinstance(other, Mapping):
            operand = other if isinstance(other, Params) else Params(other)
            self._check_operand(operand, sign)
            arrays = {name: np.asarray(function(array, operand._arrays[name])) for name, array in self._arrays.items()}
        else:
            return NotImplemented  # type: ignore[no-any-return]
        result = self._subset(list(self._arrays))
        result._arrays = arrays
        return result

    def _check_operand(self, other: Params, sign: str) -> None:
        problems = Problems(f"Params {sign} Params needs equal names, shapes, dtypes and axes")
        for name in [*self, *(name for name in other if name not in self)]:
            if name not in self or name not in other:
                side = "left" if name in self else "right"
                problems.add(SelectionError, f"{name!r} is only on the {side}", fix="use .select(...) on both sides")
                continue
            left, right = self._arrays[name], other._arrays[name]
            if left.shape != right.shape:
                problems.add(ShapeError, f"{name!r}: {left.shape} {sign} {right.shape}")
            if left.dtype != right.dtype:
                problems.add(DtypeError, f"{name!r}: {left.dtype} {sign} {right.dtype}", fix="cast one side first")
            left_axes, right_axes = self._axes[name], other._axes[name]
            if left_axes is not None and right_axes is not None and left_axes != right_axes:
                problems.add(LayoutError, f"{name!r}: axes {left_axes} {sign} {right_axes}")
            if self._gates[name] != other._gates[name] and None not in (self._gates[name], other._gates[name]):
                problems.add(LayoutError, f"{name!r}: gates {self._gates[name]} {sign} {other._gates[name]}")
        if self.layout != other.layout:
            problems.add(LayoutError, f"the left is in {self.layout} order, the right in {other.layout} order")
        problems.check()

    def __add__(self, other: Any) -> Params:
        return self._combine(other, np.add, "+")

    def __radd__(self, other: Any) -> Params:
        return self._combine(other, np.add, "+", swapped=True)

    def __sub__(self, other: Any) -> Params:
        return self._combine(other, np.subtract, "-")

    def __rsub__(self, other: Any) -> Params:
        return self._combine(other, np.subtract, "-", swapped=True)

    def __mul__(self, other: Any) -> Params:
        return self._combine(other, np.multiply, "*")

    def __rmul__(self, other: Any) -> Params:
        return self._combine(other, np.multiply, "*", swapped=True)

    def __truediv__(self, other: Any) -> Params:
        return self._combine(other, np.divide, "/")

    def __neg__(self) -> Params:
        self._check_dtypes(np.negative, "-")
        return self._map(np.negative)

    def __repr__(self) -> str:
        entries = sum(array.size for array in self._arrays.values())
        count = len(self)
        order = "" if self.layout == "neutral" else f", in {self.layout} order"
        lines = [f"Params of {count} array{'s' * (count != 1)}, {entries:,} entries{order}"]
        width = max((len(name) for name in self), default=0)
        for name in list(self)[:12]:
            array, axes = self._arrays[name], self._axes[name]
            named = f"({', '.join(axes)}) = " if axes is not None else ""
            lines.append(f"  {name:<{width}}  {named}({', '.join(map(str, array.shape))})  {array.dtype.name}")
        if count > 12:
            lines.append(f"  ... and {count - 12} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from xweights.core.tables import render_html

        head = ["name", "role", "axes", "shape", "dtype", "entries"]
        rows = []
        for name, array in self._arrays.items():
            axes = self._axes[name]
            shape = ", ".join(map(str, array.shape))
            axes_text = "?" if axes is None else ", ".join(axes)
            rows.append([name, self._roles[name], axes_text, shape, array.dtype.name, f"{array.size:,}"])
        return render_html(head, rows, title=repr(self).partition("\n")[0])


class SelectionKeyError(SelectionError, KeyError):
    """A missing key of Params: a SelectionError that code written for dicts catches as KeyError."""

    def __str__(self) -> str:
        return str(self.args[0])
