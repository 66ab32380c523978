"""Bring values to the shape of the parameters that they are for: what ``adapt=`` says, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Axes, Layout, LayoutName, Shape, plain_layout, reorder
from xweights.core.names import glob_matcher
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.selection import Where, select
from xweights.core.values import host_array
from xweights.edit import adapt
from xweights.edit.adapt.base import Adapter, Leave, Wanted, apply_adapter
from xweights.edit.adapt.suggest import suggest
from xweights.edit.pairing import Pair
from xweights.errors import (
    ArgumentError,
    DtypeError,
    LayoutError,
    Problems,
    SelectionError,
    ShapeError,
    WriteError,
    XweightsError,
    got_expected,
)

# The package is public as `xweights.adapt`; this module loads both.
__all__ = ["adapt"]

# Number of adapters that an error suggests.
_SUGGESTED = 6
# What users pass: adapters by name or glob of the target.
Adapt = Mapping[Any, Any]


class Adapting(NamedTuple):
    """The adapters of one parameter, and the key of ``adapt=`` that they stand under."""

    key: Any
    steps: tuple[Adapter, ...]

    @property
    def leaves(self) -> bool:
        """True if the target keeps what it has."""
        return isinstance(self.steps[0], Leave)


def read_adapters(
    adapters: Adapt | None, parameters: Sequence[Parameter], problems: Problems
) -> dict[Hashable, Adapting]:
    """Return the adapters of each parameter by its identity; add what matches nothing, or two keys, to ``problems``."""
    found: dict[Hashable, Adapting] = {}
    if adapters is None:
        return found
    if not isinstance(adapters, Mapping):
        raise ArgumentError(
            f"adapt= is a mapping of names or globs to adapters\ngot: {adapters!r}\n"
            'Fix: adapt={"stem/kernel": xweights.adapt.Sum("in")}'
        )
    for key, value in adapters.items():
        try:
            if not isinstance(key, (str, Where)):
                raise ArgumentError(f"the keys of adapt= are names or globs of the target\ngot: {key!r}")
            adapting = Adapting(key, _read_steps(key, value))
            matched = select(parameters, key)
        except XweightsError as wrong:
            problems.add(type(wrong), _explain_key(key, str(wrong)))
            continue
        for p in matched:
            first = found.setdefault(p.identity(), adapting)
            if first.key is not key and first.steps != adapting.steps:
                problems.add(
                    ArgumentError,
                    f"two keys of adapt= match {p.name!r}: {first.key!r} and {key!r}",
                    fix="globs that don't overlap, or a list of adapters under one key",
                )
    return found


def _explain_key(key: Any, text: str) -> str:
    """Return what is wrong with a key of ``adapt=``, said of ``where=``."""
    first, *rest = text.splitlines()
    if not first.startswith("where="):
        return text
    return "\n".join([f"adapt= has a key that selects nothing: {key!r}", *(line.lstrip(" -") for line in rest)])


def _read_steps(key: Any, value: Any) -> tuple[Adapter, ...]:
    steps = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for step in steps:
        if isinstance(step, type) and issubclass(step, Adapter):
            raise ArgumentError(f"adapt= needs an adapter for {key!r}\ngot: the class {step.__name__}, not yet made")
        if not isinstance(step, Adapter):
            raise ArgumentError(f"adapt= needs an adapter for {key!r}, such as xweights.adapt.Sum('in')\ngot: {step!r}")
    if not steps or (len(steps) > 1 and any(isinstance(step, Leave) for step in steps)):
        raise ArgumentError(f"adapt= needs an adapter for {key!r}, or several without Leave()\ngot: {value!r}")
    return steps


@dataclass(frozen=True, eq=False)
class AdaptedValue:
    """A value, and the adapters that bring it to the shape of a parameter; nothing has been read yet.

    Attributes:
        read: Returns the value in the order that ``layout`` is for.
        layout: From the value's order to the neutral one.
        steps: The adapters, in their order.
        wanted: What the last of them reaches.
        shape: The shape of the result, in neutral order.
        how: What is done, for the report.
    """

    read: Callable[[], Array]
    layout: Layout
    steps: tuple[Adapter, ...]
    wanted: Wanted
    shape: Shape
    how: str

    @property
    def before(self) -> Shape:
        """The shape of the value, in neutral order."""
        return _lined_up(self.layout, self.wanted.axes)[0]

    def compute(self) -> Array:
        """Return the adapted value, in neutral order."""
        array = self.layout.to_neutral(self.read())
        axes = self.layout.axes
        if axes is not None and self.wanted.axes is not None and axes != self.wanted.axes:
            array = reorder(array, axes, self.wanted.axes)
        array = _without_lead(array, self.wanted)
        for step in self.steps:
            array = apply_adapter(step, array, self.wanted)
        lead = (1,) * (len(self.shape) - array.ndim)
        result = array.reshape(lead + array.shape) if lead else array
        # An adapter from outside may not do what its check has said.
        if result.shape != self.shape:
            raise ShapeError(f"{self.how} of {self.wanted.name!r}\n{got_expected(result.shape, self.shape)}")
        if result.dtype != self.wanted.dtype:
            what = f"{self.how} of {self.wanted.name!r}"
            raise DtypeError(f"{what}\n{got_expected(result.dtype.name, self.wanted.dtype.name)}")
        return result


def adapted_value(
    read: Callable[[], Array], layout: Layout, dtype: np.dtype[Any], p: Parameter, steps: tuple[Adapter, ...]
) -> AdaptedValue:
    """Return how a value becomes one of the parameter's shape; raise what can't be done. Nothing is read."""
    wanted = Wanted(p.name, p.axes, p.shape, dtype, p.role, lambda: np.array(p.layout.to_neutral(p.read())))
    return _plan(read, layout, wanted, steps)


def adapted_alone(p: Parameter, steps: tuple[Adapter, ...]) -> AdaptedValue:
    """Return how the value of a parameter is adapted where no target says the shape to reach. Nothing is read."""
    return _plan(p.read, p.layout, Wanted(p.name, p.axes, None, p.dtype, p.role), steps)


def _plan(read: Callable[[], Array], layout: Layout, wanted: Wanted, steps: tuple[Adapter, ...]) -> AdaptedValue:
    before, axes = _lined_up(layout, wanted.axes)
    wanted = replace(wanted, axes=axes)
    shape = _without_lead(np.broadcast_to(np.int8(0), before), wanted).shape
    shown = []
    for step in steps:
        shown.append(step.describe(shape, wanted))
        shape = step.check(shape, wanted)
    if wanted.shape is not None and len(wanted.shape) > len(shape):
        shape = (1,) * (len(wanted.shape) - len(shape)) + shape
    if wanted.shape is not None and shape != wanted.shape:
        named = "" if wanted.axes is None else f" ({', '.join(wanted.axes)})"
        raise ShapeError(
            f"{', '.join(map(repr, steps))} makes another shape of {wanted.name!r}{named} {before}\n"
            f"{got_expected(shape, wanted.shape)}"
        )
    return AdaptedValue(read, layout, steps, wanted, shape, ", ".join(shown))


def _lined_up(layout: Layout, axes: Axes | None) -> tuple[Shape, Axes | None]:
    """Return the neutral shape of a value in the order of its parameter's axes, and the names of these."""
    if layout.axes is None or axes is None or layout.axes == axes:
        return layout.shape, layout.axes if axes is None else axes
    return reorder(np.broadcast_to(np.int8(0), layout.shape), layout.axes, axes, what="the value").shape, axes


def _without_lead(array: Array, wanted: Wanted) -> Array:
    """Return an array without leading axes of length 1 that its parameter doesn't have, as of a batch."""
    if wanted.shape is None:
        return array
    more = array.ndim - len(wanted.shape)
    return array.reshape(array.shape[more:]) if more > 0 and set(array.shape[:more]) == {1} else array


def layout_of_shape(p: Parameter, shape: Shape) -> Layout:
    """Return the layout of a value of another shape that is stored as a parameter is stored.

    Raises LayoutError where a stored axis packs several, and the shape doesn't tell their lengths.
    """
    own = p.layout
    if shape == own.stored:
        return own
    if len(shape) != len(own.stored):
        # A batch of length 1 in front: nothing else is told by the shape.
        lead = len(shape) - len(own.stored)
        if lead > 0 and set(shape[:lead]) == {1} and own.is_identity:
            return plain_layout(shape)
        raise ShapeError(f"{p.name!r} (native order)\n{got_expected(shape, own.stored)}")
    # Stored axes of length 1 may have been dropped, or not: a shape that reads in two ways is refused.
    splits = {_split_like(own, groups, shape) for groups in _list_groups(own)} - {None}
    if len(splits) != 1:
        raise LayoutError(
            f"{p.name!r} packs or drops stored axes, and a value of {shape} doesn't tell how long each neutral one is\n"
            "Fix: pass it in neutral order, or as Params(..., axes={...})"
        )
    return Layout(shape, splits.pop() or (), own.order, own.axes, own.outputs)


def layout_of_neutral(p: Parameter, shape: Shape) -> Layout:
    """Return the layout of a value of another neutral shape that is to be stored as a parameter is stored."""
    own = p.layout
    if shape == own.shape:
        return own
    if len(shape) != len(own.shape):
        if own.is_identity:
            return plain_layout(shape)
        raise ShapeError(f"{p.name!r} can't be stored with another number of axes\n{got_expected(shape, own.shape)}")
    split = tuple(shape[position] for position in own.inverse)
    stored = {tuple(math.prod(split[i] for i in group) for group in groups) for groups in _list_groups(own)}
    if len(stored) != 1:
        raise LayoutError(f"{p.name!r} packs or drops stored axes, and {shape} can be stored in {len(stored)} ways")
    return Layout(stored.pop(), split, own.order, own.axes, own.outputs)


Groups = tuple[tuple[int, ...], ...]


def _list_groups(layout: Layout) -> list[Groups]:
    """Return every way in which stored axes can pack the axes of ``split``: one of length 1 may pack none."""
    if layout.split == layout.stored:
        return [tuple((position,) for position in range(len(layout.split)))]

    def group(stored: int, start: int) -> list[Groups]:
        if stored == len(layout.stored):
            return [()] if start == len(layout.split) else []
        return [
            (tuple(range(start, end)), *rest)
            for end in range(start, len(layout.split) + 1)
            if math.prod(layout.split[start:end]) == layout.stored[stored]
            for rest in group(stored + 1, end)
        ]

    return group(0, 0)


def _split_like(layout: Layout, groups: Groups, shape: Shape) -> Shape | None:
    """Return the lengths of the neutral axes that a stored shape packs in these groups; None where it can't be told."""
    split = list(layout.split)
    for group, before, after in zip(groups, layout.stored, shape, strict=True):
        if before == after:
            continue
        # Of several parts, the one that isn't of length 1 has changed; of two such parts nothing tells which.
        long = group if len(group) == 1 else [position for position in group if layout.split[position] != 1]
        if len(long) != 1:
            return None
        split[long[0]] = after
    return tuple(split)


class _Value(NamedTuple):
    """A value as it was passed: how to read it, and in which order it is."""

    read: Callable[[], Array]
    layout: Layout
    dtype: np.dtype[Any]


def adapted_pair(pair: Pair, p: Parameter, order: LayoutName | None, values: Any, adapting: Adapting) -> AdaptedValue:
    """Return how the value of a pair becomes one of the parameter's shape; raise what can't be done."""
    value = _open_value(pair, p, order, values)
    return adapted_value(value.read, value.layout, value.dtype, p, adapting.steps)


def suggest_adapters(
    misfits: Sequence[tuple[Pair, Parameter]], chosen: Sequence[Parameter], order: LayoutName | None, values: Any
) -> str:
    """Return the line of an error that suggests adapters for values; empty where none clearly fits.

    Parameters of one kind, as the tables of all blocks of a model, share a glob if it selects no others.
    """
    names_of: dict[str, list[str]] = {}
    for pair, p in misfits:
        found = _suggest_adapter(pair, p, order, values)
        if found is not None:
            names_of.setdefault(repr(found), []).append(p.name)
    entries = []
    for shown, names in names_of.items():
        glob = f"*/{names[0].rsplit('/', 1)[-1]}"
        selected = {p.name for p in chosen if glob_matcher(glob)(p.name)}
        keys = [glob] if len(names) > 1 and selected == set(names) else names
        entries += [f"{key!r}: xweights.adapt.{shown}" for key in keys]
    more = ", ..." if len(entries) > _SUGGESTED else ""
    return f"\nFix: adapt={{{', '.join(entries[:_SUGGESTED])}{more}}}" if entries else ""


def _suggest_adapter(pair: Pair, p: Parameter, order: LayoutName | None, values: Any) -> Adapter | None:
    try:
        value = _open_value(pair, p, order, values)
        before, axes = _lined_up(value.layout, p.axes)
        wanted = Wanted(p.name, axes, p.shape, value.dtype, p.role)
        found = suggest(before, wanted)
        return None if found is None or found.check(before, wanted) != p.shape else found
    except XweightsError:
        return None


def refuse_unused(adapters: Mapping[Hashable, Adapting], pairs: Sequence[Pair], problems: Problems) -> None:
    """Refuse adapters of parameters that get no value."""
    found = {(pair.of or pair.parameter).identity() for pair in pairs}
    used = [adapting.key for identity, adapting in adapters.items() if identity in found or adapting.leaves]
    for key in dict.fromkeys(adapting.key for adapting in adapters.values()):
        if key not in used:
            problems.add(SelectionError, f"adapt= has {key!r}, and there is no value for what it matches")


def _open_value(pair: Pair, p: Parameter, order: LayoutName | None, values: Any) -> _Value:
    if pair.combine is not None:
        raise LayoutError(
            f"{p.name!r} is computed from {', '.join(map(repr, pair.keys))}, and only single arrays are adapted\n"
            "Fix: read the model that they belong to, and pass get_params(model)"
        )
    value, key = pair.values[0], pair.keys[0] if pair.keys else p.name
    if order is None and not p.layout.is_identity and _has_own_order(pair):
        raise LayoutError(
            f"{key!r} has no axis names, and {p.name!r} isn't stored in neutral order\n"
            'Fix: layout="native" for a file or values of the framework\'s own, layout="neutral" for Keras\' order'
        )
    if isinstance(value, Parameter):
        check_gates(value.gates, p)
        is_native = value.axes is None and order == "native"
        return _Value(value.read, layout_of_shape(p, value.layout.stored) if is_native else value.layout, value.dtype)
    array = host_array(value, what=repr(p.name), dtype=p.dtype)
    axes = None
    if isinstance(values, Params):
        axes = values.axes.get(key)
        check_gates(values.gates.get(key), p)
    layout = layout_of_shape(p, array.shape) if order == "native" and axes is None else plain_layout(array.shape, axes)
    return _Value(lambda: array, layout, array.dtype)


def _has_own_order(pair: Pair) -> bool:
    """Return whether nothing but ``layout=`` can tell the order of a value."""
    value = pair.values[0]
    return value.axes is None if isinstance(value, Parameter) else pair.native


def check_gates(gates: tuple[str, ...] | None, p: Parameter) -> None:
    """Raise LayoutError if a value packs its gates in another order than its parameter."""
    if gates is not None and p.gates is not None and gates != p.gates:
        raise LayoutError(
            f"{p.name!r} packs its gates in another order\n{got_expected(', '.join(gates), ', '.join(p.gates))}\n"
            "Fix: port the model: port has the recipes of both layers"
        )


class _Storage(NumpyStorage):
    """Storage of values that are adapted at each read."""

    fresh = True

    def identity(self, handle: Any) -> Hashable:
        return id(handle)

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        return "it is adapted from another value" if writing else None

    def read(self, handle: Any) -> Array:
        computed: Array = handle.compute()
        return computed

    def write(self, handle: Any, value: Array) -> None:
        raise WriteError("it is adapted from another value")

    def trainable(self, handle: Any) -> bool:
        return True


_STORAGE = _Storage()


def adapted_parameter(value: Parameter, adapted: AdaptedValue, layout: Layout) -> Parameter:
    """Return a parameter like ``value`` that reads as the adapted one, in neutral order."""
    return value.replace(storage=_STORAGE, handle=adapted, layout=layout)
